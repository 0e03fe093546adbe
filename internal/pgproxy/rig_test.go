package pgproxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/credential"
	"github.com/pgbough/pgbough/internal/pgtest"
)

const (
	endpoint = "ep-small-oak-12345678"
	branchID = "br-small-oak-87654321"
	password = "a pass'word"
	domain   = "db.example.com"
)

// world is a Service: branches are real Postgres servers.
type world struct {
	mu       sync.Mutex
	servers  map[string]*pgtest.Server // by any name
	ids      map[string]string         // by any name
	expires  map[string]time.Time      // of roles
	making   chan struct{}             // not nil: a Login waits until it is closed
	refusal  error                     // of Login
	failure  error                     // of Connect
	starting chan struct{}             // not nil: Connect waits until it is closed
	connects atomic.Int64
	cached   map[string]pgbough.Login // not nil: what a role has to prove is asked once
}

func (w *world) Login(ctx context.Context, branch, role string) (pgbough.Login, error) {
	w.mu.Lock()
	s, id, making, expires, refusal := w.servers[branch], w.ids[branch], w.making, w.expires[role], w.refusal
	known, ok := w.cached[role]
	w.mu.Unlock()
	if ok {
		return known, nil
	}
	if making != nil {
		select {
		case <-making:
		case <-ctx.Done():
			return pgbough.Login{}, ctx.Err()
		}
	}
	if refusal != nil {
		return pgbough.Login{}, refusal
	}
	if s == nil {
		return pgbough.Login{}, pgbough.Errorf(pgbough.ENotFound, "there is no branch %q", branch)
	}
	login := pgbough.Login{BranchID: id, Role: role, Major: s.Install.Major, ValidUntil: expires}
	conn, err := pgx.Connect(ctx, s.ConnString("postgres", "postgres"))
	if err != nil {
		return login, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	var verifier *string
	err = conn.QueryRow(ctx, "SELECT rolpassword FROM pg_authid WHERE rolname = $1", role).Scan(&verifier)
	if verifier != nil {
		login.Verifier = *verifier
	}
	if errors.Is(err, pgx.ErrNoRows) {
		err = nil
	}
	return login, err
}

func (w *world) Connect(ctx context.Context, id string) (net.Conn, error) {
	w.connects.Add(1)
	w.mu.Lock()
	s, failure, starting := w.servers[id], w.failure, w.starting
	w.mu.Unlock()
	if starting != nil {
		select {
		case <-starting:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if failure != nil {
		return nil, failure
	}
	if s == nil {
		return nil, pgbough.Errorf(pgbough.ENotFound, "branch %s has been deleted", id)
	}
	return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(s.Sockets, fmt.Sprintf(".s.PGSQL.%d", s.Port)))
}

func (w *world) set(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
}

// rig is a proxy in front of real servers.
type rig struct {
	*Proxy
	world  *world
	server *pgtest.Server // the one behind branchID
	addr   *net.TCPAddr
	ca     string // a file
	log    *lockedBuffer
	stop   func() // shuts down and waits
}

func newRig(t testing.TB, server *pgtest.Server, change func(*Options)) *rig {
	t.Helper()
	prepare(t, server)
	w := &world{servers: map[string]*pgtest.Server{}, ids: map[string]string{}, expires: map[string]time.Time{}}
	for _, name := range []string{endpoint, branchID, "fix-login", "shop/fix-login"} {
		w.servers[name], w.ids[name] = server, branchID
	}
	dir := t.TempDir()
	ca, err := credential.EnsureCA(filepath.Join(dir, "ca.pem"))
	must(t, err)
	key, err := credential.EnsureKey(filepath.Join(dir, "secret.key"))
	must(t, err)
	decoys, err := key.Decoys()
	must(t, err)
	r := &rig{world: w, server: server, ca: filepath.Join(dir, "ca.crt"), log: &lockedBuffer{}}
	must(t, os.WriteFile(r.ca, ca.PEM(), 0o600))
	log := slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	certificates, err := credential.OwnCertificates(ca, log, "localhost", "127.0.0.1", "*."+domain)
	must(t, err)
	o := Options{Service: w, Decoys: decoys, Log: log, TLS: certificates}
	if change != nil {
		change(&o)
	}
	r.Proxy = New(o)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	r.addr = l.Addr().(*net.TCPAddr)
	before := runtime.NumGoroutine()
	fds := openFiles(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Serve(ctx, l) }()
	var once sync.Once
	r.stop = func() {
		once.Do(func() {
			cancel()
			select {
			case err := <-done:
				if err != nil {
					t.Errorf("Serve: %v", err)
				}
			case <-time.After(20 * time.Second):
				buf := make([]byte, 1<<20)
				t.Fatalf("Serve does not return:\n%s", buf[:runtime.Stack(buf, true)])
			}
		})
	}
	t.Cleanup(func() {
		r.stop()
		if s := r.Stats(); s.Open != 0 || len(r.branches) != 0 || len(r.cancels.sessions) != 0 {
			t.Errorf("left: %d connections, %d branches, %d keys", s.Open, len(r.branches), len(r.cancels.sessions))
		}
		eventually(t, "goroutines and files are given back", func() bool { return runtime.NumGoroutine() <= before && openFiles(t) <= fds-1 })
		for _, secret := range []string{password, "SCRAM-SHA-256$"} {
			if strings.Contains(r.log.String(), secret) {
				t.Errorf("a secret is in the log:\n%s", r.log.String())
			}
		}
		if t.Failed() {
			t.Logf("log of the proxy:\n%s", r.log.String())
		}
	})
	return r
}

func prepare(t testing.TB, server *pgtest.Server) {
	t.Helper()
	if server.Value(t, "postgres", "SELECT count(*) FROM pg_roles WHERE rolname = 'app'") == "1" {
		return
	}
	verifier, err := credential.NewSCRAM(password, credential.SCRAMIterations)
	must(t, err)
	old, err := credential.NewSCRAM("old", credential.SCRAMIterations)
	must(t, err)
	server.Exec(t, "postgres", fmt.Sprintf(`CREATE ROLE app LOGIN REPLICATION PASSWORD '%s'; GRANT pg_signal_backend TO app;
		CREATE ROLE nobody NOLOGIN PASSWORD '%s'; CREATE ROLE old LOGIN PASSWORD '%s'; CREATE ROLE nil LOGIN;
		SET password_encryption = md5; CREATE ROLE five LOGIN PASSWORD 'five';
		GRANT ALL ON SCHEMA public TO app`, verifier, verifier, old))
	server.Exec(t, "postgres", `CREATE DATABASE "at@home"`)
}

// uri is a connection string for pgx and libpq.
func (r *rig) uri(extra string) string {
	return fmt.Sprintf("host=127.0.0.1 port=%d user=app password='%s' dbname=postgres sslmode=disable options=endpoint=%s %s",
		r.addr.Port, strings.ReplaceAll(password, "'", `\'`), endpoint, extra)
}

func (r *rig) connect(t testing.TB, extra string) *pgx.Conn {
	t.Helper()
	conn, err := r.try(t, extra)
	must(t, err)
	return conn
}

func (r *rig) try(t testing.TB, extra string) (*pgx.Conn, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	config, err := pgx.ParseConfig(r.uri(extra))
	must(t, err)
	conn, err := pgx.ConnectConfig(ctx, config)
	if err == nil {
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			_ = conn.Close(ctx)
		})
	}
	return conn, err
}

func value[T any](t testing.TB, conn *pgx.Conn, sql string, args ...any) (v T) {
	t.Helper()
	must(t, conn.QueryRow(t.Context(), sql, args...).Scan(&v))
	return v
}

// wants fails unless err is a server's error with a code and a part of its text.
func wants(t testing.TB, err error, code, text string) {
	t.Helper()
	var e *pgconn.PgError
	if !errors.As(err, &e) || e.Code != code || !strings.Contains(e.Message+" "+e.Hint, text) {
		t.Errorf("got %v, want %s with %q", err, code, text)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits until it is so.
func eventually(t testing.TB, what string, so func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(15 * time.Second)
	for !so() {
		select {
		case <-tick.C:
		case <-limit:
			buf := make([]byte, 1<<20)
			t.Fatalf("not in 15 s: %s\n%s", what, buf[:runtime.Stack(buf, true)])
		}
	}
}

func openFiles(t testing.TB) int {
	all, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(all)
}

// lockedBuffer is a log that can be read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
