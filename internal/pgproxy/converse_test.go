package pgproxy

import (
	"context"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/credential"
)

// void is a world with one branch that nobody can log in to.
type void struct{ t testing.TB }

func (v void) Login(_ context.Context, _, role string) (pgbough.Login, error) {
	return pgbough.Login{BranchID: branchID, Role: role, Major: 18}, nil
}

func (v void) Connect(context.Context, string) (net.Conn, error) {
	v.t.Error("somebody who has proved nothing had a Postgres started")
	return nil, io.EOF
}

// converse says something to a proxy and hears it to its end.
func converse(t testing.TB, said []byte) {
	key, err := credential.EnsureKey(filepath.Join(t.TempDir(), "secret.key"))
	must(t, err)
	decoys, err := key.Decoys()
	must(t, err)
	p := New(Options{Service: void{t}, Decoys: decoys, Log: slog.New(slog.DiscardHandler), Plain: PlainAlways, Startup: time.Second, Login: time.Second})
	ours, theirs := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.serve(context.Background(), ours, nil)
	}()
	heard := make(chan struct{})
	go func() {
		defer close(heard)
		_, _ = io.Copy(io.Discard, theirs) // so that the proxy can always answer
	}()
	_, _ = theirs.Write(said) // it may end before it has heard all
	_ = theirs.Close()
	<-done
	<-heard
}
