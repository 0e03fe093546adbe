package branch

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/catalog"
	"github.com/pgbough/pgbough/internal/follower"
	"github.com/pgbough/pgbough/internal/operation"
	"github.com/pgbough/pgbough/internal/postgres"
	"github.com/pgbough/pgbough/internal/volume"
)

// spareNeed is what a spare may grow to before it is renewed: the pages that
// production changes between two checkpoints, and its WAL. A clone is refused
// when the pool cannot hold that.
const spareNeed = 512 << 20

// refillState is what refill_spare remembers between its steps.
type refillState struct {
	VolumeID string `json:"volume_id"`
	Parent   string `json:"parent"` // the root volume
}

type refillRun = operation.Run[refillState]

// refillKind makes a spare: a clone of the follower, started as a standby of
// the follower, and ready once it has replayed what the follower had.
func (s *Service) refillKind() operation.Kind {
	return operation.Define("refill_spare",
		operation.Step[refillState]{Name: "clone", Do: s.cloneSpare, Undo: s.dropSpare},
		operation.Step[refillState]{Name: "start", Do: s.fillSpare},
		operation.Step[refillState]{Name: "ready", Do: s.readySpare},
	)
}

// refill starts an operation that makes one more spare.
func (s *Service) refill(ctx context.Context, p pgbough.Project) (pgbough.Operation, error) {
	root, err := s.catalog.Branch(ctx, p.ID, p.RootBranchID)
	if err != nil {
		return pgbough.Operation{}, err
	}
	return s.engine.Start(ctx, "refill_spare", operation.Request{
		ProjectID: p.ID, State: refillState{VolumeID: pgbough.NewVolumeID(), Parent: root.VolumeID},
	})
}

func (s *Service) cloneSpare(ctx context.Context, r *refillRun) error {
	if err := s.pool.CheckClone(ctx, r.State.Parent, spareNeed); err != nil {
		return err
	}
	p, err := s.catalog.Project(ctx, r.ProjectID)
	if err != nil {
		return err
	}
	f, err := s.followerOf(r.ProjectID)
	if err != nil {
		return err
	}
	// A clone of an earlier run of this step may be older than the follower's WAL.
	if err := s.destroy(ctx, r.State.VolumeID); err != nil {
		return err
	}
	spare := pgbough.Spare{VolumeID: r.State.VolumeID, ProjectID: p.ID, State: pgbough.SpareFilling, Redo: f.Status().Redo, CreatedAt: time.Now()}
	if err := s.catalog.PutSpare(ctx, spare); err != nil {
		return err
	}
	_, err = s.cloneFollower(ctx, f, r.State.Parent, volume.Manifest{ID: r.State.VolumeID, ProjectID: p.ID, Project: p.Name, Role: volume.RoleSpare})
	return err
}

// cloneFollower clones the follower on volume parent as it is at one instant, without
// what is only its own.
func (s *Service) cloneFollower(ctx context.Context, f *follower.Follower, parent string, m volume.Manifest) (v volume.Volume, err error) {
	if err := f.Snapshot(ctx, func(ctx context.Context) (err error) {
		v, err = s.pool.Clone(ctx, parent, m)
		return err
	}); err != nil {
		return v, fmt.Errorf("clone the follower: %w", err)
	}
	return v, follower.Scrub(v.Data)
}

// startSpare starts or adopts the spare on a volume. rows are production's
// settings; with nil those it last had count.
func (s *Service) startSpare(ctx context.Context, f *follower.Follower, projectID, volumeID string, rows []postgres.Setting) (*follower.Standby, error) {
	p, err := s.catalog.Project(ctx, projectID)
	if err != nil {
		return nil, err
	}
	if rows == nil {
		rows = fromNouns(p.Source.Settings)
	}
	cfg, err := s.config(ctx, p, volumeID)
	if err != nil {
		return nil, err
	}
	// Only its part of the CPUs changes when it becomes a branch: less memory would
	// then have to be taken from it.
	cfg.Limits = s.limits
	cfg.Limits.Favoured = true
	cfg.Settings = s.spareSettings(p, s.inside(cfg), rows)
	return f.StartSpare(ctx, cfg)
}

