package catalog

import (
	"testing"
	"time"

	"github.com/pgbough/pgbough"
)

func TestPoints(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	c := open(t, dir)
	p := project("p")
	must(t, c.CreateProject(ctx, p))
	put := func(pt pgbough.Point) error {
		return c.Tx(ctx, func(tx *Tx) error { return tx.PutPoint(pt) })
	}
	full := filled[pgbough.Point]()
	full.ProjectID = p.ID
	must(t, put(full))
	changed := full
	changed.LSN++
	must(t, put(changed)) // a step that runs again
	newer := pgbough.Point{VolumeID: "newer", ProjectID: p.ID, AskedAt: full.AskedAt.Add(time.Hour)}
	must(t, put(newer))
	must(t, c.Close())
	c = open(t, dir)
	list, err := c.Points(ctx, p.ID)
	must(t, err)
	equal(t, "list", list, []pgbough.Point{newer, full})
	wantCode(t, "no such project", put(pgbough.Point{VolumeID: "x", ProjectID: "none"}), pgbough.ENotFound)
	wantCode(t, "delete a project with points", c.DeleteProject(ctx, p.ID), pgbough.EConflict)
	must(t, c.DeletePoint(ctx, full.VolumeID), c.DeletePoint(ctx, full.VolumeID), c.DeletePoint(ctx, "newer"), c.DeleteProject(ctx, p.ID))
}

// A spare changes hands only from who has it.
func TestGiveSpare(t *testing.T) {
	ctx := t.Context()
	c := open(t, t.TempDir())
	p := project("p")
	must(t, c.CreateProject(ctx, p))
	must(t, c.PutSpare(ctx, pgbough.Spare{VolumeID: "v", ProjectID: p.ID, State: pgbough.SpareReady}))
	give := func(from, to string) error {
		return c.Tx(ctx, func(tx *Tx) error { return tx.GiveSpare("v", from, to) })
	}
	if err := give("a", "b"); pgbough.ErrorCode(err) != pgbough.EInternal {
		t.Errorf("one that nobody has taken: %v", err)
	}
	if _, ok, err := c.TakeSpare(ctx, p.ID, "a"); !ok || err != nil {
		t.Fatal(ok, err)
	}
	must(t, give("a", "b"), give("a", "b"))
	if err := give("a", "c"); pgbough.ErrorCode(err) != pgbough.EInternal {
		t.Errorf("one of somebody else: %v", err)
	}
	for by, want := range map[string]bool{"a": false, "b": true} {
		if _, ok, err := c.TakenSpare(ctx, by); ok != want || err != nil {
			t.Errorf("%s has it: %t, %v", by, ok, err)
		}
	}
}

func TestTotalBranches(t *testing.T) {
	ctx := t.Context()
	c := open(t, t.TempDir())
	for _, name := range []string{"p", "q"} {
		p := project(name)
		must(t, c.CreateProject(ctx, p))
		root := branch(p, "", "main")
		must(t, c.CreateBranch(ctx, root), c.CreateBranch(ctx, branch(p, root.ID, "a")), c.CreateBranch(ctx, branch(p, root.ID, "b")))
	}
	must(t, c.Tx(ctx, func(tx *Tx) error {
		n, err := tx.TotalBranches()
		equal(t, "branches but the roots", n, 4)
		return err
	}))
}
