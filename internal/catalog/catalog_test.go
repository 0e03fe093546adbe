package catalog

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/credential"
)

func testKey(t *testing.T, dir string) *credential.Key {
	t.Helper()
	key, err := credential.EnsureKey(filepath.Join(dir, "secret.key"))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func open(t *testing.T, dir string) *Catalog {
	t.Helper()
	c, err := Open(t.Context(), filepath.Join(dir, "catalog.db"), testKey(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func wantCode(t *testing.T, what string, err error, code pgbough.Code) {
	t.Helper()
	var e *pgbough.Error
	if pgbough.ErrorCode(err) != code || errors.As(err, &e) && e.Hint == "" {
		t.Errorf("%s: got %v (%s), want %s with a hint", what, err, pgbough.ErrorCode(err), code)
	}
}

// fill gives every field of a noun a value of its own, so that a round trip
// shows a field that the catalog forgets: also one that is added later.
func fill(v reflect.Value, n *int) {
	*n++
	switch v.Interface().(type) {
	case time.Time:
		v.Set(reflect.ValueOf(time.Date(2026, 1, 1, 0, 0, *n, *n, time.UTC)))
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), n)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fill(v.Index(0), n)
		fill(v.Index(1), n)
	case reflect.String:
		v.SetString(fmt.Sprintf("value %d ü", *n))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(*n))
	case reflect.Uint8:
		v.SetUint(uint64(*n % 256))
	case reflect.Uint32:
		v.SetUint(1<<31 + uint64(*n))
	case reflect.Uint64:
		v.SetUint(1<<63 + uint64(*n)) // system identifiers use all bits
	default:
		panic("fill does not know " + v.Type().String())
	}
}

func filled[T any]() T {
	var v T
	n := 0
	fill(reflect.ValueOf(&v).Elem(), &n)
	return v
}

func equal(t *testing.T, what string, got, want any) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func project(name string) pgbough.Project {
	return pgbough.Project{ID: pgbough.NewProjectID(), Name: name, State: pgbough.ProjectActive, RootBranchID: pgbough.NewBranchID()}
}

func branch(p pgbough.Project, parent, name string) pgbough.Branch {
	return pgbough.Branch{ID: pgbough.NewBranchID(), ProjectID: p.ID, ParentID: parent, Name: name, State: pgbough.BranchReady}
}

func TestProjects(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	c := open(t, dir)
	full := filled[pgbough.Project]()
	must(t, c.CreateProject(ctx, full))
	got, err := c.Project(ctx, full.ID)
	must(t, err)
	equal(t, "by id", got, full)

	zero := pgbough.Project{ID: "zero", Name: "a zero"}
	must(t, c.CreateProject(ctx, zero))
	changed := filled[pgbough.Project]()
	changed.ID, changed.Name = "zero", "changed"
	must(t, updateProject(ctx, c, changed))
	must(t, c.Close())

	c = open(t, dir)
	got, err = c.Project(ctx, "changed")
	must(t, err)
	equal(t, "updated, opened again, by name", got, changed)
	list, err := c.Projects(ctx)
	must(t, err)
	equal(t, "list", list, []pgbough.Project{changed, full})

	wantCode(t, "same name", c.CreateProject(ctx, pgbough.Project{ID: "x", Name: full.Name}), pgbough.EConflict)
	changed.Name = full.Name
	wantCode(t, "rename to a name that is taken", updateProject(ctx, c, changed), pgbough.EConflict)
	wantCode(t, "update nothing", updateProject(ctx, c, pgbough.Project{ID: "none"}), pgbough.ENotFound)
	_, err = c.Project(ctx, "none")
	wantCode(t, "find nothing", err, pgbough.ENotFound)

	trap := pgbough.Project{ID: "other", Name: "zero"} // named like another's id
	must(t, c.CreateProject(ctx, trap))
	if got, err := c.Project(ctx, "zero"); err != nil || got.ID != "zero" {
		t.Errorf("the id does not win: %+v, %v", got, err)
	}
}

func TestBranches(t *testing.T) {
	ctx := t.Context()
	c := open(t, t.TempDir())
	p, q := project("p"), project("q")
	must(t, c.CreateProject(ctx, p), c.CreateProject(ctx, q))
	root := branch(p, "", "main")
	root.ID = p.RootBranchID
	full := filled[pgbough.Branch]()
	full.ProjectID, full.ParentID = p.ID, root.ID
	must(t, c.CreateBranch(ctx, root), c.CreateBranch(ctx, full), c.CreateBranch(ctx, branch(q, "", "main")))
	got, err := c.Branch(ctx, p.ID, full.Name)
	must(t, err)
	equal(t, "by name", got, full)
	list, err := c.Branches(ctx, p.ID)
	must(t, err)
	listed := full
	listed.Settings, listed.Differences = []pgbough.Setting{}, []pgbough.Difference{}
	root.Settings, root.Differences = listed.Settings, listed.Differences
	equal(t, "list", list, []pgbough.Branch{root, listed})

	small := branch(p, full.ID, "small")
	must(t, c.CreateBranch(ctx, small))
	changed := filled[pgbough.Branch]()
	changed.ID, changed.ProjectID, changed.ParentID, changed.Name, changed.EndpointID = small.ID, p.ID, full.ID, "changed", "ep-changed"
	must(t, updateBranch(ctx, c, changed))
	got, err = c.Branch(ctx, p.ID, small.ID)
	must(t, err)
	equal(t, "updated", got, changed)
	changed.EndpointID = "ep-again"
	must(t, updateBranch(ctx, c, changed), updateBranch(ctx, c, changed))
	if got, _ = c.Branch(ctx, p.ID, small.ID); got.EndpointID != "ep-again" {
		t.Errorf("endpoint %q", got.EndpointID)
	}

	wantCode(t, "same name", c.CreateBranch(ctx, branch(p, root.ID, "main")), pgbough.EConflict)
	taken := branch(p, root.ID, "taken")
	taken.EndpointID = "ep-again"
	if err := c.CreateBranch(ctx, taken); err == nil {
		t.Error("two branches have one endpoint")
	}
	wantCode(t, "half a branch", second(c.Branch(ctx, p.ID, "taken")), pgbough.ENotFound)
	wantCode(t, "no such parent", c.CreateBranch(ctx, branch(p, "br-none", "x")), pgbough.ENotFound)
	wantCode(t, "no such project", c.CreateBranch(ctx, branch(project("z"), "", "x")), pgbough.ENotFound)
	wantCode(t, "in another project", second(c.Branch(ctx, q.ID, full.ID)), pgbough.ENotFound)
	wantCode(t, "update nothing", updateBranch(ctx, c, branch(p, "", "none")), pgbough.ENotFound)

	err = c.DeleteBranch(ctx, full.ID)
	wantCode(t, "delete a parent", err, pgbough.EConflict)
	if !strings.Contains(fmt.Sprint(err), "changed") {
		t.Errorf("the child is not named: %v", err)
	}
	wantCode(t, "delete a project with branches", c.DeleteProject(ctx, p.ID), pgbough.EConflict)
	must(t, c.DeleteBranch(ctx, small.ID), c.DeleteBranch(ctx, small.ID), c.DeleteBranch(ctx, full.ID))
	must(t, c.PutSpare(ctx, pgbough.Spare{VolumeID: "v", ProjectID: p.ID}))
	wantCode(t, "delete a project with a spare", c.DeleteProject(ctx, p.ID), pgbough.EConflict)
	must(t, c.DeleteSpare(ctx, "v"), c.DeleteProject(ctx, p.ID), c.DeleteProject(ctx, p.ID))
	wantCode(t, "the root of a project that is gone", second(c.Branch(ctx, p.ID, "main")), pgbough.ENotFound)
	if list, err := c.Branches(ctx, q.ID); err != nil || len(list) != 1 {
		t.Errorf("the other project: %v, %v", list, err)
	}
}

func second[T any](_ T, err error) error { return err }

func TestSpares(t *testing.T) {
	ctx := t.Context()
	c := open(t, t.TempDir())
	p := project("p")
	must(t, c.CreateProject(ctx, p))
	full := filled[pgbough.Spare]()
	full.ProjectID = p.ID
	must(t, c.PutSpare(ctx, full))
	full.Redo++
	must(t, c.PutSpare(ctx, full))
	list, err := c.Spares(ctx, p.ID)
	must(t, err)
	equal(t, "list", list, []pgbough.Spare{full})
	wantCode(t, "no such project", c.PutSpare(ctx, pgbough.Spare{VolumeID: "x", ProjectID: "none"}), pgbough.ENotFound)
	must(t, c.DeleteSpare(ctx, full.VolumeID), c.DeleteSpare(ctx, full.VolumeID))

	put := func(volume string, state pgbough.SpareState, redo pgbough.LSN) {
		t.Helper()
		must(t, c.PutSpare(ctx, pgbough.Spare{VolumeID: volume, ProjectID: p.ID, State: state, Redo: redo}))
	}
	take := func(by, want string) {
		t.Helper()
		s, ok, err := c.TakeSpare(ctx, p.ID, by)
		if err != nil || ok != (want != "") || s.VolumeID != want || ok && s.State != pgbough.SpareTaken {
			t.Errorf("taken by %s: %+v, %v, %v; want %q", by, s, ok, err, want)
		}
	}
	put("filling", pgbough.SpareFilling, 9)
	take("op1", "")
	put("old", pgbough.SpareReady, 1)
	put("new", pgbough.SpareReady, 2)
	take("op1", "new")
	take("op1", "new") // the step runs again
	take("op2", "old")
	take("op3", "")
	put("newest", pgbough.SpareReady, 9)
	take("op1", "new") // and gets no second one
	take("op4", "newest")
	put("old", pgbough.SpareTaken, 5) // an update of a taken one does not free it
	take("op2", "old")
	put("old", pgbough.SpareReady, 5)
	for _, c2 := range []struct {
		volume, by string
		want       bool
	}{{"old", "x", true}, {"old", "x", true}, {"old", "y", false}, {"filling", "x", false}, {"none", "x", false}, {"new", "op1", true}} {
		if ok, err := c.TakeSpareVolume(ctx, c2.volume, c2.by); ok != c2.want || err != nil {
			t.Errorf("%+v: %v, %v", c2, ok, err)
		}
	}
	if _, _, err := c.TakeSpare(ctx, p.ID, ""); err == nil {
		t.Error("taken by nobody")
	}

	// Many at once: none is given twice.
	for i := range 10 {
		put(fmt.Sprint("many", i), pgbough.SpareReady, 1)
	}
	var mu sync.Mutex
	given := map[string]int{}
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if s, ok, err := c.TakeSpare(ctx, p.ID, fmt.Sprint("many", i)); err != nil || ok {
				mu.Lock()
				defer mu.Unlock()
				given[s.VolumeID]++
			}
		})
	}
	wg.Wait()
	if len(given) != 10 {
		t.Errorf("given: %v", given)
	}
	for v, n := range given {
		if n != 1 || !strings.HasPrefix(v, "many") {
			t.Errorf("%q given %d times", v, n)
		}
	}
}

