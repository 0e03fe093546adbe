package branch

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/catalog"
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
		if r.State.Past != nil {
			return s.replayPast(ctx, r)
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

// cloneRecent serves a create that accepts an older state, if a point is young
// enough: with a clone of it that is ready, or a new one.
func (s *Service) cloneRecent(ctx context.Context, r *createRun, f *follower.Follower) (bool, error) {
	if r.State.MaxLag <= 0 {
		return false, nil
	}
	timeline := f.Status().Timeline
	fits := func(pt pgbough.Point) bool {
		return time.Since(pt.AskedAt) <= r.State.MaxLag && (timeline == 0 || pt.Timeline == timeline)
	}
	if c := s.takeClone(r.ProjectID, r.State.MaxLag, fits); c != nil {
		return true, s.becomes(ctx, r, c)
	}
	return s.cloneFitting(ctx, r, fits)
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
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	p, err := s.catalog.Project(ctx, r.ProjectID)
	if err != nil {
		return err
	}
	if r.State.Clone == "" { // begun by a version that made no points
		r.State.Clone = pgbough.NewVolumeID()
		if err := r.Save(ctx); err != nil {
			return err
		}
	}
	server, roles, err := s.makeClone(ctx, p, pt, volume.Manifest{
		ID: r.State.Clone, ProjectID: p.ID, Project: p.Name, Role: volume.RoleBranch, Owner: r.BranchID,
	})
	if err != nil {
		return err
	}
	r.State.cloned(pt, roles)
	return s.publishClone(ctx, r, p, server, func(*catalog.Tx, *createRun) error { return nil })
}

// makeClone makes a clone of a point that answers, and that has passwords of its own.
func (s *Service) makeClone(ctx context.Context, p pgbough.Project, pt pgbough.Point, m volume.Manifest) (*postgres.Server, []pgbough.Role, error) {
	// More of them at a time only make each of them slower.
	select {
	case s.starts <- struct{}{}:
		defer func() { <-s.starts }()
	case <-ctx.Done():
		return nil, nil, context.Cause(ctx)
	}
	if err := s.cloneVolume(ctx, pt, m); err != nil {
		return nil, nil, err
	}
	return s.openClone(ctx, p, m.ID, pt.Settings)
}

func (s *Service) cloneVolume(ctx context.Context, pt pgbough.Point, m volume.Manifest) error {
	if err := s.pool.CheckClone(ctx, pt.VolumeID, cloneNeed); err != nil {
		return err
	}
	// One of an earlier run of this step may be of another point, and have been started.
	if _, err := s.pool.Get(m.ID); !errors.Is(err, volume.ErrNotExist) {
		if err := s.destroy(ctx, m.ID); err != nil {
			return err
		}
	}
	_, err := s.pool.Clone(ctx, pt.VolumeID, m)
	return err
}

// openClone starts the Postgres of a clone as a branch's, and gives each login
// role a password of this branch alone.
func (s *Service) openClone(ctx context.Context, p pgbough.Project, volumeID string, settings []pgbough.Setting) (*postgres.Server, []pgbough.Role, error) {
	cfg, err := s.config(ctx, p, volumeID)
	if err != nil {
		return nil, nil, err
	}
	cfg.Settings, cfg.Limits = s.branchSettings(p, fromNouns(settings), true), s.limits
	server, err := postgres.Start(ctx, s.launcher, cfg, s.log)
	if err != nil {
		return nil, nil, err
	}
	conn, err := server.Ready(ctx)
	if err != nil {
		return nil, nil, err
	}
	o := s.quarantineOptions(p, server)
	o.Config = over(conn, o.Config)
	roles, err := quarantine.Renew(ctx, o)
	return server, roles, err
}

// over has the first session that config is for go over conn, on which nothing was
// said yet: a backend that is forked for nothing costs milliseconds.
func over(conn net.Conn, config func(string) (*pgx.ConnConfig, error)) func(string) (*pgx.ConnConfig, error) {
	return func(database string) (*pgx.ConnConfig, error) {
		cfg, err := config(database)
		if err != nil || conn == nil {
			return cfg, err
		}
		first := conn
		conn = nil
		cfg.DialFunc = func(context.Context, string, string) (net.Conn, error) { return first, nil }
		return cfg, nil
	}
}

// cloned takes in that the branch is a clone of a point.
func (st *createState) cloned(pt pgbough.Point, roles []pgbough.Role) {
	st.VolumeID, st.Point, st.Settings = st.Clone, pt.VolumeID, pt.Settings
	st.Cut = &follower.Cut{LSN: pt.LSN, Time: pt.Time, Parent: pt.Timeline}
	st.report = &quarantine.Report{Roles: roles, Differences: pt.Differences}
}

// publishClone makes a clone that answers the branch. What is known of it is
// written together with the end of the operation, and what also does with that.
func (s *Service) publishClone(ctx context.Context, r *createRun, p pgbough.Project, server *postgres.Server, also func(*catalog.Tx, *createRun) error) error {
	b, err := s.catalog.Branch(ctx, r.ProjectID, r.BranchID)
	if err != nil {
		return err
	}
	b.VolumeID, b.Settled = r.State.VolumeID, true
	spec, err := s.spec(ctx, p, b, true)
	if err != nil {
		return err
	}
	s.fresh.Store(b.VolumeID, true)
	s.computes.Take(spec, server) // no client is led to it before the branch is ready
	return r.Finish(ctx, s.with(func(tx *catalog.Tx) error {
		if err := also(tx, r); err != nil {
			return err
		}
		_, err := recordIn(tx, r)
		return err
	}))
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
