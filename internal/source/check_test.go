package source_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/pgtest"
	"github.com/pgbough/pgbough/internal/source"
)

func wantFinding(t testing.TB, r source.Report, name string, status pgbough.FindingStatus, words ...string) pgbough.Finding {
	t.Helper()
	f := finding(r, name)
	if f.Status != status {
		t.Errorf("%s: got %q %q, want %q", name, f.Status, f.Detail, status)
	}
	if f.Status == pgbough.FindingFail && f.Fix == "" {
		t.Errorf("%s fails without a fix: %q", name, f.Detail)
	}
	for _, w := range words {
		if !strings.Contains(f.Detail+" | "+f.Fix, w) {
			t.Errorf("%s: %q fix %q does not say %q", name, f.Detail, f.Fix, w)
		}
	}
	return f
}

// apply runs the statements of a fix as the superuser.
func apply(t testing.TB, p *pgtest.Server, fix string) {
	t.Helper()
	sql, _, _ := strings.Cut(fix, " -- ")
	for s := range strings.SplitSeq(sql, ";") {
		if s = strings.TrimSpace(s); s != "" {
			p.Exec(t, "postgres", s)
		}
	}
}

func TestCheckOfAGoodProduction(t *testing.T) {
	majors(t, func(t *testing.T, major int) {
		p := pgtest.Start(t, pgtest.Options{Major: major, Conf: map[string]string{"log_statement": "all", "log_replication_commands": "on", "log_line_prefix": "[%a] ", "autovacuum": "off"}})
		p.Exec(t, "postgres", "CREATE ROLE repl LOGIN REPLICATION; GRANT pg_read_all_settings TO repl; CREATE ROLE shop LOGIN; GRANT repl TO shop")
		p.Exec(t, "postgres", "CREATE DATABASE shop OWNER shop")
		p.Exec(t, "postgres", "CREATE DATABASE closed ALLOW_CONNECTIONS false")
		xid := p.Value(t, "postgres", "SELECT pg_snapshot_xmax(pg_current_snapshot())")
		began := time.Now()
		r := source.Check(t.Context(), source.CheckOptions{
			ConnString: p.ConnString("repl", "postgres"), Database: "shop", Role: "shop", SlotName: "pgbough_shop", PoolFree: bytes(100 << 30),
		})
		if d := time.Since(began); d > 10*time.Second {
			t.Errorf("it took %v", d)
		}
		if !r.OK() {
			t.Errorf("not OK")
		}
		for _, f := range r.Findings {
			if f.Status != pgbough.FindingOK && f.Name != "databases" {
				t.Errorf("%s %s: %s (%s)", f.Status, f.Name, f.Detail, f.Fix)
			}
		}
		wantFinding(t, r, "databases", pgbough.FindingSkip, "closed")
		f := r.Facts
		if f.Major != major || f.SystemID == 0 || f.Timeline != 1 || f.BootstrapSuperuser != "postgres" || f.Encoding != "UTF8" || !f.DataChecksums ||
			f.WALSegmentSize != 16<<20 || f.DataBytes < 10<<20 || f.Installation.Major != major || len(f.Settings) < 300 || f.MachineLibcVersion == "" {
			f.Settings = nil
			t.Errorf("facts: %+v", f)
		}
		if !hasExtension(f, "shop", "plpgsql") {
			t.Errorf("extensions: %v", f.Extensions)
		}
		// It changed nothing: no transaction got an id, and all it said was SET, SHOW, SELECT and IDENTIFY_SYSTEM.
		if got := p.Value(t, "postgres", "SELECT pg_snapshot_xmax(pg_current_snapshot())"); got != xid {
			t.Errorf("transaction ids went from %s to %s", xid, got)
		}
		said := 0
		for _, m := range regexp.MustCompile(`(?m)^\[pgbough\] LOG:  (?:statement|execute [^:]*|received replication command): (\w+)`).FindAllStringSubmatch(p.LogTail(100000), -1) {
			said++
			if w := strings.ToUpper(m[1]); w != "SET" && w != "SELECT" && w != "IDENTIFY_SYSTEM" {
				t.Errorf("it said %q", m[0])
			}
		}
		if said < 20 {
			t.Errorf("saw only %d statements in the log", said)
		}
	})
}

