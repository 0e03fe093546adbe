package source_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/pgtest"
	"github.com/pgbough/pgbough/internal/postgres"
	"github.com/pgbough/pgbough/internal/source"
)

func open(t testing.TB, c source.Config) *source.Source {
	t.Helper()
	s, err := source.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// lazyWriter lets nothing but a flushed commit write WAL to disk.
func lazyWriter() map[string]string {
	return map[string]string{"wal_writer_delay": "10s", "wal_writer_flush_after": "1GB", "autovacuum": "off", "checkpoint_timeout": "1h"}
}

// majors runs a test on every Postgres of this machine that pgbough supports.
func majors(t *testing.T, f func(t *testing.T, major int)) {
	all, err := postgres.Installations(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	done := map[int]bool{}
	for _, in := range all {
		if in.Major >= 13 && !done[in.Major] {
			done[in.Major] = true
			t.Run(strconv.Itoa(in.Major), func(t *testing.T) {
				t.Parallel() // they wait for Postgres more than they compute
				f(t, in.Major)
			})
		}
	}
}

// replicator makes a plain role with REPLICATION, which may read neither all settings nor any table.
func replicator(t testing.TB, p *pgtest.Server) string {
	t.Helper()
	p.Exec(t, "postgres", "CREATE ROLE repl LOGIN REPLICATION")
	return p.ConnString("repl", "postgres")
}

// A plain REPLICATION role whose transactions are read-only by default gets a
// position that has what was acknowledged without a flush.
func TestNowHasWhatWasAcknowledged(t *testing.T) {
	majors(t, func(t *testing.T, major int) {
		p := pgtest.Start(t, pgtest.Options{Major: major, Conf: lazyWriter()})
		conn := replicator(t, p)
		p.Exec(t, "postgres", "ALTER ROLE repl SET default_transaction_read_only = on")
		p.Exec(t, "postgres", "ALTER ROLE repl SET synchronous_commit = off")
		p.Exec(t, "postgres", "CREATE TABLE t (a int); CREATE SEQUENCE s")
		s := open(t, source.Config{ConnString: conn})
		writer := p.Conn(t, "postgres")
		mustExec(t, writer, "SET synchronous_commit = off")
		behind := 0
		for i := range 100 {
			if i%2 == 0 {
				mustExec(t, writer, "INSERT INTO t VALUES (1)")
			} else { // a value of a sequence that is told inside an open transaction
				mustExec(t, writer, "BEGIN")
				mustExec(t, writer, "SELECT nextval('s') FROM generate_series(1, 40)")
			}
			want := insertLSN(t, writer)
			flushed, err := s.Position(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if flushed.LSN < want {
				behind++
			}
			m, err := s.Now(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if m.LSN < want {
				t.Fatalf("round %d: acknowledged up to %s, but now is %s", i, want, m.LSN)
			}
			if i%2 == 1 {
				mustExec(t, writer, "COMMIT")
			}
		}
		if behind < 90 {
			t.Errorf("control: the flush position alone was behind in %d of 100 rounds, want most", behind)
		}
	})
}

func TestMoment(t *testing.T) {
	majors(t, func(t *testing.T, major int) {
		p := pgtest.Start(t, pgtest.Options{Major: major, Conf: map[string]string{"work_mem": "7MB", "random_page_cost": "1.5"}})
		p.Exec(t, "postgres", "ALTER DATABASE postgres SET work_mem = '9MB'; ALTER ROLE postgres SET enable_sort = off")
		s := open(t, source.Config{ConnString: p.ConnString("postgres", "postgres")})
		before := time.Now()
		m, err := s.Now(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got := p.Value(t, "postgres", "SELECT system_identifier FROM pg_control_system()"); got != strconv.FormatUint(m.SystemID, 10) || m.Timeline != 1 {
			t.Errorf("system %d timeline %d, want %s and 1", m.SystemID, m.Timeline, got)
		}
		if d := m.Time.Sub(before); d < -time.Second || d > 5*time.Second {
			t.Errorf("time is %v off", d)
		}
		want := map[string]string{
			"work_mem": "7MB", "random_page_cost": "1.5", "enable_sort": "on", "application_name": "", "synchronous_commit": "on", "statement_timeout": "0",
			"search_path": `"$user", public`, "shared_preload_libraries": "",
		}
		seen := 0
		for _, v := range m.Settings {
			if w, ok := want[v.Name]; ok {
				seen++
				if v.Value != w {
					t.Errorf("%s is %q (source %s), want production's own %q", v.Name, v.Value, v.Source, w)
				}
			}
		}
		if seen != len(want) {
			t.Errorf("saw %d of %d settings", seen, len(want))
		}
	})
}

// Between questions the connection costs production nothing but a process.
func TestIdleConnectionHoldsNothing(t *testing.T) {
	p := pgtest.Start(t, pgtest.Options{Conf: map[string]string{"idle_session_timeout": "200ms"}})
	s := open(t, source.Config{ConnString: replicator(t, p)})
	if _, err := s.Now(t.Context()); err != nil {
		t.Fatal(err)
	}
	const q = `SELECT string_agg(concat_ws(' ', state, 'xmin', backend_xmin, 'xid', backend_xid, 'xact', xact_start), ',') FROM pg_stat_activity WHERE application_name = 'pgbough'`
	time.Sleep(400 * time.Millisecond) // longer than idle_session_timeout
	if got := p.Value(t, "postgres", q); got != "idle xmin xid xact" {
		t.Errorf("our connection on production is %q", got)
	}
	if got := p.Value(t, "postgres", `SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE application_name = 'pgbough'`); got != "0" {
		t.Errorf("it holds %s locks", got)
	}
}

// Every caller gets a position asked for after its call, although waiting callers share one.
func TestNowIsSharedOnlyForward(t *testing.T) {
	p := pgtest.Start(t, pgtest.Options{Conf: lazyWriter()})
	p.Exec(t, "postgres", "CREATE TABLE t (a int)")
	s := open(t, source.Config{ConnString: p.ConnString("postgres", "postgres")})
	const callers, rounds = 16, 25
	var wg sync.WaitGroup
	for range callers {
		conn := p.Conn(t, "postgres")
		mustExec(t, conn, "SET synchronous_commit = off")
		wg.Go(func() {
			for range rounds {
				if _, err := conn.Exec(t.Context(), "INSERT INTO t VALUES (1)"); err != nil {
					t.Error(err)
					return
				}
				var text string
				// The insert position may have records of others after ours, all written before Now is called.
				if err := conn.QueryRow(t.Context(), "SELECT pg_current_wal_insert_lsn()::text").Scan(&text); err != nil {
					t.Error(err)
					return
				}
				want, _ := pgbough.ParseLSN(text)
				m, err := s.Now(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				if m.LSN < want {
					t.Errorf("acknowledged up to %s, but now is %s", want, m.LSN)
				}
			}
		})
	}
	wg.Wait()
	xids, err := strconv.Atoi(p.Value(t, "postgres", "SELECT pg_current_xact_id()"))
	if err != nil {
		t.Fatal(err)
	}
	rows, _ := strconv.Atoi(p.Value(t, "postgres", "SELECT count(*) FROM t"))
	first, _ := strconv.Atoi(p.Value(t, "postgres", "SELECT min(xmin::text::int) FROM t"))
	if markers := xids - first - rows; markers >= rows*3/4 {
		t.Errorf("%d markers for %d calls: nothing was shared", markers, rows)
	} else {
		t.Logf("%d markers for %d calls", markers, rows)
	}
}

func TestNowAfterRestart(t *testing.T) {
	p := pgtest.Start(t, pgtest.Options{})
	s := open(t, source.Config{ConnString: p.ConnString("postgres", "postgres")})
	for range 3 {
		if _, err := s.Now(t.Context()); err != nil {
			t.Fatal(err)
		}
		p.Restart(t)
	}
	p.Stop(t)
	_, err := s.Now(t.Context())
	wantError(t, err, pgbough.EUnreachable, "production cannot be asked", "connection refused")
	p.Run(t)
	if _, err := s.Now(t.Context()); err != nil {
		t.Errorf("after it is back: %v", err)
	}
}

// A peer that is paused sends neither an answer nor a FIN.
func TestNowOfPausedProduction(t *testing.T) {
	p := pgtest.Start(t, pgtest.Options{})
	s := open(t, source.Config{ConnString: p.ConnString("postgres", "postgres"), Timeout: time.Second})
	if _, err := s.Now(t.Context()); err != nil {
		t.Fatal(err)
	}
	pids := family(t, p.PID())
	signal(t, pids, syscall.SIGSTOP)
	defer signal(t, pids, syscall.SIGCONT)
	began := time.Now()
	_, err := s.Now(t.Context())
	wantError(t, err, pgbough.EUnreachable, "no answer", "in time")
	if d := time.Since(began); d < 900*time.Millisecond || d > 1500*time.Millisecond {
		t.Errorf("it took %v, want the timeout of 1 s", d)
	}
	signal(t, pids, syscall.SIGCONT)
	if _, err := s.Now(t.Context()); err != nil {
		t.Errorf("after it goes on: %v", err)
	}
}

func TestNowHonoursContextAndClose(t *testing.T) {
	p := pgtest.Start(t, pgtest.Options{})
	s := open(t, source.Config{ConnString: p.ConnString("postgres", "postgres"), Timeout: 20 * time.Second})
	if _, err := s.Now(t.Context()); err != nil {
		t.Fatal(err)
	}
	pids := family(t, p.PID())
	signal(t, pids, syscall.SIGSTOP)
	defer signal(t, pids, syscall.SIGCONT)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := s.Now(ctx)
	wantError(t, err, pgbough.EUnreachable)
	done := make(chan error, 1)
	go func() { _, err := s.Now(context.Background()); done <- err }()
	time.Sleep(20 * time.Millisecond)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		wantError(t, err, pgbough.EUnreachable)
	case <-time.After(2 * time.Second):
		t.Fatal("Close did not end a waiting Now")
	}
	_, err = s.Now(t.Context())
	wantError(t, err, pgbough.EUnreachable, "closed for good")
	_, err = s.Position(t.Context())
	wantError(t, err, pgbough.EUnreachable, "closed for good")
}

// The timeline is the one being written as soon as a standby is promoted.
func TestFailover(t *testing.T) {
	p := pgtest.Start(t, pgtest.Options{Conf: map[string]string{"checkpoint_completion_target": "0.9"}})
	s := open(t, source.Config{ConnString: p.ConnString("postgres", "postgres")})
	m, err := s.Now(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p.Stop(t)
	if err := os.WriteFile(filepath.Join(p.Dir, "standby.signal"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(filepath.Join(p.Dir, "standby.signal"), pgtest.UID, pgtest.UID); err != nil {
			t.Fatal(err)
		}
	}
	p.Run(t)
	_, err = s.Now(t.Context())
	wantError(t, err, pgbough.EUnreachable, "is a standby now")
	if !errors.Is(err, source.ErrStandby) {
		t.Errorf("%v is not ErrStandby", err)
	}
	if _, err = s.LastCheckpoint(t.Context()); !errors.Is(err, source.ErrStandby) {
		t.Errorf("LastCheckpoint: %v is not ErrStandby", err)
	}
	if r := source.Check(t.Context(), source.CheckOptions{ConnString: p.ConnString("postgres", "postgres")}); finding(r, "primary").Status != pgbough.FindingFail {
		t.Errorf("check of a standby: %+v", finding(r, "primary"))
	}
	p.Value(t, "postgres", "SELECT pg_promote()")
	promoted, err := s.Now(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if promoted.Timeline != 2 || promoted.SystemID != m.SystemID || promoted.LSN <= m.LSN {
		t.Errorf("after the promotion: %+v, before: timeline %d at %s", promoted.LSN, m.Timeline, m.LSN)
	}
}

func TestOtherSystem(t *testing.T) {
	p := pgtest.Start(t, pgtest.Options{})
	s := open(t, source.Config{ConnString: p.ConnString("postgres", "postgres"), SystemID: 42})
	_, err := s.Now(t.Context())
	wantError(t, err, pgbough.EConflict, "another database cluster")
	if !errors.Is(err, source.ErrOtherSystem) {
		t.Errorf("%v is not ErrOtherSystem", err)
	}
}

func TestSetConnString(t *testing.T) {
	p := pgtest.Start(t, pgtest.Options{HBA: []string{"host all secretive 127.0.0.1/32 scram-sha-256"}})
	p.Exec(t, "postgres", "SET password_encryption = 'scram-sha-256'; CREATE ROLE secretive LOGIN PASSWORD 'new-Secret1'")
	at := func(password string) string { return p.ConnString("secretive", "postgres") + " password=" + password }
	s := open(t, source.Config{ConnString: at("old-Secret1")})
	_, err := s.Now(t.Context())
	wantError(t, err, pgbough.EUnreachable, "password authentication failed", "ALTER ROLE secretive PASSWORD '...'")
	noSecret(t, err)
	if err := s.SetConnString(at("new-Secret1")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Now(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := s.Address(); got != fmt.Sprintf("secretive@127.0.0.1:%d/postgres", p.Port) {
		t.Errorf("address %q", got)
	}
	for _, bad := range []string{"host=x password=new-Secret1 port=no", "postgres://u:new-Secret1@h:x/ /", "password='new-Secret1"} {
		err := s.SetConnString(bad)
		wantError(t, err, pgbough.EInvalid, "cannot be read")
		noSecret(t, err)
	}
}

func TestLastCheckpoint(t *testing.T) {
	majors(t, func(t *testing.T, major int) {
		p := pgtest.Start(t, pgtest.Options{Major: major})
		s := open(t, source.Config{ConnString: replicator(t, p)})
		p.Exec(t, "postgres", "CREATE TABLE t AS SELECT repeat('x', 500) FROM generate_series(1, 5000); CHECKPOINT")
		a, err := s.LastCheckpoint(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if a.Redo == 0 || a.Redo > a.LSN || a.Timeline != 1 || time.Since(a.Time).Abs() > time.Minute || a.WALSince > 1<<20 {
			t.Errorf("after a checkpoint: %+v", a)
		}
		p.Exec(t, "postgres", "INSERT INTO t SELECT repeat('x', 500) FROM generate_series(1, 5000)")
		b, err := s.LastCheckpoint(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if b.Redo != a.Redo || b.WALSince < 2<<20 {
			t.Errorf("after 2.5 MB of rows: %+v", b)
		}
	})
}

func mustExec(t testing.TB, conn *pgx.Conn, sql string) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func insertLSN(t testing.TB, conn *pgx.Conn) pgbough.LSN {
	t.Helper()
	var text string
	if err := conn.QueryRow(t.Context(), "SELECT pg_current_wal_insert_lsn()::text").Scan(&text); err != nil {
		t.Fatal(err)
	}
	lsn, err := pgbough.ParseLSN(text)
	if err != nil {
		t.Fatal(err)
	}
	return lsn
}

func wantError(t testing.TB, err error, code pgbough.Code, words ...string) {
	t.Helper()
	var e *pgbough.Error
	if !errors.As(err, &e) {
		t.Fatalf("got %v, want an error for a person", err)
	}
	if e.Code != code || e.Message == "" || e.Hint == "" {
		t.Errorf("got %s %q hint %q, want the code %s with a message and a hint", e.Code, e.Message, e.Hint, code)
	}
	for _, w := range words {
		if !strings.Contains(e.Error(), w) {
			t.Errorf("%q does not say %q", e.Error(), w)
		}
	}
}

func noSecret(t testing.TB, err error) {
	t.Helper()
	for ; err != nil; err = errors.Unwrap(err) {
		if strings.Contains(err.Error(), "Secret1") {
			t.Errorf("the error shows the password: %v", err)
		}
	}
}

// family is a postmaster and its children.
func family(t testing.TB, postmaster int) []int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", postmaster, postmaster))
	if err != nil {
		t.Fatal(err)
	}
	pids := []int{postmaster}
	for f := range strings.FieldsSeq(string(b)) {
		pid, err := strconv.Atoi(f)
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	return pids
}

func signal(t testing.TB, pids []int, sig syscall.Signal) {
	t.Helper()
	for _, pid := range pids {
		if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			t.Errorf("signal %d: %v", pid, err)
		}
	}
}

func finding(r source.Report, name string) pgbough.Finding {
	for _, f := range r.Findings {
		if f.Name == name {
			return f
		}
	}
	return pgbough.Finding{}
}
