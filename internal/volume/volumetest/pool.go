package volumetest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/volume"
)

// errKilled is what a failpoint returns: the call ends there, as if killed.
var errKilled = errors.New("killed by the test")

// bench is a pool under test that can be reopened.
type bench struct {
	cfg  volume.Config
	pool *volume.Pool
	kill string // the failpoint to die at; empty for none
}

func newBench(t *testing.T, newDriver NewDriver) *bench {
	t.Helper()
	driver, dir := newDriver(t)
	b := &bench{}
	b.cfg = volume.Config{
		Dir: filepath.Join(dir, "pool"), Driver: driver, CatalogID: "catalog-1", Log: slog.New(slog.DiscardHandler),
		Failpoint: func(name string) error {
			if name == b.kill {
				return errKilled
			}
			return nil
		},
	}
	b.open(t)
	return b
}

// open opens the pool again, as a restarted server does.
func (b *bench) open(t *testing.T) {
	t.Helper()
	b.kill = ""
	pool, err := volume.Open(t.Context(), b.cfg)
	if err != nil {
		t.Fatal(err)
	}
	b.pool = pool
}

func manifest(id string, role volume.Role) volume.Manifest {
	return volume.Manifest{ID: id, ProjectID: "project-1", Project: "shop", Role: role}
}

func (b *bench) create(t *testing.T, id string) volume.Volume {
	t.Helper()
	v, err := b.pool.Create(t.Context(), manifest(id, volume.RoleRoot))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// entries are the ids and states that List shows.
func (b *bench) entries(t *testing.T) map[string]volume.State {
	t.Helper()
	list, err := b.pool.List()
	if err != nil {
		t.Fatal(err)
	}
	found := make(map[string]volume.State)
	for _, e := range list {
		found[e.ID] = e.State
	}
	return found
}

func (b *bench) expect(t *testing.T, want map[string]volume.State) {
	t.Helper()
	if diff := cmp.Diff(want, b.entries(t)); diff != "" {
		t.Errorf("the pool holds (-want +got):\n%s", diff)
	}
}

func runPool(t *testing.T, newDriver NewDriver) {
	for _, c := range []struct {
		name string
		test func(t *testing.T, b *bench)
	}{
		{"killed while making", testKilledMaking},
		{"killed while destroying", testKilledDestroying},
		{"again", testAgain},
		{"strangers", testStrangers},
		{"locked", testLocked},
		{"removed", testRemoved},
		{"role", testRole},
		{"many clones", testManyClones},
		{"space", testSpace},
		{"full", testFullPool},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, newBench(t, newDriver)) })
	}
}

// testKilledMaking dies at every step of a clone and of a create; then one
// server finishes it and another gives it up.
func testKilledMaking(t *testing.T, b *bench) {
	root := b.create(t, "vroot")
	write(t, root.Data+"/base/1", noise(1, 100_000))
	ready := map[string]volume.State{"vroot": volume.StateReady}
	calls := map[string]func() error{
		"clone": func() error {
			_, err := b.pool.Clone(t.Context(), "vroot", manifest("vnew", volume.RoleSpare))
			return err
		},
		"create": func() error {
			_, err := b.pool.Create(t.Context(), manifest("vnew", volume.RoleRoot))
			return err
		},
	}
	for name, call := range calls {
		for _, at := range []string{volume.FailpointMade, volume.FailpointData, volume.FailpointManifest, volume.FailpointRenamed} {
			half := map[string]volume.State{"vroot": volume.StateReady, "vnew": volume.StateMaking}
			if at == volume.FailpointRenamed {
				half["vnew"] = volume.StateReady
			}
			die := func() {
				t.Helper()
				b.kill = at
				if err := call(); !errors.Is(err, errKilled) {
					t.Fatalf("%s killed at %s: %v", name, at, err)
				}
				b.open(t)
				b.expect(t, half)
			}
			die()
			if err := call(); err != nil {
				t.Fatalf("%s after a kill at %s: %v", name, at, err)
			}
			v, err := b.pool.Get("vnew")
			if err != nil {
				t.Fatal(err)
			}
			if name == "clone" {
				if diff := cmp.Diff(describe(t, root.Data), describe(t, v.Data)); diff != "" {
					t.Errorf("finished after %s, the clone differs:\n%s", at, diff)
				}
			}
			b.destroy(t, "vnew")
			die()
			b.destroy(t, "vnew")
			b.expect(t, ready)
		}
	}
}

func (b *bench) destroy(t *testing.T, id string) {
	t.Helper()
	if err := b.pool.Destroy(t.Context(), id); err != nil {
		t.Fatalf("destroy %s: %v", id, err)
	}
}

