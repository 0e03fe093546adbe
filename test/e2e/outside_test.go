package e2e

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestNothingOutside is promise 4: a production that is connected to everything
// is branched, and nothing acts from the branch. A plain copy of the same
// production, started by stock Postgres, is the control: there all of it acts.
func TestNothingOutside(whole *testing.T) {
	t := whole
	w := newWorld(t)
	s := startServer(t)
	w.production.Exec(t, "postgres", "CHECKPOINT") // as in attach
	s.must("attach", "shop", "--source", sourceOf(w.production), "--role", "app", "--database", "shop")
	s.waitSpare()
	// From here on: a spare that acts when it is promoted is caught too.
	before := w.seen(t)
	began := time.Now()
	s.must("branch", "create", "a")
	s.must("branch", "create", "b")

	in := func(name string, test func(*testing.T)) {
		t.Run(name, func(t *testing.T) { s.t = t; test(t) })
	}
	in("nothing acts", func(t *testing.T) { w.nothingActs(t, s, before, began) })
	var c *plainCopy
	in("control: a plain copy acts", func(t *testing.T) {
		c = w.plainCopy(t, whole)
		w.everythingActs(t, c)
	})
	in("the scheduler stays quiet", func(t *testing.T) {
		// The copy's has run meanwhile, at a full minute that the branch lived through too.
		w.noTrace(t, before)
		if got := s.sql("a", "shop", "SELECT count(*) FROM cron.job_run_details WHERE start_time > "+quoted(began.Format(time.RFC3339))); got != "0" {
			t.Errorf("pg_cron ran %s jobs in the branch", got)
		}
	})
	in("no secret in files", func(t *testing.T) { w.noSecrets(t, s, c) })
	in("programs", func(t *testing.T) { w.programs(t, s, c) })
	in("symlinks", func(t *testing.T) { plantedSymlinks(t, s) })
	in("a replaced socket", func(t *testing.T) { w.replacedSocket(t, s) })
	s.t = t
}

// ways are the functions of shop.sql that reach out.
var ways = []string{"use_fdw()", "use_link()", "use_conninfo()", "use_program()"}

// trace is what has acted on everything outside of a branch up to some moment.
type trace struct {
	production, upstream int // lengths of logs
	slots                string
}

func (w *world) seen(t *testing.T) trace {
	t.Helper()
	return trace{
		len(logOf(t, w.production)), len(logOf(t, w.upstream)),
		w.production.Value(t, "postgres", "SELECT string_agg(slot_name || slot_type || active, ' ' ORDER BY slot_name) FROM pg_replication_slots WHERE slot_name IN ('standby', 'cdc')"),
	}
}

