package branch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/archive"
	"github.com/pgbough/pgbough/internal/follower"
	"github.com/pgbough/pgbough/internal/operation"
	"github.com/pgbough/pgbough/internal/volume"
)

const (
	// pastDistance is how much WAL lies between two points of the past at least.
	pastDistance = 256 << 20
	// Points of the past are all kept for so long, then one of each hour, then one of each day.
	pastAll    = time.Hour
	pastHourly = 24 * time.Hour
)

// tendPast makes a point of the past where one is due: right after a
// restartpoint, pastDistance after the last one, or where WAL was lost since.
func (s *Service) tendPast(p pgbough.Project, h *history, f *follower.Follower) error {
	st := f.Status()
	if st.State != pgbough.FollowerStreaming {
		return nil
	}
	points, err := s.catalog.PastPoints(s.ctx, p.ID)
	if err != nil {
		return err
	}
	if n := len(points); n > 0 && st.Redo.Sub(points[n-1].Redo) < pastDistance && (st.Redo == points[n-1].Redo || !s.broken(p, h, st, points[n-1].Redo)) {
		return nil
	}
	if busy, err := s.creating(p.ID); busy || err != nil {
		return err
	}
	root, err := s.catalog.Branch(s.ctx, p.ID, p.RootBranchID)
	if err != nil {
		return err
	}
	if time.Now().Before(h.again) {
		return nil
	}
	op, err := s.engine.Start(s.ctx, "keep_point", operation.Request{
		ProjectID: p.ID, State: keepState{VolumeID: pgbough.NewVolumeID(), Parent: root.VolumeID},
	})
	if err == nil {
		_, err = s.engine.Wait(s.ctx, op.ID)
	}
	if err != nil {
		h.again = time.Now().Add(refillPause)
	}
	return err
}

// broken tells whether WAL is missing since a position.
func (s *Service) broken(p pgbough.Project, h *history, st pgbough.FollowerStatus, since pgbough.LSN) bool {
	wal, err := s.walOf(s.ctx, p)
	if err != nil {
		return false
	}
	defer func() { _ = wal.Close() }() // read only
	l, err := h.archive.Log(wal, received(st), h.archive.Newest(wal, st.Timeline))
	return err == nil && len(l.Missing(since, received(st))) > 0
}

// keepState is what keep_point remembers between its steps.
type keepState struct {
	VolumeID string      `json:"volume_id"`
	Parent   string      `json:"parent"`
	Redo     pgbough.LSN `json:"redo,omitempty"`
	LSN      pgbough.LSN `json:"lsn,omitempty"`
	Timeline uint32      `json:"timeline,omitempty"`
	Time     time.Time   `json:"time,omitzero"`
}

type keepRun = operation.Run[keepState]

// keepPastKind makes a point of the past: a clone of the follower without WAL,
// which is in the archive or will be.
func (s *Service) keepPastKind() operation.Kind {
	return operation.Define("keep_point",
		operation.Step[keepState]{Name: "clone", Do: s.clonePastPoint, Undo: func(ctx context.Context, r *keepRun) error {
			return s.removePast(ctx, r.State.VolumeID)
		}},
		operation.Step[keepState]{Name: "publish", Do: s.publishPastPoint},
	)
}

func (s *Service) clonePastPoint(ctx context.Context, r *keepRun) error {
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
	if err := s.destroy(ctx, r.State.VolumeID); err != nil { // of an earlier run, and older
		return err
	}
	before := f.Status()
	v, err := s.cloneFollower(ctx, f, r.State.Parent, volume.Manifest{ID: r.State.VolumeID, ProjectID: p.ID, Project: p.Name, Role: volume.RolePast, Owner: p.RootBranchID})
	if err != nil {
		return err
	}
	after, err := f.Position(ctx)
	if err != nil {
		return err
	}
	// What the clone is lies between: its redo point only grows, and its files hold nothing that came after.
	r.State.Redo, r.State.LSN, r.State.Timeline, r.State.Time = before.Redo, after.Replay, after.Timeline, before.SourceTime
	wal, err := os.OpenRoot(filepath.Join(v.Data, "pg_wal"))
	if err != nil {
		return fmt.Errorf("open the WAL of the clone: %w", err)
	}
	return errors.Join(archive.Empty(wal), wal.Close())
}

