package branch

import "time"

// calm is how long no create must have come too early for a project to want one
// spare fewer.
const calm = 10 * time.Minute

// demand is how many spares a project needs beside the least that it always has.
// A create that takes a spare while one is still missing from the create before
// wants one more from now on; every calm period wants one fewer. A burst that
// shares a point takes one spare, so it counts as one create.
type demand struct {
	extra   int
	since   time.Time // of the last change of extra
	missing bool      // a spare was taken, and not all are ready again
}

// taking is a create that takes a spare.
func (d *demand) taking(most int, now time.Time) {
	if d.missing {
		d.extra, d.since = min(d.extra+1, most), now
	}
	d.missing = true
}

// at is how many more spares are wanted at a time.
func (d *demand) at(now time.Time) int {
	for d.extra > 0 && now.Sub(d.since) >= calm {
		d.extra, d.since = d.extra-1, d.since.Add(calm)
	}
	return d.extra
}

// spareTaken takes in that a create has taken a spare.
func (s *Service) spareTaken(projectID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.demandOf(projectID).taking(max(0, s.most-s.wanted), time.Now())
}

// allReady takes in that every spare that a project wants is ready.
func (s *Service) allReady(projectID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.demandOf(projectID).missing = false
}

// wantedOf is how many spares a project should have now.
func (s *Service) wantedOf(projectID string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.wanted + s.demandOf(projectID).at(time.Now())
}

// demandOf is the demand of a project; s.mu is held.
func (s *Service) demandOf(projectID string) *demand {
	d, ok := s.demands[projectID]
	if !ok {
		d = &demand{}
		s.demands[projectID] = d
	}
	return d
}
