package catalog

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pgbough/pgbough"
)

func TestEndpoints(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	c := open(t, dir)
	p := project("p")
	b := branch(p, "", "b")
	b.EndpointID = "ep-b"
	must(t, c.CreateProject(ctx, p), c.CreateBranch(ctx, b))
	e, err := c.Endpoint(ctx, b.ID)
	must(t, err)
	want := pgbough.Endpoint{ID: "ep-b", BranchID: b.ID, Awake: true, SuspendAfter: pgbough.SuspendByDefault}
	equal(t, "a new branch is awake", e, want)

	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	logins := []pgbough.Login{{Role: "app", Verifier: "SCRAM-SHA-256$topsecret5", ValidUntil: at}, {Role: "group"}}
	must(t, c.SetAsleep(ctx, b.ID, []pgbough.Login{{Role: "old", Verifier: "md5"}}, at), c.SetAsleep(ctx, b.ID, logins, at))
	must(t, c.NoteFailure(ctx, b.ID, at, "first"), c.NoteFailure(ctx, b.ID, at.Add(time.Hour), "second"))
	must(t, c.Tx(ctx, func(tx *Tx) error { return tx.SetSuspendAfter(b.ID, time.Minute) }), updateBranch(ctx, c, b))
	all, err := c.Endpoints(ctx, p.ID)
	must(t, err)
	want = pgbough.Endpoint{
		ID: "ep-b", BranchID: b.ID, SuspendAfter: time.Minute, LastActive: at, Restarts: 2, FailedAt: at.Add(time.Hour), Failure: "second",
	}
	equal(t, "after a sleep and two failures", all, map[string]pgbough.Endpoint{b.ID: want})

	for role, want := range map[string]pgbough.Login{"app": logins[0], "group": {Role: "group"}, "old": {Role: "old"}} {
		want.BranchID = b.ID
		got, asleep, err := c.KeptLogin(ctx, b.ID, role)
		must(t, err)
		equal(t, "the verifier of "+role, got, want)
		if !asleep {
			t.Errorf("%s: the branch is said to be awake", role)
		}
	}
	must(t, c.SetAwake(ctx, b.ID))
	if got, asleep, err := c.KeptLogin(ctx, b.ID, "app"); asleep || got.Verifier != "" || err != nil {
		t.Errorf("awake: a kept verifier counts: %+v, %v", got, err)
	}
	content, err := os.ReadFile(filepath.Join(dir, "catalog.db-wal"))
	must(t, err)
	if bytes.Contains(content, []byte("topsecret5")) {
		t.Error("the catalog holds a verifier in clear")
	}
	must(t, c.DeleteBranch(ctx, b.ID))
	for what, err := range map[string]error{
		"awake": c.SetAwake(ctx, b.ID), "asleep": c.SetAsleep(ctx, b.ID, nil, at), "failure": c.NoteFailure(ctx, b.ID, at, ""), "read": second(c.Endpoint(ctx, b.ID)),
	} {
		wantCode(t, what+" of a branch that is gone", err, pgbough.ENotFound)
	}
}

func TestRoute(t *testing.T) {
	ctx := t.Context()
	c := open(t, t.TempDir())
	p, q := project("p"), project("q")
	p.Source.Major = 15
	must(t, c.CreateProject(ctx, p), c.CreateProject(ctx, q))
	add := func(p pgbough.Project, name, endpoint string) pgbough.Branch {
		b := branch(p, "", name)
		b.EndpointID, b.VolumeID = endpoint, "v"+endpoint
		must(t, c.CreateBranch(ctx, b))
		return b
	}
	one, two := add(p, "same", "ep-1"), add(q, "same", "ep-2")
	alone, slash := add(p, "alone", "ep-3"), add(q, "p/alone", "ep-4")
	must(t, c.CreateBranch(ctx, branch(p, "", "main")))
	for name, want := range map[string]pgbough.Branch{
		"ep-1": one, one.ID: one, "p/same": one, p.ID + "/same": one, "q/same": two,
		"alone": alone, "p/alone": alone, "q/p/alone": slash,
	} {
		r, err := c.Route(ctx, name)
		if err != nil || r.BranchID != want.ID || r.VolumeID != want.VolumeID || r.EndpointID != want.EndpointID {
			t.Errorf("%s leads to %+v (%v), want %s", name, r, err, want.Name)
		}
	}
	r, err := c.Route(ctx, "ep-1")
	equal(t, "all of a route", r, pgbough.Route{
		ProjectID: p.ID, ProjectName: "p", BranchID: one.ID, BranchName: "same", EndpointID: "ep-1", State: pgbough.BranchReady, VolumeID: "vep-1", Major: 15,
	})
	must(t, err)
	_, err = c.Route(ctx, "same")
	wantCode(t, "a name of two projects", err, pgbough.EConflict)
	if err != nil && !strings.Contains(err.Error(), "p/same") {
		t.Errorf("the way out is not named: %v", err)
	}
	for _, name := range []string{"main", "none", "p/none", ""} {
		wantCode(t, name, second(c.Route(ctx, name)), pgbough.ENotFound)
	}
}
