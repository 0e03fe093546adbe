package branch

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/catalog"
	"github.com/pgbough/pgbough/internal/operation"
	"github.com/pgbough/pgbough/internal/postgres"
	"github.com/pgbough/pgbough/internal/quarantine"
	"github.com/pgbough/pgbough/internal/volume"
)

const (
	// pointLife is how long a clean point is kept for creates with --max-lag.
	pointLife = 15 * time.Minute
	// pointStop bounds the shutdown of the Postgres that leaves a point, whose
	// checkpoint writes all that the spare has replayed.
	pointStop = 2 * time.Minute
)

// pointKind makes a clean point of a spare that a create has taken: the creates
// that share it are waited for, production is asked where it is, the spare is
// brought there, cut, promoted and quarantined as for a branch, then purged and
// shut down. fsync is off for all of it, and everything is made durable at the end.
func (s *Service) pointKind() operation.Kind {
	return operation.Define("make_point",
		operation.Step[createState]{Name: "gather", Do: s.gather, Undo: s.dropPoint},
		operation.Step[createState]{Name: "catch_up", Lazy: true, Do: s.catchUp},
		operation.Step[createState]{Name: "promote", Lazy: true, Do: s.promote},
		operation.Step[createState]{Name: "quarantine", Do: s.purgePoint},
		operation.Step[createState]{Name: "stop", Do: s.stopPoint},
	)
}

// share gives the spare of a create to a point, which serves its party. The
// create then waits for the point as the others do.
func (s *Service) share(ctx context.Context, r *createRun, p *party) error {
	state := *r.State
	state.Clone = ""
	// From here on the catalog alone says whose the spare is.
	r.State.VolumeID = ""
	if err := r.Save(ctx); err != nil {
		s.over(r.ProjectID, p, err)
		return err
	}
	op, err := s.engine.Start(ctx, "make_point", operation.Request{
		ProjectID: r.ProjectID, State: state,
		Save: func(ctx context.Context, op pgbough.Operation) error {
			return s.catalog.Tx(ctx, func(tx *catalog.Tx) error {
				if err := tx.GiveSpare(state.VolumeID, r.ID, op.ID); err != nil {
					return err
				}
				return tx.SaveOperation(op)
			})
		},
	})
	if err != nil {
		s.over(r.ProjectID, p, err)
		return err
	}
	s.wg.Go(func() {
		_, err := s.engine.Wait(s.ctx, op.ID)
		if s.ctx.Err() == nil { // else the point and its party go on with the next server
			s.over(r.ProjectID, p, err)
		}
	})
	return nil
}

// gather waits for those who share the point, and asks production where it is
// after all of them.
func (s *Service) gather(ctx context.Context, r *createRun) error {
	s.closeParty(ctx, r.ProjectID)
	began := time.Now()
	m, err := s.now(ctx, r.ProjectID)
	if pgbough.ErrorCode(err) == pgbough.EUnreachable && r.State.MaxLag > 0 {
		return nil // what its maker was content with
	}
	if err != nil {
		return err
	}
	r.State.heard(m, began)
	return nil
}

// purgePoint quarantines what becomes a point, and takes what that cut out of
// its files: nobody uses it yet, so that may take as long as it takes.
func (s *Service) purgePoint(ctx context.Context, r *createRun) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	p, err := s.catalog.Project(ctx, r.ProjectID)
	if err != nil {
		return err
	}
	spare, err := s.taken(ctx, r, nil)
	if err != nil {
		return err
	}
	taken, ok, err := s.catalog.TakenSpare(ctx, r.ID)
	if err != nil {
		return err
	}
	if !ok {
		return pgbough.Errorf(pgbough.EInternal, "the spare of the point is not in the catalog")
	}
	// What the spare has replayed is written out meanwhile, and the rest of it when it is shut down.
	r.State.Written = time.Now()
	written := make(chan error, 1)
	go func() { written <- postgres.SyncSince(spare.Config().DataDir, taken.CreatedAt.Add(-clockMargin)) }()
	report, err := s.runQuarantine(ctx, p, spare.Server)
	if err == nil {
		err = spare.FillSegment(ctx)
	}
	if err == nil {
		err = quarantine.Purge(ctx, s.quarantineOptions(p, spare.Server))
	}
	if werr := <-written; err == nil {
		err = werr
	}
	if err != nil {
		return fmt.Errorf("quarantine: %w", err)
	}
	r.State.Differences, err = s.differences(p, fromNouns(r.State.Settings), report.Differences)
	return err
}

