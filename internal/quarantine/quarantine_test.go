package quarantine_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/pgtest"
	"github.com/pgbough/pgbough/internal/postgres"
	"github.com/pgbough/pgbough/internal/quarantine"
)

// world is a production that is connected to everything, and the server it is
// connected to.
type world struct {
	production, upstream *pgtest.Server
	archive              string // production's archive_command writes there
	settings             []postgres.Setting
	secrets              []string // what may be in no file of a branch
	cron                 bool
}

func newWorld(t *testing.T, major int) *world {
	t.Helper()
	w := &world{}
	var err error
	w.archive, err = os.MkdirTemp("", "archive")
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(w.archive)) })
	if os.Geteuid() == 0 {
		must(t, os.Chown(w.archive, pgtest.UID, pgtest.UID))
	}
	w.upstream = pgtest.Start(t, pgtest.Options{Major: major, Conf: map[string]string{"wal_level": "logical"}})
	w.upstream.Exec(t, "postgres", "CREATE TABLE orders (id int PRIMARY KEY); INSERT INTO orders VALUES (1), (2); CREATE PUBLICATION feed FOR TABLE orders")

	w.production = pgtest.Start(t, pgtest.Options{Major: major, Conf: map[string]string{
		"wal_level": "logical", "max_prepared_transactions": "5", "archive_mode": "on", "archive_command": "touch " + w.archive + "/%f", "autovacuum": "off",
		"wal_retrieve_retry_interval": "100ms",
	}})
	p := w.production
	// pg_cron is packaged for Debian's Postgres only.
	if p.Value(t, "postgres", "SELECT count(*) FROM pg_available_extensions WHERE name = 'pg_cron'") == "1" {
		w.cron = true
		p.Configure(t, map[string]string{"shared_preload_libraries": "pg_stat_statements, pg_cron", "cron.database_name": "shop"})
		p.Restart(t)
	}
	w.fill(t)
	rows, err := p.Conn(t, "postgres").Query(context.Background(), "SELECT name, setting, coalesce(unit, ''), category, context, source, vartype FROM pg_settings")
	must(t, err)
	w.settings, err = pgx.CollectRows(rows, pgx.RowToStructByPos[postgres.Setting])
	must(t, err)
	w.trap(t)
	p.Stop(t)
	return w
}

