package branch

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/archive"
	"github.com/pgbough/pgbough/internal/follower"
	"github.com/pgbough/pgbough/internal/operation"
	"github.com/pgbough/pgbough/internal/volume"
)

const (
	historyInterval = time.Second
	// pastDistance is how much WAL lies between two points of the past at least.
	pastDistance = 256 << 20
	// Points of the past are all kept for so long, then one of each hour, then one of each day.
	pastAll    = time.Hour
	pastHourly = 24 * time.Hour
)

// history is what is kept of one lineage.
type history struct {
	projectID string
	archive   *archive.Archive
	note      atomic.Pointer[string] // why not all of it is kept

	mu   sync.Mutex // held while the archive is written to
	gone bool       // removed with its project

	// Its keeper's alone.
	warned time.Time
	again  time.Time // when a point may be made again, after one could not
}

// keepHistory keeps the WAL and the points of a project's root, as far back as
// the project wants. It ends with the service, or with the project.
func (s *Service) keepHistory(projectID string) {
	if s.archive == "" {
		return
	}
	ticker := time.NewTicker(historyInterval)
	defer ticker.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-ticker.C:
		}
		p, err := s.catalog.Project(s.ctx, projectID)
		if pgbough.ErrorCode(err) == pgbough.ENotFound || err == nil && p.State == pgbough.ProjectDeleting {
			return
		}
		if err == nil && p.State == pgbough.ProjectActive {
			err = s.tendHistory(p)
		}
		if err != nil && s.ctx.Err() == nil {
			s.troubled(projectID, err)
		}
	}
}

// troubled tells, not every second, that history is not kept.
func (s *Service) troubled(projectID string, err error) {
	p, perr := s.catalog.Project(s.ctx, projectID)
	if perr != nil {
		return
	}
	h, herr := s.historyOf(s.ctx, p)
	if herr != nil || h == nil {
		s.log.WarnContext(s.ctx, "history is not kept", "project", p.Name, "err", errors.Join(err, herr))
		return
	}
	note := "history is not kept: " + err.Error()
	h.note.Store(&note)
	if time.Since(h.warned) > time.Minute {
		h.warned = time.Now()
		s.log.WarnContext(s.ctx, "history is not kept", "project", p.Name, "err", err)
	}
}

// historyOf is the history of a project's root; nil where none is kept.
func (s *Service) historyOf(ctx context.Context, p pgbough.Project) (*history, error) {
	if s.archive == "" {
		return nil, nil
	}
	root, err := s.catalog.Branch(ctx, p.ID, p.RootBranchID)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if h, ok := s.histories[root.VolumeID]; ok {
		return h, nil
	}
	a, err := archive.Open(filepath.Join(s.archive, root.VolumeID), archive.Options{Reserve: s.reserve, Log: s.log.With("project", p.Name)})
	if err != nil {
		return nil, err
	}
	h := &history{projectID: p.ID, archive: a}
	s.histories[root.VolumeID] = h
	return h, nil
}

// tendHistory looks once at the history of a project.
func (s *Service) tendHistory(p pgbough.Project) error {
	f, err := s.followerOf(p.ID)
	if err != nil {
		return err
	}
	h, err := s.historyOf(s.ctx, p)
	if err != nil {
		return err
	}
	if s.pool.Kind() == volume.KindCopy {
		p.History = 0 // each point would be a full copy
	}
	var full error
	if p.History > 0 {
		full = s.collect(p, h, f.Status())
		if full != nil && !errors.Is(full, archive.ErrFull) {
			return full
		}
		if full == nil {
			full = s.pool.CheckSpace(0)
		}
		if full == nil {
			if err := s.tendPast(p, h, f); err != nil {
				return err
			}
		}
	}
	if err := errors.Join(full, s.retain(p, h, full != nil)); err != nil {
		return err
	}
	h.note.Store(nil)
	return nil
}

// collect takes over what the follower has received.
func (s *Service) collect(p pgbough.Project, h *history, st pgbough.FollowerStatus) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.gone || st.Timeline == 0 || received(st) == 0 {
		return nil
	}
	if !st.SourceTime.IsZero() {
		if err := h.archive.Note(archive.Mark{Time: st.SourceTime, LSN: st.SourceLSN}); err != nil {
			return err
		}
	}
	wal, err := s.walOf(s.ctx, p)
	if err != nil {
		return err
	}
	defer func() { _ = wal.Close() }() // read only
	_, err = h.archive.Collect(s.ctx, wal, received(st), h.archive.Newest(wal, st.Timeline))
	return err
}