// stopPoint shuts the Postgres down and makes the volume a point.
func (s *Service) stopPoint(ctx context.Context, r *createRun) error {
	points, err := s.catalog.Points(ctx, r.ProjectID)
	if err != nil {
		return err
	}
	for _, pt := range points {
		if pt.VolumeID == r.State.VolumeID {
			return nil // before the server ended; it may have been cloned since, so nothing may start on it
		}
	}
	if err := s.shutDown(ctx, r); err != nil {
		return err
	}
	pt := pgbough.Point{
		VolumeID: r.State.VolumeID, ProjectID: r.ProjectID, LSN: r.State.Cut.LSN, Time: r.State.Cut.Time, Timeline: r.State.Cut.Parent,
		AskedAt: r.State.Fresh, Settings: r.State.Settings, Differences: r.State.Differences, CreatedAt: time.Now(),
	}
	return s.catalog.Tx(ctx, func(tx *catalog.Tx) error {
		if err := tx.PutPoint(pt); err != nil {
			return err
		}
		return tx.DeleteSpare(pt.VolumeID)
	})
}

func (s *Service) shutDown(ctx context.Context, r *createRun) error {
	ctx, cancel := context.WithTimeout(ctx, pointStop)
	defer cancel()
	f, err := s.followerOf(r.ProjectID)
	if err != nil {
		return err
	}
	if _, err := s.taken(ctx, r, nil); err != nil {
		return err
	}
	server, ok := f.ReleaseSpare(ctx, r.State.VolumeID)
	if !ok {
		return pgbough.Errorf(pgbough.EInternal, "the Postgres of the point has ended by itself")
	}
	clean, err := server.Stop(ctx)
	if err != nil {
		return err
	}
	dataDir := server.Config().DataDir
	if clean {
		clean, err = postgres.CleanlyStopped(dataDir)
	}
	if err != nil {
		return err
	}
	if !clean {
		return pgbough.Errorf(pgbough.EInternal, "the Postgres of the point was not shut down cleanly within %s", pointStop)
	}
	if err := postgres.SyncSince(dataDir, r.State.Written.Add(-clockMargin)); err != nil {
		return err
	}
	return os.RemoveAll(filepath.Join(s.runDir, r.State.VolumeID))
}

// dropPoint removes the spare of a point that will not be.
func (s *Service) dropPoint(ctx context.Context, r *createRun) error {
	if err := s.removeSpare(ctx, r.ProjectID, r.State.VolumeID); err != nil {
		return err
	}
	return s.catalog.DeletePoint(ctx, r.State.VolumeID)
}

// dropPointKind removes a point. Branches that were cloned from it keep what
// they share with it.
func (s *Service) dropPointKind() operation.Kind {
	return operation.Define("discard_point",
		operation.Step[refillState]{Name: "destroy", Final: true, Do: func(ctx context.Context, r *refillRun) error {
			return s.removePoint(ctx, r.State.VolumeID)
		}},
	)
}

func (s *Service) removePoint(ctx context.Context, volumeID string) error {
	if err := s.destroy(ctx, volumeID); err != nil {
		return err
	}
	return s.catalog.DeletePoint(ctx, volumeID)
}

// tendPoints keeps the newest point of a project, as long as it is young and the
// pool has room for a spare beside it.
func (s *Service) tendPoints(p pgbough.Project) error {
	points, err := s.catalog.Points(s.ctx, p.ID)
	if err != nil || len(points) == 0 || s.partying(p.ID) {
		return err
	}
	full := pgbough.ErrorCode(s.pool.CheckSpace(spareNeed)) == pgbough.ENoSpace
	for i, pt := range points {
		if i == 0 && !full && time.Since(pt.AskedAt) < pointLife {
			continue
		}
		op, err := s.engine.Start(s.ctx, "discard_point", operation.Request{ProjectID: p.ID, State: refillState{VolumeID: pt.VolumeID}})
		if err != nil {
			return err
		}
		if _, err := s.engine.Wait(s.ctx, op.ID); err != nil {
			return err
		}
	}
	return nil
}

// partying tells whether creates of a project wait for a point, or are made of it.
func (s *Service) partying(projectID string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.crowdOf(projectID).waiting {
		if p != nil {
			return true
		}
	}
	return false
}

// removePoints removes all points of a project that is going away.
func (s *Service) removePoints(ctx context.Context, projectID string) error {
	points, err := s.catalog.Points(ctx, projectID)
	if err != nil {
		return err
	}
	for _, pt := range points {
		if err := s.removePoint(ctx, pt.VolumeID); err != nil {
			return err
		}
	}
	return nil
}

// pointRole is the role of the volume that a run cuts.
func pointRole(r *createRun) volume.Role {
	if r.BranchID == "" {
		return volume.RolePoint
	}
	return volume.RoleBranch
}