// nothingActs tries everything by hand in the branch, and looks at what happens by itself.
func (w *world) nothingActs(t *testing.T, s *server, before trace, began time.Time) {
	for _, who := range []struct{ role, database string }{{"app", "shop"}, {"postgres", "shop"}} {
		for _, way := range append(ways, "act('by hand')") {
			r := s.cli("psql", "a", "--role", who.role, "--database", who.database, "--", "-XAtqc", "SELECT "+way)
			if r.code == 0 {
				t.Errorf("%s as %s succeeded in the branch", way, who.role)
			}
		}
	}
	if r := s.cli("psql", "a", "--role", "postgres", "--database", "shop", "--", "-XAtqc", "CREATE TABLE x ()"); !strings.Contains(r.err, "could not connect") && !strings.Contains(r.err, "refused") {
		t.Errorf("the event trigger in the branch: exit %d, %s; want that it cannot connect", r.code, r.err)
	}
	// The relay that it streamed from as a spare, for both protocols.
	for _, more := range []string{"", " replication=true"} {
		r := s.cli("psql", "a", "--role", "postgres", "--database", "shop", "--", "-XAtqc", "SELECT dblink_connect('host=/run/pgbough/relay port=5432 user=pgbough dbname=postgres"+more+"')")
		if r.code == 0 {
			t.Errorf("the relay still answers the branch (%q)", more)
		}
	}
	s.sql("a", "shop", "SELECT pg_switch_wal(); CHECKPOINT")
	for _, c := range []struct{ what, sql, want string }{
		{"subscriptions", "SELECT count(*) FROM pg_subscription", "0"},
		{"replication slots", "SELECT count(*) FROM pg_replication_slots", "0"},
		{"prepared transactions", "SELECT count(*) FROM pg_prepared_xacts", "0"},
		{"active jobs", "SELECT count(*) FROM cron.job WHERE active", "0"},
		{"rows of the prepared transaction", "SELECT count(*) FROM orders WHERE id < 0", "0"},
		{"rows", "SELECT count(*) FROM orders", "2"},
		{"WAL receivers and archiving", "SELECT count(*) + (SELECT archived_count + failed_count FROM pg_stat_archiver) FROM pg_stat_wal_receiver", "0"},
	} {
		if got := s.sql("a", "shop", c.sql); got != c.want {
			t.Errorf("%s in the branch: %q, want %q", c.what, got, c.want)
		}
	}
	var b branchJSON
	s.json(&b, "branch", "get", "a")
	for _, want := range []string{
		"preload_library pg_cron", "preload_library outside", "subscription sub", "prepared_transaction left open", "foreign_server loop", "user_mapping public@loop",
		"scheduled_job cron.job", "password",
	} {
		if !slices.ContainsFunc(b.Branch.Differences, func(d struct{ Kind, Object, Action, Reason, Detail string }) bool {
			return strings.HasPrefix(d.Kind+" "+d.Object, want)
		}) {
			t.Errorf("no difference %q is listed with the branch: %+v", want, b.Branch.Differences)
		}
	}
	own, _ := s.volumes("a")
	running := titles("pgbough/" + own)
	if !strings.Contains(running, "checkpointer") {
		t.Errorf("control: no checkpointer among the branch's processes: %s", running)
	}
	for _, process := range []string{"autoprewarm", "pg_cron", "outside", "logical replication", "archiver", "walreceiver", "walsender"} {
		if strings.Contains(running, process) {
			t.Errorf("the branch runs a process %q: %s", process, running)
		}
	}
	// A subscription's worker that could not begin tries again after five seconds.
	time.Sleep(time.Until(began.Add(12 * time.Second)))
	w.noTrace(t, before)
	after := logOf(t, w.upstream)[before.upstream:]
	if n := strings.Count(after, "user=feeder"); n > 0 {
		t.Errorf("%d connections with the subscription's password at the publisher:\n%s", n, after)
	}
	for _, user := range loggedIn(logOf(t, w.production)[before.production:]) {
		if user != "follower" && user != "postgres" { // pgbough's own, the test's own
			t.Errorf("%s connected to production", user)
		}
	}
}

// noTrace looks for what a branch leaves that acts outside. A branch's
// cluster_name begins with pgbough, and it is on the second timeline.
func (w *world) noTrace(t *testing.T, before trace) {
	t.Helper()
	for where, got := range map[string]string{
		"at the other server": w.upstream.Value(t, "postgres", "SELECT string_agg(DISTINCT how || ' by ' || by, ', ') FROM acted WHERE by LIKE 'pgbough%'"),
		"in production":       w.production.Value(t, "shop", "SELECT string_agg(DISTINCT how || ' by ' || by, ', ') FROM touched WHERE by LIKE 'pgbough%'"),
		"at a listener":       w.listener.mentioning("pgbough"),
	} {
		if got != "" {
			t.Errorf("something from a branch acted %s: %s", where, got)
		}
	}
	if now := w.seen(t).slots; now != before.slots {
		t.Errorf("production's slots: %s, before %s", now, before.slots)
	}
	if got := w.upstream.Value(t, "postgres", "SELECT count(*) FROM pg_replication_slots"); got != "1" {
		t.Errorf("%s slots at the publisher, want 1", got)
	}
}

func (w *world) archived(t *testing.T) (secondTimeline bool) {
	t.Helper()
	files, err := os.ReadDir(w.archive)
	check(t, err)
	return slices.ContainsFunc(files, func(f os.DirEntry) bool { return strings.HasPrefix(f.Name(), "00000002") })
}