// fill connects production to upstream in all ways, and leaves secrets behind
// in live and in dead rows.
func (w *world) fill(t *testing.T) {
	t.Helper()
	p := w.production
	secret := func(name string) string {
		s := "planted-" + name + "-secret"
		w.secrets = append(w.secrets, s)
		return s
	}
	p.Exec(t, "postgres", "CREATE DATABASE shop")
	p.Exec(t, "postgres", "CREATE DATABASE attic")
	p.Exec(t, "postgres", "CREATE DATABASE plain")
	p.Exec(t, "postgres", `CREATE ROLE app LOGIN PASSWORD 'first'; CREATE ROLE staff PASSWORD 'nologin'; CREATE ROLE guest LOGIN VALID UNTIL '2030-01-02 00:00+00'`)
	hashes := func() {
		for _, h := range strings.Split(p.Value(t, "postgres", "SELECT string_agg(rolpassword, E'\n') FROM pg_authid"), "\n") {
			w.secrets = append(w.secrets, h, h[strings.LastIndex(h, "$")+1:])
		}
	}
	hashes()
	p.Exec(t, "postgres", "ALTER ROLE app PASSWORD 'second'; ALTER ROLE postgres PASSWORD 'third'")
	hashes()
	host := fmt.Sprintf("host '127.0.0.1', port '%d', dbname 'postgres'", w.upstream.Port)
	conninfo := fmt.Sprintf("host=127.0.0.1 port=%d dbname=postgres user=postgres", w.upstream.Port)
	for _, db := range []string{"shop", "attic"} {
		p.Exec(t, db, `CREATE EXTENSION postgres_fdw; CREATE EXTENSION dblink; CREATE EXTENSION file_fdw;
			CREATE SERVER remote FOREIGN DATA WRAPPER postgres_fdw OPTIONS (`+host+`, fetch_size '77');
			CREATE SERVER link FOREIGN DATA WRAPPER dblink_fdw OPTIONS (`+host+`);
			CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;
			CREATE FOREIGN DATA WRAPPER other; CREATE SERVER other FOREIGN DATA WRAPPER other OPTIONS (url 'https://x', retries '3', api_key '`+secret(db+"-api")+`');
			CREATE USER MAPPING FOR public SERVER other OPTIONS (token '`+secret(db+"-token")+`');
			CREATE USER MAPPING FOR postgres SERVER remote OPTIONS (user 'postgres', password '`+secret(db+"-old")+`');
			ALTER USER MAPPING FOR postgres SERVER remote OPTIONS (SET password '`+secret(db+"-fdw")+`');
			CREATE USER MAPPING FOR postgres SERVER link OPTIONS (user 'postgres', password '`+secret(db+"-dblink")+`');
			CREATE USER MAPPING FOR app SERVER remote OPTIONS (user 'postgres', password '`+secret(db+"-dropped")+`');
			DROP USER MAPPING FOR app SERVER remote;
			CREATE FOREIGN TABLE remote_orders (id int) SERVER remote OPTIONS (schema_name 'public', table_name 'orders');
			CREATE FUNCTION ask() RETURNS bigint SECURITY DEFINER LANGUAGE sql AS $$ SELECT n FROM dblink('link', 'SELECT count(*) FROM orders') AS t(n bigint) $$;
			CREATE UNLOGGED TABLE cart (id int); INSERT INTO cart VALUES (1);
			CREATE TABLE orders (id int PRIMARY KEY); CREATE SEQUENCE s;
			CREATE SCHEMA pglogical; CREATE TABLE pglogical.node_interface (if_name name PRIMARY KEY, if_dsn text);
			INSERT INTO pglogical.node_interface VALUES ('n1', 'password=`+secret(db+"-dsn")+`')`)
	}
	p.Exec(t, "shop", "CREATE SUBSCRIPTION gone CONNECTION '"+conninfo+" password="+secret("dropped-sub")+"' PUBLICATION feed WITH (slot_name = 'gone')")
	p.Exec(t, "shop", "DROP SUBSCRIPTION gone")
	p.Exec(t, "shop", "CREATE SUBSCRIPTION sub CONNECTION '"+conninfo+" password="+secret("sub")+"' PUBLICATION feed WITH (slot_name = 'shop_sub')")
	p.Exec(t, "shop", "COMMENT ON SUBSCRIPTION sub IS 'orders'; CREATE PUBLICATION ours FOR ALL TABLES")
	eventually(t, "the subscription is in sync", func() bool {
		return p.Value(t, "shop", "SELECT string_agg(srsubstate::text, '') FROM pg_subscription_rel") == "r"
	})
	p.Exec(t, "shop", "CREATE ROLE boss SUPERUSER LOGIN; ALTER SUBSCRIPTION sub OWNER TO boss")
	p.Exec(t, "shop", "SELECT pg_create_physical_replication_slot('standby', true), pg_create_logical_replication_slot('cdc', 'pgoutput')")
	if w.cron {
		p.Exec(t, "shop", "CREATE EXTENSION pg_cron; CREATE TABLE ran (at timestamptz); SELECT cron.schedule('mark', '* * * * *', 'INSERT INTO ran VALUES (now())')")
	}
	// Statistics of catalogs hold what is in their columns.
	for _, db := range []string{"shop", "attic"} {
		p.Exec(t, db, "ANALYZE")
	}
	p.Exec(t, "shop", "UPDATE pg_database SET datallowconn = false, datconnlimit = 7 WHERE datname = 'attic'")
	p.Exec(t, "shop", "BEGIN; CREATE TABLE half (id int); INSERT INTO orders VALUES (100); PREPARE TRANSACTION 'it''s open'")
}

