package branch_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
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
	killedName  = "BRANCH_TEST_NAME"
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
	case "create":
		_, err = w.CreateBranch(ctx, "shop", pgbough.CreateRequest{Name: os.Getenv(killedName)})
	case "connect":
		_, err = w.Connect(ctx, w.get(t, "one").ID)
	case "lagging":
		for i := range 2 { // the second finds a clone that was made ahead
			w.lagging(t, fmt.Sprintf("%s%d", os.Getenv(killedName), i), time.Hour)
			eventually(t, "a clone is ready", func() bool { return len(w.clones(t)) == 1 })
		}
	default:
		if text, ok := strings.CutPrefix(os.Getenv(killedVerb), "history "); ok {
			d, _ := time.ParseDuration(text)
			_, err = w.ChangeProject(ctx, "shop", pgbough.ProjectChange{History: &d})
			break
		}
		if text, ok := strings.CutPrefix(os.Getenv(killedVerb), "past "); ok {
			lsn, perr := pgbough.ParseLSN(text)
			check(t, perr)
			_, err = w.CreateBranch(ctx, "shop", pgbough.CreateRequest{Name: os.Getenv(killedName), At: pgbough.Past{LSN: lsn}})
			break
		}
		prefix, _ := strings.CutPrefix(os.Getenv(killedVerb), "crowd ")
		for i := range 3 {
			_, err = w.CreateBranch(ctx, "shop", pgbough.CreateRequest{Name: fmt.Sprintf("%s%d", prefix, i)})
			check(t, err)
		}
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

// TestKilledWhilePromoted kills the server while it makes a branch, and with it
// every Postgres: the spare recovers from a WAL segment that is not whole, and
// the next server finishes the branch.
func TestKilledWhilePromoted(t *testing.T) {
	w := newWorld(t, nil)
	for i, c := range []struct {
		at  string
		end syscall.Signal
	}{
		{"create_branch/catch_up/saved", syscall.SIGKILL},
		{"create_branch/promote/done", syscall.SIGKILL},
		{"create_branch/promote/done", syscall.SIGINT}, // cleanly, so that the next start replays nothing
		{"create_branch/quarantine/done", syscall.SIGKILL},
		{"create_branch/quarantine/saved", syscall.SIGKILL},
	} {
		t.Run(c.at+" "+c.end.String(), func(t *testing.T) {
			eventually(t, "a spare is ready", func() bool { return w.spareReady(t) })
			w.close(t, false)
			name := fmt.Sprintf("b%d", i)
			cmd := exec.Command(os.Args[0], "-test.run=^TestKilledServer$", "-test.v")
			cmd.Env = append(os.Environ(), killedDir+"="+w.dir, killedAt+"="+c.at, killedVerb+"=create", killedName+"="+name)
			out, err := cmd.CombinedOutput()
			if err == nil || cmd.ProcessState.Exited() {
				t.Fatalf("the server was not killed: %v\n%s", err, out)
			}
			volumes, err := os.ReadDir(w.options.RunDir)
			check(t, err)
			for _, v := range volumes {
				if pid := postmaster(t, v.Name()); pid != 0 {
					check(t, syscall.Kill(pid, c.end))
				}
			}
			eventually(t, "every Postgres has ended", func() bool {
				return !slices.ContainsFunc(volumes, func(v os.DirEntry) bool { return postmaster(t, v.Name()) != 0 })
			})
			w.open(t)
			eventually(t, "the branch is made", func() bool { return w.get(t, name).State == pgbough.BranchReady })
			b := w.get(t, name)
			if got := w.value(t, b.ID, "SELECT count(*) FROM orders"); got != "1000" {
				t.Errorf("%s rows", got)
			}
			if got := w.value(t, b.ID, "SELECT count(*) FROM pg_ls_waldir() WHERE size <> pg_size_bytes(current_setting('wal_segment_size')) AND name ~ '^[0-9A-F]{24}$'"); got != "0" {
				t.Errorf("%s WAL segments are not whole", got)
			}
			if got := w.value(t, b.ID, "SELECT current_setting('fsync') || current_setting('primary_conninfo')"); got != "on" {
				t.Errorf("fsync and primary_conninfo are %s", got)
			}
		})
	}
}

func (w *world) spareReady(t *testing.T) bool {
	t.Helper()
	p, err := w.Project(t.Context(), "shop")
	check(t, err)
	spares, err := w.catalog.Spares(t.Context(), p.ID)
	check(t, err)
	return slices.ContainsFunc(spares, func(s pgbough.Spare) bool { return s.State == pgbough.SpareReady })
}
