package e2e

import (
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/pgbough/pgbough/internal/pgtest"
)

// planner are settings of production that plans and results depend on, none of
// them Postgres's default.
var planner = map[string]string{
	"work_mem": "7MB", "hash_mem_multiplier": "3.5", "random_page_cost": "1.7", "effective_cache_size": "777MB", "join_collapse_limit": "3",
	"from_collapse_limit": "4", "jit": "off", "cpu_tuple_cost": "0.02", "default_statistics_target": "80", "geqo_threshold": "5",
	"enable_partitionwise_join": "on", "max_parallel_workers_per_gather": "3", "min_parallel_table_scan_size": "64kB", "parallel_setup_cost": "50",
	"plan_cache_mode": "force_custom_plan", "TimeZone": "Asia/Kathmandu", "DateStyle": "German, DMY", "IntervalStyle": "iso_8601",
	"bytea_output": "escape", "extra_float_digits": "0", "default_transaction_isolation": "repeatable read", "statement_timeout": "5min",
	"deadlock_timeout": "3s", "gin_fuzzy_search_limit": "0", "array_nulls": "off", "temp_file_limit": "3GB", "lock_timeout": "50s", "search_path": `"$user", public, sales`, "track_functions": "all",
	"fsync": "off",
	// Statistics stay as the data file leaves them.
	"autovacuum":               "off",
	"shared_preload_libraries": "pg_stat_statements, auto_explain", "pg_stat_statements.max": "321", "auto_explain.log_min_duration": "1h",
}

// TestSameDatabase is promise 3.
func TestSameDatabase(t *testing.T) {
	p := production(t, pgtest.Options{Conf: planner})
	// What ALTER SYSTEM says counts more than the file.
	p.Exec(t, "postgres", "ALTER SYSTEM SET random_page_cost = 1.9")
	p.Exec(t, "postgres", "SELECT pg_reload_conf()")
	runFile(t, p, "postgres", "globals.sql")
	runFile(t, p, "shop", "schema.sql")
	runFile(t, p, "shop", "data.sql")
	p.Exec(t, "icu", "CREATE TABLE t AS SELECT * FROM unnest('{ö,o,z,Z,ä}'::text[]) v; CREATE INDEX ON t (v); ANALYZE t")
	p.Exec(t, "'Old Latin'", "CREATE TABLE t (v text); INSERT INTO t VALUES ('é'), ('ß'); CREATE INDEX ON t (v); ANALYZE t")
	s := startServer(t)
	p.Exec(t, "postgres", "CHECKPOINT") // as in attach
	s.must("attach", "shop", "--source", sourceOf(p), "--role", "app", "--database", "shop")

	ours := instance{t: t, bin: p.Install.BinDir, at: func(role, database string) string {
		return fmt.Sprintf("postgresql://%s@127.0.0.1:%d/%s?sslmode=disable", role, p.Port, strings.ReplaceAll(database, " ", "%20"))
	}}
	want := ours.look()
	sequences := ours.sequences()
	s.must("branch", "create", "same")
	branch := instance{t: t, bin: p.Install.BinDir, at: func(role, database string) string {
		return strings.TrimSpace(s.must("url", "same", "--role", role, "--database", database))
	}}
	got := branch.look()
	for _, part := range slices.Sorted(maps.Keys(want)) {
		if diff := cmp.Diff(want.lines(part), got.lines(part)); diff != "" {
			t.Errorf("%s (-production +branch):\n%s", part, clip(diff))
		}
	}
	if len(want.lines("plans of shop")) < 300 || len(want.lines("shop: rows")) < 16 || len(want.lines("shop: statistics")) < 150 {
		t.Errorf("there is less to compare than there should be: %d lines of plans, %d tables, %d statistics",
			len(want.lines("plans of shop")), len(want.lines("shop: rows")), len(want.lines("shop: statistics")))
	}
	for _, problem := range compareSequences(sequences, branch.sequences()) {
		t.Error(problem)
	}
	if n := branch.value("postgres", "shop", "SELECT count(*) FROM sales.cart"); n != "0" {
		t.Errorf("the unlogged table has %s rows in the branch", n)
	}
	var b branchJSON
	s.json(&b, "branch", "get", "same")
	var listed []string
	for _, d := range b.Branch.Differences {
		listed = append(listed, d.Kind+" "+d.Object+" "+d.Action)
	}
	for _, difference := range []string{"unlogged_table sales.cart emptied", "sequence"} {
		if !slices.ContainsFunc(listed, func(l string) bool { return strings.HasPrefix(l, difference) }) {
			t.Errorf("no difference %q is listed with the branch: %q", difference, listed)
		}
	}
	noticed(t, branch, got, sequences)
}