// trap sets what would stop or abuse a superuser's session.
func (w *world) trap(t *testing.T) {
	t.Helper()
	p := w.production
	events := "ddl_command_start"
	if p.Install.Major >= 17 {
		events += " login"
	}
	p.Exec(t, "shop", `CREATE FUNCTION no() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no DDL here'; END $$;
		CREATE SCHEMA evil; CREATE FUNCTION evil.pg_get_userbyid(oid) RETURNS name LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'evil'; END $$;
		CREATE FUNCTION no_row() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no change here'; END $$`)
	if w.cron {
		p.Exec(t, "shop", "CREATE TRIGGER no BEFORE UPDATE ON cron.job FOR EACH ROW EXECUTE FUNCTION no_row()")
	}
	for _, e := range strings.Fields(events) {
		p.Exec(t, "shop", fmt.Sprintf("CREATE EVENT TRIGGER on_%s ON %s EXECUTE FUNCTION no()", e, e)+
			fmt.Sprintf("; UPDATE pg_event_trigger SET evtenabled = 'A' WHERE evtname = 'on_%s'", e))
		if e == "login" {
			break // nobody gets in any more
		}
	}
	p.Exec(t, "postgres", `ALTER DATABASE shop SET default_transaction_read_only = on; ALTER DATABASE postgres SET default_transaction_read_only = on;
		ALTER DATABASE shop SET search_path = evil, pg_catalog; ALTER ROLE postgres SET statement_timeout = 1; ALTER ROLE postgres SET lock_timeout = 1;
		ALTER ROLE postgres IN DATABASE shop SET role = 'guest'; ALTER ROLE postgres IN DATABASE shop SET session_preload_libraries = 'no_such_library'`)
}

// own is what production itself would run with.
func (w *world) own() []postgres.Param {
	var params []postgres.Param
	for _, s := range w.settings {
		if slices.Contains([]string{"archive_mode", "archive_command", "wal_level", "shared_preload_libraries", "cron.database_name"}, s.Name) {
			params = append(params, postgres.Param{Name: s.Name, Value: s.Value})
		}
	}
	return params
}

func (w *world) spare(t *testing.T) *instance {
	t.Helper()
	known, err := postgres.KnownSettings(context.Background(), w.production.Install)
	must(t, err)
	behaviour, _ := postgres.Behaviour(w.settings, known)
	plan := quarantine.Preload(quarantine.LibrariesOf(w.settings), quarantine.AvailableIn(w.production.Install))
	return startSpare(t, w.production, postgres.Floor(w.settings), w.own(), behaviour, plan.Settings, quarantine.Settings(w.production.Install.Major), quarantine.UntilRun())
}

func (w *world) archived(t *testing.T) int {
	t.Helper()
	files, err := os.ReadDir(w.archive)
	must(t, err)
	return len(files)
}

func TestQuarantine(t *testing.T) {
	for _, major := range []int{14, 15, 16, 17, 18} {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			if _, err := postgres.FindInstallation(context.Background(), major); err != nil && os.Getenv("CI") != "true" {
				t.Skip(err)
			}
			t.Parallel()
			testQuarantine(t, newWorld(t, major))
		})
	}
}

