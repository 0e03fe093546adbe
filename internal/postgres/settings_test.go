package postgres_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/pgbough/pgbough/internal/pgtest"
	"github.com/pgbough/pgbough/internal/postgres"
)

func TestFile(t *testing.T) {
	got := postgres.File("two\nlines", []postgres.Param{{Name: "a", Value: "1"}, {"b", `it's C:\x`}}, []postgres.Param{{"A", "2\n3"}})
	want := "# two\n# lines\nb = 'it''s C:\\\\x'\nA = '2\\n3'\n"
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestFloor(t *testing.T) {
	got := postgres.Floor([]postgres.Setting{{Name: "max_connections", Value: "500"}, {Name: "max_worker_processes", Value: "2"}})
	want := []postgres.Param{
		{"max_connections", "500"},
		{"max_worker_processes", "8"},
		{"max_wal_senders", "10"},
		{"max_prepared_transactions", "0"},
		{"max_locks_per_transaction", "64"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestFileValue(t *testing.T) {
	for _, c := range []struct{ value, unit, want string }{
		{"524288", "8kB", "4194304kB"},
		{"-1", "8kB", "-1"},
		{"0", "ms", "0"},
		{"4096", "kB", "4096kB"},
		{"2.5", "ms", "2.5ms"},
		{"1.1", "", "1.1"},
		{"60", "s", "60s"},
		{"1", "min", "1min"},
		{"on", "", "on"},
		{"3", "16MB", "48MB"},
	} {
		if got := (postgres.Setting{Value: c.value, Unit: c.unit}).FileValue(); got != c.want {
			t.Errorf("%s %s: got %s, want %s", c.value, c.unit, got, c.want)
		}
	}
}

func settings(t *testing.T, s *pgtest.Server) []postgres.Setting {
	t.Helper()
	rows, err := s.Conn(t, "postgres").Query(context.Background(),
		"SELECT name, setting, coalesce(unit, ''), category, context, source, vartype FROM pg_settings")
	if err != nil {
		t.Fatal(err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[postgres.Setting])
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestBehaviour gives production every setting that behaviour depends on a
// value of its own, and checks on a second server that reads our file that it
// means the same there.
func TestBehaviour(t *testing.T) {
	ctx := context.Background()
	behaviour := map[string]string{
		"work_mem": "7MB", "effective_cache_size": "3GB", "random_page_cost": "1.15", "enable_hashjoin": "off",
		"search_path": `"$user", "od'd", public`, "statement_timeout": "3min", "DateStyle": "SQL, DMY", "TimeZone": "Europe/Zurich",
		"max_parallel_workers_per_gather": "1", "jit": "off", "default_statistics_target": "77", "deadlock_timeout": "1500ms",
		"standard_conforming_strings": "off", "track_functions": "all", "synchronous_commit": "local",
		"autovacuum_vacuum_cost_delay": "2500us", "vacuum_freeze_min_age": "12345", "track_commit_timestamp": "on",
		"auto_explain.log_min_duration": "90s", "gin_pending_list_limit": "2MB", "plan_cache_mode": "force_custom_plan",
	}
	ours := map[string]string{
		"shared_buffers": "48MB", "archive_mode": "on", "archive_command": "/bin/true secret", "log_statement": "all", "max_connections": "120",
		"shared_preload_libraries": "auto_explain", "lc_messages": "C", "autovacuum_freeze_max_age": "150000000", "hot_standby_feedback": "on",
		"maintenance_work_mem": "9MB", "ssl": "off", "max_wal_size": "300MB", "log_planner_stats": "off",
	}
	conf := map[string]string{}
	for _, m := range []map[string]string{behaviour, ours} {
		for k, v := range m {
			conf[k] = v
		}
	}
	production := pgtest.Start(t, pgtest.Options{Conf: conf})
	production.Exec(t, "postgres", "ALTER ROLE postgres SET enable_sort = off; ALTER ROLE postgres SET work_mem = '11MB'")

	known, err := postgres.KnownSettings(ctx, production.Install)
	if err != nil {
		t.Fatal(err)
	}
	if known["work_mem"] != "Resource Usage / Memory" {
		t.Errorf("category of work_mem: %q", known["work_mem"])
	}
	_, left := postgres.Behaviour(settings(t, production), known)
	var names []string
	for _, l := range left {
		names = append(names, l.Name)
	}
	if want := []string{"enable_sort", "work_mem"}; !slices.Equal(names, want) {
		t.Errorf("settings of the asking role: left %v, want %v", names, want)
	}
	production.Exec(t, "postgres", "ALTER ROLE postgres RESET ALL")
	rows := settings(t, production)
	params, left := postgres.Behaviour(rows, known)
	if len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	for _, p := range params {
		if _, ok := ours[p.Name]; ok {
			t.Errorf("%s is ours and was carried", p.Name)
		}
		delete(behaviour, p.Name)
	}
	if len(behaviour) > 0 {
		t.Errorf("not carried: %v", behaviour)
	}

	branch := pgtest.Start(t, pgtest.Options{Conf: map[string]string{"shared_preload_libraries": "auto_explain"}})
	file := filepath.Join(branch.Dir, "behaviour.conf")
	if err := os.WriteFile(file, []byte(postgres.File("", params)), 0o644); err != nil {
		t.Fatal(err)
	}
	branch.Configure(t, map[string]string{"include": file})
	branch.Restart(t)
	for _, r := range settings(t, branch) {
		i := slices.IndexFunc(rows, func(o postgres.Setting) bool { return o.Name == r.Name })
		if slices.ContainsFunc(params, func(p postgres.Param) bool { return p.Name == r.Name }) && rows[i].Value != r.Value {
			t.Errorf("%s: %s on production, %s with our file", r.Name, rows[i].Value, r.Value)
		}
	}
}

func TestBehaviourLeavesOut(t *testing.T) {
	known := postgres.Known{"work_mem": "Resource Usage / Memory"}
	params, left := postgres.Behaviour([]postgres.Setting{
		{Name: "vendor_planner_hint", Value: "on", Category: "Query Tuning / Other Planner Options", Source: "configuration file", Context: "user"},
		{Name: "pgsodium.getkey_script", Value: "/x", Category: "Customized Options", Source: "configuration file", Context: "postmaster"},
		{Name: "work_mem", Value: "100", Unit: "kB", Category: "Ressourcenbenutzung", Source: "configuration file", Context: "user"},
	}, known)
	if diff := cmp.Diff([]postgres.Param{{Name: "work_mem", Value: "100kB"}}, params); diff != "" {
		t.Error(diff)
	}
	var text strings.Builder
	for _, l := range left {
		text.WriteString(l.Name + " ")
	}
	if got, want := text.String(), "pgsodium.getkey_script vendor_planner_hint "; got != want {
		t.Errorf("left %q, want %q", got, want)
	}
}
