package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pgbough/pgbough/internal/pgtest"
)

// The binaries of two minor versions of one major, where scripts/setup puts them.
const (
	olderMinor = "/opt/pgbough/postgresql-older/18"
	newerMinor = "/opt/pgbough/postgresql/18"
)

// TestNewerMinor: binaries of a newer minor version are installed beside those in
// use. What runs goes on; what starts anew takes the newer ones, without a restart
// of the server. Then all are removed: the server says what to install, and goes on
// when it is there again.
func TestNewerMinor(t *testing.T) {
	p := calmProduction(t, pgtest.Options{Major: 18})
	w := startWriter(t, p, "")
	dir := t.TempDir()
	t.Setenv("PGBOUGH_POSTGRES_DIRS", filepath.Join(dir, "*", "bin"))
	install := func(from string) { check(t, os.Symlink(from, filepath.Join(dir, strings.ReplaceAll(from, "/", "-")))) }
	install(olderMinor)
	s := startServer(t)
	s.attach(p)
	s.must("branch", "create", "used")
	s.query("used", "CREATE TABLE mine AS SELECT 42 AS a")
	s.nothingLost()
	s.allRun(olderMinor)

	before := s.postmasters()
	install(newerMinor)
	s.must("branch", "create", "next") // of a spare that was there
	s.runs18("next", olderMinor)
	s.nothingLost()
	if spare := s.status().Projects[0].Spares.List[0].VolumeID; !s.isRunBy(spare, newerMinor) {
		t.Error("a spare that was made after the newer binaries does not run with them")
	}
	for _, branch := range []string{"used", "main"} {
		if v := s.volumeOf(branch); fmt.Sprint(s.postmasters()[v]) != fmt.Sprint(before[v]) {
			t.Errorf("the Postgres of %s did not go on", branch)
		}
	}
	s.branchIsNow("of-newer-spare", w)
	for _, branch := range []string{"used", "next"} {
		s.must("branch", "suspend", branch)
		s.runs18(branch, newerMinor)
	}
	if got := s.query("used", "SELECT a FROM mine"); got != "42" {
		t.Errorf("the branch's own row with newer binaries: %q", got)
	}
	s.killPostgres(s.volumeOf("main"))
	s.eventually(30*time.Second, "the follower runs again", func() bool { return len(s.postmasters()[s.volumeOf("main")]) == 1 })
	s.branchIsNow("of-newer-follower", w)
	s.nothingLost()
	s.allRun(newerMinor)

	s.binariesGone(dir, func() { install(newerMinor) }, w)
}

// binariesGone removes all binaries, and has them back.
func (s *server) binariesGone(dir string, install func(), w *writer) {
	s.t.Helper()
	links, err := filepath.Glob(filepath.Join(dir, "*"))
	check(s.t, err)
	s.must("branch", "suspend", "used")
	for _, l := range links {
		check(s.t, os.Remove(l))
	}
	const fix = "apt-get install postgresql-18"
	says := func(when string) {
		s.t.Helper()
		s.eventually(30*time.Second, "status says what to install, "+when, func() bool {
			f := s.status().Projects[0].Follower
			return f.State != "streaming" && strings.Contains(f.Reason, fix)
		})
		if r := s.cliFor(time.Minute, "branch", "wake", "used"); r.code == 0 || !strings.Contains(r.err, fix) {
			s.t.Errorf("branch wake without binaries, %s: exit %d, want a failure that says what to install\n%s", when, r.code, r.err)
		}
		if r := s.cliFor(time.Minute, "psql", "used", "--", "-XAtqc", "SELECT 1"); r.code == 0 || !strings.Contains(r.err, "the branch cannot be connected to now") {
			s.t.Errorf("psql without binaries, %s: exit %d, want a refusal\n%s", when, r.code, r.err)
		}
		if notes := s.notes("used"); !strings.Contains(notes, fix) {
			s.t.Errorf("branch get without binaries, %s, does not say what to install: %s", when, notes)
		}
	}
	s.killPostgres(s.volumeOf("main"))
	says("in a server that ran")
	s.stop()
	s.start()
	says("in a server that was started then")
	install()
	s.waitFollower(time.Minute, "streaming")
	if got := s.query("used", "SELECT a FROM mine"); got != "42" {
		s.t.Errorf("the branch's own row after all binaries had been away: %q", got)
	}
	s.branchIsNow("installed-again", w)
	s.nothingLost()
}

// runs18 checks which binaries a branch runs with when it is connected to.
func (s *server) runs18(branch, prefix string) {
	s.t.Helper()
	version := s.query(branch, "SHOW server_version")
	if !s.isRunBy(s.volumeOf(branch), prefix) {
		s.t.Errorf("branch %s, Postgres %s, does not run with the binaries in %s", branch, version, prefix)
	}
}

// allRun checks that every Postgres of the server runs with the binaries in prefix.
func (s *server) allRun(prefix string) {
	s.t.Helper()
	for volume := range s.postmasters() {
		if !s.isRunBy(volume, prefix) {
			s.t.Errorf("the Postgres on volume %s does not run with the binaries in %s", volume, prefix)
		}
	}
}

// isRunBy tells whether the Postgres on a volume runs with the binaries in prefix.
func (s *server) isRunBy(volume, prefix string) bool {
	s.t.Helper()
	want, err := os.Stat(filepath.Join(prefix, "bin", "postgres"))
	check(s.t, err)
	pids := s.postmasters()[volume]
	if len(pids) != 1 {
		s.t.Fatalf("%d postmasters run on volume %s, want 1", len(pids), volume)
	}
	got, err := os.Stat(fmt.Sprintf("/proc/%d/exe", pids[0]))
	check(s.t, err)
	return os.SameFile(got, want)
}
