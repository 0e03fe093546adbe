package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pgbough/pgbough/internal/pgtest"
)

// killing is a place where the server is killed. fault, if there is one, is
// what goes wrong before, so that the operation is undone.
type killing struct{ kind, place, fault string }

func (k killing) failpoint() string {
	if k.fault == "" {
		return k.place + "=kill"
	}
	return k.fault + "=error;" + k.place + "=kill"
}

// boundaries are the places of a kill around step i. Nothing lies between a step
// that is saved and the one that follows it.
func boundaries(i int) []string {
	if i == 0 {
		return []string{"before", "done", "saved"}
	}
	return []string{"done", "saved"}
}

// killings are every step boundary of create, delete, refill, suspend and wake,
// forward and back.
func killings() []killing {
	steps := map[string][]string{
		"create_branch": {"take", "catch_up", "promote", "quarantine", "publish"},
		"delete_branch": {"mark", "destroy", "forget"},
		"refill_spare":  {"clone", "start", "ready"},

		"suspend_compute": {"suspend"},
		"start_compute":   {"start"},
	}
	var all []killing
	for _, kind := range []string{"create_branch", "delete_branch", "refill_spare", "suspend_compute", "start_compute"} {
		for i, step := range steps[kind] {
			for _, at := range boundaries(i) {
				all = append(all, killing{kind: kind, place: kind + "/" + step + "/" + at})
			}
		}
	}
	back := func(kind, fault string, places ...string) {
		for _, place := range places {
			all = append(all, killing{kind, kind + "/" + place, kind + "/" + fault})
		}
	}
	back("create_branch", "publish/before", "quarantine/undo/saved", "take/undo/before")
	back("create_branch", "promote/done", "take/undo/done", "take/undo/saved")
	back("refill_spare", "ready/before", "start/undo/done", "clone/undo/before", "clone/undo/done", "clone/undo/saved")
	return all
}

// TestKillAtEveryStep kills the server at every step boundary of create, delete,
// refill, suspend and wake, and starts it again: what was acknowledged is there with its rows,
// and what was not is finished or gone without a trace.
func TestKillAtEveryStep(t *testing.T) {
	p := production(t, pgtest.Options{})
	w := startWriter(t, p, "")
	s := startServer(t)
	s.attach(p)
	s.must("branch", "create", "keep")
	rows := s.query("keep", "SELECT count(*) FROM acked")
	for _, k := range killings() {
		t.Run(k.place, func(t *testing.T) {
			defer func(outer *testing.T) { s.t = outer }(s.t)
			s.t = t
			name := strings.NewReplacer("/", "-", "_", "-").Replace(k.place)
			s.waitSpare()
			switch k.kind {
			case "delete_branch":
				s.must("branch", "create", name)
				s.waitSpare()
			case "start_compute":
				s.must("branch", "suspend", "keep")
			}
			s.settled("before " + k.place) // a refill under way would be resumed past its failpoint
			s.stopKeepingPostgres()
			s.env = []string{"PGBOUGH_FAILPOINT=" + k.failpoint()}
			if err := s.tryStart(); err != nil && s.running() { // it may be killed before it is ready
				t.Fatal(err)
			}
			before := w.acked()
			more := s.untilKilled(k, name)
			s.env = nil
			s.start()
			s.settled(name)
			s.turnedAsAsked(k.kind, "keep")
			if got := s.query("keep", "SELECT count(*) FROM acked"); got != rows {
				t.Errorf("rows in the branch that was there: %s, want %s", got, rows)
			}
			there := s.cli("branch", "get", name).code == 0
			if there && (k.kind == "delete_branch" || k.kind == "create_branch" && k.fault != "") {
				t.Errorf("branch %s is there", name)
			}
			if there {
				if got := s.query(name, fmt.Sprintf("SELECT count(*) = max(n) AND max(n) >= %d FROM acked", before)); got != "t" {
					t.Errorf("branch %s is not exactly what was acknowledged before it was asked for", name)
				}
				more = append(more, name)
			}
			for _, b := range more {
				s.cli("branch", "delete", b) // of those that were made it may never have come to one
			}
			s.nothingLost()
		})
	}
}

// untilKilled does what leads to the place of k until the server is gone. more
// are the branches that it asked for besides name.
func (s *server) untilKilled(k killing, name string) (more []string) {
	s.t.Helper()
	switch k.kind {
	case "delete_branch":
		s.cli("branch", "delete", name)
	case "suspend_compute":
		s.cli("branch", "suspend", "keep")
	case "start_compute":
		s.cli("branch", "wake", "keep")
	default:
		s.cli("branch", "create", name) // a refill follows it
	}
	for try := 0; s.running(); try++ {
		select {
		case <-s.done:
		case <-time.After(20 * time.Second):
			if try == 3 {
				s.t.Fatalf("the server was not killed at %s\n%s", k.place, s.logTail(30))
			}
			// A spare that was renewed meanwhile filled the gap: make another.
			more = append(more, fmt.Sprintf("%s-%d", name, try))
			s.cli("branch", "create", more[try])
		}
	}
	return more
}

// turnedAsAsked checks that a suspend or wake that was broken off has come to its end.
func (s *server) turnedAsAsked(kind, branch string) {
	s.t.Helper()
	want, running := map[string]string{"suspend_compute": "idle", "start_compute": "active"}[kind], 0
	if want == "" {
		return
	}
	if want == "active" {
		running = 1
	}
	s.eventually(20*time.Second, "branch "+branch+" is "+want, func() bool { // the next server may just be taking it over
		var b branchJSON
		s.json(&b, "branch", "get", branch)
		return b.Branch.ComputeState == want && len(s.postmasters()[s.volumeOf(branch)]) == running
	})
}

// stopKeepingPostgres kills the server; every Postgres stays for the next one.
func (s *server) stopKeepingPostgres() {
	s.t.Helper()
	s.kill()
}
