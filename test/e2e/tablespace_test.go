package e2e

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/pgbough/pgbough/internal/pgtest"
)

// TestTablespace is facts 10: a tablespace that production makes later stops the
// follower for good, and its status says so in these words, not with the last
// lines of a log.
func TestTablespace(t *testing.T) {
	p := calmProduction(t, pgtest.Options{})
	s := startServer(t)
	s.attach(p)
	s.must("branch", "create", "kept")
	dir, err := os.MkdirTemp("", "elsewhere")
	check(t, err)
	defer func() { check(t, os.RemoveAll(dir)) }()
	check(t, os.Chown(dir, pgtest.UID, pgtest.UID))
	p.Exec(t, "postgres", "CREATE TABLESPACE elsewhere LOCATION "+quoted(dir))
	if reason := s.waitFollower(time.Minute, "broken"); !strings.Contains(reason, "tablespace") {
		t.Errorf("the status does not say why the follower cannot go on: %s", reason)
	}
	s.query("kept", "SELECT 1")
	p.Exec(t, "postgres", "DROP TABLESPACE elsewhere")
}