func testQuarantine(t *testing.T, w *world) {
	ctx := context.Background()
	s := w.spare(t)
	if len(holding(t, s.dir, w.secrets)) < len(w.secrets) {
		t.Fatalf("the copy does not hold the secrets to begin with: %v", holding(t, s.dir, w.secrets))
	}
	before := s.catalogs(t, "postgres")
	archived := w.archived(t)
	q, err := quarantine.Open(ctx, s.options(t))
	must(t, err)
	if _, err := q.Run(ctx); pgbough.ErrorCode(err) != pgbough.EInternal {
		t.Errorf("Run on a standby: %v", err)
	}
	s.promote(t)
	began := time.Now()
	report, err := q.Run(ctx)
	t.Logf("Run took %v", time.Since(began))
	must(t, err)
	must(t, q.Close(ctx))
	began = time.Now()
	must(t, quarantine.Purge(ctx, s.options(t)))
	t.Logf("Purge took %v", time.Since(began))

	w.checkReport(t, report)
	w.checkCut(t, s, report)
	if diff := cmp.Diff(before, s.catalogs(t, "postgres")); diff != "" {
		t.Errorf("catalogs that quarantine should not touch changed: %s", diff)
	}
	if found := holding(t, s.dir, w.secrets); len(found) > 0 {
		t.Errorf("secrets in files: %v", found)
	}
	again, err := quarantine.Run(ctx, s.options(t))
	must(t, err)
	for _, d := range again.Differences {
		if !slices.Contains([]string{"password", "sequence", "unlogged_table", "foreign_server", "user_mapping"}, d.Kind) {
			t.Errorf("the second run found something to do: %+v", d)
		}
	}
	must(t, s.exec(t, "postgres", "SELECT pg_switch_wal()"))
	if n := w.archived(t); n != archived {
		t.Errorf("%d files were archived", n-archived)
	}
	s.end(t, syscall.SIGINT)
	if found := holding(t, s.dir, w.secrets); len(found) > 0 {
		t.Errorf("secrets in files after a shutdown: %v", found)
	}
	w.control(t)
}

// TestInterrupted kills the spare in the middle of a Run, and leaves the slow
// part of the next Run to Purge.
func TestInterrupted(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t, 15)
	s := w.spare(t)
	s.promote(t)
	o := s.options(t)
	o.RewriteLater = true
	o.Secret = func() (quarantine.Secret, error) { return quarantine.Secret{}, errors.New("no secret") }
	if _, err := quarantine.Run(ctx, o); err == nil {
		t.Fatal("Run without secrets: no error")
	}
	if got := s.value(t, "postgres", "SELECT datallowconn FROM pg_database WHERE datname = 'attic'"); got != "true" {
		t.Errorf("the Run was not interrupted with a closed database open: %s", got)
	}
	must(t, s.exec(t, "postgres", "CHECKPOINT")) // what is not flushed may be lost, and would be done again
	s.end(t, syscall.SIGQUIT)
	s.start(t)

	o.Secret = newSecret
	began := time.Now()
	report, err := quarantine.Run(ctx, o)
	must(t, err)
	t.Logf("Run with RewriteLater took %v", time.Since(began))
	w.checkCut(t, s, report)
	var cutOff []string
	for _, d := range report.Differences {
		if d.Kind == "foreign_server" {
			cutOff = append(cutOff, d.DB+"."+d.Object)
		}
	}
	slices.Sort(cutOff)
	if want := []string{"attic.link", "attic.other", "attic.remote", "shop.link", "shop.other", "shop.remote"}; !slices.Equal(cutOff, want) {
		t.Errorf("foreign servers reported %v, want %v", cutOff, want)
	}

	conn, err := s.connect("plain")
	must(t, err)
	defer func() { _ = conn.Close(ctx) }()
	tx, err := conn.Begin(ctx)
	must(t, err)
	_, err = tx.Exec(ctx, "SELECT count(*) FROM pg_authid")
	must(t, err)
	if err := quarantine.Purge(ctx, o); pgbough.ErrorCode(err) != pgbough.ELocked {
		t.Errorf("Purge while a user holds a lock: %v", err)
	}
	must(t, tx.Rollback(ctx))
	must(t, quarantine.Purge(ctx, o))
	if found := holding(t, s.dir, w.secrets); len(found) > 0 {
		t.Errorf("secrets in files: %v", found)
	}
}

