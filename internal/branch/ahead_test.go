package branch_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/branch"
)

// lagging makes a branch that may be as old as lag.
func (w *world) lagging(t *testing.T, name string, lag time.Duration) pgbough.BranchView {
	t.Helper()
	c, err := w.CreateBranch(t.Context(), "shop", pgbough.CreateRequest{Name: name, MaxLag: lag})
	check(t, err)
	w.finish(t, c.Operation)
	return w.get(t, name)
}

// clones are the volumes of the clones that were made ahead and that are ready.
func (w *world) clones(t *testing.T) (ids []string) {
	t.Helper()
	for _, sp := range w.spareRows(t) {
		if sp.State == pgbough.SpareClone {
			ids = append(ids, sp.VolumeID)
		}
	}
	eventually(t, "those that are just being made are ready", func() bool {
		ops, err := w.catalog.Unfinished(t.Context())
		check(t, err)
		return !slices.ContainsFunc(ops, func(op pgbough.Operation) bool { return op.Kind == "clone_point" })
	})
	return ids
}

func (w *world) spareRows(t *testing.T) []pgbough.Spare {
	t.Helper()
	p, err := w.Project(t.Context(), "shop")
	check(t, err)
	spares, err := w.catalog.Spares(t.Context(), p.ID)
	check(t, err)
	return spares
}

// oneClone waits for one clone that is ready and is not those before.
func (w *world) oneClone(t *testing.T, before ...string) (id string) {
	t.Helper()
	eventually(t, "a clone is ready", func() bool {
		ids := w.clones(t)
		if len(ids) == 1 {
			id = ids[0]
		}
		return len(ids) == 1 && !slices.Contains(before, id)
	})
	return id
}

// A create that accepts an older state gets a clone that was made ahead, whose
// Postgres runs already; it is a branch like any other, and the clone is replaced
// for as long as somebody may want it.
func TestClonesAreMadeAhead(t *testing.T) {
	w := newWorld(t, func(o *branch.Options) { o.Spares = 1 })
	w.create(t, "now")
	if n := len(w.clones(t)); n != 0 || w.operations(t, "clone_point") != 0 {
		t.Errorf("%d clones for nobody", n)
	}
	first := w.lagging(t, "first", time.Hour)
	clone := w.oneClone(t)
	pid := postmaster(t, clone)
	if pid == 0 {
		t.Fatal("the clone does not run")
	}
	status, err := w.Status(t.Context())
	check(t, err)
	for _, sp := range status.Projects[0].Spares {
		if sp.VolumeID == clone {
			t.Error("the clone is listed as a spare, which nobody can promote")
		}
	}
	began := time.Now()
	second := w.lagging(t, "second", time.Hour)
	t.Logf("a create of a clone that was ready took %s", time.Since(began))
	if second.VolumeID != clone || w.postmaster(t, second) != pid {
		t.Errorf("the second is on volume %s with process %d, the clone was on %s with %d", second.VolumeID, w.postmaster(t, second), clone, pid)
	}
	if second.ParentLSN != first.ParentLSN || !second.Settled || len(second.Differences) == 0 || second.OwnBytes > 20<<20 {
		t.Errorf("cut at %s, the first at %s; settled %t, %d differences, %d bytes", second.ParentLSN, first.ParentLSN, second.Settled, len(second.Differences), second.OwnBytes)
	}
	w.exec(t, second.ID, "INSERT INTO orders VALUES (0)")
	w.suspend(t, "second")
	if got := w.value(t, second.ID, "SELECT count(*) FROM orders"); got != "1001" {
		t.Errorf("it has %s orders", got)
	}
	if v := w.volumes(t)[clone]; v.Role != "branch" || v.Branch != "second" {
		t.Errorf("its volume is a %s of %q", v.Role, v.Branch)
	}
	w.ownPasswords(t, "now", "first", "second")

	next := w.oneClone(t, clone)
	check(t, syscall.Kill(postmaster(t, next), syscall.SIGKILL))
	eventually(t, "the dead one is replaced", func() bool { return !slices.Contains(w.clones(t), next) })
	third := w.lagging(t, "third", time.Hour)
	if got := w.value(t, third.ID, "SELECT count(*) FROM orders"); third.VolumeID == next || got != "1000" {
		t.Errorf("the third is on volume %s, where the dead one was %s, and has %s orders", third.VolumeID, next, got)
	}
}

