package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pgbough/pgbough/internal/pgtest"
)

// TestKillAtEveryStep kills the server at every step boundary of create, delete
// and refill, and starts it again: what was acknowledged is there with its rows,
// and what was not is finished or gone without a trace.
func TestKillAtEveryStep(t *testing.T) {
	p := production(t, pgtest.Options{})
	w := startWriter(t, p, "")
	s := startServer(t)
	s.attach(p)
	s.must("branch", "create", "keep")
	rows := s.query("keep", "SELECT count(*) FROM acked")

	steps := map[string][]string{
		"create_branch": {"take", "catch_up", "promote", "quarantine", "publish"},
		"delete_branch": {"mark", "destroy", "forget"},
		"refill_spare":  {"clone", "start", "ready"},
	}
	for _, kind := range []string{"create_branch", "delete_branch", "refill_spare"} {
		for _, step := range steps[kind] {
			for _, at := range []string{"before", "done", "saved"} {
				place := fmt.Sprintf("%s/%s/%s", kind, step, at)
				t.Run(place, func(t *testing.T) {
					defer func(outer *testing.T) { s.t = outer }(s.t)
					s.t = t
					name := strings.NewReplacer("/", "-", "_", "-").Replace(place)
					s.waitSpare()
					if kind == "delete_branch" {
						s.must("branch", "create", name)
						s.waitSpare()
					}
					s.settled("before " + place) // a refill under way would be resumed past its failpoint
					s.stopKeepingPostgres()
					s.env = []string{"PGBOUGH_FAILPOINT=" + place + "=kill"}
					if err := s.tryStart(); err != nil && s.running() { // it may be killed before it is ready
						t.Fatal(err)
					}
					before := w.acked()
					switch kind {
					case "delete_branch":
						s.cli("branch", "delete", name)
					default:
						s.cli("branch", "create", name) // a refill follows it
					}
					for try := 0; s.running(); try++ {
						select {
						case <-s.done:
						case <-time.After(20 * time.Second):
							if try == 3 {
								t.Fatalf("the server was not killed at %s\n%s", place, s.logTail(30))
							}
							// A spare that was renewed meanwhile filled the gap: make another.
							s.cli("branch", "create", fmt.Sprintf("%s-%d", name, try))
						}
					}
					s.env = nil
					s.start()
					s.settled(name)
					if got := s.query("keep", "SELECT count(*) FROM acked"); got != rows {
						t.Errorf("rows in the branch that was there: %s, want %s", got, rows)
					}
					if kind != "delete_branch" && s.cli("branch", "get", name).code == 0 {
						if got := s.query(name, fmt.Sprintf("SELECT count(*) = max(n) AND max(n) >= %d FROM acked", before)); got != "t" {
							t.Errorf("branch %s is not exactly what was acknowledged before it was asked for", name)
						}
						s.must("branch", "delete", name)
					}
					s.noOrphans()
				})
			}
		}
	}
}

// stopKeepingPostgres kills the server; every Postgres stays for the next one.
func (s *server) stopKeepingPostgres() {
	s.t.Helper()
	s.kill()
}

// settled waits until no operation is unfinished.
func (s *server) settled(what string) {
	s.t.Helper()
	s.eventually(2*time.Minute, "all operations are done after "+what, func() bool {
		var ops struct {
			Operations []struct{ Status string } `json:"operations"`
		}
		s.json(&ops, "ops")
		for _, op := range ops.Operations {
			if op.Status == "running" || op.Status == "cancelling" || op.Status == "scheduling" {
				return false
			}
		}
		return true
	})
}

// noOrphans checks that every volume of the pool is known, and that the pool,
// the branches and the spares count the same.
func (s *server) noOrphans() {
	s.t.Helper()
	s.eventually(time.Minute, "a spare is ready and nothing is left over", func() bool {
		st := s.status()
		if len(st.Projects) != 1 || st.Projects[0].Spares.Ready < 1 {
			return false
		}
		volumes := s.poolVolumes()
		var list struct {
			Branches []struct{ Name string } `json:"branches"`
		}
		s.json(&list, "branch", "list")
		spares := 0
		for _, v := range volumes {
			if !v.Known {
				return false
			}
			if v.Role == "spare" {
				spares++
			}
		}
		return len(volumes) == len(list.Branches)+spares
	})
}