func (s *Service) fillSpare(ctx context.Context, r *refillRun) error {
	f, err := s.followerOf(r.ProjectID)
	if err != nil {
		return err
	}
	rows := s.freshSettings(ctx, r.ProjectID, f)
	spare, err := s.startSpare(ctx, f, r.ProjectID, r.State.VolumeID, rows)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Hour)
	defer cancel()
	return f.CatchUp(ctx, spare, func(done, total int64) {
		r.Progress(pgbough.Progress{Message: "replaying production's WAL since its checkpoint", Done: done, Total: total, Unit: "bytes"})
	})
}

// freshSettings asks production for its settings and keeps them in the catalog,
// so that a spare can be started while production is away. Nil: not to be had.
func (s *Service) freshSettings(ctx context.Context, projectID string, f *follower.Follower) []postgres.Setting {
	m, err := f.Source().Now(ctx)
	if err != nil {
		s.log.InfoContext(ctx, "production's settings cannot be read; those it last had count", "err", err)
		return nil
	}
	_, err = s.catalog.ChangeProject(ctx, projectID, func(p *pgbough.Project) error {
		p.Source.Settings, p.Source.Timeline = toNouns(m.Settings), m.Timeline
		return nil
	})
	if err != nil {
		s.log.WarnContext(ctx, "production's settings cannot be kept", "err", err)
	}
	return m.Settings
}

func (s *Service) readySpare(ctx context.Context, r *refillRun) error {
	var ready *pgbough.Spare
	err := s.catalog.Tx(ctx, func(tx *catalog.Tx) error {
		spares, err := tx.Spares(r.ProjectID)
		if err != nil {
			return err
		}
		for _, sp := range spares {
			if sp.VolumeID == r.State.VolumeID && sp.State == pgbough.SpareFilling {
				sp.State, sp.ReadyAt = pgbough.SpareReady, time.Now()
				ready = &sp
				return tx.PutSpare(sp)
			}
		}
		return nil
	})
	if err == nil && ready != nil {
		s.warm(ctx, *ready)
	}
	s.mu.Lock()
	delete(s.trouble, r.ProjectID)
	s.mu.Unlock()
	s.announce(r.ProjectID)
	return err
}

// dropSpare undoes a refill.
func (s *Service) dropSpare(ctx context.Context, r *refillRun) error {
	return s.removeSpare(ctx, r.ProjectID, r.State.VolumeID)
}

func (s *Service) removeSpare(ctx context.Context, projectID, volumeID string) error {
	s.closeQuarantine(ctx, volumeID)
	if f, err := s.followerOf(projectID); err == nil {
		if err := f.KillSpare(ctx, volumeID); err != nil {
			return err
		}
	}
	if err := s.destroy(ctx, volumeID); err != nil {
		return err
	}
	return s.catalog.DeleteSpare(ctx, volumeID)
}

// discardKind removes a spare that is too old or does not run any more.
func (s *Service) discardKind() operation.Kind {
	return operation.Define("discard_spare",
		operation.Step[refillState]{Name: "destroy", Final: true, Do: func(ctx context.Context, r *refillRun) error {
			return s.removeSpare(ctx, r.ProjectID, r.State.VolumeID)
		}},
	)
}

func (s *Service) discardLater(ctx context.Context, projectID, volumeID string) {
	_, err := s.engine.Start(ctx, "discard_spare", operation.Request{ProjectID: projectID, State: refillState{VolumeID: volumeID}})
	if err != nil && !errors.Is(err, context.Canceled) {
		s.log.WarnContext(ctx, "a spare cannot be discarded", "volume", volumeID, "err", err)
	}
}
