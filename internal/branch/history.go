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
	"github.com/pgbough/pgbough/internal/volume"
)

const historyInterval = time.Second

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
			s.troubled(p, err)
		}
	}
}

// troubled tells, not every second, that history is not kept.
func (s *Service) troubled(p pgbough.Project, err error) {
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

// noPoints is why a pool of kind copy has no history.
const noPoints = "the pool cannot share what is the same, so each point would be a full copy"

// keepsHistory tells whether a project has a history: one that wants it, in a pool
// in which a point is no full copy.
func (s *Service) keepsHistory(p pgbough.Project) bool {
	return p.History > 0 && s.pool.Kind() != volume.KindCopy
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
	st := f.Status()
	var full error
	if s.keepsHistory(p) {
		full = s.collect(p, h, st)
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
	if err := errors.Join(full, s.retain(p, h, st.Redo, full != nil)); err != nil {
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

// trim removes the WAL that no point needs, and where there is none yet the next
// one, which will not begin before redo, the follower's present redo point.
func (s *Service) trim(p pgbough.Project, h *history, points []pgbough.PastPoint, redo pgbough.LSN) error {
	oldest := pgbough.LSN(math.MaxInt64)
	if s.keepsHistory(p) {
		oldest = redo
	}
	for _, pt := range points {
		oldest = min(oldest, pt.Redo)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.gone {
		return nil
	}
	return h.archive.Trim(oldest)
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
	if p.State != pgbough.ProjectActive {
		return out, nil
	}
	h, err := s.historyOf(ctx, p)
	if err != nil || h == nil {
		return out, err
	}
	if out.Points, err = s.catalog.PastPoints(ctx, p.ID); err != nil {
		return out, err
	}
	stats := h.archive.Stats()
	out.WALBytes, out.RawBytes = stats.Bytes, stats.RawBytes
	out.Notes = h.told()
	if s.pool.Kind() == volume.KindCopy {
		out.Notes = append(out.Notes, "no history is kept: "+noPoints)
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
