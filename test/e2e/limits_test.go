package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pgbough/pgbough/internal/pgtest"
)

// notes are what `branch get` tells of what went wrong.
func (s *server) notes(branch string) string {
	s.t.Helper()
	var b struct {
		Branch struct {
			Notes []string `json:"notes"`
		} `json:"branch"`
	}
	s.json(&b, "branch", "get", branch)
	return strings.Join(b.Branch.Notes, "\n")
}

// TestLimits has one branch run into each of its limits. It is told what
// happened; its neighbour and the follower go on.
func TestLimits(t *testing.T) {
	p := calmProduction(t, pgtest.Options{})
	w := startWriter(t, p, "")
	s := startServer(t, "--branch-memory", "300MB", "--branch-pids", "80", "--branch-disk", "400MB")
	s.attach(p)
	s.must("branch", "create", "neighbour")
	s.query("neighbour", "CREATE TABLE mine AS SELECT 1 AS a")
	s.waitSpare()
	s.must("branch", "create", "hog")
	unharmed := func(after string) {
		t.Helper()
		if got := s.query("neighbour", "INSERT INTO mine VALUES (1); SELECT count(*) > 1 FROM mine"); got != "t" {
			t.Errorf("the neighbour after %s: %q", after, got)
		}
		s.waitFollower(time.Minute, "streaming")
		if notes := s.notes("neighbour"); notes != "" {
			t.Errorf("the neighbour has notes: %s", notes)
		}
	}

	r := s.cliFor(time.Minute, "psql", "hog", "--", "-XAtqc", "SELECT length(string_agg(repeat('x', 1000000), '')) FROM generate_series(1, 600)")
	if r.code == 0 {
		t.Errorf("a query used 600 MB under a limit of 300 MB: %s", r.out)
	}
	if notes := s.notes("hog"); !strings.Contains(notes, "killed for using more than its memory limit of 300 MB") {
		t.Errorf("after it used too much memory, its notes are: %q (psql: %s)", notes, r.err)
	}
	unharmed("a memory hog")

	s.eventually(time.Minute, "the hog answers again", func() bool {
		return s.cliFor(20*time.Second, "psql", "hog", "--", "-XAtqc", "SELECT 1").code == 0
	})
	s.program("hog", "(exec >/dev/null 2>&1; b() { b | b & b; }; b) &")
	s.eventually(time.Minute, "its notes tell of the processes that were not started", func() bool {
		return strings.Contains(s.notes("hog"), "times a process was not started, since it had as many as its limit of 80 allows")
	})
	unharmed("a fork bomb")
	s.killPostgres(s.volumeOf("hog"))
	s.eventually(time.Minute, "the hog answers again", func() bool {
		return s.cliFor(20*time.Second, "psql", "hog", "--", "-XAtqc", "SELECT 1").code == 0
	})

	r = s.cliFor(3*time.Minute, "psql", "hog", "--", "-XAtq", "-v", "ON_ERROR_STOP=1", "-c",
		"CREATE TABLE fill (t text); ALTER TABLE fill ALTER t SET STORAGE PLAIN",
		"-c", "INSERT INTO fill SELECT repeat(md5(i::text), 100) FROM generate_series(1, 3000000) i")
	if r.code == 0 {
		t.Error("a branch wrote 9 GB under a limit of 400 MB")
	}
	s.eventually(time.Minute, "its notes tell of the limit", func() bool { return strings.Contains(s.notes("hog"), "more than its limit of 400 MB") })
	// The stop has removed WAL; the branch may have room again.
	own, _ := s.volumes("hog")
	more := filepath.Join(s.data(), "pool", "volumes", own, "data", "more")
	if out, err := exec.Command("fallocate", "-l", "400M", more).CombinedOutput(); err != nil {
		t.Fatalf("make the branch larger: %v: %s", err, out)
	}
	if r := s.cli("psql", "hog", "--", "-XAtqc", "SELECT 1"); r.code != 4 || !strings.Contains(r.err, "stopped because") {
		t.Errorf("psql to a branch over its limit: exit %d, want 4 and why\n%s", r.code, r.err)
	}
	if st := s.status(); st.Pool.Free_bytes < 500<<20 {
		t.Errorf("%d bytes are free in the pool after a branch that may have 400 MB has filled it", st.Pool.Free_bytes)
	}
	unharmed("a disk filler")
	s.waitSpare()
	s.branchIsNow("after", w)
	check(t, os.Remove(more))
	if got := s.query("hog", "SELECT count(*) FROM fill"); got != "0" {
		t.Errorf("the hog, which has room again, has %q rows", got)
	}
	s.must("branch", "delete", "hog")
}
