package schema_test

import (
	"context"
	"net"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/pgtest"
	"github.com/pgbough/pgbough/internal/schema"
)

// TestReplayIsInTheWay reads a server whose first sessions end as those of a
// standby do that are in the way of what it replays; then one that ends them all.
func TestReplayIsInTheWay(t *testing.T) {
	p := pgtest.Start(t, pgtest.Options{})
	p.Exec(t, "postgres", "CREATE TABLE there ()")
	for name, ends := range map[string]int64{"at first": 5, "always": 1 << 62} {
		t.Run(name, func(t *testing.T) {
			var dials atomic.Int64
			db, err := schema.Load(t.Context(), func(ctx context.Context) (net.Conn, error) {
				if dials.Add(1) <= ends {
					return ended(t), nil
				}
				return new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(p.Port)))
			}, "postgres", "postgres")
			if name == "always" {
				if pgbough.ErrorCode(err) != pgbough.ELocked {
					t.Errorf("it is told %v", err)
				}
				return
			}
			if err != nil || db.Name != "postgres" || dials.Load() != ends+1 {
				t.Errorf("after %d connections: %v", dials.Load(), err)
			}
		})
	}
}

// ended is a connection to a server that ends each session with a conflict.
func ended(t *testing.T) net.Conn {
	client, server := net.Pipe()
	done := make(chan struct{})
	t.Cleanup(func() { <-done })
	go func() {
		defer close(done)
		defer func() { _ = server.Close() }()
		b := pgproto3.NewBackend(server, server)
		if _, err := b.ReceiveStartupMessage(); err != nil {
			t.Error(err)
		}
		b.Send(&pgproto3.ErrorResponse{Severity: "FATAL", Code: "40001", Message: "terminating connection due to conflict with recovery"})
		_ = b.Flush() // the client may have seen enough
	}()
	return client
}
