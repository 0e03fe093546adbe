package branch

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/credential"
)

func TestAPIKeys(t *testing.T) {
	ctx, r := t.Context(), newRig(t)
	if _, ok, err := r.Authenticate(ctx, ""); ok || err != nil {
		t.Fatalf("without admin.key nothing is let in: %v", err)
	}
	r.close()
	admin, err := credential.EnsureAPIKey(filepath.Join(r.dir, "admin.key"))
	must(t, err)
	r.opts.Admin = admin
	r.open()
	p := r.project()
	if k, ok, err := r.Authenticate(ctx, admin.Reveal()); !ok || k.ID != 0 || k.ProjectID != "" || k.MetricsOnly || err != nil {
		t.Errorf("admin.key: %+v, %v", k, err)
	}
	one, shown, err := r.CreateKey(ctx, pgbough.KeyRequest{Name: "one", Project: "shop"})
	must(t, err)
	if one.ProjectID != p.ID || one.ProjectName != "shop" || one.CreatedAt.IsZero() || !one.LastUsedAt.IsZero() {
		t.Errorf("made: %+v", one)
	}
	_, more, err := r.CreateKey(ctx, pgbough.KeyRequest{Name: "more", MetricsOnly: true})
	must(t, err)
	if shown == more || len(strings.TrimPrefix(shown, "pgbough_")) < 26 {
		t.Errorf("keys: %q, %q", shown, more)
	}
	for name, req := range map[string]pgbough.KeyRequest{
		"a number": {Name: "17"}, "no name": {}, "both": {Name: "x", Project: "shop", MetricsOnly: true},
	} {
		if _, _, err := r.CreateKey(ctx, req); pgbough.ErrorCode(err) != pgbough.EInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, err := r.CreateKey(ctx, pgbough.KeyRequest{Name: "x", Project: "none"}); pgbough.ErrorCode(err) != pgbough.ENotFound {
		t.Errorf("another project: %v", err)
	}

	// The last use is known to the minute.
	first, ok, err := r.Authenticate(ctx, shown)
	if !ok || err != nil || first.ID != one.ID || first.ProjectID != p.ID || time.Since(first.LastUsedAt) > time.Minute {
		t.Errorf("used: %+v, %v", first, err)
	}
	again, _, err := r.Authenticate(ctx, shown)
	must(t, err)
	if !again.LastUsedAt.Equal(first.LastUsedAt) {
		t.Error("each use is written")
	}
	keys, err := r.Keys(ctx)
	must(t, err)
	if len(keys) != 2 || !keys[0].LastUsedAt.Equal(first.LastUsedAt) || !keys[1].LastUsedAt.IsZero() || !keys[1].MetricsOnly {
		t.Errorf("list: %+v", keys)
	}
	for _, name := range []string{"catalog.db", "catalog.db-wal"} {
		b, err := os.ReadFile(filepath.Join(r.dir, name))
		must(t, err)
		if strings.Contains(string(b), strings.TrimPrefix(shown, "pgbough_")) {
			t.Errorf("%s holds a key in clear", name)
		}
	}

	if gone, err := r.RevokeKey(ctx, "one"); err != nil || gone.ID != one.ID {
		t.Errorf("revoked: %+v, %v", gone, err)
	}
	if _, ok, err := r.Authenticate(ctx, shown); ok || err != nil {
		t.Errorf("a revoked key is good: %v", err)
	}
	if _, ok, err := r.Authenticate(ctx, more); !ok || err != nil {
		t.Errorf("the other key went too: %v", err)
	}
}

func TestFigures(t *testing.T) {
	ctx, r := t.Context(), newRig(t)
	p := r.project()
	for name, state := range map[string]pgbough.BranchState{"a": pgbough.BranchReady, "b": pgbough.BranchReady, "c": pgbough.BranchReady, "d": pgbough.BranchInit} {
		b := r.branchRow(p, name, state)
		if name == "a" {
			must(t, r.catalog.SetAsleep(ctx, b.ID, nil, time.Now()))
		}
	}
	for id, state := range map[string]pgbough.SpareState{"v1": pgbough.SpareReady, "v2": pgbough.SpareFilling} {
		must(t, r.catalog.PutSpare(ctx, pgbough.Spare{VolumeID: id, ProjectID: p.ID, State: state}))
	}
	f, err := r.Figures(ctx)
	must(t, err)
	if len(f.Projects) != 1 || f.Pool.Size == 0 || f.Pool.Reserve == 0 {
		t.Fatalf("figures: %+v", f)
	}
	want := pgbough.ProjectFigures{Name: "shop", Ready: 1, Wanted: 1, Awake: 2, Asleep: 1}
	want.Follower.State = pgbough.FollowerStopped
	if f.Projects[0] != want {
		t.Errorf("got %+v, want %+v", f.Projects[0], want)
	}
	must(t, r.Healthy(ctx))
	for id := range map[string]bool{"v1": true, "v2": true} {
		must(t, r.catalog.DeleteSpare(ctx, id))
	}
}
