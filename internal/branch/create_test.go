package branch

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/pgtest"
	"github.com/pgbough/pgbough/internal/postgres"
	"github.com/pgbough/pgbough/internal/volume/storage"
)

// A create for which no spare can be made is refused with the numbers, and does
// not wait for room that nobody makes.
func TestNoRoomForASpare(t *testing.T) {
	r := newRig(t, func(c *storage.Config) { c.Want, c.Size, c.Sparse = "reflink", 2500<<20, true })
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

// A branch that took longer to make than it was to live is there for a while,
// so that who made it can renew it.
func TestLeaseOutlivesASlowCreate(t *testing.T) {
	r := newRig(t)
	p := production(t, pgtest.Options{})
	r.attach(p)
	created, err := r.CreateBranch(t.Context(), "shop", pgbough.CreateRequest{Name: "b", ExpiresAt: time.Now().Add(20 * time.Millisecond)})
	must(t, err)
	_, err = r.WaitOperation(t.Context(), created.Operation.ID)
	must(t, err)
	b, err := r.catalog.Branch(t.Context(), created.Branch.ProjectID, "b")
	must(t, err)
	if left := time.Until(b.ExpiresAt); left < leastLife/2 {
		t.Errorf("it expires in %s", left)
	}

	// And the position of another cluster is never taken for production's.
	f, err := r.followerOf(b.ProjectID)
	must(t, err)
	must(t, f.Source().SetConnString(sourceOf(production(t, pgtest.Options{})).ConnString))
	if m, err := f.Source().Position(t.Context()); pgbough.ErrorCode(err) != pgbough.EConflict {
		t.Errorf("another cluster answered: %+v, %v", m, err)
	}
	if _, err := r.now(t.Context(), b.ProjectID); pgbough.ErrorCode(err) != pgbough.EConflict {
		t.Errorf("another cluster answered a create: %v", err)
	}
}

// Settings that a branch should have and has not are among its differences, also
// those whose values are not even kept since they may be credentials.
func TestSettingsLeftOut(t *testing.T) {
	r := newRig(t)
	p := r.project()
	p.Source.Major = 15
	rows := toNouns([]postgres.Setting{
		{Name: "enable_sort", Value: "off", Source: "user"},
		{Name: "auto_explain.token", Value: "sekret", Source: "configuration file"},
		{Name: "work_mem", Value: "64", Source: "configuration file"},
	})
	left, err := r.leftOut(p, fromNouns(rows))
	must(t, err)
	if len(left) != 2 || left[0].Object != "auto_explain.token" || left[1].Object != "enable_sort" || left[0].Kind != "setting" {
		t.Errorf("left out: %+v", left)
	}
	if strings.Contains(fmt.Sprint(rows, left), "sekret") {
		t.Errorf("it shows the credential: %+v", rows)
	}
}

// A spare that was taken before the machine went down is not gone on with.
func TestSameBoot(t *testing.T) {
	now, err := bootID()
	if err != nil || now == "" {
		t.Fatalf("the machine's boot is %q, %v", now, err)
	}
	if err := sameBoot(now); err != nil {
		t.Errorf("the present boot: %v", err)
	}
	if err := sameBoot("of before"); pgbough.ErrorCode(err) != pgbough.EInternal {
		t.Errorf("an earlier boot: %v", err)
	}
}

// Where there are as many branches as there may be, another one is refused with
// the number before anything is made; one that is there can still be had.
func TestMaxBranches(t *testing.T) {
	r := newRig(t)
	r.branches = 2
	p := r.project()
	r.branchRow(p, "one", pgbough.BranchReady)
	r.branchRow(p, "two", pgbough.BranchReady)
	_, err := r.CreateBranch(t.Context(), "shop", pgbough.CreateRequest{Name: "three"})
	if pgbough.ErrorCode(err) != pgbough.EConflict || !strings.Contains(err.Error(), "there are 2 branches, and this server allows 2") {
		t.Errorf("one more than allowed: %v", err)
	}
	if _, err := r.catalog.Branch(t.Context(), p.ID, "three"); pgbough.ErrorCode(err) != pgbough.ENotFound {
		t.Errorf("it left a row: %v", err)
	}
	if n := r.needy(p.ID); n != 0 {
		t.Errorf("%d creates are still expected", n)
	}
	if _, err := r.CreateBranch(t.Context(), "shop", pgbough.CreateRequest{Name: "two", Reuse: true}); err != nil {
		t.Errorf("one that is there: %v", err)
	}
	r.branches = 3
	created, err := r.CreateBranch(t.Context(), "shop", pgbough.CreateRequest{Name: "three"})
	if err != nil {
		t.Errorf("as many as allowed: %v", err)
	}
	_, _ = r.WaitOperation(t.Context(), created.Operation.ID) // there is no production
}
