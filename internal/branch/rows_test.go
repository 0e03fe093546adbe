package branch

import (
	"sync"
	"testing"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/volume"
)

// What a PATCH of the expiry and the steps of operations write at the same time
// is all there afterwards.
func TestNoUpdateIsLost(t *testing.T) {
	r := newRig(t)
	p := r.project()
	for range 20 {
		b := r.branchRow(p, "b", pgbough.BranchInit)
		at := time.Now().Add(time.Hour).UTC().Round(time.Millisecond)
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				if _, err := r.UpdateBranch(t.Context(), p.ID, b.ID, pgbough.BranchChange{ExpiresAt: &at}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Go(func() {
			_, err := r.catalog.ChangeBranch(t.Context(), p.ID, b.ID, func(b *pgbough.Branch) error {
				b.Settled = true
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
		wg.Wait()
		got, err := r.catalog.Branch(t.Context(), p.ID, b.ID)
		must(t, err)
		if !got.Settled || !got.ExpiresAt.Equal(at) {
			t.Fatalf("after both: settled %t, expires at %s", got.Settled, got.ExpiresAt)
		}
		must(t, r.catalog.DeleteBranch(t.Context(), b.ID))
	}
}

// A spare that was taken is removed with its branch also if the server ended
// before the operation could write down which one it was.
func TestTakenSpareIsDropped(t *testing.T) {
	r := newRig(t)
	p := r.project()
	v := r.volume(p, volume.RoleSpare)
	must(t, r.catalog.PutSpare(t.Context(), pgbough.Spare{VolumeID: v.ID, ProjectID: p.ID, State: pgbough.SpareReady}))
	b := r.branchRow(p, "b", pgbough.BranchInit)
	run := &createRun{ID: pgbough.NewOperationID(), ProjectID: p.ID, BranchID: b.ID, State: &createState{}}
	if _, ok, err := r.catalog.TakeSpare(t.Context(), p.ID, run.ID); !ok || err != nil {
		t.Fatal(ok, err)
	}
	must(t, r.dropTaken(t.Context(), run))
	if spares, err := r.catalog.Spares(t.Context(), p.ID); err != nil || len(spares) > 0 {
		t.Errorf("spares that are left: %+v, %v", spares, err)
	}
	if _, err := r.pool.Get(v.ID); err == nil {
		t.Error("its volume is left")
	}
	must(t, r.dropTaken(t.Context(), run)) // again, as after another crash
}
