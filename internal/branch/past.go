package branch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/archive"
	"github.com/pgbough/pgbough/internal/catalog"
	"github.com/pgbough/pgbough/internal/follower"
	"github.com/pgbough/pgbough/internal/postgres"
	"github.com/pgbough/pgbough/internal/volume"
)

// A branch of a moment of the past is made as one of now is, but of another
// spare: a clone of a point of the past that replays WAL to that moment. All
// moments are positions by then: where a time is, is found in the WAL before the
// request is answered.

// pastState is what create_branch knows of the moment; the position is Asked.
type pastState struct {
	Point  string      `json:"point"` // its volume
	Redo   pgbough.LSN `json:"redo"`
	Filled bool        `json:"filled,omitempty"` // the clone has its WAL
}

// past finds the moment that a request wants.
func (s *Service) past(ctx context.Context, p pgbough.Project, parent pgbough.Branch, req pgbough.CreateRequest) (createState, error) {
	var none createState
	if parent.ID != p.RootBranchID {
		return none, pgbough.Errorf(pgbough.EInvalid, "only %s has a history in this version", pgbough.RootBranchName)
	}
	if req.MaxLag > 0 {
		return none, pgbough.Errorf(pgbough.EInvalid, "a branch of a moment of the past cannot be older than asked for").WithHint("leave --max-lag or --at out")
	}
	h, err := s.historyOf(ctx, p)
	if err != nil {
		return none, err
	}
	if h == nil || p.History == 0 {
		return none, pgbough.Errorf(pgbough.EConflict, "project %s keeps no history", p.Name).WithHint("pgbough project set %s --history 24h keeps one from then on", p.Name)
	}
	points, err := s.catalog.PastPoints(ctx, p.ID)
	if err != nil {
		return none, err
	}
	if !s.keepsHistory(p) {
		return none, pgbough.Errorf(pgbough.EConflict, "project %s has no history: %s", p.Name, noPoints).
			WithHint("a pool on XFS, btrfs or ZFS has one (--pool)")
	}
	if len(points) == 0 {
		return none, pgbough.Errorf(pgbough.EConflict, "project %s has no history yet", p.Name).WithHint("pgbough history shows when it has")
	}
	m := moment{s: s, p: p, h: h, points: points}
	stop, pt, err := m.find(ctx, req.At)
	if err != nil {
		return none, err
	}
	return createState{
		Past: &pastState{Point: pt.VolumeID, Redo: pt.Redo}, Asked: stop.LSN, AskedAt: stop.Commit, Timeline: m.timeline, Settings: pt.Settings,
	}, nil
}

// moment is what is needed to find one.
type moment struct {
	s        *Service
	p        pgbough.Project
	h        *history
	points   []pgbough.PastPoint
	timeline uint32 // on which the moment is
}

// find is where to stop for a moment, and the point to begin with.
func (m *moment) find(ctx context.Context, at pgbough.Past) (archive.Stop, pgbough.PastPoint, error) {
	first := m.points[0]
	known := at.LSN // of all that is before it something is known
	var low archive.Mark
	if at.LSN == 0 {
		var err error
		if known, err = m.upTo(ctx, at.Time); err != nil {
			return archive.Stop{}, first, err
		}
		var ok bool
		if low, ok = m.h.archive.Before(at.Time); !ok || low.LSN < first.LSN {
			return archive.Stop{}, first, m.tooOld(at.Time.UTC().Format(time.RFC3339Nano))
		}
	} else if at.LSN < first.LSN {
		return archive.Stop{}, first, m.tooOld(at.LSN.String())
	} else if low, _ = m.h.archive.Reached(at.LSN); low.LSN < first.LSN {
		low.LSN = at.LSN
	}
	if err := m.s.hasReceived(ctx, m.p, known); err != nil {
		return archive.Stop{}, first, err
	}
	l, done, err := m.s.logOf(ctx, m.p, m.h)
	if err != nil {
		return archive.Stop{}, first, err
	}
	defer done()
	var stop archive.Stop
	if at.LSN == 0 {
		stop, err = l.Until(low.LSN, at.Time)
	} else {
		stop, err = l.Before(low.LSN, at.LSN)
	}
	if err != nil {
		return stop, first, lost(err)
	}
	if stop.Commit.IsZero() {
		stop.Commit = low.Time
	}
	for _, pt := range slices.Backward(m.points) {
		if pt.LSN > min(stop.LSN, max(low.LSN, at.LSN)) {
			continue
		}
		if gaps := l.Missing(pt.Redo, stop.LSN); len(gaps) > 0 {
			return stop, pt, lost(fmt.Errorf("%w: from %s to %s", archive.ErrMissing, gaps[0].From, gaps[0].To))
		}
		m.timeline = l.TimelineAt(stop.LSN)
		return stop, pt, nil
	}
	return stop, first, m.tooOld(stop.LSN.String())
}