// everythingActs is what a branch would do without quarantine and sandbox.
func (w *world) everythingActs(t *testing.T, c *plainCopy) {
	if w.archived(t) {
		t.Error("WAL of a branch came into production's archive")
	}
	began := time.Now()
	before := w.seen(t)
	c.exec(t, "postgres", "SELECT pg_promote()")
	prepared, slots := c.value(t, "shop", "SELECT count(*) FROM pg_prepared_xacts"), c.value(t, "shop", "SELECT count(*) FROM pg_subscription")
	if prepared != "1" || slots != "1" {
		t.Errorf("control: %s prepared transactions and %s subscriptions in the copy, want 1 and 1", prepared, slots)
	}
	for _, way := range ways {
		c.exec(t, "shop", "SELECT "+way)
	}
	c.exec(t, "shop", "CREATE TABLE x ()")
	c.exec(t, "shop", "SELECT pg_switch_wal()")
	acted := func(how string) func() bool {
		return func() bool {
			return w.upstream.Value(t, "postgres", "SELECT count(*) FROM acted WHERE how = '"+how+"' AND by = 'copy'") != "0"
		}
	}
	touched := func(how string) func() bool {
		return func() bool {
			return w.production.Value(t, "shop", "SELECT count(*) FROM touched WHERE how = '"+how+"' AND by = 'copy'") != "0"
		}
	}
	for _, c := range []struct {
		what string
		ok   func() bool
	}{
		{"the foreign table writes to production", touched("fdw")},
		{"dblink writes to production", touched("link")},
		{"dblink with a connection string writes to production", touched("conninfo")},
		{"COPY TO PROGRAM reaches a listener", func() bool { return w.listener.heard("program of copy") }},
		{"the unknown background worker reaches a listener", func() bool { return w.listener.heard("copy") }},
		{"the event trigger acts", acted("event trigger")},
		{"the subscription wants production's slot", func() bool { return strings.Contains(logOf(t, w.upstream)[before.upstream:], "user=feeder") }},
		{"WAL is archived", func() bool { return w.archived(t) }},
		{"autoprewarm runs", func() bool { return strings.Contains(titles("copy"), "autoprewarm leader") }},
		{"pg_cron runs", func() bool { return strings.Contains(titles("copy"), "pg_cron launcher") }},
		{"the archiver runs", func() bool { return strings.Contains(titles("copy"), "archiver") }},
		{"pg_cron runs its job", func() bool {
			return c.value(t, "shop", "SELECT count(*) FROM cron.job_run_details WHERE start_time > "+quoted(began.Format(time.RFC3339))) != "0"
		}},
	} {
		eventually(t, 2*time.Minute, "control: "+c.what, c.ok)
	}
}

// noSecrets scans the bytes of both branches' volumes, and of what the server
// keeps beside the pool.
func (w *world) noSecrets(t *testing.T, s *server, c *plainCopy) {
	if c == nil {
		t.Skip("there is no copy to compare with")
	}
	inCopy := holding(t, c.dir, w.secrets)
	for _, secret := range w.secrets {
		if !slices.ContainsFunc(inCopy, func(f string) bool { return strings.HasPrefix(f, secret+" in ") }) {
			t.Errorf("control: %s is in no file of the plain copy", secret)
		}
	}
	secrets := append([]string{"sekret-of"}, w.secrets...) // the follower's and the roles' own
	for _, name := range []string{"a", "b"} {
		var b branchJSON
		s.json(&b, "branch", "get", name)
		var found []string
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Second) {
			if found = holding(t, b.Branch.Path, secrets); len(found) == 0 || time.Now().After(deadline) {
				break
			}
		}
		for _, f := range found {
			t.Errorf("branch %s holds a secret of production: %s", name, f)
		}
	}
	for _, f := range slices.Concat(holding(t, filepath.Join(s.data(), "run"), secrets), holding(t, s.data(), secrets, "pool", "pool.img", "run")) {
		t.Errorf("the server holds a secret of production: %s", f)
	}
}

// holding lists the regular files below dir that hold one of the texts, as "text in file".
func holding(t *testing.T, dir string, texts []string, skip ...string) []string {
	t.Helper()
	var found []string
	check(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case filepath.Dir(path) == dir && slices.Contains(skip, d.Name()):
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		case !d.Type().IsRegular():
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, text := range texts {
			if bytes.Contains(b, []byte(text)) {
				found = append(found, text+" in "+strings.TrimPrefix(path, dir))
			}
		}
		return nil
	}))
	return found
}