func hasExtension(f source.Facts, database, name string) bool {
	for _, e := range f.Extensions {
		if e.Database == database && e.Name == name {
			return true
		}
	}
	return false
}

// Each fix, done as printed, mends what it is for.
func TestFixesMend(t *testing.T) {
	p := pgtest.Start(t, pgtest.Options{Conf: map[string]string{
		"wal_level": "minimal", "max_wal_senders": "0", "max_slot_wal_keep_size": "-1", "full_page_writes": "off",
		"max_replication_slots": "0", "synchronous_standby_names": "FIRST 1 (PGBough, other)",
	}})
	p.Exec(t, "postgres", `CREATE ROLE "odd Role" LOGIN`)
	o := source.CheckOptions{ConnString: fmt.Sprintf("host=127.0.0.1 port=%d user='odd Role' dbname=postgres sslmode=disable", p.Port), PoolFree: bytes(0), SlotName: "x"}
	r := source.Check(t.Context(), o)
	if r.OK() {
		t.Error("a bad production is OK")
	}
	apply(t, p, wantFinding(t, r, "replication_role", pgbough.FindingFail, `ALTER ROLE "odd Role" REPLICATION;`).Fix)
	apply(t, p, wantFinding(t, r, "read_settings", pgbough.FindingFail, `GRANT pg_read_all_settings TO "odd Role";`).Fix)
	apply(t, p, wantFinding(t, r, "wal_level", pgbough.FindingFail, "restart").Fix)
	apply(t, p, wantFinding(t, r, "walsenders", pgbough.FindingFail, "0 of 0", "restart").Fix)
	apply(t, p, wantFinding(t, r, "max_slot_wal_keep_size", pgbough.FindingFail, "'10240MB'").Fix)
	apply(t, p, wantFinding(t, r, "full_page_writes", pgbough.FindingWarn).Fix)
	apply(t, p, wantFinding(t, r, "synchronous_standby_names", pgbough.FindingFail, `FIRST 1 ("other")`).Fix)
	apply(t, p, wantFinding(t, r, "replication_slots", pgbough.FindingFail, "max_replication_slots").Fix)
	wantFinding(t, r, "replication_connection", pgbough.FindingSkip, `host replication "odd Role" 127.0.0.1/32 scram-sha-256`)
	wantFinding(t, r, "pool_space", pgbough.FindingFail, "--pool-size")
	p.Restart(t)
	o.PoolFree = bytes(100 << 30)
	if r = source.Check(t.Context(), o); !r.OK() {
		t.Errorf("after all fixes: %+v", r.Findings)
	}
	p.Exec(t, "postgres", "ALTER SYSTEM SET max_slot_wal_keep_size = -1")
	p.Exec(t, "postgres", "ALTER SYSTEM SET synchronous_standby_names = '*'")
	p.Exec(t, "postgres", "SELECT pg_reload_conf(), pg_sleep(0.3)")
	o.AcceptUnlimitedSlot = true
	r = source.Check(t.Context(), o)
	wantFinding(t, r, "max_slot_wal_keep_size", pgbough.FindingWarn, "accepted")
	wantFinding(t, r, "synchronous_standby_names", pgbough.FindingFail, "synchronous_standby_names = ''")
	o.AcceptUnlimitedSlot, o.RestoreCommand = false, "cp /archive/%f %p"
	r = source.Check(t.Context(), o)
	wantFinding(t, r, "replication_slots", pgbough.FindingFail, "archive", "--restore-command")
	wantFinding(t, r, "max_slot_wal_keep_size", "")
}