func TestRolesAndSecrets(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	c := open(t, dir)
	p := project("p")
	p.Source.ConnString, p.Source.RestoreCommand = "host=x password=topsecret1", "fetch --token topsecret2"
	b := branch(p, "", "b")
	must(t, c.CreateProject(ctx, p), c.CreateBranch(ctx, b))
	roles := []pgbough.Role{{BranchID: b.ID, Name: "app", Password: "topsecret3"}, {BranchID: b.ID, Name: "web", Password: "topsecret4"}}
	must(t, c.PutRoles(ctx, b.ID, []pgbough.Role{{Name: "old"}}), c.PutRoles(ctx, b.ID, roles))
	got, err := c.Roles(ctx, b.ID)
	must(t, err)
	equal(t, "roles", got, roles)
	wantCode(t, "roles of nothing", c.PutRoles(ctx, "br-none", roles), pgbough.ENotFound)

	// One role's sealed password in another's row does not open.
	_, err = c.writer.ExecContext(ctx, "UPDATE roles SET sealed_password = (SELECT sealed_password FROM roles WHERE name = 'app')")
	must(t, err)
	if roles, err := c.Roles(ctx, b.ID); err == nil {
		t.Errorf("swapped secrets open: %v", roles)
	}
	must(t, c.DeleteBranch(ctx, b.ID), c.Close())
	files, err := filepath.Glob(filepath.Join(dir, "catalog.*"))
	must(t, err)
	for _, f := range files {
		content, err := os.ReadFile(f)
		must(t, err)
		if bytes.Contains(content, []byte("topsecret")) {
			t.Errorf("%s holds a secret in clear", f)
		}
		if info, err := os.Stat(f); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", f, info.Mode())
		}
	}
}