// received is how far the follower's WAL is known to go: what it has replayed is
// there also when no walreceiver runs that could be asked.
func received(st pgbough.FollowerStatus) pgbough.LSN { return max(st.Received, st.Replay) }

// walOf is the pg_wal of a project's follower.
func (s *Service) walOf(ctx context.Context, p pgbough.Project) (*os.Root, error) {
	root, err := s.catalog.Branch(ctx, p.ID, p.RootBranchID)
	if err != nil {
		return nil, err
	}
	v, err := s.pool.Get(root.VolumeID)
	if err != nil {
		return nil, err
	}
	wal, err := os.OpenRoot(filepath.Join(v.Data, "pg_wal"))
	if err != nil {
		return nil, fmt.Errorf("open the follower's WAL: %w", err)
	}
	return wal, nil
}

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
	var v volume.Volume
	err = f.Snapshot(ctx, func(ctx context.Context) error {
		v, err = s.pool.Clone(ctx, r.State.Parent, volume.Manifest{ID: r.State.VolumeID, ProjectID: p.ID, Project: p.Name, Role: volume.RolePast, Owner: p.RootBranchID})
		return err
	})
	if err != nil {
		return fmt.Errorf("clone the follower: %w", err)
	}
	after, err := f.Position(ctx)
	if err != nil {
		return err
	}
	// What the clone is lies between: its redo point only grows, and its files hold nothing that came after.
	r.State.Redo, r.State.LSN, r.State.Timeline, r.State.Time = before.Redo, after.Replay, after.Timeline, before.SourceTime
	if err := follower.Scrub(v.Data); err != nil {
		return err
	}
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
// full one point more: then the window gets shorter.
func (s *Service) retain(p pgbough.Project, h *history, full bool) error {
	points, err := s.catalog.PastPoints(s.ctx, p.ID)
	if err != nil {
		return err
	}
	drop := outdated(points, time.Now(), p.History)
	if full && len(drop) == 0 && len(points) > 1 {
		s.log.WarnContext(s.ctx, "the archive's disk or the pool is full: the history window gets shorter", "project", p.Name,
			"was_from", points[0].Time, "now_from", points[1].Time)
		drop = points[:1]
	}
	busy, err := s.usedPoints(s.ctx)
	if err != nil {
		return err
	}
	for _, pt := range drop {
		if busy[pt.VolumeID] {
			continue
		}
		op, err := s.engine.Start(s.ctx, "drop_point", operation.Request{ProjectID: p.ID, State: keepState{VolumeID: pt.VolumeID}})
		if err == nil {
			_, err = s.engine.Wait(s.ctx, op.ID)
		}
		if err != nil {
			return err
		}
	}
	return s.trim(p, h)
}