// The printed line of pg_hba.conf lets the connection in that was refused.
func TestHBALine(t *testing.T) {
	p := pgtest.Start(t, pgtest.Options{HBA: []string{`host replication "re-pl" 127.0.0.1/32 reject`, `host all "re-pl" 127.0.0.1/32 reject`}})
	p.Exec(t, "postgres", `SET password_encryption = 'scram-sha-256'; CREATE ROLE "re-pl" LOGIN REPLICATION PASSWORD 'x-Secret1'; GRANT pg_read_all_settings TO "re-pl"`)
	o := source.CheckOptions{ConnString: p.ConnString("re-pl", "postgres") + " password=x-Secret1"}
	for _, name := range []string{"connection", "replication_connection"} {
		r := source.Check(t.Context(), o)
		f := wantFinding(t, r, name, pgbough.FindingFail, "re-pl 127.0.0.1/32 scram-sha-256", "SELECT pg_reload_conf()")
		_, line, _ := strings.Cut(f.Fix, ": ")
		line, _, _ = strings.Cut(line, " -- ")
		hba := filepath.Join(p.Dir, "pg_hba.conf")
		old, err := os.ReadFile(hba)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(hba, append([]byte(line+"\n"), old...), 0o600); err != nil {
			t.Fatal(err)
		}
		p.Exec(t, "postgres", "SELECT pg_reload_conf(), pg_sleep(0.3)")
	}
	if r := source.Check(t.Context(), o); !r.OK() {
		t.Errorf("after both lines: %+v", r.Findings)
	}
}

func TestUnreachable(t *testing.T) {
	p := pgtest.Start(t, pgtest.Options{HBA: []string{"host all pw 127.0.0.1/32 scram-sha-256"}})
	p.Exec(t, "postgres", "SET password_encryption = 'scram-sha-256'; CREATE ROLE pw LOGIN PASSWORD 'right'; CREATE ROLE nologin; CREATE ROLE stranger LOGIN")
	p.Exec(t, "postgres", "CREATE DATABASE private")
	p.Exec(t, "postgres", "REVOKE CONNECT ON DATABASE private FROM public")
	silent, err := net.Listen("tcp", "127.0.0.1:0") // accepts, and never says a word
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Close() }()
	port := silent.Addr().(*net.TCPAddr).Port
	for name, c := range map[string]struct{ conn, detail, fix string }{
		"refused":     {"host=127.0.0.1 port=1 user=u password=x-Secret1", "connection refused", "listen_addresses"},
		"dns":         {"host=no-such-host.invalid user=u password=x-Secret1", "cannot be resolved", "host"},
		"silence":     {fmt.Sprintf("host=127.0.0.1 port=%d user=u password=x-Secret1 sslmode=disable", port), "no answer from", "firewall"},
		"socket":      {"host=/nowhere user=u password=x-Secret1", "no server listens on the socket /nowhere/.s.PGSQL.5432", "host"},
		"tls":         {fmt.Sprintf("host=127.0.0.1 port=%d user=pw password=x-Secret1 sslmode=require", p.Port), "offers no TLS", "ssl = on"},
		"password":    {p.ConnString("pw", "postgres") + " password=x-Secret1", "password authentication failed", "ALTER ROLE pw PASSWORD '...';"},
		"no role":     {p.ConnString("nobody", "postgres"), `no role "nobody"`, "CREATE ROLE nobody LOGIN REPLICATION"},
		"no login":    {p.ConnString("nologin", "postgres"), "may not log in", "ALTER ROLE nologin LOGIN;"},
		"no database": {p.ConnString("postgres", "nix"), `no database "nix"`, "dbname"},
		"no connect":  {p.ConnString("stranger", "private"), "may not connect", "GRANT CONNECT ON DATABASE private TO stranger;"},
		"nonsense":    {"host=127.0.0.1 port=x-Secret1", "cannot be read", ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := source.Check(t.Context(), source.CheckOptions{ConnString: c.conn, Timeout: 2 * time.Second})
			f := finding(r, "connection")
			if f.Status != pgbough.FindingFail || !strings.Contains(f.Detail, c.detail) || !strings.Contains(f.Fix, c.fix) || r.OK() {
				t.Errorf("got %+v", f)
			}
			if strings.Contains(fmt.Sprint(r), "Secret1") {
				t.Errorf("it shows the password: %+v", r)
			}
		})
	}
}

