package branch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/catalog"
	"github.com/pgbough/pgbough/internal/credential"
	"github.com/pgbough/pgbough/internal/pgtest"
	"github.com/pgbough/pgbough/internal/postgres"
	"github.com/pgbough/pgbough/internal/sandbox"
	"github.com/pgbough/pgbough/internal/volume"
	"github.com/pgbough/pgbough/internal/volume/storage"
)

// testUID is what the files of every Postgres of these tests belong to. It and
// those after it are not other tests'.
const testUID = 63900

// rig is a Service on a catalog, a pool and sandboxes of its own.
type rig struct {
	*Service
	t    *testing.T
	dir  string
	opts Options
}

// newRig opens a Service in an empty directory; it is closed and removed with the test.
func newRig(t *testing.T, change ...func(*storage.Config)) *rig {
	t.Helper()
	dir, err := os.MkdirTemp("", "br") // short, for the sockets in it
	must(t, err)
	must(t, os.Chmod(dir, 0o711))
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	log := slog.New(slog.NewTextHandler(logTo{t}, &slog.HandlerOptions{Level: slog.LevelWarn}))
	key, err := credential.EnsureKey(filepath.Join(dir, "secret.key"))
	must(t, err)
	c, err := catalog.Open(t.Context(), filepath.Join(dir, "catalog.db"), key)
	must(t, err)
	t.Cleanup(func() { must(t, c.Close()) })
	cfg := storage.Config{DataDir: dir, Want: "copy", CatalogID: c.ID(), Reserve: 1 << 20, UID: testUID, GID: testUID, Log: log}
	for _, f := range change {
		f(&cfg)
	}
	st, err := storage.Open(t.Context(), cfg)
	must(t, err)
	t.Cleanup(func() { must(t, st.Close(context.Background())) })
	cred := postgres.Credential{UID: testUID, GID: testUID}
	l, err := sandbox.New(sandbox.Options{Credential: cred, Dirs: []string{dir}, Log: log})
	must(t, err)
	t.Cleanup(func() { must(t, l.Close()) })
	r := &rig{t: t, dir: dir, opts: Options{
		Catalog: c, Pool: st.Pool, Launcher: l, Credential: cred, RunDir: filepath.Join(dir, "run"),
		Memory: Memory{SharedBuffers: "16MB"}, Spares: 1, Version: "test", Log: log,
	}}
	must(t, os.MkdirAll(r.opts.RunDir, 0o711))
	r.open()
	t.Cleanup(func() { r.close() })
	return r
}

func (r *rig) open() {
	r.t.Helper()
	s, err := Open(r.t.Context(), r.opts)
	must(r.t, err)
	r.Service = s
}

func (r *rig) close() {
	r.t.Helper()
	if r.Service != nil {
		must(r.t, r.Close(context.Background(), true))
		r.Service = nil
	}
}

// attach attaches a production as project shop, and waits until it can branch.
func (r *rig) attach(p *pgtest.Server) pgbough.Project {
	r.t.Helper()
	_, op, err := r.Attach(r.t.Context(), pgbough.AttachRequest{Name: "shop", SourceRequest: sourceOf(p)})
	must(r.t, err)
	_, err = r.WaitOperation(r.t.Context(), op.ID)
	must(r.t, err)
	project, err := r.catalog.Project(r.t.Context(), "shop")
	must(r.t, err)
	return project
}

// create makes a branch.
func (r *rig) create(name string) pgbough.Branch {
	r.t.Helper()
	created, err := r.CreateBranch(r.t.Context(), "shop", pgbough.CreateRequest{Name: name})
	must(r.t, err)
	_, err = r.WaitOperation(r.t.Context(), created.Operation.ID)
	must(r.t, err)
	b, err := r.catalog.Branch(r.t.Context(), created.Branch.ProjectID, name)
	must(r.t, err)
	return b
}

// project puts an active project without a follower into the catalog, with its root branch.
func (r *rig) project() pgbough.Project {
	r.t.Helper()
	p := pgbough.Project{ID: pgbough.NewProjectID(), Name: "shop", State: pgbough.ProjectActive, RootBranchID: pgbough.NewBranchID(), CreatedAt: time.Now()}
	must(r.t, r.catalog.CreateProject(r.t.Context(), p))
	must(r.t, r.catalog.CreateBranch(r.t.Context(), pgbough.Branch{ID: p.RootBranchID, ProjectID: p.ID, Name: pgbough.RootBranchName, State: pgbough.BranchReady}))
	return p
}

// branchRow puts a branch without a volume into the catalog.
func (r *rig) branchRow(p pgbough.Project, name string, state pgbough.BranchState) pgbough.Branch {
	r.t.Helper()
	b := pgbough.Branch{ID: pgbough.NewBranchID(), ProjectID: p.ID, Name: name, State: state, ParentID: p.RootBranchID, EndpointID: pgbough.NewEndpointID(), CreatedAt: time.Now()}
	must(r.t, r.catalog.CreateBranch(r.t.Context(), b))
	return b
}

// volume makes an empty volume of the pool.
func (r *rig) volume(p pgbough.Project, role volume.Role) volume.Volume {
	r.t.Helper()
	v, err := r.pool.Create(r.t.Context(), volume.Manifest{ID: pgbough.NewVolumeID(), ProjectID: p.ID, Project: p.Name, Role: role})
	must(r.t, err)
	return v
}

// production starts a production that is checkpointed, so that attaching it takes no time.
func production(t *testing.T, o pgtest.Options) *pgtest.Server {
	t.Helper()
	p := pgtest.Start(t, o)
	p.Exec(t, "postgres", "CREATE TABLE t (n bigint)")
	p.Exec(t, "postgres", "CHECKPOINT")
	return p
}

func sourceOf(p *pgtest.Server) pgbough.SourceRequest {
	return pgbough.SourceRequest{ConnString: fmt.Sprintf("host=127.0.0.1 port=%d user=postgres dbname=postgres", p.Port)}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func eventually(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(limit)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("not within %s: %s", limit, what)
		case <-tick.C:
		}
	}
}

// logTo is the log of a test.
type logTo struct{ t *testing.T }

func (l logTo) Write(b []byte) (int, error) {
	l.t.Log(string(b[:len(b)-1]))
	return len(b), nil
}

// allocate makes a file that takes so many bytes from its disk.
func allocate(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(unix.Fallocate(int(f.Fd()), 0, 0, size), f.Close())
}

// postmaster is the process of a project's follower, 0 for none.
func (r *rig) postmaster(p pgbough.Project) int {
	r.t.Helper()
	root, err := r.catalog.Branch(r.t.Context(), p.ID, p.RootBranchID)
	must(r.t, err)
	proc, ok, err := r.launcher.Find(r.t.Context(), root.VolumeID)
	must(r.t, err)
	if !ok {
		return 0
	}
	return proc.PID()
}
