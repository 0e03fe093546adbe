package front_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/credential"
	"github.com/pgbough/pgbough/internal/front"
	"github.com/pgbough/pgbough/internal/pgtest"
)

const (
	branchID = "br-small-oak-87654321"
	password = "a password"
	goodKey  = "pgbough_good"
	unused   = 64999 // as uid and gid
)

// TestMain is also the program that a Host starts.
func TestMain(m *testing.M) {
	if len(os.Args) == 5 && os.Args[1] == "front" {
		uid, _ := strconv.Atoi(os.Args[3])
		gid, _ := strconv.Atoi(os.Args[4])
		if err := front.Run(context.Background(), front.User{UID: uid, GID: gid}, os.Stderr); err != nil {
			fmt.Fprintln(os.Stderr, "front:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// world is a Service with one branch, a real Postgres.
type world struct {
	server   *pgtest.Server
	verifier string
	failure  atomic.Pointer[pgbough.Error] // of Connect
	sick     atomic.Bool
}

func (w *world) Login(_ context.Context, branch, role string) (pgbough.Login, error) {
	if branch != "fix" {
		return pgbough.Login{}, pgbough.Errorf(pgbough.ENotFound, "there is no branch %q", branch)
	}
	l := pgbough.Login{BranchID: branchID, Role: role, Major: w.server.Install.Major}
	if role == "app" {
		l.Verifier = w.verifier
	}
	return l, nil
}

func (w *world) Connect(ctx context.Context, id string) (net.Conn, error) {
	if id != branchID {
		return nil, pgbough.Errorf(pgbough.ENotFound, "there is no branch %s", id)
	}
	if err := w.failure.Load(); err != nil {
		return nil, err
	}
	return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(w.server.Sockets, fmt.Sprintf(".s.PGSQL.%d", w.server.Port)))
}

func (w *world) Healthy(context.Context) error {
	if w.sick.Load() {
		return errors.New("sick")
	}
	return nil
}

func (w *world) Authenticate(_ context.Context, shown string) (pgbough.APIKey, bool, error) {
	return pgbough.APIKey{Name: "good"}, shown == goodKey, nil
}

// rig is a Host with a front that serves.
type rig struct {
	*front.Host
	world      *world
	api, proxy string
	ca         []byte
	log        *lockedBuffer
	stop       func()
}

func newRig(t *testing.T, api http.Handler, change ...func(*front.Options)) *rig {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" || os.Getenv("PGBOUGH_MUST") != "" {
			t.Fatal("this test needs root")
		}
		t.Skip("needs root: the front gives it up")
	}
	server := pgtest.Start(t, pgtest.Options{Conf: map[string]string{"max_connections": "250"}})
	w := &world{server: server}
	var err error
	w.verifier, err = credential.NewSCRAM(password, credential.SCRAMIterations)
	must(t, err)
	server.Exec(t, "postgres", "CREATE ROLE app LOGIN")
	r := &rig{world: w, log: &lockedBuffer{}}
	o := r.options(t)
	o.Service, o.API, o.User = w, api, front.User{UID: unused, GID: unused}
	for _, c := range change {
		c(&o)
	}
	before, fds := runtime.NumGoroutine(), openFiles(t, os.Getpid())-2 // the listeners
	r.Host = front.New(o)
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- r.Run(ctx, func() { close(ready) }) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			must(t, err)
		case <-time.After(40 * time.Second):
			buf := make([]byte, 1<<20)
			t.Fatalf("it does not end\n%s", buf[:runtime.Stack(buf, true)])
		}
	})
	t.Cleanup(func() {
		r.stop()
		eventually(t, "all is given back", func() bool { return runtime.NumGoroutine() <= before && openFiles(t, os.Getpid()) <= fds })
		if t.Failed() {
			t.Logf("log:\n%s", r.log)
		}
	})
	select {
	case <-ready:
	case err := <-done:
		done <- err
		t.Fatalf("it does not begin: %v\n%s", err, r.log)
	}
	return r
}

func (r *rig) options(t *testing.T) front.Options {
	t.Helper()
	dir := t.TempDir()
	ca, err := credential.EnsureCA(filepath.Join(dir, "ca.pem"))
	must(t, err)
	r.ca = ca.PEM()
	key, err := credential.EnsureKey(filepath.Join(dir, "secret.key"))
	must(t, err)
	o := front.Options{Stderr: r.log, Log: slog.New(slog.NewTextHandler(r.log, nil)), Command: []string{"front", "test"}, Debug: true}
	o.Decoys, err = key.Decoys()
	must(t, err)
	o.Certificates, err = credential.OwnCertificates(ca, o.Log, "localhost", "127.0.0.1")
	must(t, err)
	o.APIListener, r.api = listen(t)
	o.ProxyListener, r.proxy = listen(t)
	return o
}

func listen(t *testing.T) (*net.TCPListener, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	return l.(*net.TCPListener), l.Addr().String()
}

// pid is the front's, which is a child of this process.
func (r *rig) pid(t *testing.T) int {
	t.Helper()
	var found int
	eventually(t, "there is a front", func() bool {
		all, err := filepath.Glob("/proc/self/task/*/children")
		must(t, err)
		for _, name := range all {
			b, _ := os.ReadFile(name)
			for _, child := range strings.Fields(string(b)) {
				comm, _ := os.ReadFile("/proc/" + child + "/comm")
				if string(comm) == "pgbough-front\n" {
					found, err = strconv.Atoi(child)
					must(t, err)
				}
			}
		}
		return found != 0
	})
	return found
}

func (r *rig) config(t *testing.T, extra string) *pgx.ConnConfig {
	t.Helper()
	host, port, err := net.SplitHostPort(r.proxy)
	must(t, err)
	c, err := pgx.ParseConfig(fmt.Sprintf("host=%s port=%s user=app password='%s' dbname=postgres@fix sslmode=disable %s", host, port, password, extra))
	must(t, err)
	return c
}

func (r *rig) try(t *testing.T, extra string) (*pgx.Conn, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	return pgx.ConnectConfig(ctx, r.config(t, extra))
}

func (r *rig) connect(t *testing.T) *pgx.Conn {
	t.Helper()
	conn, err := r.try(t, "")
	must(t, err)
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// answer is the API's.
type answer struct {
	status int
	header http.Header
	text   string
}

// request asks the API.
func (r *rig) request(t *testing.T, method, scheme, path, key string, body io.Reader) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, scheme+"://"+r.api+path, body)
	must(t, err)
	if key != "" {
		req.Header.Set("Authorization", "Bearer "+key)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(r.ca)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	res, err := transport.RoundTrip(req)
	must(t, err)
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	must(t, err)
	return answer{res.StatusCode, res.Header, string(b)}
}

// wants fails unless err is a server's error with a code and a part of its text.
func wants(t *testing.T, err error, code, text string) {
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

func openFiles(t testing.TB, pid int) int {
	all, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	must(t, err)
	return len(all)
}

func eventually(t testing.TB, what string, so func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(20 * time.Second)
	for !so() {
		select {
		case <-tick.C:
		case <-limit:
			buf := make([]byte, 1<<20)
			t.Fatalf("not in 20 s: %s\n%s", what, buf[:runtime.Stack(buf, true)])
		}
	}
}

// lockedBuffer is a log that can be read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
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