func TestManagedService(t *testing.T) {
	p := pgtest.Start(t, pgtest.Options{HBA: []string{"host replication outsider 127.0.0.1/32 reject"}})
	p.Exec(t, "postgres", "CREATE ROLE rds_superuser; CREATE ROLE outsider LOGIN REPLICATION")
	check := func(user string) source.Report {
		return source.Check(t.Context(), source.CheckOptions{ConnString: p.ConnString(user, "postgres")})
	}
	// A restored role is no service, as long as one can replicate.
	wantFinding(t, check("postgres"), "managed_service", pgbough.FindingOK)
	wantFinding(t, check("outsider"), "managed_service", pgbough.FindingFail, "Amazon RDS", "rds_superuser", "cannot follow")
	p.Configure(t, map[string]string{"azure.extensions": "x"})
	p.Restart(t)
	wantFinding(t, check("postgres"), "managed_service", pgbough.FindingFail, "Azure", "azure.extensions")
}

// What production has and this machine lacks; faked in the catalogs, since production could not have run with it.
func TestMissingHere(t *testing.T) {
	p := pgtest.Start(t, pgtest.Options{Conf: map[string]string{"wal_compression": "lz4"}})
	p.Exec(t, "postgres", "CREATE DATABASE geo")
	p.Exec(t, "postgres", "CREATE DATABASE german")
	p.Exec(t, "geo", `CREATE EXTENSION citext; CREATE EXTENSION hstore;
		UPDATE pg_proc SET probin = '$libdir/postgis-3' WHERE proname = 'hstore_in';
		UPDATE pg_proc SET probin = '$libdir/acme-2.1' WHERE proname = 'hstore_out';
		UPDATE pg_extension SET extname = 'postgis' WHERE extname = 'hstore';
		UPDATE pg_extension SET extversion = '0.9' WHERE extname = 'citext'`)
	p.Exec(t, "postgres", "UPDATE pg_database SET datcollate = 'xx_YY.UTF-8', datctype = 'xx_YY.UTF-8' WHERE datname = 'german'")
	dir := filepath.Join(p.Dir, "elsewhere")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(dir, pgtest.UID, pgtest.UID); err != nil {
			t.Fatal(err)
		}
	}
	p.Exec(t, "postgres", "CREATE TABLESPACE fast LOCATION '"+dir+"'")
	r := source.Check(t.Context(), source.CheckOptions{ConnString: p.ConnString("postgres", "postgres"), Database: "nix", Role: "nix"})
	wantFinding(t, r, "extension_libraries", pgbough.FindingFail, "$libdir/postgis-3", "$libdir/acme-2.1", "apt-get install postgresql-15-postgis-3; install for Postgres 15", "production's version: acme")
	wantFinding(t, r, "extensions", pgbough.FindingWarn, "postgis")
	wantFinding(t, r, "extension_versions", pgbough.FindingWarn, "citext 0.9")
	wantFinding(t, r, "locales", pgbough.FindingFail, "xx_YY.UTF-8", "localedef -i xx_YY -f UTF-8 xx_YY.UTF-8")
	wantFinding(t, r, "databases", pgbough.FindingSkip, "german")
	wantFinding(t, r, "tablespaces", pgbough.FindingFail, "fast ("+dir+")")
	wantFinding(t, r, "database", pgbough.FindingFail, `"nix"`)
	wantFinding(t, r, "role", pgbough.FindingFail, `"nix"`)
	wantFinding(t, r, "wal_compression", pgbough.FindingOK, "lz4")
}