// noticed is the control: whatever changes in a branch, the comparison sees it.
func noticed(t *testing.T, branch instance, before fingerprint, sequences map[string]sequence) {
	t.Helper()
	for _, change := range []struct{ part, database, sql string }{
		{"globals", "shop", "ALTER ROLE report CONNECTION LIMIT 8"},
		{"shop: schema", "shop", "ALTER TABLE sales.customer ALTER nick SET NOT NULL"},
		{"shop: catalogs", "shop", "ALTER TABLE sales.customer ALTER name SET STATISTICS 301"},
		{"shop: statistics", "shop", "DELETE FROM pg_statistic WHERE starelid = 'sales.line'::regclass AND staattnum = 5"},
		{"shop: rows", "shop", "UPDATE sales.parent SET v = v WHERE id = 77"}, // the same row in another place
		{"shop: large objects", "shop", "SELECT lo_put(4242, 7, 'x')"},
		{"Old Latin: rows", "Old Latin", "INSERT INTO t VALUES ('x')"},
		{"settings of app in shop", "shop", "ALTER ROLE app IN DATABASE shop SET enable_material = off"},
		{"plans of shop", "shop", "ALTER DATABASE shop SET cpu_index_tuple_cost = 0.006"},
		{"versions", "shop", "UPDATE pg_extension SET extversion = '0.1' WHERE extname = 'hstore'"},
	} {
		branch.exec(change.database, change.sql)
	}
	after := branch.look()
	for _, part := range slices.Sorted(maps.Keys(before)) {
		switch {
		case before[part] != after[part]:
		case part == "globals" || part == "versions" || strings.HasPrefix(part, "shop: ") || strings.HasPrefix(part, "Old Latin: rows"),
			part == "plans of shop", part == "settings of app in shop":
			t.Errorf("control: %s changed in the branch, and the comparison does not notice", part)
		}
	}
	branch.exec("shop", "SELECT setval('sales.tens', 11), setval('sales.down', 29000)")
	if problems := compareSequences(sequences, branch.sequences()); len(problems) != 2 {
		t.Errorf("control: one sequence went back and one too far ahead, and the comparison says: %v", problems)
	}
}

// runFile runs one of testdata/same with psql: some statements in it cannot
// stand with others in a query string.
func runFile(t *testing.T, p *pgtest.Server, database, file string) {
	t.Helper()
	cmd := exec.Command("psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-o", os.DevNull, "-f", filepath.Join("testdata", "same", file),
		p.ConnString("postgres", database)+" options='-c statement_timeout=0'")
	cmd.Env = append(os.Environ(), "PGCLIENTENCODING=UTF8")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", file, err, out)
	}
}

// instance is a Postgres to look at, production or branch, by its addresses.
type instance struct {
	t   *testing.T
	bin string // of its Postgres's programs
	at  func(role, database string) string
}

func (i instance) connect(role, database string, options ...string) *pgx.Conn {
	i.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cfg, err := pgx.ParseConfig(i.at(role, database))
	if err != nil {
		i.t.Fatal(err)
	}
	cfg.RuntimeParams["application_name"], cfg.RuntimeParams["client_encoding"] = "compare", "UTF8"
	if len(options) > 0 {
		cfg.RuntimeParams["options"] = strings.TrimSpace(cfg.RuntimeParams["options"] + " " + options[0]) // which may name the branch
	}
	cfg.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		i.t.Fatalf("connect to %s as %s: %v", database, role, err)
	}
	return conn
}

func (i instance) exec(database, sql string) {
	i.t.Helper()
	conn := i.connect("postgres", database)
	defer func() { _ = conn.Close(context.Background()) }()
	if _, err := conn.Exec(context.Background(), sql); err != nil {
		i.t.Fatalf("%s: %v", sql, err)
	}
}

func (i instance) value(role, database, sql string) string {
	i.t.Helper()
	conn := i.connect(role, database)
	defer func() { _ = conn.Close(context.Background()) }()
	return strings.Join(i.column(conn, sql), "\n")
}

// column is what a query of one column gives.
func (i instance) column(conn *pgx.Conn, sql string) []string {
	i.t.Helper()
	rows, err := conn.Query(context.Background(), sql)
	if err == nil {
		var out []string
		if out, err = pgx.CollectRows(rows, pgx.RowTo[string]); err == nil {
			return out
		}
	}
	i.t.Fatalf("%s: %v", sql, err)
	return nil
}

// plain is a session whose answers depend on data, not on settings.
const plain = "-c statement_timeout=0 -c TimeZone=UTC -c DateStyle=ISO,MDY -c IntervalStyle=postgres -c bytea_output=hex -c extra_float_digits=1 -c search_path=pg_catalog"

