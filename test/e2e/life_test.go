package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pgbough/pgbough/internal/pgtest"
)

// majors are the versions that CI has: Debian's, and the newest from npm.
var majors = []int{15, 18}

// TestLife is the whole slice once: attach a production under load, branch it,
// write to the branch, and remove everything without a trace.
func TestLife(t *testing.T) {
	for _, major := range majors {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			p := production(t, pgtest.Options{Major: major})
			w := startWriter(t, p, "")
			s := startServer(t)
			s.attach(p)

			before := w.acked()
			uri := s.must("branch", "create", "pr-1")
			if !strings.HasPrefix(uri, "postgresql://app:") {
				t.Errorf("branch create printed %q, want a connection URI", uri)
			}
			var b branchJSON
			s.json(&b, "branch", "get", "pr-1")
			if b.Branch.CurrentState != "ready" || b.Branch.ComputeState != "active" || b.Branch.ParentLSN == "" {
				t.Errorf("branch get: %+v", b.Branch)
			}
			if n := s.query("pr-1", "SELECT count(*) = max(n) AND max(n) >= "+fmt.Sprint(before)+" FROM acked"); n != "t" {
				t.Errorf("the branch has a gap, or lacks one of the %d rows acknowledged before it was asked for", before)
			}

			s.query("pr-1", "DELETE FROM acked; CREATE TABLE mine AS SELECT 42 AS a")
			if n := s.query("pr-1", "SELECT count(*) FROM acked"); n != "0" {
				t.Errorf("rows in the branch after DELETE: %s", n)
			}
			if n := p.Value(t, "postgres", "SELECT count(*) FROM acked"); n == "0" {
				t.Error("production lost its rows")
			}
			if got := p.Value(t, "postgres", "SELECT to_regclass('mine') IS NULL"); got != "true" {
				t.Error("production has the branch's table")
			}

			s.must("branch", "delete", "pr-1")
			if r := s.cli("branch", "get", "pr-1"); r.code != 3 {
				t.Errorf("branch get of a deleted one: exit %d, want 3\n%s", r.code, r.err)
			}
			s.must("project", "delete", "shop", "--yes")
			if n := p.Value(t, "postgres", "SELECT count(*) FROM pg_replication_slots"); n != "0" {
				t.Errorf("replication slots left on production: %s", n)
			}
			s.eventually(10*time.Second, "production has no connection of ours", func() bool {
				return p.Value(t, "postgres", "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'pgbough%'") == "0"
			})
			if left := s.poolVolumes(); len(left) > 0 {
				t.Errorf("volumes left in the pool: %+v", left)
			}
		})
	}
}

// TestExactlyNow is promise 1 at random moments under load.
func TestExactlyNow(t *testing.T) {
	p := production(t, pgtest.Options{})
	s := startServer(t, "--spares", "2")
	s.attach(p)
	for _, tc := range []struct {
		name, session string
		creates       int
	}{{"synchronous", "", 12}, {"asynchronous", "SET synchronous_commit = off", 8}} {
		t.Run(tc.name, func(t *testing.T) {
			defer func(outer *testing.T) { s.t = outer }(s.t)
			s.t = t
			w := startWriter(t, p, tc.session)
			defer w.end()
			for i := range tc.creates {
				name := fmt.Sprintf("%s-%d", tc.name, i)
				before := w.acked()
				s.must("branch", "create", name)
				var b branchJSON
				s.json(&b, "branch", "get", name)
				got := s.query(name, "SELECT count(*), max(n) FROM acked")
				var count, last int64
				if _, err := fmt.Sscanf(got, "%d|%d", &count, &last); err != nil {
					t.Fatalf("%q: %v", got, err)
				}
				lsn := switchPoint(t, b.Branch.Path)
				if count != last {
					t.Errorf("%s: %d rows up to %d: not a prefix of commit order", name, count, last)
				}
				if last < before {
					t.Errorf("%s: newest row %d, but %d was acknowledged before the request", name, last, before)
				}
				if b.Branch.ParentLSN != lsn {
					t.Errorf("%s: reported as cut at %s, its history file says %s", name, b.Branch.ParentLSN, lsn)
				}
				s.must("branch", "delete", name)
			}
		})
	}
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