func TestPreloadMissingHere(t *testing.T) {
	p := pgtest.Start(t, pgtest.Options{Conf: map[string]string{"shared_preload_libraries": `auto_explain, "pg_prewarm"`}})
	o := source.CheckOptions{ConnString: p.ConnString("postgres", "postgres")}
	wantFinding(t, source.Check(t.Context(), o), "preload_libraries", pgbough.FindingOK, "auto_explain", "pg_prewarm")
	// Another installation of the same major, newer, with plpgsql and auto_explain only.
	prefix := t.TempDir()
	for name, text := range map[string]string{
		"bin/postgres": "#!/bin/sh\necho 'postgres (PostgreSQL) 15.99'\n", "lib/plpgsql.so": "", "lib/auto_explain.so": "", "share/extension/plpgsql.control": "default_version = '1.0'\n",
	} {
		path := filepath.Join(prefix, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil { //nolint:gosec // a program
			t.Fatal(err)
		}
	}
	t.Setenv("PGBOUGH_POSTGRES_DIRS", filepath.Join(prefix, "bin"))
	r := source.Check(t.Context(), o)
	wantFinding(t, r, "binaries", pgbough.FindingOK, "15.99")
	f := wantFinding(t, r, "preload_libraries", pgbough.FindingFail, "pg_prewarm (shared_preload_libraries)")
	if strings.Contains(f.Detail, "auto_explain") {
		t.Errorf("auto_explain is there: %+v", f)
	}
}

func TestICU(t *testing.T) {
	majors(t, func(t *testing.T, major int) {
		if major < 15 {
			t.Skip("a database's default can be ICU since 15")
		}
		p := pgtest.Start(t, pgtest.Options{Major: major, Init: []string{"--locale-provider=icu", "--icu-locale=en"}})
		o := source.CheckOptions{ConnString: p.ConnString("postgres", "postgres")}
		r := source.Check(t.Context(), o)
		t.Logf("%+v", finding(r, "collation_icu"))
		wantFinding(t, r, "collation_icu", pgbough.FindingOK, "ICU")
		wantFinding(t, r, "collation_recorded", "")
		p.Exec(t, "postgres", "UPDATE pg_database SET datcollversion = '153.1' WHERE datname = 'postgres'")
		wantFinding(t, source.Check(t.Context(), o), "collation_recorded", pgbough.FindingWarn, "database postgres was made with 153.1")
	})
}

func TestSlots(t *testing.T) {
	majors(t, func(t *testing.T, major int) {
		p := pgtest.Start(t, pgtest.Options{Major: major, Conf: map[string]string{"wal_level": "logical", "max_replication_slots": "2"}})
		conn := replicator(t, p)
		p.Exec(t, "postgres", "GRANT pg_read_all_settings TO repl")
		s := open(t, source.Config{ConnString: conn})
		status := func() source.Slot {
			t.Helper()
			slot, err := s.SlotStatus(t.Context(), "ours")
			if err != nil {
				t.Fatal(err)
			}
			return slot
		}
		check := func(name string) source.Report {
			return source.Check(t.Context(), source.CheckOptions{ConnString: conn, SlotName: name})
		}
		if status().Exists {
			t.Error("a slot that nobody made")
		}
		if err := s.DropSlot(t.Context(), "ours"); err != nil {
			t.Errorf("drop of none: %v", err)
		}
		p.Exec(t, "postgres", "SELECT pg_create_physical_replication_slot('ours', true), pg_create_logical_replication_slot('theirs', 'pgoutput')")
		if got := status(); !got.Exists || !got.Physical || got.Active || got.WALStatus != "reserved" || got.Restart == 0 || got.SafeWAL <= 0 || got.Lost() {
			t.Errorf("a fresh slot: %+v", got)
		}
		r := check("ours")
		wantFinding(t, r, "slot_name", pgbough.FindingWarn, "anew")
		wantFinding(t, r, "replication_slots", pgbough.FindingOK, "1 of 2") // ours is made anew
		r = check("theirs")
		wantFinding(t, r, "slot_name", pgbough.FindingFail, "logical")
		wantFinding(t, check("another"), "replication_slots", pgbough.FindingFail, "max_replication_slots = 4")
		wantError(t, s.DropSlot(t.Context(), "theirs"), pgbough.EConflict, "logical")

		walsender := stream(t, conn, status().Restart)
		if got := status(); !got.Active || got.ActivePID == 0 {
			t.Errorf("while it is used: %+v", got)
		}
		wantFinding(t, check("ours"), "slot_name", pgbough.FindingFail, "in use by backend")
		began := time.Now()
		if err := s.DropSlot(t.Context(), "ours"); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(began); d < 2*time.Second {
			t.Errorf("its walsender was ended after %v already", d)
		}
		if status().Exists {
			t.Error("the slot is still there")
		}
		_ = walsender.Close(context.Background()) // production ended it
	})
}

// stream uses the slot "ours".
func stream(t testing.TB, conn string, from pgbough.LSN) *pgconn.PgConn {
	t.Helper()
	pg, err := pgconn.Connect(t.Context(), conn+" replication=true")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pg.Exec(t.Context(), "IDENTIFY_SYSTEM").ReadAll(); err != nil {
		t.Fatal(err)
	}
	pg.Frontend().SendQuery(&pgproto3.Query{String: "START_REPLICATION SLOT ours PHYSICAL " + from.String()})
	if err := pg.Frontend().Flush(); err != nil {
		t.Fatal(err)
	}
	if _, err := pg.ReceiveMessage(t.Context()); err != nil { // CopyBoth
		t.Fatal(err)
	}
	return pg
}

func TestLostSlot(t *testing.T) {
	p := pgtest.Start(t, pgtest.Options{Conf: map[string]string{"max_slot_wal_keep_size": "1MB", "max_wal_size": "32MB", "min_wal_size": "32MB"}})
	s := open(t, source.Config{ConnString: p.ConnString("postgres", "postgres")})
	p.Exec(t, "postgres", "SELECT pg_create_physical_replication_slot('ours', true)")
	for range 5 {
		p.Exec(t, "postgres", "SELECT pg_logical_emit_message(false, 'x', repeat('x', 1000)), pg_switch_wal()")
	}
	p.Exec(t, "postgres", "CHECKPOINT")
	slot, err := s.SlotStatus(t.Context(), "ours")
	if err != nil {
		t.Fatal(err)
	}
	if !slot.Lost() {
		t.Errorf("got %+v, want it lost", slot)
	}
}

func bytes(n int64) *int64 { return &n }

// The owner of the database is what branches are used as where nobody names a role.
func TestOwnerThatMayNotLogIn(t *testing.T) {
	p := pgtest.Start(t, pgtest.Options{})
	p.Exec(t, "postgres", "CREATE ROLE owner NOLOGIN; CREATE ROLE app LOGIN")
	p.Exec(t, "postgres", "CREATE DATABASE shop OWNER owner")
	o := source.CheckOptions{ConnString: p.ConnString("postgres", "shop"), PoolFree: bytes(1 << 30), Spare: 1 << 40}
	r := source.Check(t.Context(), o)
	wantFinding(t, r, "role", pgbough.FindingFail, `"owner"`, "--role")
	wantFinding(t, r, "pool_space", pgbough.FindingFail, "--pool-size")
	o.Role = "app"
	wantFinding(t, source.Check(t.Context(), o), "role", pgbough.FindingOK, `"app"`)
	o.Role, o.ConnString, o.Database = "", p.ConnString("postgres", "postgres"), "shop"
	wantFinding(t, source.Check(t.Context(), o), "role", pgbough.FindingFail, `"owner"`)
	o.Database = ""
	wantFinding(t, source.Check(t.Context(), o), "role", pgbough.FindingOK, `"postgres"`)
}
