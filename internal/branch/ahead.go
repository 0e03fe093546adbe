package branch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/catalog"
	"github.com/pgbough/pgbough/internal/operation"
	"github.com/pgbough/pgbough/internal/postgres"
	"github.com/pgbough/pgbough/internal/volume"
)

// mostClones is how many clones of its point a project has ready at most. Each
// is a Postgres that runs and does nothing.
const mostClones = 4

// ahead is what a project keeps for creates with --max-lag: clones of its newest
// point, made ahead. While none accepts an older state there are none; one that
// does wants one clone from then on, and more as with the demand for spares, for as
// long as the point would be young enough for it.
//
// A clone has a row in the catalog, as a spare that nobody can promote; who takes
// that away, a create or a discard, has it. Its passwords are here alone, so after
// the end of the server it is nobody's, and the next one removes it.
type ahead struct {
	clones []*readyClone
	used   time.Time     // when a create last accepted an older state
	lag    time.Duration // and how old a one
	demand demand        // beside the first
}

// readyClone is a clone of a point with passwords of its own, whose Postgres runs.
type readyClone struct {
	volumeID string
	point    pgbough.Point
	server   *postgres.Server
	roles    []pgbough.Role
	taken    bool // a create is making a branch of it; it is forgotten with its row
}

// usable tells whether a branch can be made of it.
func (c *readyClone) usable() bool {
	select {
	case <-c.server.Done():
		return false
	default:
		return !c.taken
	}
}

// aheadOf is what a project keeps ahead; s.mu is held.
func (s *Service) aheadOf(projectID string) *ahead {
	a, ok := s.aheads[projectID]
	if !ok {
		a = &ahead{}
		s.aheads[projectID] = a
	}
	return a
}

// wanted is how many clones of a point a project should have ready at a time.
func (a *ahead) wanted(pt pgbough.Point, now time.Time) int {
	if now.Sub(a.used) >= calm || now.Sub(pt.AskedAt) >= a.lag {
		return 0
	}
	return 1 + a.demand.at(now)
}

// takeClone takes a clone that is ready, of a point that fits, for a create that
// accepts an older state; nil where there is none.
func (s *Service) takeClone(projectID string, lag time.Duration, fits func(pgbough.Point) bool) *readyClone {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, now := s.aheadOf(projectID), time.Now()
	a.used, a.lag = now, lag
	a.demand.taking(mostClones-1, now)
	for _, c := range a.clones {
		if c.usable() && fits(c.point) {
			c.taken = true
			return c
		}
	}
	return nil
}

// forgetClone forgets a clone whose row in the catalog is gone.
func (s *Service) forgetClone(projectID, volumeID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.aheadOf(projectID)
	a.clones = slices.DeleteFunc(a.clones, func(c *readyClone) bool { return c.volumeID == volumeID })
}

// becomes makes a clone that was made ahead the branch: with one write of the
// catalog, which also ends the operation.
func (s *Service) becomes(ctx context.Context, r *createRun, c *readyClone) error {
	defer s.forgetClone(r.ProjectID, c.volumeID)
	s.failpoint("create_branch/clone_taken")
	r.State.Clone = c.volumeID // from here on it is undone with the branch
	r.State.cloned(c.point, c.roles)
	marked := make(chan error, 1)
	go func() { marked <- s.pool.SetRole(ctx, c.volumeID, volume.RoleBranch, r.BranchID) }()
	p, err := s.catalog.Project(ctx, r.ProjectID)
	if err := errors.Join(err, <-marked); err != nil {
		return err
	}
	if err := s.publishClone(ctx, r, p, c.server, claimClone); err != nil {
		return err
	}
	s.failpoint("create_branch/clone_published")
	return nil
}

// claimClone refuses a clone that somebody else has, or had.
func claimClone(tx *catalog.Tx, r *createRun) error {
	sp, err := cloneIn(tx, r.ProjectID, r.State.VolumeID)
	if err == nil && sp == nil {
		err = pgbough.Errorf(pgbough.ELocked, "the clone that was made ahead is being removed").WithHint("try again")
	}
	return err
}

// cloneIn is the row of a clone that nobody has; nil where there is none.
func cloneIn(tx *catalog.Tx, projectID, volumeID string) (*pgbough.Spare, error) {
	spares, err := tx.Spares(projectID)
	for _, sp := range spares {
		if sp.VolumeID == volumeID && sp.State == pgbough.SpareClone {
			return &sp, nil
		}
	}
	return nil, err
}

// cloneState is what clone_point remembers.
type cloneState struct {
	VolumeID string `json:"volume_id"`
	Server   string `json:"server"` // which the clone is for: what it knows of it ends with it
}

type cloneRun = operation.Run[cloneState]

// cloneKind makes a clone of a project's newest point, ready for a create that
// accepts its state.
func (s *Service) cloneKind() operation.Kind {
	return operation.Define("clone_point", operation.Step[cloneState]{Name: "clone", Do: s.cloneAhead, Undo: s.dropClone})
}