// trim removes the WAL before all points that are left.
func (s *Service) trim(p pgbough.Project, h *history) error {
	points, err := s.catalog.PastPoints(s.ctx, p.ID)
	if err != nil {
		return err
	}
	oldest := pgbough.LSN(math.MaxInt64)
	for _, pt := range points {
		oldest = min(oldest, pt.Redo)
	}
	if len(points) == 0 && p.History > 0 {
		return nil // the first is not made yet
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.gone {
		return nil
	}
	return h.archive.Trim(oldest)
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

// usedPoints are the points of the past that branches are just being made of.
func (s *Service) usedPoints(ctx context.Context) (map[string]bool, error) {
	ops, err := s.catalog.Unfinished(ctx)
	if err != nil {
		return nil, err
	}
	used := map[string]bool{}
	for _, op := range ops {
		if id := volumesIn(op).Past.Point; id != "" {
			used[id] = true
		}
	}
	return used, nil
}

// removeHistory removes all that is kept of the past of a project that is going away.
func (s *Service) removeHistory(ctx context.Context, projectID, lineage string) error {
	points, err := s.catalog.PastPoints(ctx, projectID)
	if err != nil {
		return err
	}
	for _, pt := range points {
		if err := s.removePast(ctx, pt.VolumeID); err != nil {
			return err
		}
	}
	if s.archive == "" || lineage == "" {
		return nil
	}
	s.mu.Lock()
	h, ok := s.histories[lineage]
	delete(s.histories, lineage)
	s.mu.Unlock()
	if ok {
		h.mu.Lock()
		defer h.mu.Unlock()
		if err := h.archive.Close(); err != nil && !h.gone {
			return err
		}
		h.gone = true
	}
	return os.RemoveAll(filepath.Join(s.archive, lineage))
}

// History is how far back a project can be branched.
func (s *Service) History(ctx context.Context, project string) (pgbough.History, error) {
	p, err := s.catalog.Project(ctx, project)
	if err != nil {
		return pgbough.History{}, err
	}
	out := pgbough.History{Project: hide(p), Window: p.History}
	h, err := s.historyOf(ctx, p)
	if err != nil || h == nil || p.State != pgbough.ProjectActive {
		return out, err
	}
	if out.Points, err = s.catalog.PastPoints(ctx, p.ID); err != nil {
		return out, err
	}
	stats := h.archive.Stats()
	out.WALBytes, out.RawBytes = stats.Bytes, stats.RawBytes
	out.Notes = h.told()
	if s.pool.Kind() == volume.KindCopy {
		out.Notes = append(out.Notes, "the pool cannot share what is the same, so no history is kept: each point would be a full copy")
	}
	if len(out.Points) == 0 {
		return out, nil
	}
	out.From = out.Points[0].LSN
	if m, ok := h.archive.Since(out.From); ok {
		out.FromTime = m.Time
	}
	f, err := s.followerOf(p.ID)
	if err != nil {
		return out, err
	}
	out.To, out.ToTime = received(f.Status()), h.archive.Last().Time
	out.Gaps, err = s.gaps(ctx, p, h, out)
	return out, err
}

func (s *Service) gaps(ctx context.Context, p pgbough.Project, h *history, of pgbough.History) ([]pgbough.Gap, error) {
	l, done, err := s.logOf(ctx, p, h)
	if err != nil {
		return nil, err
	}
	defer done()
	var gaps []pgbough.Gap
	for _, g := range l.Missing(of.Points[0].Redo, of.To) {
		gaps = append(gaps, pgbough.Gap(g))
	}
	return gaps, nil
}

// logOf is the WAL of a project's root as it is now. The caller calls done.
func (s *Service) logOf(ctx context.Context, p pgbough.Project, h *history) (_ *archive.Log, done func(), err error) {
	f, err := s.followerOf(p.ID)
	if err != nil {
		return nil, nil, err
	}
	wal, err := s.walOf(ctx, p)
	if err != nil {
		return nil, nil, err
	}
	st := f.Status()
	l, err := h.archive.Log(wal, received(st), h.archive.Newest(wal, st.Timeline))
	if err != nil {
		return nil, nil, errors.Join(err, wal.Close())
	}
	return l, func() { _ = wal.Close() }, nil // it was only read
}

// historyNotes tell why a project's history is not kept, where it is not.
func (s *Service) historyNotes(p pgbough.Project) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var notes []string
	for _, h := range s.histories {
		if h.projectID == p.ID {
			notes = append(notes, h.told()...)
		}
	}
	return notes
}

func (h *history) told() []string {
	if note := h.note.Load(); note != nil {
		return []string{*note}
	}
	return nil
}

// ChangeProject changes what can be changed of a project.
func (s *Service) ChangeProject(ctx context.Context, project string, change pgbough.ProjectChange) (pgbough.Project, error) {
	p, err := s.catalog.Project(ctx, project)
	if err != nil {
		return p, err
	}
	if change.History == nil {
		return hide(p), nil
	}
	if err := checkHistory(*change.History); err != nil {
		return p, err
	}
	p, err = s.catalog.ChangeProject(ctx, p.ID, func(p *pgbough.Project) error {
		p.History = *change.History
		return nil
	})
	return hide(p), err
}

func checkHistory(d time.Duration) error {
	if d < 0 || d > 0 && d < time.Minute {
		return pgbough.Errorf(pgbough.EInvalid, "a history of %s cannot be kept", d).WithHint("give a minute at least, or 0 for none")
	}
	return nil
}
