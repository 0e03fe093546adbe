package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

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

// oneEach checks that on each volume runs at most one Postgres, and none on a
// volume that the server does not know.
func (s *server) oneEach() {
	s.t.Helper()
	known := map[string]bool{}
	for _, v := range s.poolVolumes() {
		known[v.ID] = v.Known
	}
	for id, pids := range s.postmasters() {
		if len(pids) != 1 {
			s.t.Errorf("%d postmasters run on volume %s", len(pids), id)
		}
		if !known[id] {
			s.t.Errorf("a Postgres runs on volume %s, which the server does not know", id)
		}
	}
}

// nothingLost waits until the server has come to rest, and checks that it has
// exactly what it should: the volumes of its branches and of the spares that it
// wants, with one Postgres each, one mount, and one slot on production.
func (s *server) nothingLost() {
	s.t.Helper()
	s.waitFollower(2*time.Minute, "streaming")
	s.waitSpare()
	s.settled("it all")
	var problems []string
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		if problems = append(s.unlikeCatalog(), s.unlikeMachine()...); len(problems) == 0 {
			break
		}
		if time.Now().After(deadline) {
			s.t.Errorf("left over or missing: %s\n%s", strings.Join(problems, "; "), s.logTail(40))
			break
		}
	}
	s.oneEach()
}

// unlikeCatalog is where branches, spares and volumes do not agree.
func (s *server) unlikeCatalog() (problems []string) {
	s.t.Helper()
	var list struct {
		Branches []struct {
			Name         string `json:"name"`
			CurrentState string `json:"current_state"`
		} `json:"branches"`
	}
	s.json(&list, "branch", "list")
	for _, b := range list.Branches {
		if b.CurrentState != "ready" {
			problems = append(problems, "branch "+b.Name+" is "+b.CurrentState)
		}
	}
	spares := s.status().Projects[0].Spares
	var ready []string
	for _, sp := range spares.List {
		ready = append(ready, sp.VolumeID)
		if sp.State != "ready" {
			problems = append(problems, "spare "+sp.VolumeID+" is "+sp.State)
		}
	}
	if len(ready) != spares.Wanted {
		problems = append(problems, fmt.Sprintf("%d spares, %d are wanted", len(ready), spares.Wanted))
	}
	branches := 0
	for _, v := range s.poolVolumes() {
		switch {
		case !v.Known:
			problems = append(problems, "volume "+v.ID+" ("+v.Role+") is known to nobody")
		case v.Role == "point", v.Role == "clone", v.Role == "past": // they go by themselves
		case v.Role != "spare":
			branches++
		case !slices.Contains(ready, v.ID):
			problems = append(problems, "volume "+v.ID+" is of a spare that there is not")
		}
	}
	if branches != len(list.Branches) {
		problems = append(problems, fmt.Sprintf("%d volumes of branches, %d branches", branches, len(list.Branches)))
	}
	return problems
}

// unlikeMachine is where the machine and production do not agree with the pool.
func (s *server) unlikeMachine() (problems []string) {
	s.t.Helper()
	var known []string
	for _, v := range s.poolVolumes() {
		known = append(known, v.ID)
	}
	for _, dir := range []string{filepath.Join(s.data(), "pool", "volumes"), filepath.Join(s.data(), "run")} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			problems = append(problems, err.Error())
		}
		for _, e := range entries {
			if !slices.Contains(known, e.Name()) {
				problems = append(problems, filepath.Join(dir, e.Name())+" is of no volume")
			}
		}
	}
	if mounts := s.mounts(); len(mounts) > 1 {
		problems = append(problems, fmt.Sprintf("%d mounts: %q", len(mounts), mounts))
	}
	if s.source != nil {
		if n := s.source.Value(s.t, "postgres", "SELECT count(*) FROM pg_replication_slots"); n != "1" {
			problems = append(problems, n+" slots on production, want 1")
		}
	}
	return problems
}

// mounts are those of this server's directory that the machine sees.
func (s *server) mounts() []string {
	var found []string
	mounts, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, s.dir+"/") {
			found = append(found, strings.TrimSpace(line))
		}
	}
	return found
}