func (i instance) tool(name string, args ...string) string {
	i.t.Helper()
	for n, arg := range args { // the options of a URI, which name a branch, hide those of the environment
		args[n] = strings.Replace(arg, "?options=", "?options="+strings.ReplaceAll(url.QueryEscape(plain+" "), "+", "%20"), 1)
	}
	cmd := exec.Command(filepath.Join(i.bin, name), args...)
	cmd.Env = append(os.Environ(), "PGOPTIONS="+plain)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		i.t.Fatalf("%s: %v\n%s", name, err, errs.String())
	}
	// Newer minor versions write a random key around a dump.
	return regexp.MustCompile(`(?m)^\\(un)?restrict .*$`).ReplaceAllString(string(out), "")
}

// fingerprint is what a database is, in named parts that can be compared.
type fingerprint map[string]string

func (f fingerprint) lines(part string) []string { return strings.Split(f[part], "\n") }

var sameDatabases = []string{"postgres", "shop", "icu", "Old Latin"}

func (i instance) look() fingerprint {
	i.t.Helper()
	f := fingerprint{
		// Passwords are new in a branch.
		"globals":                  i.tool("pg_dumpall", "--globals-only", "--no-role-passwords", "-d", i.at("postgres", "postgres")),
		"plans of shop":            i.plans(),
		"settings of app in shop":  i.value("app", "shop", settingsQuery),
		"settings of postgres":     i.value("postgres", "postgres", settingsQuery),
		"settings of report, icu":  i.value("report", "icu", settingsQuery),
		"databases":                i.value("postgres", "postgres", `SELECT to_jsonb(d) - '{datfrozenxid,datminmxid}'::text[] FROM pg_database d ORDER BY datname`),
		"members and role options": i.value("postgres", "postgres", `SELECT m::text FROM pg_auth_members m UNION ALL SELECT s::text FROM pg_db_role_setting s ORDER BY 1`),
	}
	for _, db := range sameDatabases {
		f[db+": schema"] = i.tool("pg_dump", "--schema-only", "-d", i.at("postgres", db))
		conn := i.connect("postgres", db, plain)
		if db == "shop" {
			f["versions"] = strings.Join(i.column(conn, versionsQuery), "\n")
			f["shop: large objects"] = strings.Join(i.column(conn, `SELECT l.oid || md5(lo_get(l.oid)) FROM pg_largeobject_metadata l ORDER BY l.oid`), "\n")
		}
		f[db+": statistics"] = strings.Join(i.column(conn, statisticsQuery), "\n")
		f[db+": catalogs"] = i.catalogs(conn)
		f[db+": rows"] = i.rows(conn)
		_ = conn.Close(context.Background())
	}
	return f
}

// settingsQuery picks what plans and results depend on by class, on its own
// account: the exceptions are ours in a branch, and why is said in the docs.
const settingsQuery = `SELECT name || ' = ' || setting || coalesce(unit, '') FROM pg_settings
	WHERE (category ~ '^(Query Tuning|Client Connection Defaults|Version and Platform|Lock Management|Preset Options|Statistics)'
		OR name IN ('work_mem', 'hash_mem_multiplier', 'max_parallel_workers', 'max_parallel_maintenance_workers', 'synchronous_commit', 'password_encryption',
			'temp_file_limit', 'autovacuum', 'maintenance_work_mem', 'logical_decoding_work_mem')
		OR name LIKE '%.%')
	AND name NOT IN ('in_hot_standby', 'data_directory_mode', 'shared_memory_size', 'shared_memory_size_in_huge_pages', 'lc_messages', 'max_locks_per_transaction',
		'session_preload_libraries', 'local_preload_libraries', 'dynamic_library_path', 'application_name', 'transaction_isolation',
		'maintenance_work_mem', 'logical_decoding_work_mem')
	ORDER BY name`

const versionsQuery = `SELECT version()
	UNION ALL SELECT extname || ' ' || extversion || ' in ' || extnamespace::regnamespace FROM pg_extension
	UNION ALL SELECT * FROM (SELECT collname || ' ' || collprovider::text || ' ' || coalesce(collversion, '-') || ' ' || coalesce(pg_collation_actual_version(oid), '-')
		FROM pg_collation WHERE collversion IS NOT NULL ORDER BY oid) c
	UNION ALL SELECT datname || coalesce(datcollversion, '-') || coalesce(pg_database_collation_actual_version(oid), '-') FROM pg_database`

// statisticsQuery leaves out the columns of catalogs that hold credentials:
// quarantine forgets what ANALYZE copied from them.
const statisticsQuery = `SELECT starelid::regclass || '.' || staattnum || stainherit || md5(s::text) FROM pg_statistic s
	WHERE NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = starelid AND a.attnum = staattnum
		AND a.attname IN ('rolpassword', 'subconninfo', 'fdwoptions', 'srvoptions', 'ftoptions', 'umoptions') AND starelid < 16384)
	UNION ALL SELECT stxoid || md5(d::text) FROM pg_statistic_ext_data d ORDER BY 1`

