package quarantine_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pgbough/pgbough/internal/postgres"
	"github.com/pgbough/pgbough/internal/quarantine"
)

func TestPreload(t *testing.T) {
	plan := quarantine.Preload(
		quarantine.Libraries{
			Shared:  `pg_stat_statements, "pg_cron", timescaledb, home_made, $libdir/pg_hint_plan.so, wanted`,
			Session: "auto_explain", Local: "",
		},
		func(lib string) bool { return lib != "$libdir/pg_hint_plan.so" },
		"wanted",
	)
	wantSettings := []postgres.Param{
		{Name: "shared_preload_libraries", Value: "pg_stat_statements, timescaledb, wanted"},
		{Name: "session_preload_libraries", Value: "auto_explain"},
		{Name: "local_preload_libraries", Value: ""},
		{Name: "timescaledb.max_background_workers", Value: "0"},
		{Name: "timescaledb.telemetry_level", Value: "off"},
	}
	if diff := cmp.Diff(wantSettings, plan.Settings); diff != "" {
		t.Error(diff)
	}
	var got []string
	for _, d := range plan.Differences {
		if d.Kind != "preload_library" || d.Action != "not loaded" || d.Reason == "" {
			t.Errorf("difference %+v", d)
		}
		got = append(got, d.Object)
	}
	if diff := cmp.Diff([]string{"pg_cron", "home_made", "pg_hint_plan"}, got); diff != "" {
		t.Error(diff)
	}
	if p := quarantine.Preload(quarantine.Libraries{}, nil); len(p.Differences) != 0 || p.Settings[0].Value != "" {
		t.Errorf("nothing to load: %+v", p)
	}
}

func TestSplitLibraries(t *testing.T) {
	for list, want := range map[string][]string{
		"":                     nil,
		" a , b":               {"a", "b"},
		`"a, b",c`:             {"a, b", "c"},
		`"say ""x"""`:          {`say "x"`},
		"$libdir/plugins/x.so": {"$libdir/plugins/x.so"},
	} {
		if diff := cmp.Diff(want, quarantine.SplitLibraries(list)); diff != "" {
			t.Errorf("%s: %s", list, diff)
		}
	}
}

func TestAvailableIn(t *testing.T) {
	in, err := postgres.FindInstallation(t.Context(), 15)
	must(t, err)
	has := quarantine.AvailableIn(in)
	for lib, want := range map[string]bool{"auto_explain": true, "$libdir/auto_explain": true, "auto_explain.so": true, "no_such_library": false, "/no/such/library": false, "pgxs": false} {
		if has(lib) != want {
			t.Errorf("%s: %v, want %v", lib, has(lib), want)
		}
	}
}