func testKilledDestroying(t *testing.T, b *bench) {
	for _, at := range []string{volume.FailpointTombstone, volume.FailpointDestroyed, volume.FailpointRemoved} {
		v := b.create(t, "vold")
		write(t, v.Data+"/base/1", noise(1, 100_000))
		b.kill = at
		if err := b.pool.Destroy(t.Context(), "vold"); !errors.Is(err, errKilled) {
			t.Fatalf("killed at %s: %v", at, err)
		}
		b.open(t)
		want := map[string]volume.State{"vold": volume.StateGone}
		if at == volume.FailpointRemoved {
			want = map[string]volume.State{}
		}
		b.expect(t, want)
		if _, err := b.pool.Get("vold"); !errors.Is(err, volume.ErrNotExist) {
			t.Errorf("get after a kill at %s: %v, want ErrNotExist", at, err)
		}
		if len(want) > 0 {
			if _, err := b.pool.Create(t.Context(), manifest("vold", volume.RoleRoot)); pgbough.ErrorCode(err) != pgbough.EConflict {
				t.Errorf("create over a tombstone: %v, want a conflict", err)
			}
		}
		b.destroy(t, "vold")
		b.destroy(t, "vold")
		b.expect(t, map[string]volume.State{})
	}
}

func testAgain(t *testing.T, b *bench) {
	root := b.create(t, "vroot")
	write(t, root.Data+"/mark", []byte("1"))
	if again := b.create(t, "vroot"); again != root {
		t.Errorf("second create returns %+v, want %+v", again, root)
	}
	read(t, root.Data+"/mark")
	m := manifest("vroot", volume.RoleRoot)
	m.ProjectID = "project-2"
	if _, err := b.pool.Create(t.Context(), m); pgbough.ErrorCode(err) != pgbough.EConflict {
		t.Errorf("create of another project's volume: %v, want a conflict", err)
	}
	for _, id := range []string{"", "..", "a/b", "V", "v.tmp", "v.gone"} {
		if _, err := b.pool.Create(t.Context(), manifest(id, volume.RoleRoot)); pgbough.ErrorCode(err) != pgbough.EInvalid {
			t.Errorf("create of %q: %v, want invalid", id, err)
		}
		if err := b.pool.Destroy(t.Context(), id); pgbough.ErrorCode(err) != pgbough.EInvalid {
			t.Errorf("destroy of %q: %v, want invalid", id, err)
		}
	}
	if _, err := b.pool.Clone(t.Context(), "vnone", manifest("vnew", volume.RoleSpare)); !errors.Is(err, volume.ErrNotExist) {
		t.Errorf("clone of nothing: %v, want ErrNotExist", err)
	}
}

// testStrangers: what the catalog does not know stays.
func testStrangers(t *testing.T, b *bench) {
	b.create(t, "vmine")
	b.cfg.CatalogID = "catalog-2"
	b.open(t)
	volumes := filepath.Join(b.cfg.Dir, "volumes")
	write(t, volumes+"/vtorn/manifest.json", []byte(`{"version": 1, "id"`))
	write(t, volumes+"/vfuture/manifest.json", []byte(`{"version": 99, "id": "vfuture"}`))
	write(t, volumes+"/note to self", []byte("x"))
	write(t, volumes+"/vhalf.tmp/data/base/1", []byte("x"))
	write(t, volumes+"/vdead.gone/data/base/1", []byte("x"))
	all := map[string]volume.State{
		"vmine": volume.StateReady, "vtorn": volume.StateUnreadable, "vfuture": volume.StateUnreadable,
		"note to self": volume.StateUnreadable, "vhalf": volume.StateMaking, "vdead": volume.StateGone,
	}
	b.open(t)
	b.create(t, "vother")
	b.destroy(t, "vother")
	b.expect(t, all)

	if err := b.pool.Destroy(t.Context(), "vmine"); pgbough.ErrorCode(err) != pgbough.EConflict {
		t.Errorf("destroy of another catalog's volume: %v, want a conflict", err)
	}
	b.expect(t, all)
	for _, id := range []string{"vmine", "vtorn", "vfuture", "vhalf", "vdead"} {
		if err := b.pool.Prune(t.Context(), id); err != nil {
			t.Errorf("prune %s: %v", id, err)
		}
	}
	b.expect(t, map[string]volume.State{"note to self": volume.StateUnreadable})
}

func testLocked(t *testing.T, b *bench) {
	v := b.create(t, "vroot")
	f, err := os.Open(v.Lock)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Fatal(err)
	}
	if err := b.pool.Destroy(t.Context(), "vroot"); pgbough.ErrorCode(err) != pgbough.ELocked {
		t.Errorf("destroy under a running Postgres: %v, want locked", err)
	}
	b.expect(t, map[string]volume.State{"vroot": volume.StateReady})
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	b.destroy(t, "vroot")
}

// testRemoved: with its last volume a pool stops being one, unless a Postgres runs.
func testRemoved(t *testing.T, b *bench) {
	b.create(t, "vmine")
	b.cfg.CatalogID = "catalog-2"
	b.open(t)
	v := b.create(t, "vother")
	write(t, filepath.Join(b.cfg.Dir, "note to self"), []byte("x"))
	write(t, filepath.Join(b.cfg.Dir, "volumes", "vhalf.tmp", "data", "base", "1"), []byte("x"))
	f, err := os.Open(v.Lock)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Fatal(err)
	}
	if err := b.pool.Remove(t.Context()); pgbough.ErrorCode(err) != pgbough.ELocked || b.entries(t)["vother"] != volume.StateReady {
		t.Errorf("remove under a running Postgres: %v, want locked; the pool holds %v", err, b.entries(t))
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := b.pool.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(b.cfg.Dir); err != nil || len(left) != 1 || left[0].Name() != "note to self" {
		t.Errorf("in the directory of a removed pool: %v (%v), want what is not the pool's", left, err)
	}
}

