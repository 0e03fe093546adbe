package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pgbough/pgbough/internal/pgtest"
)

// TestUninstall: uninstall takes away all that a server has made, and nothing
// before it was told to.
func TestUninstall(t *testing.T) {
	p := calmProduction(t, pgtest.Options{})
	s := startServer(t)
	s.attach(p)
	s.must("branch", "create", "mine")
	s.waitSpare()
	note := filepath.Join(s.data(), "note")
	check(t, os.WriteFile(note, []byte("not pgbough's"), 0o600))
	refused := func(when string, code int, says string, args ...string) {
		t.Helper()
		before := fmt.Sprint(s.postmasters())
		r := s.cli(append([]string{"uninstall", "--data", s.data()}, args...)...)
		if r.code != code || !strings.Contains(r.err, says) {
			t.Errorf("uninstall %s: exit %d, want %d and %q\n%s", when, r.code, code, says, r.err)
		}
		if after := fmt.Sprint(s.postmasters()); after != before {
			t.Errorf("uninstall %s: postmasters %s, there were %s", when, after, before)
		}
		for _, f := range []string{"catalog.db", "secret.key", "pool.img"} {
			if _, err := os.Stat(filepath.Join(s.data(), f)); err != nil {
				t.Errorf("uninstall %s: %v", when, err)
			}
		}
	}
	refused("while the server runs", 4, fmt.Sprintf("pid %d", s.cmd.Process.Pid), "--yes", "--abandon")
	s.kill() // its Postgres run on
	refused("with a project", 4, "pgbough project delete shop", "--yes")
	refused("without a confirmation", 2, "--yes", "--abandon")
	refused("of another pool", 4, "give --pool", "--yes", "--abandon", "--pool", "copy:"+t.TempDir())

	groups := s.cgroups()
	slot := p.Value(t, "postgres", "SELECT slot_name FROM pg_replication_slots")
	r := s.cli("uninstall", "--data", s.data(), "--yes", "--abandon")
	if r.code != 0 || !strings.Contains(r.err, "pg_drop_replication_slot('"+slot+"')") || !strings.Contains(r.err, note) {
		t.Errorf("uninstall: exit %d, want 0, what is left on production, and what stays\n%s", r.code, r.err)
	}
	if left := s.leftBehind(); len(left) > 0 {
		t.Errorf("left behind: %s", strings.Join(left, "; "))
	}
	for _, dir := range groups {
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("cgroup %s is left", dir)
		}
	}
	if left, err := filepath.Glob(filepath.Join(s.data(), "*")); err != nil || len(left) != 1 || left[0] != note {
		t.Errorf("in the data directory: %v (%v), want the note", left, err)
	}
	if r := s.cli("uninstall", "--data", s.data(), "--yes"); r.code != 3 {
		t.Errorf("uninstall where nothing is: exit %d, want 3\n%s", r.code, r.err)
	}

	// What is left is as good as new for another server; this one goes the usual way.
	p.Exec(t, "postgres", "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active")
	check(t, os.Remove(note))
	pool := filepath.Join(s.dir, "elsewhere")
	check(t, os.Mkdir(pool, 0o711))
	s.args = []string{"--pool", "copy:" + pool}
	s.start()
	s.attach(p)
	s.must("project", "delete", "shop", "--yes")
	s.stop()
	if r := s.cli("uninstall", "--data", s.data(), "--yes"); r.code != 4 || !strings.Contains(r.err, "give --pool") {
		t.Errorf("uninstall without the pool's place: exit %d, want 4 and to give it\n%s", r.code, r.err)
	}
	s.must("uninstall", "--data", s.data(), "--yes", "--pool", "copy:"+pool)
	if left, err := filepath.Glob(filepath.Join(pool, "*")); err != nil || len(left) > 0 {
		t.Errorf("in the pool's directory: %v (%v)", left, err)
	}
	if _, err := os.Stat(s.data()); !os.IsNotExist(err) {
		t.Errorf("the data directory is still there (%v)", err)
	}
	s.args = []string{"--pool-size", "3GB", "--pool-sparse"}
}

// cgroups are the directories of the cgroups that this server's Postgres are in.
func (s *server) cgroups() []string {
	s.t.Helper()
	var found []string
	for volume := range s.postmasters() {
		for _, pattern := range []string{"/sys/fs/cgroup/*/%s.*", "/sys/fs/cgroup/*/*/%s.*", "/sys/fs/cgroup/*/*/*/%s.*", "/sys/fs/cgroup/*/*/*/*/%s.*"} {
			dirs, err := filepath.Glob(fmt.Sprintf(pattern, volume))
			check(s.t, err)
			found = append(found, dirs...)
		}
	}
	return found
}