// upTo is a position at which production was later than t. It is an error when
// production has not come to t yet.
func (m *moment) upTo(ctx context.Context, t time.Time) (pgbough.LSN, error) {
	if mark, ok := m.h.archive.After(t); ok {
		return mark.LSN, nil
	}
	now, err := m.s.now(ctx, m.p.ID)
	if err != nil {
		return 0, err
	}
	if t.After(now.Time) {
		return 0, pgbough.Errorf(pgbough.EInvalid, "%s is in the future: production's clock says %s", t.UTC().Format(time.RFC3339Nano), now.Time.UTC().Format(time.RFC3339Nano)).
			WithHint("for a branch of now leave --at out")
	}
	m.h.mu.Lock()
	defer m.h.mu.Unlock()
	return now.LSN, m.h.archive.Note(archive.Mark{Time: now.Time, LSN: now.LSN})
}

func (m *moment) tooOld(what string) error {
	from := m.points[0].LSN.String()
	if mark, ok := m.h.archive.Since(m.points[0].LSN); ok {
		from += ", " + mark.Time.UTC().Format(time.RFC3339Nano)
	}
	return pgbough.Errorf(pgbough.EInvalid, "%s is too long ago: the history of project %s begins at %s", what, m.p.Name, from).
		WithHint("pgbough history shows the window; pgbough project set %s --history makes it longer from now on", m.p.Name)
}

// lost is an error of WAL that is not there, for people.
func lost(err error) error {
	if errors.Is(err, archive.ErrMissing) {
		return pgbough.Errorf(pgbough.EConflict, "this moment cannot be branched: %w", err).WithHint("pgbough history shows the gaps")
	}
	return err
}

// hasReceived waits until the follower has received lsn, which production must
// have written.
func (s *Service) hasReceived(ctx context.Context, p pgbough.Project, lsn pgbough.LSN) error {
	f, err := s.followerOf(p.ID)
	if err != nil {
		return err
	}
	waiting, cancel := context.WithTimeout(ctx, short)
	defer cancel()
	for f.Status().Timeline == 0 { // it has just been started, and was not asked yet
		if err := f.WaitChange(waiting); err != nil {
			return pgbough.Errorf(pgbough.EConflict, "the follower does not run: %s", f.Status().Reason).WithHint("pgbough status tells more")
		}
	}
	if received(f.Status()) >= lsn {
		return nil
	}
	if f.Status().SourceLSN < lsn {
		now, err := s.now(ctx, p.ID)
		if err != nil {
			return err
		}
		if lsn > now.LSN {
			return pgbough.Errorf(pgbough.EInvalid, "%s is in the future: production is at %s", lsn, now.LSN).WithHint("for a branch of now leave --at out")
		}
	}
	for received(f.Status()) < lsn {
		if err := f.WaitChange(waiting); err != nil {
			return pgbough.Errorf(pgbough.EUnreachable, "the follower has not received %s yet, only %s", lsn, received(f.Status())).
				WithHint("pgbough status shows how far it is")
		}
	}
	return nil
}

// clonePast makes the spare of a branch of the past: a clone of its point, with
// the WAL up to the moment.
func (s *Service) clonePast(ctx context.Context, r *createRun) error {
	if err := s.reservePast(ctx, r); err != nil || r.State.Past.Filled {
		return err
	}
	if err := s.destroy(ctx, r.State.VolumeID); err != nil { // of an earlier run
		return err
	}
	p, err := s.catalog.Project(ctx, r.ProjectID)
	if err != nil {
		return err
	}
	past := r.State.Past
	if err := s.pool.CheckClone(ctx, past.Point, spareNeed+r.State.Asked.Sub(past.Redo)); err != nil {
		return removed(err)
	}
	r.Progress(pgbough.Progress{Message: fmt.Sprintf("production as it was at %s, after the commit of %s; from %d MB of WAL before it", r.State.Asked, r.State.AskedAt.UTC().Format(time.RFC3339Nano), r.State.Asked.Sub(past.Redo)>>20)})
	v, err := s.pool.Clone(ctx, past.Point, volume.Manifest{ID: r.State.VolumeID, ProjectID: p.ID, Project: p.Name, Role: volume.RoleSpare})
	if err != nil {
		return removed(err)
	}
	if err := s.fillPast(ctx, r, p, v); err != nil {
		return lost(err)
	}
	past.Filled = true
	return r.Save(ctx)
}

// removed is an error of cloning a point that may be gone since it was chosen.
func removed(err error) error {
	if errors.Is(err, volume.ErrNotExist) {
		return pgbough.Errorf(pgbough.ELocked, "the point that the branch was to be made of has just been removed").WithHint("try again")
	}
	return err
}

