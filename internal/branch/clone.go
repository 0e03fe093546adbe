package branch

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/follower"
	"github.com/pgbough/pgbough/internal/postgres"
	"github.com/pgbough/pgbough/internal/quarantine"
	"github.com/pgbough/pgbough/internal/volume"
)

// cloneNeed is what a clone of a point takes until it is used: what a Postgres
// writes when it starts, and a segment of WAL.
const cloneNeed = 32 << 20

// A create is served by a clean point in two cases: its request came before the
// point was cut, which production's position says, or it accepts a state as old
// as the point's (--max-lag). The branch is then a clone of the point with
// passwords of its own. All of that is done in the step that waits for the point:
// the others are about a spare, and the fewer writes of the catalog each branch of
// a burst needs, the sooner the last of them is there.

// ofSpare leaves out a step for a branch that is a clone of a point.
func ofSpare(do func(context.Context, *createRun) error) func(context.Context, *createRun) error {
	return func(ctx context.Context, r *createRun) error {
		if r.State.Point != "" {
			return nil
		}
		return do(ctx, r)
	}
}

// reach brings the spare to production's position. When others need it too, or
// the next one may be content with this state, it becomes a point, and the
// branch a clone of that.
func (s *Service) reach(ctx context.Context, r *createRun) error {
	for {
		if err := s.takeSpare(ctx, r); err != nil || r.State.Point != "" {
			return err
		}
		b, err := s.catalog.Branch(ctx, r.ProjectID, r.BranchID)
		if err != nil {
			return err
		}
		if r.State.done = b.State == pgbough.BranchReady; r.State.done {
			return nil
		}
		if err := s.catchUp(ctx, r); err != nil {
			return err
		}
		p, err := s.invite(ctx, r.ProjectID, r.BranchID, r.State.MaxLag > 0)
		if err != nil || p == nil {
			return err
		}
		if promoted, err := s.promoted(ctx, r); promoted || err != nil {
			s.over(r.ProjectID, p, nil) // they go on waiting
			return err
		}
		if err := s.share(ctx, r, p); err != nil {
			return err
		}
	}
}

// promoted tells that an earlier run of this create has promoted its spare, which
// is too old then for those who came since.
func (s *Service) promoted(ctx context.Context, r *createRun) (bool, error) {
	spare, err := s.taken(ctx, r, nil)
	if err != nil {
		return false, err
	}
	at, err := spare.Position(ctx)
	return err == nil && !at.InRecovery, err
}

// cloneRecent serves a create that accepts an older state, if a point is young enough.
func (s *Service) cloneRecent(ctx context.Context, r *createRun, f *follower.Follower) (bool, error) {
	if r.State.MaxLag <= 0 {
		return false, nil
	}
	timeline := f.Status().Timeline
	return s.cloneFitting(ctx, r, func(pt pgbough.Point) bool {
		return time.Since(pt.AskedAt) <= r.State.MaxLag && (timeline == 0 || pt.Timeline == timeline)
	})
}

