package branch

import (
	"strings"
	"testing"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/pgtest"
	"github.com/pgbough/pgbough/internal/volume/storage"
)

// A create for which no spare can be made is refused with the numbers, and does
// not wait for room that nobody makes.
func TestNoRoomForASpare(t *testing.T) {
	r := newRig(t, func(c *storage.Config) { c.Want, c.Size, c.Sparse = "reflink", 1500<<20, true })
	p := production(t, pgtest.Options{})
	r.attach(p)
	project, err := r.catalog.Project(t.Context(), "shop")
	must(t, err)
	r.close()
	r.opts.Spares = 0 // what is there is all that there will be
	r.open()
	r.create("first")
	space, err := r.pool.Space()
	must(t, err)
	fill := r.volume(project, "branch")
	must(t, allocate(fill.Data+"/fill", space.Free-300<<20))
	r.wanted = 1
	began := time.Now()
	created, err := r.CreateBranch(t.Context(), "shop", pgbough.CreateRequest{Name: "second"})
	must(t, err) // it is not full yet
	_, err = r.WaitOperation(t.Context(), created.Operation.ID)
	if pgbough.ErrorCode(err) != pgbough.ENoSpace || !strings.Contains(err.Error(), "free") {
		t.Errorf("a create without room for a spare: %v", err)
	}
	if took := time.Since(began); took > short {
		t.Errorf("that took %s", took)
	}
}
