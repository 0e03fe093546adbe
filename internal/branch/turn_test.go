package branch_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/branch"
	"github.com/pgbough/pgbough/internal/postgres"
	"github.com/pgbough/pgbough/internal/volume"
)

// gate is a failpoint that holds up whoever comes to one place.
type gate struct {
	mu      sync.Mutex
	at      string
	reached chan struct{}
	open    chan struct{}
}

func (g *gate) arm(at string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.at, g.reached, g.open = at, make(chan struct{}), make(chan struct{})
}

func (g *gate) pass(at string) {
	g.mu.Lock()
	if at != g.at {
		g.mu.Unlock()
		return
	}
	g.at = ""
	reached, open := g.reached, g.open
	g.mu.Unlock()
	close(reached)
	<-open
}

// A branch that is deleted while it falls asleep or wakes is gone, with its
// process and its volume, and its client is told.
func TestDeleteWhileItTurns(t *testing.T) {
	g := &gate{}
	w := newWorld(t, func(o *branch.Options) { o.Failpoint = g.pass })
	for i, at := range []string{"suspend_compute/held", "suspend_compute/stopped", "start_compute/launched", "start_compute/recorded"} {
		t.Run(at, func(t *testing.T) {
			eventually(t, "a spare is ready", func() bool { return w.spareReady(t) })
			name := fmt.Sprintf("b%d", i)
			b := w.create(t, name)
			eventually(t, "it is settled", func() bool { return w.get(t, name).Settled })
			client := make(chan error, 1)
			if strings.HasPrefix(at, "start") {
				w.suspend(t, name)
				g.arm(at)
				go func() { _, err := w.Connect(t.Context(), b.ID); client <- err }()
			} else {
				client <- errors.New("nobody")
				g.arm(at)
				second := time.Second
				_, err := w.UpdateBranch(t.Context(), "shop", name, pgbough.BranchChange{SuspendAfter: &second})
				check(t, err)
			}
			<-g.reached
			_, op, err := w.DeleteBranch(t.Context(), "shop", name, false)
			check(t, err)
			eventually(t, "the delete has begun", func() bool {
				now, err := w.catalog.Operation(t.Context(), op.ID)
				return err == nil && now.Step > 0
			})
			close(g.open)
			w.finish(t, op)
			select {
			case err := <-client:
				if err == nil && at != "start_compute/recorded" {
					t.Error("a client was let in")
				}
			case <-time.After(30 * time.Second):
				t.Error("a client was told nothing")
			}
			if pid := w.postmaster(t, b); pid != 0 {
				t.Errorf("process %d is left", pid)
			}
			if _, err := w.storage.Pool.Get(b.VolumeID); !errors.Is(err, volume.ErrNotExist) {
				t.Errorf("its volume: %v", err)
			}
			if _, err := w.Branch(t.Context(), "shop", name); pgbough.ErrorCode(err) != pgbough.ENotFound {
				t.Errorf("the branch: %v", err)
			}
		})
	}
}

// memoryLimit is how much memory the kernel lets a process's cgroup have.
func memoryLimit(t *testing.T, pid int) string {
	t.Helper()
	own, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	check(t, err)
	file := ""
	for line := range strings.Lines(string(own)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		switch {
		case f[1] == "memory":
			file = filepath.Join("/sys/fs/cgroup/memory", f[2], "memory.limit_in_bytes")
		case f[1] == "" && file == "":
			file = filepath.Join("/sys/fs/cgroup", f[2], "memory.max")
		}
	}
	b, err := os.ReadFile(file)
	check(t, err)
	return strings.TrimSpace(string(b))
}

// A compute that the next server takes over has its limits still, and those that
// were changed meanwhile, without a new start.
func TestAdoptedLimits(t *testing.T) {
	w := newWorld(t, func(o *branch.Options) { o.Limits = postgres.Limits{Memory: 300 << 20} })
	b := w.create(t, "one")
	pid := w.postmaster(t, b)
	for _, want := range []int64{300 << 20, 400 << 20, 200 << 20} {
		w.options.Limits.Memory = want
		w.again(t, false)
		eventually(t, fmt.Sprintf("the limit is %d", want), func() bool { return memoryLimit(t, pid) == fmt.Sprint(want) })
		if got := w.value(t, b.ID, "SELECT count(*) FROM orders"); got != "1000" || w.postmaster(t, b) != pid {
			t.Errorf("with a limit of %d: %s orders, process %d, was %d", want, got, w.postmaster(t, b), pid)
		}
	}
}