func TestOperations(t *testing.T) {
	ctx := t.Context()
	c := open(t, t.TempDir())
	full := filled[pgbough.Operation]()
	full.Status, full.State = pgbough.OperationRunning, []byte(`{"a": 1}`)
	full.Steps[0].Name = "one"
	must(t, c.SaveOperation(ctx, full))
	got, err := c.Operation(ctx, full.ID)
	must(t, err)
	equal(t, "operation", got, full)
	wantCode(t, "find nothing", second(c.Operation(ctx, "none")), pgbough.ENotFound)

	full.Step, full.Error, full.State = 7, "E: x", []byte(`{}`)
	must(t, c.SaveOperation(ctx, full))
	moved := full
	moved.Step, moved.Progress.Done, moved.UpdatedAt = 99, 12345, moved.UpdatedAt.Add(time.Second)
	must(t, c.SaveProgress(ctx, moved))
	got, err = c.Operation(ctx, full.ID)
	must(t, err)
	full.Progress.Done, full.UpdatedAt = 12345, moved.UpdatedAt
	equal(t, "only its progress", got, full)

	// The oldest finished go; the unfinished stay, however old.
	must(t, c.Tx(ctx, func(tx *Tx) error {
		for i := range keptOperations + 20 {
			if err := tx.SaveOperation(pgbough.Operation{ID: fmt.Sprint("op", i), ProjectID: fmt.Sprint("p", i%2), Status: pgbough.OperationFinished}); err != nil {
				return err
			}
		}
		return nil
	}))
	list, err := c.Operations(ctx, "")
	must(t, err)
	if len(list) != keptOperations+1 || list[0].ID != "op1019" || list[keptOperations-1].ID != "op20" || list[keptOperations].ID != full.ID {
		t.Errorf("%d operations, from %s to %s", len(list), list[0].ID, list[len(list)-1].ID)
	}
	list, err = c.Operations(ctx, "p1")
	must(t, err)
	if len(list) != keptOperations/2 || list[0].ID != "op1019" {
		t.Errorf("of a project: %d, newest %s", len(list), list[0].ID)
	}
	unfinished, err := c.Unfinished(ctx)
	must(t, err)
	equal(t, "unfinished", unfinished, []pgbough.Operation{full})
	moved.ID = "op1019"
	must(t, c.SaveProgress(ctx, moved))
	if got, _ := c.Operation(ctx, "op1019"); got.Progress.Done != 0 {
		t.Error("progress of one that is done was written")
	}
}

