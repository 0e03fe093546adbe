package catalog

import (
	"fmt"
	"testing"
	"time"

	"github.com/pgbough/pgbough"
)

func TestAPIKeys(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	c := open(t, dir)
	p := project("p")
	must(t, c.CreateProject(ctx, p))
	full := filled[pgbough.APIKey]()
	full.ProjectID, full.ProjectName = p.ID, p.Name
	full, err := c.CreateAPIKey(ctx, full, []byte("one"))
	must(t, err)
	zero, err := c.CreateAPIKey(ctx, pgbough.APIKey{Name: "zero"}, []byte("two"))
	must(t, err)
	_, err = c.CreateAPIKey(ctx, pgbough.APIKey{Name: "zero"}, []byte("three"))
	wantCode(t, "a name that is taken", err, pgbough.EConflict)
	_, err = c.CreateAPIKey(ctx, pgbough.APIKey{Name: "lost", ProjectID: "none"}, []byte("three"))
	wantCode(t, "a project that is not there", err, pgbough.ENotFound)
	must(t, c.Close())

	c = open(t, dir)
	list, err := c.APIKeys(ctx)
	must(t, err)
	equal(t, "all, opened again", list, []pgbough.APIKey{full, zero})
	for hash, want := range map[string]pgbough.APIKey{"one": full, "two": zero} {
		got, ok, err := c.APIKeyOf(ctx, []byte(hash))
		must(t, err)
		equal(t, "by hash "+hash, got, want)
		if !ok {
			t.Errorf("hash %s is not found", hash)
		}
	}
	for _, hash := range []string{"three", "", "on", "onee"} {
		if k, ok, err := c.APIKeyOf(ctx, []byte(hash)); ok || err != nil {
			t.Errorf("hash %q finds %+v, %v", hash, k, err)
		}
	}
	at := time.Date(2026, 2, 3, 4, 5, 6, 7, time.UTC)
	must(t, c.NoteAPIKeyUse(ctx, zero.ID, at), c.NoteAPIKeyUse(ctx, 99, at))
	zero.LastUsedAt = at
	got, _, err := c.APIKeyOf(ctx, []byte("two"))
	must(t, err)
	equal(t, "after it was used", got, zero)
	must(t, c.Ping(ctx))
}

func TestAPIKeysGo(t *testing.T) {
	ctx := t.Context()
	c := open(t, t.TempDir())
	p := project("p")
	must(t, c.CreateProject(ctx, p))
	add := func(name, project string) pgbough.APIKey {
		k, err := c.CreateAPIKey(ctx, pgbough.APIKey{Name: name, ProjectID: project}, []byte(name))
		must(t, err)
		return k
	}
	first, named := add("first", ""), add("named", "")
	trap := add(fmt.Sprint(named.ID), "") // named like another's id
	if k, err := c.DeleteAPIKey(ctx, fmt.Sprint(named.ID)); err != nil || k.ID != named.ID {
		t.Errorf("the id does not win: %+v, %v", k, err)
	}
	if k, err := c.DeleteAPIKey(ctx, trap.Name); err != nil || k.ID != trap.ID {
		t.Errorf("by name: %+v, %v", k, err)
	}
	_, err := c.DeleteAPIKey(ctx, "named")
	wantCode(t, "delete again", err, pgbough.ENotFound)
	if _, ok, err := c.APIKeyOf(ctx, []byte("named")); ok || err != nil {
		t.Errorf("a key that was revoked is found: %v", err)
	}
	if again := add("named", ""); again.ID <= trap.ID {
		t.Errorf("id %d is given twice", again.ID)
	}
	add("of the project", p.ID)
	must(t, c.DeleteProject(ctx, p.ID))
	if _, ok, err := c.APIKeyOf(ctx, []byte("of the project")); ok || err != nil {
		t.Errorf("a key outlives its project: %v", err)
	}
	if _, ok, err := c.APIKeyOf(ctx, []byte("first")); !ok || err != nil {
		t.Errorf("key %d went with another's project: %v", first.ID, err)
	}
}