// catalogs digests every catalog of one database but those that hold
// credentials. Of pg_class, a rewrite of those catalogs changes their own rows.
func (i instance) catalogs(conn *pgx.Conn) string {
	i.t.Helper()
	var out strings.Builder
	for _, name := range i.column(conn, `SELECT relname FROM pg_class WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind = 'r' AND NOT relisshared
		AND relname NOT IN ('pg_statistic', 'pg_statistic_ext_data', 'pg_user_mapping', 'pg_foreign_server', 'pg_foreign_data_wrapper', 'pg_foreign_table', 'pg_largeobject')
		ORDER BY 1`) {
		where := ""
		if name == "pg_class" {
			where = " WHERE t.oid >= 16384 AND t.relkind <> 't' OR t.relname IN ('pg_proc', 'pg_attribute')"
		}
		sum := i.column(conn, "SELECT count(*) || ' ' || coalesce(md5(string_agg(t::text, ',' ORDER BY t::text)), '') FROM "+name+" t"+where)
		fmt.Fprintf(&out, "%s %s\n", name, sum[0])
	}
	return out.String()
}

// rows digests every table as it lies on disk: which row is where, written and
// deleted by which transaction, in files of which size.
func (i instance) rows(conn *pgx.Conn) string {
	i.t.Helper()
	var out strings.Builder
	for _, table := range i.column(conn, `SELECT oid::regclass::text FROM pg_class WHERE relkind IN ('r', 'm') AND oid >= 16384 AND relpersistence = 'p' ORDER BY oid::regclass::text COLLATE "C"`) {
		sum := i.column(conn, fmt.Sprintf(`SELECT count(*) || ' ' || coalesce(md5(string_agg(concat_ws(' ', ctid, xmin, xmax, cmin, t::text), ',' ORDER BY ctid)), '')
			|| ' ' || pg_relation_size('%s') || ' ' || pg_indexes_size('%[1]s') || ' ' || pg_total_relation_size('%[1]s') FROM ONLY %s t`, strings.ReplaceAll(table, "'", "''"), table))
		fmt.Fprintf(&out, "%s %s\n", table, sum[0])
	}
	return out.String()
}

// plans explains all queries of testdata/same/queries.sql as the application.
func (i instance) plans() string {
	i.t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "same", "queries.sql"))
	if err != nil {
		i.t.Fatal(err)
	}
	conn := i.connect("app", "shop")
	defer func() { _ = conn.Close(context.Background()) }()
	i.column(conn, "SELECT set_config('search_path', 'sales, public', false)")
	var out strings.Builder
	for sql := range strings.Lines(string(b)) {
		fmt.Fprintf(&out, "%s%s\n", sql, strings.Join(i.column(conn, "EXPLAIN (COSTS ON, VERBOSE) "+sql), "\n"))
	}
	return out.String()
}

// sequence is the state of one.
type sequence struct {
	last, increment int64
	called          bool
}

func (i instance) sequences() map[string]sequence {
	i.t.Helper()
	conn := i.connect("postgres", "shop", plain)
	defer func() { _ = conn.Close(context.Background()) }()
	out := map[string]sequence{}
	// Those of unlogged tables start anew, as the tables do.
	for _, name := range i.column(conn, "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'S' AND relpersistence = 'p'") {
		f := strings.Fields(i.column(conn, fmt.Sprintf("SELECT last_value || ' ' || is_called || ' ' || seqincrement FROM %s, pg_sequence WHERE seqrelid = '%s'::regclass", name, strings.ReplaceAll(name, "'", "''")))[0])
		last, _ := strconv.ParseInt(f[0], 10, 64)
		increment, _ := strconv.ParseInt(f[2], 10, 64)
		out[name] = sequence{last, increment, f[1] == "true"}
	}
	return out
}

// compareSequences says which are behind production, or more than 32 increments ahead.
func compareSequences(production, branch map[string]sequence) []string {
	var problems []string
	for _, name := range slices.Sorted(maps.Keys(production)) {
		p, b := production[name], branch[name]
		ahead := (b.last - p.last) / p.increment
		if ahead < 0 || ahead > 32 || p.called != b.called || !p.called && ahead != 0 {
			problems = append(problems, fmt.Sprintf("sequence %s: production %+v, branch %+v", name, p, b))
		}
	}
	if len(production) == 0 || len(production) != len(branch) {
		problems = append(problems, fmt.Sprintf("%d sequences in production, %d in the branch", len(production), len(branch)))
	}
	return problems
}

// clip keeps a long difference readable.
func clip(s string) string {
	if len(s) < 6000 {
		return s
	}
	return fmt.Sprintf("%s\n... (%d bytes, sha256 %x)", s[:6000], len(s), sha256.Sum256([]byte(s)))
}