// A clone goes when its point is too old for whoever asked last, and with its
// project. None is given to a create whose request the point is too old for.
func TestClonesEnd(t *testing.T) {
	w := newWorld(t, nil)
	w.lagging(t, "first", time.Hour)
	old := w.oneClone(t)
	eventually(t, "a spare is ready", func() bool { return w.ready(t) == 1 })
	w.source.Exec(t, "postgres", "INSERT INTO orders VALUES (0)")
	if b := w.lagging(t, "second", time.Millisecond); b.VolumeID == old || w.value(t, b.ID, "SELECT count(*) FROM orders") != "1001" {
		t.Errorf("a create got a state that is too old, on volume %s", b.VolumeID)
	}
	eventually(t, "there is no clone that nobody can want", func() bool { return len(w.clones(t)) == 0 })
	if postmaster(t, old) != 0 || w.volumes(t)[old].ID != "" {
		t.Error("the clone was not removed")
	}
	w.lagging(t, "third", time.Hour)
	last := w.oneClone(t)
	_, op, err := w.DeleteProject(t.Context(), "shop")
	check(t, err)
	w.finish(t, op)
	if left, err := filepath.Glob(filepath.Join(w.storage.Pool.Dir(), "volumes", "*")); err != nil || len(left) > 0 || postmaster(t, last) != 0 {
		t.Errorf("the project is gone, and left %v", left)
	}
}

// TestKilledWithClones kills the server with a real SIGKILL while clones are made
// ahead and taken: whatever it had said is there is, and no clone is left over.
func TestKilledWithClones(t *testing.T) {
	w := newWorld(t, nil)
	for i, c := range []struct {
		at    string
		least int // branches that must be there
	}{
		{"clone_point/clone/before", 1},
		{"clone_point/clone/done", 1},
		{"clone_point/clone/saved", 1},
		{"clone_point/clone/done=error;clone_point/clone/undo/before", 1},
		{"clone_point/clone/done=error;clone_point/clone/undo/done", 1},
		{"create_branch/clone_taken", 1}, // the next server makes the second in another way
		{"create_branch/clone_published", 2},
	} {
		t.Run(c.at, func(t *testing.T) {
			eventually(t, "a spare is ready", func() bool { return w.ready(t) == 1 })
			prefix := fmt.Sprintf("k%d.", i)
			w.close(t, false)
			cmd := exec.Command(os.Args[0], "-test.run=^TestKilledServer$", "-test.v")
			cmd.Env = append(os.Environ(), killedDir+"="+w.dir, killedAt+"="+c.at, killedVerb+"=lagging", killedName+"="+prefix)
			out, err := cmd.CombinedOutput()
			w.open(t)
			if err == nil || cmd.ProcessState.Exited() {
				t.Fatalf("the server was not killed at %s: %v\n%s", c.at, err, out)
			}
			w.settle(t)
			if n := w.served(t, prefix); n < c.least {
				t.Errorf("%d branches are there, want %d", n, c.least)
			}
			if strings.HasSuffix(c.at, "clone_taken") { // the next server has made a clone for the same create
				w.ownClone(t, prefix)
			} else {
				w.noClones(t)
			}
			w.consistent(t)
		})
	}
}

// ownClone waits until the only clone is one that this server knows, which it then
// makes a branch of, and that nobody wants another one.
func (w *world) ownClone(t *testing.T, prefix string) {
	t.Helper()
	eventually(t, "a create gets the only clone", func() bool {
		clones := w.clones(t)
		b := w.lagging(t, prefix+"own", time.Hour)
		got := len(clones) == 1 && clones[0] == b.VolumeID
		_, op, err := w.DeleteBranch(t.Context(), "shop", b.Name, false)
		check(t, err)
		w.finish(t, op)
		return got
	})
	again := w.lagging(t, prefix+"last", time.Millisecond)
	_, op, err := w.DeleteBranch(t.Context(), "shop", again.Name, false)
	check(t, err)
	w.finish(t, op)
	w.noClones(t)
}

// noClones waits until no clone is left, in the catalog, in the pool or running.
func (w *world) noClones(t *testing.T) {
	t.Helper()
	eventually(t, "no clone of the last server is left", func() bool { return len(w.clones(t)) == 0 })
	known := w.volumes(t)
	entries, err := os.ReadDir(w.options.RunDir)
	check(t, err)
	for _, e := range entries {
		if v, ok := known[e.Name()]; postmaster(t, e.Name()) != 0 && (!ok || v.Role == "clone") {
			t.Errorf("a Postgres runs on volume %s, which is nobody's (%s)", e.Name(), v.Role)
		}
	}
}

func (w *world) volumes(t *testing.T) map[string]pgbough.VolumeStatus {
	t.Helper()
	pool, err := w.Pool(t.Context())
	check(t, err)
	found := map[string]pgbough.VolumeStatus{}
	for _, v := range pool.Volumes {
		found[v.ID] = v
	}
	return found
}

// ownPasswords holds that no two branches share a password or a verifier.
func (w *world) ownPasswords(t *testing.T, names ...string) {
	t.Helper()
	seen := map[string]string{}
	for _, name := range names {
		roles, err := w.Roles(t.Context(), "shop", name)
		check(t, err)
		if len(roles) != 2 {
			t.Errorf("%s has %d roles", name, len(roles))
		}
		secrets := []string{}
		for _, r := range roles {
			secrets = append(secrets, r.Password)
		}
		secrets = append(secrets, w.logins(t, name)["app"].Verifier)
		for _, secret := range secrets {
			if other, ok := seen[secret]; ok || strings.TrimSpace(secret) == "" {
				t.Errorf("%s has a secret of %q: %q", name, other, secret)
			}
			seen[secret] = name
		}
	}
}
