package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pgbough/pgbough/internal/pgtest"
)

// majors are the versions that most is tried with: Debian's, and the newest from npm.
// TestLife has all that are supported.
var majors = []int{15, 18}

// TestLife is the whole slice once: attach a production under load, branch it,
// write to the branch, let it sleep, and remove everything without a trace, with
// every version and every kind of pool.
func TestLife(t *testing.T) {
	for _, tc := range []struct {
		major int
		pool  string
	}{{14, "auto"}, {15, "auto"}, {15, "copy"}, {16, "auto"}, {17, "btrfs"}, {18, "btrfs"}} {
		t.Run(fmt.Sprintf("%d-%s", tc.major, tc.pool), func(t *testing.T) {
			t.Parallel()
			p := production(t, pgtest.Options{Major: tc.major, Conf: map[string]string{"max_prepared_transactions": "2"}})
			connectOutside(t, p)
			w := startWriter(t, p, "")
			s := startServer(t, "--pool", tc.pool)
			s.attach(p)
			s.branchLives(p, w)
			s.branchesThePast(p, w, tc.pool)
			s.goesWithoutTrace(p)
		})
	}
}

// connectOutside gives production one of each that quarantine cuts and that needs
// nothing at the other end.
func connectOutside(t *testing.T, p *pgtest.Server) {
	t.Helper()
	p.Exec(t, "postgres", `
		CREATE FOREIGN DATA WRAPPER wrapper;
		CREATE SERVER elsewhere FOREIGN DATA WRAPPER wrapper OPTIONS (host 'elsewhere.example', api_key 'sekret-of-elsewhere');
		CREATE USER MAPPING FOR app SERVER elsewhere OPTIONS (password 'sekret-of-mapping');
		CREATE SUBSCRIPTION feed CONNECTION 'host=elsewhere.example dbname=feed' PUBLICATION feed WITH (connect = false)`)
	p.Exec(t, "postgres", "BEGIN; CREATE TABLE half (a int); PREPARE TRANSACTION 'half'")
}

// branchLives makes branch pr-1 while production is written to, and checks what it
// is, what was cut, that its changes are its own, and that it keeps them asleep.
func (s *server) branchLives(p *pgtest.Server, w *writer) {
	s.t.Helper()
	before := w.acked()
	uri := s.must("branch", "create", "pr-1")
	if !strings.HasPrefix(uri, "postgresql://app:") {
		s.t.Errorf("branch create printed %q, want a connection URI", uri)
	}
	var b branchJSON
	s.json(&b, "branch", "get", "pr-1")
	if b.Branch.CurrentState != "ready" || b.Branch.ComputeState != "active" || b.Branch.ParentLSN == "" {
		s.t.Errorf("branch get: %+v", b.Branch)
	}
	if n := s.query("pr-1", "SELECT count(*) = max(n) AND max(n) >= "+fmt.Sprint(before)+" FROM acked"); n != "t" {
		s.t.Errorf("the branch has a gap, or lacks one of the %d rows acknowledged before it was asked for", before)
	}
	cut := map[string]bool{}
	for _, d := range b.Branch.Differences {
		cut[d.Kind] = true
	}
	for _, kind := range []string{"password", "foreign_server", "user_mapping", "subscription", "prepared_transaction"} {
		if !cut[kind] {
			s.t.Errorf("no %s among what is listed as cut: %+v", kind, b.Branch.Differences)
		}
	}
	const left = `SELECT (SELECT count(*) FROM pg_prepared_xacts), (SELECT count(*) FROM pg_replication_slots),
		(SELECT count(*) FROM pg_stat_subscription), (SELECT count(*) FROM pg_user_mappings WHERE umoptions IS NOT NULL)`
	if got := s.query("pr-1", left); got != "0|0|0|0" {
		s.t.Errorf("prepared transactions, slots, subscriptions, credentials in the branch: %s", got)
	}

	s.query("pr-1", "DELETE FROM acked; CREATE TABLE mine AS SELECT 42 AS a")
	if n := s.query("pr-1", "SELECT count(*) FROM acked"); n != "0" {
		s.t.Errorf("rows in the branch after DELETE: %s", n)
	}
	if n := p.Value(s.t, "postgres", "SELECT count(*) FROM acked"); n == "0" {
		s.t.Error("production lost its rows")
	}
	if got := p.Value(s.t, "postgres", "SELECT to_regclass('mine') IS NULL"); got != "true" {
		s.t.Error("production has the branch's table")
	}
	s.tellsWhatChanged()
	s.must("branch", "suspend", "pr-1")
	if s.json(&b, "branch", "get", "pr-1"); b.Branch.ComputeState != "idle" || len(s.postmasters()[s.volumeOf("pr-1")]) != 0 {
		s.t.Errorf("a branch that was sent to sleep is %s, with postmasters %v", b.Branch.ComputeState, s.postmasters()[s.volumeOf("pr-1")])
	}
	if got := s.query("pr-1", "SELECT a FROM mine"); got != "42" { // and wakes it
		s.t.Errorf("the branch's own row after its sleep: %q", got)
	}
}

