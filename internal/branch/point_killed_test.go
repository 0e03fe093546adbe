package branch_test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/pgbough/pgbough"
)

// TestKilledWhileTheyShare kills the server with a real SIGKILL at every boundary
// of making a point that three creates wait for, also of undoing it: the next
// server serves all three or none of that one, and nothing is left over.
func TestKilledWhileTheyShare(t *testing.T) {
	w := newWorld(t, nil)
	var places []string
	for _, step := range []string{"gather", "catch_up", "promote", "quarantine", "stop"} {
		for _, at := range []string{"before", "done", "saved"} {
			places = append(places, "make_point/"+step+"/"+at)
		}
	}
	const undone = "make_point/stop/before=error;make_point/gather/undo/"
	places = append(places, undone+"before", undone+"done")
	for i, at := range places {
		t.Run(at, func(t *testing.T) {
			eventually(t, "a spare is ready", func() bool { return w.ready(t) == 1 })
			prefix := fmt.Sprintf("k%d.", i)
			w.close(t, false)
			cmd := exec.Command(os.Args[0], "-test.run=^TestKilledServer$", "-test.v")
			cmd.Env = append(os.Environ(), killedDir+"="+w.dir, killedAt+"="+at, killedVerb+"=crowd "+prefix)
			out, err := cmd.CombinedOutput()
			w.open(t)
			if err == nil || cmd.ProcessState.Exited() {
				t.Fatalf("the server was not killed at %s: %v\n%s", at, err, out)
			}
			w.settle(t)
			if n := w.served(t, prefix); n != 3 && !strings.Contains(at, "undo") {
				t.Errorf("%d of 3 branches are there", n)
			}
			w.consistent(t)
		})
	}
}

// served checks the branches of a prefix, deletes them, and tells how many there are.
func (w *world) served(t *testing.T, prefix string) (n int) {
	t.Helper()
	branches, err := w.Branches(t.Context(), "shop")
	check(t, err)
	for _, b := range branches {
		if !strings.HasPrefix(b.Name, prefix) {
			continue
		}
		n++
		if got := w.value(t, b.ID, "SELECT count(*) FROM orders"); b.State != pgbough.BranchReady || got != "1000" {
			t.Errorf("%s is %s and has %s orders", b.Name, b.State, got)
		}
		_, op, err := w.DeleteBranch(t.Context(), "shop", b.Name, false)
		check(t, err)
		w.finish(t, op)
	}
	return n
}

// settle waits until no operation is unfinished.
func (w *world) settle(t *testing.T) {
	t.Helper()
	eventually(t, "all operations have ended", func() bool {
		ops, err := w.catalog.Unfinished(t.Context())
		check(t, err)
		return len(ops) == 0
	})
}

// consistent compares the pool with the catalog.
func (w *world) consistent(t *testing.T) {
	t.Helper()
	eventually(t, "the spare is replaced", func() bool { return w.ready(t) == 1 })
	eventually(t, "only the newest point is kept", func() bool { return len(w.points(t)) <= 1 })
	w.settle(t)
	pool, err := w.Pool(t.Context())
	check(t, err)
	roles := map[string]int{}
	for _, v := range pool.Volumes {
		roles[v.Role]++
		if !v.Known {
			t.Errorf("volume %s (%s) is nobody's", v.ID, v.Role)
		}
	}
	points := len(w.points(t))
	if roles["root"] != 1 || roles["spare"] != 1 || roles["point"] != points || roles["branch"] != 0 {
		t.Errorf("the pool has %v, the catalog %d points", roles, points)
	}
}