func (w *world) checkReport(t *testing.T, report quarantine.Report) {
	t.Helper()
	var names []string
	for _, r := range report.Roles {
		names = append(names, r.Name)
	}
	if want := []string{"app", "boss", "guest", "postgres"}; !slices.Equal(names, want) {
		t.Errorf("roles %v, want %v", names, want)
	}
	var got []string
	for _, d := range report.Differences {
		got = append(got, fmt.Sprintf("%s %s %s %s", d.Kind, d.DB, d.Object, d.Action))
		for _, secret := range w.secrets {
			if strings.Contains(fmt.Sprint(d), secret) {
				t.Errorf("a secret in the report: %+v", d)
			}
		}
	}
	var want []string
	for _, db := range []string{"attic", "shop"} {
		want = append(want, "credential "+db+" pglogical.node_interface: n1 credentials removed")
	}
	for _, db := range []string{"attic", "shop"} {
		for _, name := range []string{"remote", "link", "other"} {
			want = append(want, "foreign_server "+db+" "+name+" cut off")
		}
	}
	want = append(want, "password  4 login roles replaced", "prepared_transaction shop it's open rolled back", "replication_slot  standby dropped", "replication_slot shop cdc dropped")
	if w.cron {
		want = append(want, "scheduled_job shop cron.job: job 1 disabled", "sequence  4 sequences may be ahead")
	} else {
		want = append(want, "sequence  2 sequences may be ahead")
	}
	want = append(want, "subscription shop sub dropped", "unlogged_table attic public.cart emptied", "unlogged_table shop public.cart emptied")
	for _, db := range []string{"attic", "shop"} {
		for _, m := range []string{"public@other", "postgres@remote", "postgres@link"} {
			want = append(want, "user_mapping "+db+" "+m+" credentials removed")
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("report (-want +got): %s", diff)
	}
}

func (w *world) checkCut(t *testing.T, s *instance, report quarantine.Report) {
	t.Helper()
	for _, c := range []struct{ what, db, sql, want string }{
		{"subscriptions", "shop", "SELECT count(*) FROM pg_subscription", "0"},
		{"tables of subscriptions", "shop", "SELECT count(*) FROM pg_subscription_rel", "0"},
		{"what depends on a subscription", "shop", "SELECT count(*) FROM pg_shdepend WHERE classid = 'pg_subscription'::regclass", "0"},
		{"origins", "shop", "SELECT count(*) FROM pg_replication_origin", "0"},
		{"slots", "shop", "SELECT count(*) FROM pg_replication_slots", "0"},
		{"prepared transactions", "shop", "SELECT count(*) FROM pg_prepared_xacts", "0"},
		{"rows of the prepared transaction", "shop", "SELECT count(*) FROM public.orders", "2"},
		{"event triggers", "shop", "SELECT string_agg(DISTINCT evtenabled::text, '') FROM pg_event_trigger", "A"},
		{"logical workers", "shop", "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'logical%' OR backend_type LIKE 'pg_cron%'", "0"},
		{"fetch_size of the server", "shop", "SELECT 'fetch_size=77' = ANY (srvoptions) FROM pg_foreign_server WHERE srvname = 'remote'", "true"},
		{"options of an unknown server", "shop", "SELECT srvoptions FROM pg_foreign_server WHERE srvname = 'other'", "{url=cut-off-by-pgbough,retries=3,api_key=cut-off-by-pgbough}"},
		{"passwords of roles that cannot log in", "shop", "SELECT count(*) FROM pg_authid WHERE NOT rolcanlogin AND rolpassword IS NOT NULL", "0"},
		{"valid until", "shop", "SELECT rolvaliduntil = '2030-01-02 00:00+00' FROM pg_authid WHERE rolname = 'guest'", "true"},
		{"closed databases", "shop", "SELECT string_agg(datname || datconnlimit, ',' ORDER BY datname) FROM pg_database WHERE NOT datallowconn", "attic7,template0-1"},
	} {
		if got := s.value(t, c.db, c.sql); got != c.want {
			t.Errorf("%s: %s, want %s", c.what, got, c.want)
		}
	}
	began := time.Now()
	for _, sql := range []string{"SELECT count(*) FROM remote_orders", "SELECT ask()", "SELECT * FROM dblink('remote', 'SELECT 1') AS t(n int)"} {
		err := s.exec(t, "shop", "SET search_path = public; "+sql)
		if e := (*pgconn.PgError)(nil); !errors.As(err, &e) || !strings.Contains(e.Detail, "foreign-servers-are-cut-off") {
			t.Errorf("%s: %v", sql, err)
		}
	}
	if log := s.logged(t); strings.Contains(log, "pg_cron") || strings.Contains(log, "logical replication") {
		t.Errorf("a background worker started:\n%s", log)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("foreign servers fail after %v", took)
	}
	if got := w.upstream.Value(t, "postgres", "SELECT string_agg(slot_name || active, ',') FROM pg_replication_slots"); got != "shop_subfalse" {
		t.Errorf("slots at the publisher: %s", got)
	}
	// The new passwords work: ask for them over a socket that wants them.
	hba := filepath.Join(filepath.Dir(s.dir), "hba")
	must(t, os.WriteFile(hba, []byte("local all postgres trust\nlocal all all scram-sha-256\n"), 0o644))
	must(t, s.exec(t, "postgres", "SELECT pg_reload_conf()"))
	for _, r := range report.Roles {
		if r.Name == "postgres" {
			continue
		}
		for password, want := range map[string]bool{r.Password: true, "second": false} {
			eventually(t, fmt.Sprintf("login of %s with %q: %v", r.Name, password, want), func() bool {
				cfg, err := s.config("plain")
				must(t, err)
				cfg.User, cfg.Password = r.Name, password
				conn, err := pgx.ConnectConfig(context.Background(), cfg)
				if err == nil {
					_ = conn.Close(context.Background())
				}
				return (err == nil) == want
			})
		}
	}
}

// control shows that a copy that is not quarantined does all that ours did not.
func (w *world) control(t *testing.T) {
	t.Helper()
	s := startSpare(t, w.production, postgres.Floor(w.settings), w.own())
	archived := w.archived(t)
	s.promote(t)
	eventually(t, "control: the subscription takes production's slot", func() bool {
		return w.upstream.Value(t, "postgres", "SELECT active FROM pg_replication_slots WHERE slot_name = 'shop_sub'") == "true"
	})
	eventually(t, "control: WAL is archived", func() bool { return w.archived(t) > archived })
	for _, sql := range []string{"SELECT count(*) FROM remote_orders", "SELECT ask()"} {
		must(t, s.exec(t, "shop", "SET search_path = public; "+sql))
	}
	if w.cron {
		eventually(t, "control: pg_cron runs", func() bool {
			return strings.Contains(s.logged(t), "pg_cron") // that it starts, or dies of what trap set
		})
	}
	if w.production.Install.Major < 17 {
		if err := s.exec(t, "shop", "DROP TABLE public.orders"); err == nil || !strings.Contains(err.Error(), "no DDL here") {
			t.Errorf("control: the event trigger does not act: %v", err)
		}
	}
}

// catalogs digests all catalogs of a database but those that quarantine
// changes, and what a rewrite changes in pg_class.
func (s *instance) catalogs(t *testing.T, database string) map[string]string {
	t.Helper()
	conn, err := s.connect(database)
	must(t, err)
	defer func() { _ = conn.Close(context.Background()) }()
	rows, err := conn.Query(context.Background(), `SELECT relname FROM pg_class WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind = 'r'
		AND relname NOT IN ('pg_authid', 'pg_subscription', 'pg_statistic', 'pg_shdepend', 'pg_shdescription', 'pg_replication_origin', 'pg_database', 'pg_largeobject')`)
	must(t, err)
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	must(t, err)
	out := map[string]string{}
	for _, name := range names {
		from := name
		if name == "pg_class" {
			from = "(SELECT oid, relname, relkind, relacl, reloptions, relnatts, relpersistence FROM pg_class)"
		}
		var sum *string
		must(t, conn.QueryRow(context.Background(), "SELECT md5(string_agg(t::text, ',' ORDER BY t::text)) FROM "+from+" t").Scan(&sum))
		if sum != nil {
			out[name] = *sum
		}
	}
	return out
}
