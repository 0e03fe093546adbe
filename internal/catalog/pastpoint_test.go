package catalog

import (
	"testing"

	"github.com/pgbough/pgbough"
)

func TestPastPoints(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	c := open(t, dir)
	p := project("p")
	must(t, c.CreateProject(ctx, p))
	full := filled[pgbough.PastPoint]()
	full.ProjectID = p.ID
	full.LSN = 7 // of those that are real, none has the highest bit
	changed := full
	changed.LSN++
	older := pgbough.PastPoint{VolumeID: "older", ProjectID: p.ID, LSN: 1}
	must(t, c.PutPastPoint(ctx, full), c.PutPastPoint(ctx, changed), c.PutPastPoint(ctx, older))
	must(t, c.Close())
	c = open(t, dir)
	list, err := c.PastPoints(ctx, p.ID)
	must(t, err)
	equal(t, "the oldest first", list, []pgbough.PastPoint{older, full})
	wantCode(t, "no such project", c.PutPastPoint(ctx, pgbough.PastPoint{VolumeID: "x", ProjectID: "none"}), pgbough.ENotFound)
	wantCode(t, "delete a project with points", c.DeleteProject(ctx, p.ID), pgbough.EConflict)
	must(t, c.DeletePastPoint(ctx, full.VolumeID), c.DeletePastPoint(ctx, full.VolumeID), c.DeletePastPoint(ctx, "older"), c.DeleteProject(ctx, p.ID))
}
