package branch_test

import (
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/postgres"
)

// asked is a create that was asked for when production had so many orders.
type asked struct {
	pgbough.Created
	orders string
}

// crowd asks for several branches at once, each after a commit of its own on production.
func (w *world) crowd(t *testing.T, n int, prefix string) []asked {
	t.Helper()
	var mu sync.Mutex
	var out []asked
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			conn := w.source.Conn(t, "postgres")
			if _, err := conn.Exec(t.Context(), "INSERT INTO orders VALUES ($1)", i); err != nil {
				t.Error(err)
			}
			var a asked
			if err := conn.QueryRow(t.Context(), "SELECT count(*)::text FROM orders").Scan(&a.orders); err != nil {
				t.Error(err)
			}
			var err error
			if a.Created, err = w.CreateBranch(t.Context(), "shop", pgbough.CreateRequest{Name: fmt.Sprintf("%s%d", prefix, i)}); err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			out = append(out, a)
		})
	}
	wg.Wait()
	return out
}

// operations counts the operations of a kind.
func (w *world) operations(t *testing.T, kind string) (n int) {
	t.Helper()
	ops, err := w.Operations(t.Context(), "shop")
	check(t, err)
	for _, op := range ops {
		if op.Kind == kind {
			n++
		}
	}
	return n
}

func (w *world) points(t *testing.T) []pgbough.Point {
	t.Helper()
	p, err := w.Project(t.Context(), "shop")
	check(t, err)
	points, err := w.catalog.Points(t.Context(), p.ID)
	check(t, err)
	return points
}

// Creates that come at the same time share one spare: each branch has all that
// production had acknowledged before its own request, passwords of its own, and
// costs what a clone costs.
func TestCreatesShareAPoint(t *testing.T) {
	w := newWorld(t, nil)
	refills := w.operations(t, "refill_spare")
	made := w.crowd(t, 5, "b")
	for _, a := range made {
		w.finish(t, a.Operation)
	}
	if n := w.operations(t, "make_point"); n != 1 {
		t.Errorf("%d points were made for one crowd", n)
	}
	// The spare that was shared is replaced, and no other was taken.
	eventually(t, "a spare is ready again", func() bool { return w.ready(t) == 1 })
	if n := w.operations(t, "refill_spare") - refills; n != 1 {
		t.Errorf("%d refills for one crowd", n)
	}
	points := w.points(t)
	if len(points) != 1 {
		t.Fatalf("%d points", len(points))
	}
	passwords, verifiers := map[string]bool{}, map[string]bool{}
	for _, a := range made {
		b := w.get(t, a.Branch.Name)
		if got := w.value(t, b.ID, "SELECT count(*) >= "+a.orders+" FROM orders"); got != "true" {
			t.Errorf("%s has not the %s orders that were acknowledged before it was asked for", b.Name, a.orders)
		}
		if b.ParentLSN != points[0].LSN || b.ParentTime.IsZero() || !b.Settled || len(b.Differences) == 0 || len(b.Settings) == 0 {
			t.Errorf("%s was cut at %s (%s), settled %t, with %d differences and %d settings", b.Name, b.ParentLSN, b.ParentTime, b.Settled, len(b.Differences), len(b.Settings))
		}
		if b.OwnBytes > 20<<20 {
			t.Errorf("%s holds %d bytes of its own", b.Name, b.OwnBytes)
		}
		roles, err := w.Roles(t.Context(), "shop", b.Name)
		check(t, err)
		for _, r := range roles {
			passwords[r.Password] = true
		}
		verifiers[w.logins(t, b.Name)["app"].Verifier] = true
	}
	if len(passwords) != 2*len(made) || len(verifiers) != len(made) {
		t.Errorf("%d branches with two login roles each have %d passwords, and %d verifiers of one of them", len(made), len(passwords), len(verifiers))
	}
	// What one of them writes none of the others sees, nor who comes later.
	first := made[0].Branch
	w.exec(t, first.ID, "DROP TABLE orders")
	w.suspend(t, first.Name)
	if got := w.value(t, made[1].Branch.ID, "SELECT count(*) > 1000 FROM orders"); got != "true" {
		t.Error("a branch sees what another one of the same point has done")
	}
	if clean, err := postgres.CleanlyStopped(w.data(t, points[0].VolumeID)); err != nil || !clean {
		t.Errorf("the point was written to: clean %t, %v", clean, err)
	}
	// They stay when the point goes, and so they do after the server's end.
	w.again(t, false)
	for _, a := range made[1:] {
		if got := w.value(t, a.Branch.ID, "SELECT count(*) > 1000 FROM orders"); got != "true" {
			t.Errorf("%s after the server's end: %s", a.Branch.Name, got)
		}
	}
}

// ready is how many spares are ready.
func (w *world) ready(t *testing.T) (n int) {
	t.Helper()
	st, err := w.Status(t.Context())
	check(t, err)
	for _, sp := range st.Projects[0].Spares {
		if sp.State == pgbough.SpareReady {
			n++
		}
	}
	return n
}

// data is the data directory of a volume.
func (w *world) data(t *testing.T, volumeID string) string {
	t.Helper()
	v, err := w.storage.Pool.Get(volumeID)
	check(t, err)
	return v.Data
}

// A create that accepts an older state leaves a point for the next such one,
// which asks production nothing; who accepts none gets the present state.
func TestMaxLag(t *testing.T) {
	w := newWorld(t, nil)
	create := func(name string, lag time.Duration) pgbough.BranchView {
		t.Helper()
		c, err := w.CreateBranch(t.Context(), "shop", pgbough.CreateRequest{Name: name, MaxLag: lag})
		check(t, err)
		w.finish(t, c.Operation)
		return w.get(t, name)
	}
	first := create("first", time.Minute)
	if n := w.operations(t, "make_point"); n != 1 {
		t.Fatalf("%d points for one create that accepts one", n)
	}
	w.source.Exec(t, "postgres", "INSERT INTO orders VALUES (0)")
	w.source.Stop(t)
	began := time.Now()
	second := create("second", time.Minute)
	t.Logf("a create of a point took %s", time.Since(began))
	if second.ParentLSN != first.ParentLSN || w.value(t, second.ID, "SELECT count(*) FROM orders") != "1000" {
		t.Errorf("the second was cut at %s, the first at %s", second.ParentLSN, first.ParentLSN)
	}
	w.source.Run(t)
	eventually(t, "a spare is ready again", func() bool { return w.ready(t) == 1 })
	for _, lag := range []time.Duration{0, time.Millisecond} {
		b := create("now"+lag.String(), lag)
		if got := w.value(t, b.ID, "SELECT count(*) FROM orders"); got != "1001" {
			t.Errorf("with --max-lag %s there are %s orders", lag, got)
		}
		eventually(t, "a spare is ready again", func() bool { return w.ready(t) == 1 })
	}
	if points := w.points(t); len(points) > 2 {
		t.Errorf("%d points", len(points))
	}
	eventually(t, "only the newest point is kept", func() bool { return len(w.points(t)) == 1 })
	point := w.points(t)[0]
	_, op, err := w.DeleteProject(t.Context(), "shop")
	check(t, err)
	w.finish(t, op)
	if left, err := filepath.Glob(filepath.Join(w.storage.Pool.Dir(), "volumes", "*")); err != nil || len(left) > 0 {
		t.Errorf("the project is gone, and left %v (its point was %s)", left, point.VolumeID)
	}
}
