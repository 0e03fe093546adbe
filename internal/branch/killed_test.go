package branch_test

import (
	"context"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/branch"
	"github.com/pgbough/pgbough/internal/operation"
	"github.com/pgbough/pgbough/internal/postgres"
)

// The variables that make this test binary a server that does one thing and is
// killed at a failpoint.
const (
	killedDir   = "BRANCH_TEST_DIR"
	killedAt    = "BRANCH_TEST_FAILPOINT"
	killedVerb  = "BRANCH_TEST_VERB"
	killedAfter = 30 * time.Second

	// unrecorded leaves a Postgres that runs for a branch that is recorded as asleep.
	unrecorded = "start_compute/record=sleep:1m;start_compute/launched"
)

// TestKilledServer is that server; by itself it does nothing.
func TestKilledServer(t *testing.T) {
	dir := os.Getenv(killedDir)
	if dir == "" {
		return
	}
	failpoint, err := operation.Failpoints(os.Getenv(killedAt) + "=kill")
	check(t, err)
	w := &world{dir: dir, options: branch.Options{
		Credential: postgres.Credential{UID: 64420, GID: 64420}, RunDir: filepath.Join(dir, "run"), Memory: branch.Memory{SharedBuffers: "32MB"},
		Spares: 1, Version: "test", Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), Failpoint: failpoint,
	}}
	w.open(t)
	ctx, cancel := context.WithTimeout(t.Context(), killedAfter)
	defer cancel()
	switch os.Getenv(killedVerb) {
	case "idle":
		second := time.Second
		_, err = w.UpdateBranch(ctx, "shop", "one", pgbough.BranchChange{SuspendAfter: &second})
	case "connect":
		_, err = w.Connect(ctx, w.get(t, "one").ID)
	}
	t.Logf("not killed yet: %v", err)
	<-ctx.Done()
	w.close(t, false)
}

// TestKilledWhileItTurns kills the server with a real SIGKILL at every boundary
// of falling asleep and of waking, right after a password was changed: the next
// one has the branch with all its rows, and only the new password counts.
func TestKilledWhileItTurns(t *testing.T) {
	w := newWorld(t, nil)
	b := w.create(t, "one")
	eventually(t, "the background work of the create is done", func() bool { return w.get(t, "one").Settled })
	for _, c := range []struct{ verb, at string }{
		{"idle", "suspend_compute/held"},
		{"idle", "suspend_compute/ended"},
		{"idle", "suspend_compute/stopped"},
		{"idle", "suspend_compute/recorded"},
		{"connect", "start_compute/record"},
		{"connect", "start_compute/launched"},
		{"connect", "start_compute/recorded"},
		{"connect", unrecorded},
	} {
		t.Run(c.verb+" "+filepath.Base(c.at), func(t *testing.T) {
			never := pgbough.SuspendNever
			_, err := w.UpdateBranch(t.Context(), "shop", "one", pgbough.BranchChange{SuspendAfter: &never})
			check(t, err)
			w.exec(t, b.ID, "ALTER ROLE app PASSWORD '"+c.at+"'; INSERT INTO orders VALUES (0)")
			want, rows := w.logins(t, "one"), w.value(t, b.ID, "SELECT count(*) FROM orders")
			if c.verb == "connect" {
				w.suspend(t, "one")
			}
			w.close(t, false)
			cmd := exec.Command(os.Args[0], "-test.run=^TestKilledServer$", "-test.v")
			cmd.Env = append(os.Environ(), killedDir+"="+w.dir, killedAt+"="+c.at, killedVerb+"="+c.verb)
			out, err := cmd.CombinedOutput()
			w.open(t)
			if err == nil || cmd.ProcessState.Exited() {
				t.Fatalf("the server was not killed at %s: %v\n%s", c.at, err, out)
			}
			must := c.at == "suspend_compute/recorded"
			mayBe := must || c.at == "start_compute/record" // before anything was started
			if asleep := w.get(t, "one").Compute == pgbough.ComputeIdle; must && !asleep || !mayBe && asleep || asleep && w.postmaster(t, b) != 0 {
				t.Errorf("the next server finds it asleep: %t, with process %d", asleep, w.postmaster(t, b))
			}
			if diff := cmp.Diff(want, w.logins(t, "one")); diff != "" {
				t.Errorf("what clients must prove (-before +after):\n%s", diff)
			}
			if got := w.value(t, b.ID, "SELECT count(*) FROM orders"); got != rows {
				t.Errorf("%s rows, want %s", got, rows)
			}
		})
	}
}
