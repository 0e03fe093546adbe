package branch

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/pgtest"
)

// A spare that was cloned before production completed a checkpoint catches up
// after it: the follower keeps the WAL that it needs. Where that WAL is gone
// nevertheless, the refill fails at once instead of waiting for an hour.
func TestSpareClonedBeforeACheckpoint(t *testing.T) {
	r := newRig(t)
	p := production(t, pgtest.Options{})
	project := r.attach(p)
	f, err := r.followerOf(project.ID)
	must(t, err)
	r.stopKeeper(project.ID)
	root, err := r.catalog.Branch(t.Context(), project.ID, project.RootBranchID)
	must(t, err)
	clone := func() string {
		run := &refillRun{ID: pgbough.NewOperationID(), ProjectID: project.ID, State: &refillState{VolumeID: pgbough.NewVolumeID(), Parent: root.VolumeID}}
		must(t, r.cloneSpare(t.Context(), run))
		return run.State.VolumeID
	}
	first, second := clone(), clone()
	for range 4 {
		p.Exec(t, "postgres", "INSERT INTO t SELECT generate_series(1, 1000)")
		p.Exec(t, "postgres", "SELECT pg_switch_wal()")
		p.Exec(t, "postgres", "CHECKPOINT")
		redo, err := pgbough.ParseLSN(p.Value(t, "postgres", "SELECT redo_lsn FROM pg_control_checkpoint()"))
		must(t, err)
		eventually(t, time.Minute, "the follower has passed production's checkpoint", func() bool { return f.Status().Redo >= redo })
	}
	fill := func(id string) error {
		spare, err := r.startSpare(t.Context(), f, project.ID, id, nil)
		must(t, err)
		return f.CatchUp(t.Context(), spare, func(int64, int64) {})
	}
	if err := fill(first); err != nil {
		t.Errorf("the spare does not catch up: %v", err)
	}
	v, err := r.pool.Get(root.VolumeID)
	must(t, err)
	segments, err := filepath.Glob(filepath.Join(v.Data, "pg_wal", "0000*"))
	must(t, err)
	for _, s := range segments[:len(segments)-2] {
		must(t, os.Remove(s))
	}
	began := time.Now()
	if err := fill(second); pgbough.ErrorCode(err) != pgbough.EConflict {
		t.Errorf("a spare whose WAL is gone: %v", err)
	}
	if took := time.Since(began); took > time.Minute {
		t.Errorf("that took %s", took)
	}
	must(t, r.removeSpare(t.Context(), project.ID, first))
	must(t, r.removeSpare(t.Context(), project.ID, second))
}