// served waits for the point of the party that a create belongs to, if it does.
// It is true when the branch is a clone of a point.
func (s *Service) served(ctx context.Context, r *createRun, waited bool) (bool, error) {
	if p := s.partyOf(r.ProjectID, r.BranchID); p != nil {
		r.Progress(pgbough.Progress{Message: "waiting for the point that creates which came together share"})
		select {
		case <-p.done:
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
		if p.err != nil {
			return false, fmt.Errorf("make a point for several branches: %w", p.err)
		}
	} else if !waited {
		return false, nil // no point can be as new as what production has just said
	}
	ok, err := s.cloneFitting(ctx, r, func(pt pgbough.Point) bool {
		return pt.Timeline == r.State.Timeline && pt.LSN >= r.State.Asked
	})
	s.dismiss(r.ProjectID, r.BranchID)
	return ok, err
}

// cloneFitting makes the branch a clone of the newest point that fits.
func (s *Service) cloneFitting(ctx context.Context, r *createRun, fits func(pgbough.Point) bool) (bool, error) {
	points, err := s.catalog.Points(ctx, r.ProjectID)
	if err != nil {
		return false, err
	}
	for _, pt := range points {
		if !fits(pt) {
			continue
		}
		err := s.clonePoint(ctx, r, pt)
		if errors.Is(err, volume.ErrNotExist) {
			continue // discarded meanwhile
		}
		return err == nil, err
	}
	return false, nil
}

// clonePoint makes the branch of a point, up to its Postgres that answers.
func (s *Service) clonePoint(ctx context.Context, r *createRun, pt pgbough.Point) error {
	// More of them at a time only make each of them slower.
	select {
	case s.starts <- struct{}{}:
		defer func() { <-s.starts }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	p, err := s.catalog.Project(ctx, r.ProjectID)
	if err != nil {
		return err
	}
	if err := s.cloneVolume(ctx, r, p, pt); err != nil {
		return err
	}
	r.State.Cut, r.State.Settings = &follower.Cut{LSN: pt.LSN, Time: pt.Time, Parent: pt.Timeline}, pt.Settings
	server, roles, err := s.openClone(ctx, r, p)
	if err != nil {
		return err
	}
	r.State.VolumeID, r.State.Point = r.State.Clone, pt.VolumeID
	r.State.report = &quarantine.Report{Roles: roles, Differences: pt.Differences}
	b, err := s.record(ctx, r)
	if err != nil {
		return err
	}
	spec, err := s.spec(ctx, p, b, true)
	if err != nil {
		return err
	}
	s.computes.Take(spec, server)
	return nil
}

func (s *Service) cloneVolume(ctx context.Context, r *createRun, p pgbough.Project, pt pgbough.Point) error {
	if err := s.pool.CheckClone(ctx, pt.VolumeID, cloneNeed); err != nil {
		return err
	}
	if r.State.Clone == "" { // begun by a version that made no points
		r.State.Clone = pgbough.NewVolumeID()
		if err := r.Save(ctx); err != nil {
			return err
		}
	}
	// One of an earlier run of this step may be of another point, and have been started.
	if _, err := s.pool.Get(r.State.Clone); !errors.Is(err, volume.ErrNotExist) {
		if err := s.destroy(ctx, r.State.Clone); err != nil {
			return err
		}
	}
	_, err := s.pool.Clone(ctx, pt.VolumeID, volume.Manifest{
		ID: r.State.Clone, ProjectID: p.ID, Project: p.Name, Role: volume.RoleBranch, Owner: r.BranchID,
	})
	return err
}

// openClone starts the Postgres of a clone as a branch's, and gives each login
// role a password of this branch alone.
func (s *Service) openClone(ctx context.Context, r *createRun, p pgbough.Project) (*postgres.Server, []pgbough.Role, error) {
	cfg, err := s.config(ctx, p, r.State.Clone)
	if err != nil {
		return nil, nil, err
	}
	cfg.Settings, cfg.Limits = s.branchSettings(p, fromNouns(r.State.Settings), true), s.limits
	server, err := postgres.Start(ctx, s.launcher, cfg, s.log)
	if err != nil {
		return nil, nil, err
	}
	conn, err := server.Ready(ctx)
	if err != nil {
		return nil, nil, err
	}
	_ = conn.Close() // it only told that it answers
	roles, err := quarantine.Renew(ctx, s.quarantineOptions(p, server))
	return server, roles, err
}

// wasCloned finds that an earlier run of this step has come to its end, before
// the server ended: then the branch's Postgres is adopted already, and whoever
// was told its passwords may use them.
func (s *Service) wasCloned(ctx context.Context, r *createRun) (bool, error) {
	if r.State.Clone == "" {
		return false, nil
	}
	v, err := s.pool.Get(r.State.Clone)
	if errors.Is(err, volume.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	b, err := s.catalog.Branch(ctx, r.ProjectID, r.BranchID)
	if err != nil || b.State != pgbough.BranchReady {
		return false, err
	}
	r.State.VolumeID, r.State.Point = v.ID, v.Parent
	return true, nil
}