func TestTx(t *testing.T) {
	ctx := t.Context()
	c := open(t, t.TempDir())
	p := project("p")
	no := errors.New("no")
	err := c.Tx(ctx, func(tx *Tx) error {
		must(t, tx.CreateProject(p))
		if _, err := tx.Project("p"); err != nil {
			t.Errorf("a transaction does not see what it wrote: %v", err)
		}
		if _, err := c.Project(ctx, "p"); pgbough.ErrorCode(err) != pgbough.ENotFound {
			t.Errorf("others see what is not committed: %v", err)
		}
		return no
	})
	if !errors.Is(err, no) {
		t.Errorf("got %v", err)
	}
	func() {
		defer func() { _ = recover() }()
		_ = c.Tx(ctx, func(tx *Tx) error {
			must(t, tx.CreateProject(p))
			panic("x")
		})
	}()
	wantCode(t, "after a rollback", second(c.Project(ctx, "p")), pgbough.ENotFound)
	must(t, c.Tx(ctx, func(tx *Tx) error {
		waiting, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
		defer cancel()
		if err := c.CreateProject(waiting, p); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a second writer did not wait: %v", err)
		}
		return tx.CreateProject(p)
	}))

	// Read, change and write in transactions loses no change.
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 10 {
				if err := c.Tx(ctx, func(tx *Tx) error {
					p, err := tx.Project(p.ID)
					p.Source.MaxRate++
					return errors.Join(err, tx.UpdateProject(p))
				}); err != nil {
					t.Error(err)
				}
				_ = c.SaveProgress(ctx, pgbough.Operation{ID: "none"})
			}
		})
	}
	wg.Wait()
	if got, err := c.Project(ctx, p.ID); err != nil || got.Source.MaxRate != 80 {
		t.Errorf("%d changes, %v; want 80", got.Source.MaxRate, err)
	}
}

