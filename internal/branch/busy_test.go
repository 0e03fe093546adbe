package branch

import (
	"testing"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/pgtest"
)

// While a branch is being made of a spare no other one is filled, which would take
// the processors and the disk from it: not before the create has come to its end.
func TestNoRefillDuringACreate(t *testing.T) {
	r := newRig(t)
	project := r.attach(production(t, pgtest.Options{}))
	r.close()
	reached, release := make(chan struct{}), make(chan struct{})
	r.opts.Failpoint = func(place string) {
		if place == "create_branch/promote/before" {
			close(reached)
			<-release
		}
	}
	r.open()
	refills := func() (n int) {
		ops, err := r.catalog.Operations(t.Context(), project.ID)
		must(t, err)
		for _, op := range ops {
			if op.Kind == "refill_spare" {
				n++
			}
		}
		return n
	}
	created, err := r.CreateBranch(t.Context(), "shop", pgbough.CreateRequest{Name: "one"})
	must(t, err)
	select {
	case <-reached:
	case <-time.After(time.Minute):
		t.Fatal("the create does not come to its promotion")
	}
	before := refills()
	err = r.tend(project.ID) // as its keeper does each second
	during := refills()
	close(release)
	must(t, err)
	if during != before {
		t.Errorf("%d refills began during the create", during-before)
	}
	_, err = r.WaitOperation(t.Context(), created.Operation.ID)
	must(t, err)
	eventually(t, time.Minute, "the next spare is filled", func() bool { return refills() > before })
}
