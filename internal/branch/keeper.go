package branch

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pgbough/pgbough"
)

const (
	keeperInterval = time.Second
	// A spare whose redo point is this far behind the follower's owns so much that a new one is cheaper to keep.
	renewDistance = 64 << 20
	// A refill that failed is not tried again before this.
	refillPause = 10 * time.Second
	// Who waits for a spare gives up after so many refills that failed one after the other.
	refillTries = 3
)

// trouble is why a project has no spare ready.
type trouble struct {
	err   error
	at    time.Time // of the last failure
	times int
}

// keep has the wanted number of spares ready for one project: it fills missing
// ones, renews those that fell behind a checkpoint of the follower, and discards
// those whose Postgres ended. It ends with the service, or with the project.
func (s *Service) keep(projectID string, wake <-chan struct{}) {
	ticker := time.NewTicker(keeperInterval)
	defer ticker.Stop()
	var notBefore time.Time
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-ticker.C:
		case _, open := <-wake:
			if !open {
				return
			}
		}
		if time.Now().Before(notBefore) {
			continue
		}
		if err := s.tend(projectID); err != nil && s.ctx.Err() == nil {
			s.refillFailed(projectID, err)
			s.log.WarnContext(s.ctx, "spares cannot be made ready", "project", projectID, "err", err)
			notBefore = time.Now().Add(refillPause)
		}
	}
}

// tend looks once at the spares of a project, and makes at most one new one at
// a time: replay is bound by one processor and the disk.
func (s *Service) tend(projectID string) error {
	p, err := s.catalog.Project(s.ctx, projectID)
	if pgbough.ErrorCode(err) == pgbough.ENotFound || err == nil && p.State != pgbough.ProjectActive {
		return nil // it is going away, and its keeper with it
	}
	if err != nil {
		return err
	}
	f, err := s.followerOf(projectID)
	if err != nil {
		return err
	}
	if err := s.tendPoints(p); err != nil {
		return err
	}
	spares, err := s.catalog.Spares(s.ctx, projectID)
	if err != nil {
		return err
	}
	st := f.Status()
	var ready, filling int
	var oldest *pgbough.Spare // of those that are ready, the one whose replay began first
	for i, sp := range spares {
		switch sp.State {
		case pgbough.SpareFilling:
			filling++
		case pgbough.SpareReady:
			if !f.Usable(s.ctx, sp.VolumeID) {
				if err := s.discard(projectID, sp.VolumeID); err != nil {
					return err
				}
				continue
			}
			ready++
			s.warm(s.ctx, sp)
			if oldest == nil || sp.Redo < oldest.Redo {
				oldest = &spares[i]
			}
		case pgbough.SpareTaken, pgbough.SpareClone:
		}
	}
	wanted := s.wantedOf(projectID)
	if ready >= wanted {
		s.allReady(projectID)
	}
	stale := oldest != nil && st.Redo.Sub(oldest.Redo) > renewDistance
	switch {
	case ready > max(1, wanted):
		return s.discard(projectID, oldest.VolumeID)
	case filling > 0 || st.State != pgbough.FollowerStreaming:
		return nil
	case ready >= s.wanted && !stale && s.pool.CheckSpace(spareNeed) != nil:
		return nil // more than the least are made only where there is room
	case ready < wanted || stale:
		if busy, err := s.creating(projectID); busy || err != nil {
			return err
		}
		op, err := s.refill(s.ctx, p)
		if err != nil {
			return err
		}
		_, err = s.engine.Wait(s.ctx, op.ID)
		s.wakeKeeper(projectID) // there may be more to do
		return err
	}
	return nil
}

// creating tells whether a branch is being made of a spare now: a refill would
// take the processor and the disk from it. The end of the create wakes the keeper.
func (s *Service) creating(projectID string) (bool, error) {
	if s.partying(projectID) {
		return true, nil
	}
	ops, err := s.catalog.Unfinished(s.ctx)
	for _, op := range ops {
		// Its steps are not saved one by one, but that it has a spare is. One that gave
		// its spare to a point, and lost that, waits for the next one.
		making := op.Kind == "create_branch" && holdsVolume(op) || op.Kind == "make_point"
		if op.ProjectID == projectID && making && op.Status == pgbough.OperationRunning {
			return true, nil
		}
	}
	return false, err
}

// discard removes a ready spare, unless somebody has taken it meanwhile.
func (s *Service) discard(projectID, volumeID string) error {
	ok, err := s.catalog.TakeSpareVolume(s.ctx, volumeID, "discard "+volumeID)
	if err != nil || !ok {
		return err
	}
	s.discardLater(s.ctx, projectID, volumeID)
	return nil
}

// startKeeper begins to keep spares for a project; it does nothing when that goes on already.
func (s *Service) startKeeper(projectID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.wake[projectID]; ok {
		return
	}
	wake := make(chan struct{}, 1)
	s.wake[projectID] = wake
	s.wg.Go(func() { s.keep(projectID, wake) })
	s.wg.Go(func() { s.keepClones(projectID) })
	s.wg.Go(func() { s.keepHistory(projectID) })
}

// stopKeeper ends keeping spares for a project.
func (s *Service) stopKeeper(projectID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if wake, ok := s.wake[projectID]; ok {
		close(wake)
		delete(s.wake, projectID)
	}
}

func (s *Service) wakeKeeper(projectID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if wake, ok := s.wake[projectID]; ok {
		select {
		case wake <- struct{}{}:
		default:
		}
	}
}

// refillFailed tells those who wait for a spare that the last refill failed.
func (s *Service) refillFailed(projectID string, err error) {
	s.mu.Lock()
	s.trouble[projectID] = trouble{err: err, at: time.Now(), times: s.trouble[projectID].times + 1}
	s.mu.Unlock()
	s.announce(projectID)
}

// hopeless is why it makes no sense to wait for a spare any longer for who has
// waited since then: there is no room for one, or refills fail again and again.
func (s *Service) hopeless(projectID string, since time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.trouble[projectID]
	var e *pgbough.Error
	switch {
	case t.err == nil || t.at.Before(since):
		return nil
	case pgbough.ErrorCode(t.err) == pgbough.ENoSpace && errors.As(t.err, &e):
		return pgbough.Errorf(pgbough.ENoSpace, "no spare is ready, and there is no room for one: %s", e.Message).WithHint("%s", e.Hint)
	case t.times >= refillTries:
		return fmt.Errorf("no spare is ready, and %d tries to make one failed: %w", t.times, t.err)
	}
	return nil
}

// spareReady waits until a spare of the project may be ready.
func (s *Service) spareReady(ctx context.Context, projectID string) error {
	s.mu.Lock()
	ready, ok := s.ready[projectID]
	if !ok {
		ready = make(chan struct{})
		s.ready[projectID] = ready
	}
	s.mu.Unlock()
	timer := time.NewTimer(time.Second) // the follower may have stopped streaming
	defer timer.Stop()
	select {
	case <-ready:
	case <-timer.C:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return nil
}

// announce tells those who wait that a spare is ready, or could not be made.
func (s *Service) announce(projectID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ready, ok := s.ready[projectID]; ok {
		close(ready)
		delete(s.ready, projectID)
	}
}