func TestOpen(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	path := filepath.Join(dir, "catalog.db")
	c := open(t, dir)
	_, err := Open(ctx, path, testKey(t, dir))
	wantCode(t, "while it is open", err, pgbough.EConflict)
	if !strings.Contains(fmt.Sprint(err), fmt.Sprintf("pid %d", os.Getpid())) {
		t.Errorf("the other is not named: %v", err)
	}
	id := c.ID()
	must(t, c.Close())
	_, err = Open(ctx, path, testKey(t, t.TempDir()))
	wantCode(t, "with another key", err, pgbough.EInvalid)
	c = open(t, dir)
	if c.ID() != id || len(id) != 36 {
		t.Errorf("id %q, was %q", c.ID(), id)
	}
	// How SQLite is set is what durability rests on.
	for pragma, want := range map[string][3]string{
		"journal_mode": {"wal", "wal", "wal"}, "synchronous": {"2", "1", ""}, "foreign_keys": {"1", "1", "1"}, "query_only": {"0", "0", "1"},
	} {
		for i, db := range []*sql.DB{c.writer, c.lazy, c.reader} {
			var got string
			must(t, db.QueryRowContext(ctx, "PRAGMA "+pragma).Scan(&got))
			if want[i] != "" && got != want[i] {
				t.Errorf("%s of connection %d is %s, want %s", pragma, i, got, want[i])
			}
		}
	}
	_, err = c.writer.ExecContext(ctx, "INSERT INTO migrations VALUES (1000, 'future', 0)")
	must(t, err, c.Close())
	_, err = Open(ctx, path, testKey(t, dir))
	wantCode(t, "of a newer pgbough", err, pgbough.EConflict)

	must(t, os.WriteFile(path, bytes.Repeat([]byte("no database"), 1000), 0o600))
	if _, err := Open(ctx, path, testKey(t, dir)); err == nil {
		t.Error("a file of something else: no error")
	}
	odd := filepath.Join(t.TempDir(), "a b?c#d%20e")
	must(t, os.Mkdir(odd, 0o700))
	must(t, open(t, odd).Close())
	if info, err := os.Stat(filepath.Join(odd, "catalog.db")); err != nil || info.Size() == 0 {
		t.Errorf("in a directory with an odd name: %v, %v", info, err)
	}
}

func updateProject(ctx context.Context, c *Catalog, p pgbough.Project) error {
	return c.Tx(ctx, func(tx *Tx) error { return tx.UpdateProject(p) })
}

func updateBranch(ctx context.Context, c *Catalog, b pgbough.Branch) error {
	return c.Tx(ctx, func(tx *Tx) error { return tx.UpdateBranch(b) })
}

func TestPoolID(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir)
	if id, err := c.PoolID(t.Context()); id != "" || err != nil {
		t.Errorf("a new catalog belongs to pool %q (%v)", id, err)
	}
	must(t, c.SetPoolID(t.Context(), "pool-a"), c.SetPoolID(t.Context(), "pool-a"))
	wantCode(t, "another pool", c.SetPoolID(t.Context(), "pool-b"), pgbough.EConflict)
	must(t, c.Close())
	if id, err := open(t, dir).PoolID(t.Context()); id != "pool-a" || err != nil {
		t.Errorf("opened again it belongs to pool %q (%v)", id, err)
	}
}
