package branch

import (
	"os"
	"sync"
	"testing"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/pgtest"
	"github.com/pgbough/pgbough/internal/postgres"
)

// A server that stops takes along what runs on a volume of its pool and was taken
// over by nobody; one that leaves everything running leaves that too.
func TestStopsStrays(t *testing.T) {
	r := newRig(t)
	project := r.attach(production(t, pgtest.Options{}))
	root, err := r.catalog.Branch(t.Context(), project.ID, project.RootBranchID)
	must(t, err)
	run := &refillRun{ID: pgbough.NewOperationID(), ProjectID: project.ID, State: &refillState{VolumeID: pgbough.NewVolumeID(), Parent: root.VolumeID}}
	must(t, r.cloneSpare(t.Context(), run))
	cfg, err := r.config(t.Context(), project, run.State.VolumeID)
	must(t, err)
	cfg.Standby, cfg.Settings = true, r.spareSettings(project, r.inside(cfg), fromNouns(project.Source.Settings))
	must(t, os.MkdirAll(cfg.RelayDir(), 0o755))
	stray, err := postgres.Start(t.Context(), r.launcher, cfg, r.log)
	must(t, err)
	must(t, r.catalog.DeleteSpare(t.Context(), run.State.VolumeID)) // nobody knows it
	must(t, r.Close(t.Context(), false))
	select {
	case <-stray.Done():
		t.Error("a server that leaves everything running has stopped it")
	default:
	}
	r.open()
	r.close()
	select {
	case <-stray.Done():
	default:
		t.Error("it still runs after a server that stopped")
	}
}

// A branch that the guard has stopped is started again by whoever wants it, once,
// but not before it has stopped, and not while it is over its limit.
func TestResume(t *testing.T) {
	r := newRig(t)
	project := r.attach(production(t, pgtest.Options{}))
	b := r.create("b")
	eventually(t, time.Minute, "it is settled", func() bool { return !r.isSettling(b.ID) })
	before := r.computes.State(b.VolumeID).PID
	refused := func(what string) {
		t.Helper()
		if err := r.resume(t.Context(), project, b); pgbough.ErrorCode(err) != pgbough.ENoSpace {
			t.Errorf("%s: %v", what, err)
		}
	}
	r.stopped.Store(b.VolumeID, "of a test")
	refused("one that is still being stopped")
	if now := r.computes.State(b.VolumeID).PID; now != before || now == 0 {
		t.Errorf("its process was %d and is %d", before, now)
	}
	must(t, r.computes.Stop(t.Context(), b.VolumeID))
	r.disk = 1
	refused("one over its limit")
	if r.computes.Knows(b.VolumeID) {
		t.Error("it was started")
	}
	r.disk = 0
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if err := r.resume(t.Context(), project, b); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	conn, err := r.computes.Connect(t.Context(), b.VolumeID)
	must(t, err)
	_ = conn.Close()
	if st := r.computes.State(b.VolumeID); st.PID == 0 || st.PID == before || st.Failure != nil {
		t.Errorf("after four wanted it: %+v", st)
	}
}
