package branch_test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/pgbough/pgbough"
)

// testProtected checks that a protected branch goes in no way, and that a
// refusal leaves it as it was.
func testProtected(t *testing.T, w *world, onMark *atomic.Pointer[func()]) {
	yes, no, soon := true, false, time.Now().Add(time.Hour)
	change := func(c pgbough.BranchChange) error {
		_, err := w.UpdateBranch(t.Context(), "shop", "kept", c)
		return err
	}
	refused := func(what string, err error) {
		t.Helper()
		if pgbough.ErrorCode(err) != pgbough.EConflict {
			t.Errorf("%s: %v", what, err)
		}
	}
	w.create(t, "kept")
	check(t, change(pgbough.BranchChange{Protected: &yes}))
	_, _, err := w.DeleteBranch(t.Context(), "shop", "kept", false)
	refused("deleting it", err)
	_, _, err = w.DeleteProject(t.Context(), "shop")
	refused("deleting its project", err)
	refused("letting it expire", change(pgbough.BranchChange{ExpiresAt: &soon}))
	_, err = w.UpdateBranch(t.Context(), "shop", "main", pgbough.BranchChange{Protected: &yes})
	refused("protecting the root branch", err)
	_, err = w.CreateBranch(t.Context(), "shop", pgbough.CreateRequest{Name: "both", Protected: true, ExpiresAt: soon})
	refused("a protected branch that expires", err)
	if b, err := w.Branch(t.Context(), "shop", "kept"); err != nil || !b.Protected || b.State != pgbough.BranchReady || !b.ExpiresAt.IsZero() {
		t.Errorf("after all that it is %s, protected %v, expires %s, %v", b.State, b.Protected, b.ExpiresAt, err)
	}

	// It becomes protected after the delete was admitted, and before it is marked.
	check(t, change(pgbough.BranchChange{Protected: &no}))
	late := func() { check(t, change(pgbough.BranchChange{Protected: &yes})) }
	onMark.Store(&late)
	_, op, err := w.DeleteBranch(t.Context(), "shop", "kept", false)
	check(t, err)
	_, err = w.WaitOperation(t.Context(), op.ID)
	refused("a delete that it overtakes", err)
	onMark.Store(nil)
	if b, err := w.Branch(t.Context(), "shop", "kept"); err != nil || b.State != pgbough.BranchReady {
		t.Errorf("after a delete that was refused late it is %s, %v", b.State, err)
	}

	check(t, change(pgbough.BranchChange{Protected: &no}))
	check(t, change(pgbough.BranchChange{ExpiresAt: &soon}))
	refused("protecting one that expires", change(pgbough.BranchChange{Protected: &yes}))
	_, op, err = w.DeleteBranch(t.Context(), "shop", "kept", false)
	check(t, err)
	_, err = w.WaitOperation(t.Context(), op.ID)
	check(t, err)
}
