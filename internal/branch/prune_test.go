package branch

import (
	"context"
	"strings"
	"sync"
	"testing"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/volume"
)

// A prune takes nothing that is being made meanwhile.
func TestPruneLeavesNewVolumes(t *testing.T) {
	r := newRig(t)
	p := r.project()
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for range 60 {
				id := pgbough.NewVolumeID()
				must(t, r.catalog.PutSpare(ctx, pgbough.Spare{VolumeID: id, ProjectID: p.ID, State: pgbough.SpareFilling}))
				_, err := r.pool.Create(ctx, volume.Manifest{ID: id, ProjectID: p.ID, Role: volume.RoleSpare})
				must(t, err)
				if _, err := r.pool.Get(id); err != nil {
					t.Errorf("a new volume: %v", err)
				}
				must(t, r.removeSpare(ctx, p.ID, id))
			}
		})
	}
	var pruning sync.WaitGroup
	pruning.Go(func() {
		for ctx.Err() == nil {
			if gone, err := r.Prune(ctx, false); ctx.Err() == nil && (err != nil || len(gone) > 0) {
				t.Errorf("pruned %+v (%v)", gone, err)
			}
		}
	})
	wg.Wait()
	stop()
	pruning.Wait()
	stray := r.volume(p, volume.RoleSpare)
	if st, err := r.Status(t.Context()); err != nil || !strings.Contains(strings.Join(st.Notes, "\n"), stray.ID) {
		t.Errorf("the notes %q do not tell of volume %s (%v)", st.Notes, stray.ID, err)
	}
	if gone, err := r.Prune(t.Context(), false); err != nil || len(gone) != 1 || gone[0].ID != stray.ID {
		t.Errorf("pruned %+v (%v), want %s", gone, err, stray.ID)
	}
}

// An operation that this version does not know keeps what it works on; the
// server starts nevertheless, and says so.
func TestStuckOperation(t *testing.T) {
	r := newRig(t)
	p := r.project()
	b := r.branchRow(p, "b", pgbough.BranchInit)
	op := pgbough.Operation{ID: pgbough.NewOperationID(), ProjectID: p.ID, BranchID: b.ID, Kind: "of the future", Status: pgbough.OperationRunning, State: []byte("{}")}
	must(t, r.catalog.SaveOperation(t.Context(), op))
	r.close()
	r.open()
	st, err := r.Status(t.Context())
	must(t, err)
	if notes := strings.Join(st.Notes, "\n"); !strings.Contains(notes, op.ID) {
		t.Errorf("the notes do not tell it: %s", notes)
	}
	if _, err := r.catalog.Branch(t.Context(), p.ID, b.ID); err != nil {
		t.Errorf("its branch: %v", err)
	}
}
