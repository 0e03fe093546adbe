package pgproxy

import (
	"testing"

	"github.com/pgbough/pgbough/internal/pgtest"
)

// TestProxy runs what needs a Postgres that nobody stops.
func TestProxy(t *testing.T) {
	server := pgtest.Start(t, pgtest.Options{Conf: map[string]string{"wal_level": "logical", "max_connections": "60"}})
	for _, test := range []struct {
		name string
		run  func(*testing.T, *pgtest.Server)
	}{
		{"Simple", testSimple},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, server) })
	}
}

func testSimple(t *testing.T, server *pgtest.Server) {
	r := newRig(t, server, nil)
	conn := r.connect(t, "")
	if got := value[int](t, conn, "SELECT 42"); got != 42 {
		t.Errorf("got %d", got)
	}
}