func (s *Service) publishPastPoint(ctx context.Context, r *keepRun) error {
	p, err := s.catalog.Project(ctx, r.ProjectID)
	if err != nil {
		return err
	}
	return s.catalog.PutPastPoint(ctx, pgbough.PastPoint{
		VolumeID: r.State.VolumeID, ProjectID: p.ID, Lineage: r.State.Parent, Redo: r.State.Redo, LSN: r.State.LSN, Timeline: r.State.Timeline,
		Time: r.State.Time, Settings: p.Source.Settings, CreatedAt: time.Now(),
	})
}

// dropPastKind removes a point of the past that nobody needs any more.
func (s *Service) dropPastKind() operation.Kind {
	return operation.Define("drop_point",
		operation.Step[keepState]{Name: "destroy", Final: true, Do: func(ctx context.Context, r *keepRun) error {
			return s.removePast(ctx, r.State.VolumeID)
		}},
	)
}

func (s *Service) removePast(ctx context.Context, volumeID string) error {
	if err := s.destroy(ctx, volumeID); err != nil {
		return err
	}
	return s.catalog.DeletePastPoint(ctx, volumeID)
}

// retain removes what of a project's history is older than it wants, and with
// full one point more: then the window gets shorter. redo is the follower's.
func (s *Service) retain(p pgbough.Project, h *history, redo pgbough.LSN, full bool) error {
	ops, err := s.catalog.Unfinished(s.ctx) // first: a point that is published meanwhile is among the points
	if err != nil {
		return err
	}
	points, err := s.catalog.PastPoints(s.ctx, p.ID)
	if err != nil {
		return err
	}
	drop := outdated(points, time.Now(), p.History)
	if full && len(drop) == 0 && len(points) > 1 {
		s.log.WarnContext(s.ctx, "the archive's disk or the pool is full: the history window gets shorter", "project", p.Name,
			"was_from", points[0].Time, "now_from", points[1].Time)
		drop = slices.Clone(points[:1])
	}
	used, making := pointsIn(ops, p.ID)
	for _, pt := range drop {
		if used[pt.VolumeID] {
			continue
		}
		op, err := s.engine.Start(s.ctx, "drop_point", operation.Request{ProjectID: p.ID, State: keepState{VolumeID: pt.VolumeID}})
		if err == nil {
			_, err = s.engine.Wait(s.ctx, op.ID)
		}
		if err != nil {
			return err
		}
		points = slices.DeleteFunc(points, func(left pgbough.PastPoint) bool { return left.VolumeID == pt.VolumeID })
	}
	if len(points) == 0 && making {
		return nil // its redo point may be before the follower's present one
	}
	return s.trim(p, h, points, redo)
}

// outdated are the points, the oldest first, that are not kept at a time for a
// window: those before the one that the beginning of the window needs, and all
// but one of each hour and day.
func outdated(points []pgbough.PastPoint, now time.Time, window time.Duration) []pgbough.PastPoint {
	var drop []pgbough.PastPoint
	var kept time.Time // of the last one that is kept
	for i, pt := range points {
		last, age := i == len(points)-1, now.Sub(pt.CreatedAt)
		each := time.Duration(0)
		switch {
		case age > pastHourly:
			each = 24 * time.Hour
		case age > pastAll:
			each = time.Hour
		}
		switch {
		case window == 0, !last && now.Sub(points[i+1].CreatedAt) >= window:
			drop = append(drop, pt)
		case !last && each > 0 && !kept.IsZero() && kept.Truncate(each).Equal(pt.CreatedAt.Truncate(each)):
			drop = append(drop, pt)
		default:
			kept = pt.CreatedAt
		}
	}
	return drop
}

// pointsIn are the points of the past that branches are just being made of, and
// whether a project just gets another one.
func pointsIn(ops []pgbough.Operation, projectID string) (used map[string]bool, making bool) {
	used = map[string]bool{}
	for _, op := range ops {
		if id := volumesIn(op).Past.Point; id != "" {
			used[id] = true
		}
		making = making || op.ProjectID == projectID && op.Kind == "keep_point"
	}
	return used, making
}