func testRole(t *testing.T, b *bench) {
	before := b.create(t, "vspare")
	for range 2 {
		if err := b.pool.SetRole(t.Context(), "vspare", volume.RoleBranch, "br-1"); err != nil {
			t.Fatal(err)
		}
	}
	b.open(t)
	want := before
	want.Role, want.Owner = volume.RoleBranch, "br-1"
	if got, err := b.pool.Get("vspare"); err != nil || got != want {
		t.Errorf("after a restart: %+v (%v), want %+v", got, err, want)
	}
	if err := b.pool.SetRole(t.Context(), "vnone", volume.RoleBranch, "br-1"); !errors.Is(err, volume.ErrNotExist) {
		t.Errorf("role of nothing: %v, want ErrNotExist", err)
	}
}

// testManyClones clones one volume many times at once, while others are destroyed.
func testManyClones(t *testing.T, b *bench) {
	root := b.create(t, "vroot")
	for i := range 20 {
		write(t, fmt.Sprintf("%s/base/%d", root.Data, i), noise(uint64(i), 50_000))
	}
	want := describe(t, root.Data)
	var group sync.WaitGroup
	for i := range 10 {
		group.Go(func() {
			id := fmt.Sprintf("vclone%d", i)
			v, err := b.pool.Clone(t.Context(), "vroot", manifest(id, volume.RoleBranch))
			if err != nil {
				t.Error(err)
				return
			}
			if v.Parent != "vroot" || v.Role != volume.RoleBranch {
				t.Errorf("%s says %+v", id, v.Manifest)
			}
			if i%2 == 1 {
				err = b.pool.Destroy(t.Context(), id)
			} else if diff := cmp.Diff(want, describe(t, v.Data)); diff != "" {
				err = errors.New(diff)
			}
			if err != nil {
				t.Errorf("%s: %v", id, err)
			}
		})
	}
	group.Wait()
	if got := len(b.entries(t)); got != 6 {
		t.Errorf("%d volumes are left, want 6", got)
	}
}

// testFullPool destroys the volume that has filled the pool to the last byte.
func testFullPool(t *testing.T, b *bench) {
	b.create(t, "vroot")
	v := b.create(t, "vrunaway")
	before, err := b.pool.Space()
	if err != nil {
		t.Fatal(err)
	}
	fill(t, v.Data)
	if err := b.pool.CheckSpace(mb); pgbough.ErrorCode(err) != pgbough.ENoSpace {
		t.Errorf("1 MB of a full pool: %v, want no space", err)
	}
	b.destroy(t, "vrunaway")
	b.expect(t, map[string]volume.State{"vroot": volume.StateReady})
	settledFree(t, b.cfg.Dir)
	if after, err := b.pool.Space(); err != nil || after.Free < before.Free-8*mb {
		t.Errorf("after the destroy %+v (%v), before the filling %+v", after, err, before)
	}
	if err := b.pool.SetRole(t.Context(), "vroot", volume.RoleBranch, "br-1"); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func testSpace(t *testing.T, b *bench) {
	root := b.create(t, "vroot")
	write(t, root.Data+"/base/1", noise(1, 20*mb))
	open, err := b.pool.Space()
	if err != nil {
		t.Fatal(err)
	}
	b.cfg.Reserve = open.Free - 10*mb
	b.open(t)
	space, err := b.pool.Space()
	if err != nil || space.Reserve != b.cfg.Reserve || space.Free > 11*mb || space.Free < 5*mb {
		t.Errorf("with all but 10 MB kept back: %+v (%v)", space, err)
	}
	if err := b.pool.CheckSpace(mb); err != nil {
		t.Errorf("1 MB of 10: %v", err)
	}
	err = b.pool.CheckSpace(30 * mb)
	if pgbough.ErrorCode(err) != pgbough.ENoSpace {
		t.Errorf("30 MB of 10: %v, want no space", err)
	}
	t.Logf("refusal: %v", err)
	err = b.pool.CheckClone(context.Background(), "vroot", 0)
	if isCopy := b.pool.Kind() == volume.KindCopy; isCopy != (pgbough.ErrorCode(err) == pgbough.ENoSpace) {
		t.Errorf("clone of 20 MB with 10 MB free, by %s: %v", b.pool.Kind(), err)
	}
	b.cfg.Reserve = 1 << 50
	b.open(t)
	if err := b.pool.CheckSpace(0); pgbough.ErrorCode(err) != pgbough.ENoSpace {
		t.Errorf("with more kept back than there is: %v, want no space", err)
	}
}
