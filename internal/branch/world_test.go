package branch_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/branch"
	"github.com/pgbough/pgbough/internal/catalog"
	"github.com/pgbough/pgbough/internal/credential"
	"github.com/pgbough/pgbough/internal/pgtest"
	"github.com/pgbough/pgbough/internal/postgres"
	"github.com/pgbough/pgbough/internal/sandbox"
	"github.com/pgbough/pgbough/internal/volume/storage"
)

// world is a server without its edges, on a data directory of its own, with the
// project shop that follows a real production.
type world struct {
	*branch.Service
	dir      string
	options  branch.Options
	storage  *storage.Storage
	launcher *sandbox.Launcher
	catalog  *catalog.Catalog
	source   *pgtest.Server // production
}

func newWorld(t *testing.T, change func(*branch.Options)) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" || os.Getenv("PGBOUGH_MUST") != "" {
			t.Fatal("this test needs root")
		}
		t.Skip("needs root: it mounts a pool and starts sandboxes")
	}
	p := pgtest.Start(t, pgtest.Options{Conf: map[string]string{"fsync": "on"}})
	p.Exec(t, "postgres", "CREATE ROLE app LOGIN PASSWORD 'sekret-of-app'; CREATE TABLE orders AS SELECT generate_series(1, 1000) AS n; GRANT ALL ON orders TO app")
	dir, err := os.MkdirTemp("", "pgb")
	check(t, err)
	check(t, os.Chmod(dir, 0o711))
	check(t, os.Mkdir(filepath.Join(dir, "run"), 0o711))
	w := &world{dir: dir, source: p, options: branch.Options{
		Credential: postgres.Credential{UID: 64420, GID: 64420}, RunDir: filepath.Join(dir, "run"), Memory: branch.Memory{SharedBuffers: "32MB"},
		Spares: 1, Version: "test", Log: newTestLog(t),
	}}
	if change != nil {
		change(&w.options)
	}
	t.Cleanup(func() {
		w.close(t, true)
		check(t, os.RemoveAll(dir))
	})
	w.open(t)
	project, op, err := w.Attach(t.Context(), pgbough.AttachRequest{
		Name: "shop", Role: "app", Database: "postgres", SourceRequest: pgbough.SourceRequest{ConnString: p.ConnString("postgres", "postgres")},
	})
	check(t, err)
	w.finish(t, op)
	_ = project
	return w
}

func (w *world) open(t *testing.T) {
	t.Helper()
	ctx := context.Background()
	key, err := credential.EnsureKey(filepath.Join(w.dir, "secret.key"))
	check(t, err)
	w.catalog, err = catalog.Open(ctx, filepath.Join(w.dir, "catalog.db"), key)
	check(t, err)
	w.storage, err = storage.Open(ctx, storage.Config{
		DataDir: w.dir, Want: "auto", Size: 3 << 30, Sparse: true, CatalogID: w.catalog.ID(), UID: 64420, GID: 64420, Log: w.options.Log,
	})
	check(t, err)
	w.launcher, err = sandbox.New(sandbox.Options{Credential: w.options.Credential, Log: w.options.Log})
	check(t, err)
	o := w.options
	o.Catalog, o.Pool, o.Launcher, o.Archive = w.catalog, w.storage.Pool, w.launcher, filepath.Join(w.dir, "archive")
	w.Service, err = branch.Open(ctx, o)
	check(t, err)
}

// close ends the server; every Postgres goes on unless it is told to stop.
func (w *world) close(t *testing.T, stop bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if w.Service != nil {
		check(t, w.Close(ctx, stop))
	}
	check(t, w.launcher.Close())
	if stop {
		check(t, w.storage.Close(ctx))
	}
	check(t, w.catalog.Close())
}

// again is the next server on the same directory.
func (w *world) again(t *testing.T, stop bool) {
	t.Helper()
	w.close(t, stop)
	w.open(t)
}

func (w *world) finish(t *testing.T, op pgbough.Operation) {
	t.Helper()
	if op.ID == "" {
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	if op, err := w.WaitOperation(ctx, op.ID); err != nil || op.Status != pgbough.OperationFinished {
		t.Fatalf("%s is %s: %v", op.Kind, op.Status, err)
	}
}

func (w *world) create(t *testing.T, name string) pgbough.BranchView {
	t.Helper()
	c, err := w.CreateBranch(t.Context(), "shop", pgbough.CreateRequest{Name: name})
	check(t, err)
	w.finish(t, c.Operation)
	return w.get(t, name)
}

func (w *world) get(t *testing.T, name string) pgbough.BranchView {
	t.Helper()
	v, err := w.Branch(t.Context(), "shop", name)
	check(t, err)
	return v
}

func (w *world) suspend(t *testing.T, name string) {
	t.Helper()
	_, op, err := w.Suspend(t.Context(), "shop", name)
	check(t, err)
	w.finish(t, op)
	if got := w.get(t, name).Compute; got != pgbough.ComputeIdle {
		t.Fatalf("branch %s is %s after it was suspended", name, got)
	}
}

// client connects to a branch as the proxy does for a client that has logged in.
func (w *world) client(ctx context.Context, branchID, role string) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig("sslmode=disable host=x dbname=postgres user=" + role)
	if err != nil {
		return nil, err
	}
	cfg.LookupFunc = func(context.Context, string) ([]string, error) { return []string{"x"}, nil }
	cfg.DialFunc = func(ctx context.Context, _, _ string) (net.Conn, error) { return w.Connect(ctx, branchID) }
	return pgx.ConnectConfig(ctx, cfg)
}

func (w *world) exec(t *testing.T, branchID, sql string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	conn, err := w.client(ctx, branchID, "postgres")
	check(t, err)
	defer func() { _ = conn.Close(ctx) }()
	if _, err := conn.Exec(ctx, sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func (w *world) value(t *testing.T, branchID, sql string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	conn, err := w.client(ctx, branchID, "postgres")
	check(t, err)
	defer func() { _ = conn.Close(ctx) }()
	var v string
	if err := conn.QueryRow(ctx, "SELECT ("+sql+")::text").Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

// postmaster is the process that serves a branch, or 0.
func (w *world) postmaster(t *testing.T, v pgbough.BranchView) int {
	t.Helper()
	return postmaster(t, v.VolumeID)
}

func postmaster(t *testing.T, volumeID string) int {
	t.Helper()
	cmdlines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	check(t, err)
	for _, path := range cmdlines {
		b, _ := os.ReadFile(path) // it may have ended
		args := strings.Split(string(b), "\x00")
		if !strings.HasSuffix(args[0], "/postgres") || !strings.Contains(string(b), "cluster_name=pgbough/"+volumeID) {
			continue
		}
		var pid int
		_, err := fmt.Sscanf(path, "/proc/%d/cmdline", &pid)
		check(t, err)
		return pid
	}
	return 0
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// testLog keeps what the server says until the test has failed, and shows the end
// of it after what the test says.
type testLog struct {
	mu   sync.Mutex
	text []byte
}

func (l *testLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, b...)
	return len(b), nil
}

func newTestLog(t *testing.T) *slog.Logger {
	l := &testLog{}
	t.Cleanup(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if t.Failed() {
			t.Logf("the server's log ends with\n%s", l.text[max(0, len(l.text)-16<<10):])
		}
	})
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}