// branchesThePast makes a branch of production as it was at an LSN and at a time, or
// is told why the pool has no history.
func (s *server) branchesThePast(p *pgtest.Server, w *writer, pool string) {
	s.t.Helper()
	if pool == "copy" {
		if r := s.cli("branch", "create", "past", "--at", "-1s"); r.code != 4 || !strings.Contains(r.err, "has no history") {
			s.t.Errorf("--at on a pool that keeps none: exit %d, %s", r.code, r.err)
		}
		return
	}
	var h struct {
		FromTimestamp time.Time  `json:"from_timestamp"`
		Gaps          []struct{} `json:"gaps"`
	}
	s.eventually(2*time.Minute, "there is a moment to begin with", func() bool {
		s.json(&h, "history")
		return !h.FromTimestamp.IsZero()
	})
	if len(h.Gaps) != 0 {
		s.t.Errorf("gaps of a history that has just begun: %+v", h.Gaps)
	}
	for _, by := range []string{"lsn", "time"} {
		before, at := w.acked(), p.Value(s.t, "postgres", "SELECT pg_current_wal_flush_lsn()")
		if by == "time" {
			at = time.Now().UTC().Format(time.RFC3339Nano)
		}
		after := w.acked() + 1 // what is not acknowledged yet may be there
		s.eventually(time.Minute, "production has gone on", func() bool { return w.acked() > after+10 })
		s.must("branch", "create", "past-"+by, "--at", at)
		got := s.query("past-"+by, fmt.Sprintf("SELECT count(*) = max(n) AND max(n) BETWEEN %d AND %d, max(n) FROM acked", before, after))
		if !strings.HasPrefix(got, "t|") {
			s.t.Errorf("at %s it has %s, want a prefix that ends between %d and %d", at, got, before, after)
		}
		s.must("branch", "delete", "past-"+by)
	}
	if r := s.cli("branch", "create", "past", "--at", "2020-01-01T00:00:00Z"); r.code == 0 || !strings.Contains(r.err, "too long ago") || !strings.Contains(r.err, "begins at") {
		s.t.Errorf("--at before the window: exit %d, %s", r.code, r.err)
	}
}

// tellsWhatChanged compares branch pr-1, which has a table of its own, with main.
func (s *server) tellsWhatChanged() {
	s.t.Helper()
	r := s.cli("diff", "pr-1", "--exit-code")
	if r.code != 6 || !strings.Contains(r.out, "\n+CREATE TABLE public.mine (\n+    a integer,\n+);\n") || !strings.Contains(r.err, "main is compared as it is now") {
		s.t.Errorf("diff --exit-code: exit %d, want 6\n%s%s", r.code, r.out, r.err)
	}
	var d struct {
		Changes []struct{ Kind, Name, Change string } `json:"changes"`
	}
	s.json(&d, "diff", "main", "pr-1")
	for _, c := range d.Changes {
		// Quarantine has cut the server off, and rolled a prepared transaction back.
		if c.Kind != "server" && (c.Kind != "table" || c.Name != "public.mine" || c.Change != "added") {
			s.t.Errorf("a change that nobody has made: %+v", c)
		}
	}
	for _, branch := range []string{"main", "pr-1"} {
		sql := s.must("schema", branch)
		if !strings.Contains(sql, "CREATE TABLE public.acked (") || strings.Contains(sql, "sekret") {
			s.t.Errorf("the schema of %s lacks a table, or shows a secret:\n%s", branch, sql)
		}
	}
	if r := s.cli("diff", "pr-1", "pr-1", "--exit-code"); r.code != 0 || r.out != "" {
		s.t.Errorf("a branch differs from itself: exit %d\n%s", r.code, r.out)
	}
	if r := s.cli("diff", "pr-1", "--database", "nowhere"); r.code != 3 {
		s.t.Errorf("diff of a database that is not there: exit %d, want 3\n%s", r.code, r.err)
	}
}