func (s *Service) cloneAhead(ctx context.Context, r *cloneRun) error {
	if r.State.Server != s.life {
		return pgbough.Errorf(pgbough.EInternal, "the server that wanted the clone has ended")
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	p, err := s.catalog.Project(ctx, r.ProjectID)
	if err != nil {
		return err
	}
	points, err := s.catalog.Points(ctx, r.ProjectID)
	if err != nil {
		return err
	}
	if len(points) == 0 {
		return pgbough.Errorf(pgbough.ENotFound, "the point is gone")
	}
	pt := points[0]
	m := volume.Manifest{ID: r.State.VolumeID, ProjectID: p.ID, Project: p.Name, Role: volume.RoleClone}
	server, roles, err := s.makeClone(ctx, p, pt, m)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.aheadOf(p.ID)
	a.clones = append(a.clones, &readyClone{volumeID: m.ID, point: pt, server: server, roles: roles})
	return nil
}

func (s *Service) dropClone(ctx context.Context, r *cloneRun) error {
	return s.removeSpare(ctx, r.ProjectID, r.State.VolumeID)
}

// tendClones has the wanted number of clones of the newest point ready, and
// removes the others: those of older points, those whose Postgres has ended, and
// those of an earlier server.
func (s *Service) tendClones(p pgbough.Project) error {
	if busy, err := s.creating(p.ID); busy || err != nil {
		return err // both would take the processors from it
	}
	points, err := s.catalog.Points(s.ctx, p.ID)
	if err != nil {
		return err
	}
	var newest pgbough.Point
	if len(points) > 0 {
		newest = points[0]
	}
	missing := s.dismissClones(p.ID, newest)
	if err := s.discardClones(p.ID); err != nil || missing <= 0 || s.pool.CheckSpace(spareNeed) != nil {
		return err
	}
	for range missing {
		if err := s.cloneOnce(p); err != nil {
			return err
		}
	}
	return nil
}

// dismissClones leaves only clones of one point that are wanted and run, and
// tells how many more are wanted.
func (s *Service) dismissClones(projectID string, pt pgbough.Point) (missing int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.aheadOf(projectID)
	wanted, ready := a.wanted(pt, time.Now()), 0
	a.clones = slices.DeleteFunc(a.clones, func(c *readyClone) bool {
		if c.taken {
			return false
		}
		if !c.usable() || c.point.VolumeID != pt.VolumeID || ready == wanted {
			return true
		}
		ready++
		return false
	})
	if ready == wanted {
		a.demand.missing = false
	}
	return wanted - ready
}

// discardClones removes the clones that are in the catalog, and that neither this
// server nor an operation knows.
func (s *Service) discardClones(projectID string) error {
	known := s.clonesOf(projectID)
	spares, err := s.catalog.Spares(s.ctx, projectID)
	if err != nil {
		return err
	}
	for _, sp := range spares {
		if sp.State != pgbough.SpareClone || slices.Contains(known, sp.VolumeID) {
			continue
		}
		if err := s.discardClone(sp); err != nil {
			return err
		}
	}
	return nil
}

// discardClone removes a clone, unless somebody has it.
func (s *Service) discardClone(sp pgbough.Spare) error {
	op, err := s.engine.Start(s.ctx, "discard_spare", operation.Request{
		ProjectID: sp.ProjectID, State: refillState{VolumeID: sp.VolumeID},
		Save: s.with(func(tx *catalog.Tx) error {
			now, err := cloneIn(tx, sp.ProjectID, sp.VolumeID)
			if err == nil && now == nil {
				err = errTaken
			}
			if err != nil {
				return err
			}
			now.State = pgbough.SpareTaken
			return tx.PutSpare(*now)
		}),
	})
	if errors.Is(err, errTaken) {
		return nil
	}
	if err == nil {
		_, err = s.engine.Wait(s.ctx, op.ID)
	}
	return err
}

// errTaken is why a clone is not discarded.
var errTaken = errors.New("somebody has the clone")

// clonesOf are the volumes of the clones that this server knows.
func (s *Service) clonesOf(projectID string) (ids []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.aheadOf(projectID).clones {
		ids = append(ids, c.volumeID)
	}
	return ids
}

// cloneOnce makes one clone ahead. Its row is there before its volume, and for no
// project that is going away: whoever removes that sees the operation or the row.
func (s *Service) cloneOnce(p pgbough.Project) error {
	volumeID := pgbough.NewVolumeID()
	op, err := s.engine.Start(s.ctx, "clone_point", operation.Request{
		ProjectID: p.ID, State: cloneState{VolumeID: volumeID, Server: s.life},
		Save: s.with(func(tx *catalog.Tx) error {
			now, err := tx.Project(p.ID)
			if err != nil {
				return err
			}
			if now.State != pgbough.ProjectActive {
				return pgbough.Errorf(pgbough.ELocked, "project %s is %s", p.Name, now.State)
			}
			return tx.PutSpare(pgbough.Spare{VolumeID: volumeID, ProjectID: p.ID, State: pgbough.SpareClone, CreatedAt: time.Now()})
		}),
	})
	if err == nil {
		_, err = s.engine.Wait(s.ctx, op.ID)
	}
	if err != nil {
		return fmt.Errorf("make a clone of the point ahead: %w", err)
	}
	return nil
}

// keepClones tends the clones of a project until the service ends, or the project.
func (s *Service) keepClones(projectID string) {
	ticker := time.NewTicker(keeperInterval)
	defer ticker.Stop()
	var notBefore time.Time
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-ticker.C:
		}
		if time.Now().Before(notBefore) {
			continue
		}
		p, err := s.catalog.Project(s.ctx, projectID)
		if pgbough.ErrorCode(err) == pgbough.ENotFound || err == nil && p.State == pgbough.ProjectDeleting {
			return
		}
		if err == nil {
			err = s.tendClones(p)
		}
		if err != nil && s.ctx.Err() == nil {
			s.log.WarnContext(s.ctx, "clones cannot be made ahead", "project", projectID, "err", err)
			notBefore = time.Now().Add(refillPause)
		}
	}
}
