package branch

import (
	"context"
	"time"

	"github.com/pgbough/pgbough"
)

const (
	// Where two creates came at the same time, more may: the point that they share
	// waits for so long after the last one, ...
	crowdPause = 100 * time.Millisecond
	// ... and never longer than this.
	crowdPatience = time.Second
)

// crowd are the creates of one project that need a spare at the same time. It is
// for deciding who shares, and nothing is lost with it: which state may be served
// to whom follows from positions in production's WAL alone.
type crowd struct {
	coming  map[string]bool   // branches that were asked for, for which production was not asked yet
	waiting map[string]*party // branches that wait for a spare, or for the point of their party
	last    time.Time         // when the last one came
	open    *party            // whoever comes now belongs to it
}

// party are creates that one point serves.
type party struct {
	done chan struct{} // closed when the point is there, or cannot be made
	err  error         // why it cannot; fixed before done is closed
}

// crowdOf is the crowd of a project; s.mu is held.
func (s *Service) crowdOf(projectID string) *crowd {
	c, ok := s.crowds[projectID]
	if !ok {
		c = &crowd{coming: map[string]bool{}, waiting: map[string]*party{}}
		s.crowds[projectID] = c
	}
	return c
}

// comes tells that a branch was asked for.
func (s *Service) comes(projectID, branchID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.crowdOf(projectID)
	c.coming[branchID], c.last = true, time.Now()
}

// waits tells that the create of a branch needs a spare from now on: production
// was asked for it.
func (s *Service) waits(projectID, branchID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.crowdOf(projectID)
	delete(c.coming, branchID)
	if c.waiting[branchID] == nil {
		c.waiting[branchID] = c.open
	}
}

// leaves tells that the create of a branch needs no spare any more.
func (s *Service) leaves(projectID, branchID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.crowdOf(projectID)
	delete(c.coming, branchID)
	delete(c.waiting, branchID)
}

// partyOf is the party that a waiting create belongs to, or nil.
func (s *Service) partyOf(projectID, branchID string) *party {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.crowdOf(projectID).waiting[branchID]
}

// dismiss takes a create out of its party, which is over.
func (s *Service) dismiss(projectID, branchID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.crowdOf(projectID); c.waiting[branchID] != nil {
		c.waiting[branchID] = nil
	}
}

// invite opens a party when more creates need a spare than are ready, or when
// alone is set, for one that has taken a spare and gives it away for that. It
// returns nil where each gets a spare of its own, or a party is open.
func (s *Service) invite(ctx context.Context, projectID, branchID string, alone bool) (*party, error) {
	if !alone && s.needy(projectID) == 0 {
		return nil, nil
	}
	ready := 0
	spares, err := s.catalog.Spares(ctx, projectID)
	if err != nil {
		return nil, err
	}
	for _, sp := range spares {
		if sp.State == pgbough.SpareReady {
			ready++
		}
	}
	if !alone && s.needy(projectID) <= ready {
		return nil, nil
	}
	p := s.openParty(projectID, branchID)
	if p != nil {
		s.announce(projectID)
	}
	return p, nil
}

// openParty makes all who wait, and who will come until it is closed, one party.
func (s *Service) openParty(projectID, branchID string) *party {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.crowdOf(projectID)
	if c.open != nil {
		return nil
	}
	c.open = &party{done: make(chan struct{})}
	c.waiting[branchID] = c.open
	for id, p := range c.waiting {
		if p == nil {
			c.waiting[id] = c.open
		}
	}
	return c.open
}

// needy is how many creates need a spare and belong to no party.
func (s *Service) needy(projectID string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.crowdOf(projectID)
	n := len(c.coming)
	for _, p := range c.waiting {
		if p == nil {
			n++
		}
	}
	return n
}

// closeParty lets those in who are just coming, then nobody any more.
func (s *Service) closeParty(ctx context.Context, projectID string) {
	deadline := time.Now().Add(crowdPatience)
	for ctx.Err() == nil {
		left := s.tryClose(projectID, time.Now().After(deadline))
		if left <= 0 {
			return
		}
		pause(ctx, left)
	}
}

// tryClose closes the open party unless somebody is just coming, and tells how
// long to wait before it is tried again; zero when none is open.
func (s *Service) tryClose(projectID string, now bool) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.crowdOf(projectID)
	left := crowdPause - time.Since(c.last)
	switch {
	case now, len(c.waiting) == 1 && len(c.coming) == 0, len(c.coming) == 0 && left <= 0:
		c.open = nil
		return 0
	case len(c.coming) > 0:
		return crowdPause / 10
	}
	return left
}

// over tells a party that its point is there, or why not.
func (s *Service) over(projectID string, p *party, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.crowdOf(projectID); c.open == p {
		c.open = nil
	}
	p.err = err
	close(p.done)
}