// goesWithoutTrace deletes branch pr-1 and then the project.
func (s *server) goesWithoutTrace(p *pgtest.Server) {
	s.t.Helper()
	s.nothingLost()
	s.must("branch", "delete", "pr-1")
	if r := s.cli("branch", "get", "pr-1"); r.code != 3 {
		s.t.Errorf("branch get of a deleted one: exit %d, want 3\n%s", r.code, r.err)
	}
	s.must("project", "delete", "shop", "--yes")
	if n := p.Value(s.t, "postgres", "SELECT count(*) FROM pg_replication_slots"); n != "0" {
		s.t.Errorf("replication slots left on production: %s", n)
	}
	s.eventually(10*time.Second, "production has no connection of ours", func() bool {
		return p.Value(s.t, "postgres", "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'pgbough%'") == "0"
	})
	if left := s.poolVolumes(); len(left) > 0 {
		s.t.Errorf("volumes left in the pool: %+v", left)
	}
}

// TestExactlyNow is promise 1 at random moments under load.
func TestExactlyNow(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	const async = "SET synchronous_commit = off"
	for _, major := range majors {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			p := production(t, pgtest.Options{Major: major})
			s := startServer(t, "--spares", "2")
			s.attach(p)
			for _, tc := range []struct {
				name     string
				creates  int
				sessions []string
			}{
				{"synchronous", 6, []string{""}},
				{"asynchronous", 6, []string{async}},
				{"sessions", 8, []string{"", "", async, async}},
			} {
				if major != majors[0] && len(tc.sessions) == 1 {
					continue // the sessions have both
				}
				t.Run(tc.name, func(t *testing.T) {
					defer func(outer *testing.T) { s.t = outer }(s.t)
					s.t = t
					c := startCrowd(t, p, tc.sessions...)
					defer c.end(t)
					for i := range tc.creates {
						time.Sleep(time.Duration(random.IntN(1500)) * time.Millisecond)
						s.isNow(c, fmt.Sprintf("%s-%d", tc.name, i))
					}
					if len(tc.sessions) > 1 {
						s.seesGaps(c)
					}
				})
			}
		})
	}
}

// isNow makes a branch, checks that it is what production had acknowledged and
// that it is cut where it says, and deletes it.
func (s *server) isNow(c *crowd, name string) {
	s.t.Helper()
	before := c.known()
	s.must("branch", "create", name)
	s.checkNow(c, name, before)
	s.must("branch", "delete", name)
}

func (s *server) checkNow(c *crowd, name string, before []int64) {
	s.t.Helper()
	if missing := c.missing(s, name, before); missing != "" {
		s.t.Errorf("branch %s is not exactly now: %s", name, missing)
	}
	var b branchJSON
	s.json(&b, "branch", "get", name)
	if lsn := switchPoint(s.t, b.Branch.Path); b.Branch.ParentLSN != lsn {
		s.t.Errorf("branch %s is reported as cut at %s, its history file says %s", name, b.Branch.ParentLSN, lsn)
	}
}

// seesGaps is the control: what is missing in a branch is found, also where it is
// no gap within a session.
func (s *server) seesGaps(c *crowd) {
	s.t.Helper()
	s.must("branch", "create", "gaps")
	before := c.known()
	if missing := c.missing(s, "gaps", before); !strings.Contains(missing, "was acknowledged") {
		s.t.Errorf("rows acknowledged after the create are not missed: %q", missing)
	}
	s.query("gaps", "DELETE FROM acked_by WHERE session = 0 AND n > (SELECT max(n) - 20 FROM acked_by WHERE session = 0)")
	if missing := c.missing(s, "gaps", make([]int64, len(before))); !strings.Contains(missing, "began after") {
		s.t.Errorf("the newest rows of a session that others knew of are not missed: %q", missing)
	}
	s.query("gaps", "DELETE FROM acked_by WHERE session = 1 AND n = 3")
	if missing := c.missing(s, "gaps", make([]int64, len(before))); !strings.Contains(missing, "session 1 has") {
		s.t.Errorf("a gap is not seen: %q", missing)
	}
	s.must("branch", "delete", "gaps")
}

// switchPoint is where the newest timeline of a volume leaves its parent, by
// its history file.
func switchPoint(t *testing.T, volume string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(volume, "data", "pg_wal", "*.history"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no timeline history in %s: %v", volume, err)
	}
	b, err := os.ReadFile(slices.Max(files))
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	fields := strings.Split(lines[len(lines)-1], "\t")
	if len(fields) < 2 {
		t.Fatalf("history file: %q", b)
	}
	return fields[1]
}