// reservePast writes down which volume the branch will be, once.
func (s *Service) reservePast(ctx context.Context, r *createRun) error {
	if r.State.VolumeID != "" {
		return nil
	}
	boot, err := bootID()
	if err != nil {
		return err
	}
	id := pgbough.NewVolumeID()
	err = r.SaveIn(ctx, func(ctx context.Context, now func() (pgbough.Operation, error)) error {
		return s.catalog.Tx(ctx, func(tx *catalog.Tx) error {
			at := time.Now()
			err := tx.PutSpare(pgbough.Spare{VolumeID: id, ProjectID: r.ProjectID, State: pgbough.SpareReady, Redo: r.State.Past.Redo, CreatedAt: at, ReadyAt: at})
			if err != nil {
				return err
			}
			if _, err := tx.TakeSpareVolume(id, r.ID); err != nil {
				return err
			}
			r.State.VolumeID, r.State.TakenAt, r.State.Boot, r.State.Fresh = id, at, boot, at
			op, err := now()
			if err != nil {
				return err
			}
			return tx.SaveOperation(op)
		})
	})
	if err != nil {
		r.State.VolumeID = ""
	}
	return err
}

func (s *Service) fillPast(ctx context.Context, r *createRun, p pgbough.Project, v volume.Volume) error {
	h, err := s.historyOf(ctx, p)
	if err != nil {
		return err
	}
	if h == nil {
		return pgbough.Errorf(pgbough.EConflict, "project %s keeps no history", p.Name)
	}
	if err := s.hasReceived(ctx, p, r.State.Asked); err != nil { // after a restart it is not known at once
		return err
	}
	l, done, err := s.logOf(ctx, p, h)
	if err != nil {
		return err
	}
	defer done()
	wal, err := os.OpenRoot(filepath.Join(v.Data, "pg_wal"))
	if err != nil {
		return fmt.Errorf("open the WAL of the clone: %w", err)
	}
	err = l.Fill(ctx, wal, archive.Owner{UID: s.credential.UID, GID: s.credential.GID}, r.State.Past.Redo, r.State.Asked)
	return errors.Join(err, wal.Close())
}

// replayTimeout bounds the replay to a moment of the past.
const replayTimeout = time.Hour

// replayPast brings the spare to the moment. There it promotes itself, unless the
// moment is where its WAL ends: then promote does it.
func (s *Service) replayPast(ctx context.Context, r *createRun) error {
	ctx, cancel := context.WithTimeout(ctx, replayTimeout)
	defer cancel()
	spare, err := s.taken(ctx, r, nil)
	if err != nil {
		return err
	}
	return spare.WaitReplay(ctx, r.State.Asked, short)
}

// startTaken starts the spare of a run. That of a moment of the past stops there,
// whatever WAL comes after it (P1), and streams from nobody.
func (s *Service) startTaken(ctx context.Context, f *follower.Follower, r *createRun, rows []postgres.Setting) (*follower.Standby, error) {
	if r.State.Past == nil {
		return s.startSpare(ctx, f, r.ProjectID, r.State.VolumeID, rows)
	}
	p, err := s.catalog.Project(ctx, r.ProjectID)
	if err != nil {
		return nil, err
	}
	cfg, err := s.config(ctx, p, r.State.VolumeID)
	if err != nil {
		return nil, err
	}
	cfg.Limits = s.limits
	cfg.Limits.Favoured = true
	cfg.Settings = s.spareSettings(p, s.inside(cfg), fromNouns(r.State.Settings)) + postgres.File("until a moment of the past", floors(p.Source.Settings, r.State.Settings), until(r.State))
	return f.StartSpare(ctx, cfg)
}

func until(st *createState) []postgres.Param {
	return []postgres.Param{
		{Name: "primary_conninfo", Value: ""},
		{Name: "primary_slot_name", Value: ""},
		{Name: "recovery_target_lsn", Value: st.Asked.String()},
		{Name: "recovery_target_inclusive", Value: "off"}, // nothing that begins there (facts 13)
		{Name: "recovery_target_timeline", Value: strconv.FormatUint(uint64(st.Timeline), 10)},
		{Name: "recovery_target_action", Value: "promote"}, // a pause would be noticed to be over within a second only
	}
}

// floors are what recovery needs, wherever production changed it since the point:
// the larger of two.
func floors(a, b []pgbough.Setting) []postgres.Param {
	params := postgres.Floor(fromNouns(a))
	for i, other := range postgres.Floor(fromNouns(b)) {
		x, errX := strconv.Atoi(params[i].Value)
		y, errY := strconv.Atoi(other.Value)
		if errX == nil && errY == nil && y > x {
			params[i] = other
		}
	}
	return params
}
