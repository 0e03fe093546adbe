package branch

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/catalog"
	"github.com/pgbough/pgbough/internal/follower"
	"github.com/pgbough/pgbough/internal/operation"
	"github.com/pgbough/pgbough/internal/postgres"
	"github.com/pgbough/pgbough/internal/quarantine"
	"github.com/pgbough/pgbough/internal/source"
)

// createState is what create_branch remembers between its steps.
type createState struct {
	VolumeID string            `json:"volume_id,omitempty"` // of the spare that becomes the branch
	MaxLag   time.Duration     `json:"max_lag,omitempty"`   // how old a state the request accepts
	Asked    pgbough.LSN       `json:"asked,omitempty"`     // production's position after the request
	AskedAt  time.Time         `json:"asked_at,omitzero"`
	Timeline uint32            `json:"timeline,omitempty"` // production's, with Asked
	TakenAt  time.Time         `json:"taken_at,omitzero"`
	Boot     string            `json:"boot,omitempty"` // of the machine, when the spare was taken
	Cut      *follower.Cut     `json:"cut,omitempty"`
	Settings []pgbough.Setting `json:"settings,omitempty"` // production's, read with Asked

	// Not saved, as the steps between take and publish are not: they run again together.
	done   bool               // published by an earlier run, which died before that was saved
	report *quarantine.Report // what quarantine tells publish; it has passwords

	Fresh       time.Time            `json:"fresh,omitzero"`        // when production was asked, by our clock
	Clone       string               `json:"clone,omitempty"`       // the volume that the branch will be if it is a clone of a point
	Point       string               `json:"point,omitempty"`       // the point that VolumeID is a clone of
	Written     time.Time            `json:"written,omitzero"`      // of a point: when what its spare had replayed began to be made durable
	Differences []pgbough.Difference `json:"differences,omitempty"` // of a point

	Past *pastState `json:"past,omitempty"` // of a branch of a moment of the past
}

type createRun = operation.Run[createState]

// createKind makes a branch of exactly now: production is asked where it is, a
// spare is taken, waits until it has replayed that, is cut from its relay,
// promoted and quarantined; it is the branch. Whoever waits for it waits for each
// write of the catalog, so there are two: that a spare is taken, and that it is the branch.
func (s *Service) createKind() operation.Kind {
	return operation.Define("create_branch",
		operation.Step[createState]{Name: "take", Lazy: true, Do: s.takeSpare, Undo: s.dropTaken},
		operation.Step[createState]{Name: "catch_up", Lazy: true, Do: s.reach},
		operation.Step[createState]{Name: "promote", Lazy: true, Do: ofSpare(s.promote)},
		operation.Step[createState]{Name: "quarantine", Lazy: true, Do: ofSpare(s.quarantine)},
		operation.Step[createState]{Name: "publish", Lazy: true, Do: ofSpare(s.publish)},
	)
}

// takeSpare asks production where it is, and reserves a spare. It waits for one
// where none is ready. A spare that was taken is never given back, since it may
// have been promoted: so nothing is taken for a request that cannot be served.
func (s *Service) takeSpare(ctx context.Context, r *createRun) error {
	if r.State.VolumeID != "" && r.State.Past == nil {
		return nil
	}
	if ok, err := s.wasCloned(ctx, r); ok || err != nil {
		return err
	}
	f, err := s.followerOf(r.ProjectID)
	if err != nil {
		return err
	}
	if r.State.Past != nil {
		return s.clonePast(ctx, r)
	}
	defer s.leaves(r.ProjectID, r.BranchID)
	if ok, err := s.cloneRecent(ctx, r, f); ok || err != nil {
		return err
	}
	if err := s.ask(ctx, r, f); err != nil {
		return err
	}
	s.waits(r.ProjectID, r.BranchID)
	began := time.Now()
	var since time.Time // when the follower was first seen not to stream
	for waited := false; ; waited = true {
		if ok, err := s.served(ctx, r, waited); ok || err != nil {
			return err
		}
		dead, err := s.takeReady(ctx, r, f)
		if err != nil || r.State.VolumeID != "" {
			return err
		}
		if dead != "" {
			s.log.WarnContext(ctx, "a ready spare does not run; taking another", "volume", dead)
			if err := s.removeSpare(ctx, r.ProjectID, dead); err != nil {
				return err
			}
			continue
		}
		switch st := f.Status(); {
		case st.State == pgbough.FollowerStreaming:
			since = time.Time{}
		case since.IsZero():
			since = time.Now()
		case time.Since(since) > short:
			return pgbough.Errorf(pgbough.EUnreachable, "no spare is ready, and none can be made while the follower is %s: %s", st.State, st.Reason).
				WithHint("pgbough status shows when it streams again")
		}
		if err := s.hopeless(r.ProjectID, began); err != nil {
			return err
		}
		r.Progress(pgbough.Progress{Message: "no spare is ready; waiting for the one that is being filled"})
		s.wakeKeeper(r.ProjectID)
		if err := s.spareReady(ctx, r.ProjectID); err != nil {
			return err
		}
	}
}

// takeReady reserves a ready spare, and saves that with what production has
// answered. One that does not run is dead, and reserved as well.
func (s *Service) takeReady(ctx context.Context, r *createRun, f *follower.Follower) (dead string, err error) {
	boot, err := bootID()
	if err != nil {
		return "", err
	}
	err = r.SaveIn(ctx, func(ctx context.Context, now func() (pgbough.Operation, error)) error {
		return s.catalog.Tx(ctx, func(tx *catalog.Tx) error {
			spare, ok, err := tx.TakeSpare(r.ProjectID, r.ID)
			if err != nil || !ok {
				return err
			}
			if _, alive := f.Spare(spare.VolumeID); !alive {
				dead = spare.VolumeID
				return nil
			}
			r.State.VolumeID, r.State.TakenAt, r.State.Boot = spare.VolumeID, time.Now(), boot
			op, err := now()
			if err != nil {
				return err
			}
			return tx.SaveOperation(op)
		})
	})
	if err != nil {
		r.State.VolumeID = "" // it is not known to be taken
		return "", err
	}
	if r.State.VolumeID != "" {
		s.spareTaken(r.ProjectID)
	}
	return dead, nil
}

// ask asks production where it is, after the request, once for the operation.
func (s *Service) ask(ctx context.Context, r *createRun, f *follower.Follower) error {
	if r.State.Asked != 0 {
		return nil
	}
	if st := f.Status(); st.State == pgbough.FollowerBroken {
		return pgbough.Errorf(pgbough.EConflict, "the follower cannot go on, so nothing can be branched: %s", st.Reason)
	}
	began := time.Now()
	m, err := s.now(ctx, r.ProjectID)
	if pgbough.ErrorCode(err) == pgbough.EUnreachable && r.State.MaxLag > 0 {
		began = f.Status().AskedAt
		m, err = s.lately(ctx, r.ProjectID, r.State.MaxLag, err)
	}
	if err != nil {
		return err
	}
	r.State.heard(m, began)
	return nil
}

// heard keeps what production answered to a question that was asked at a time.
func (st *createState) heard(m source.Moment, asked time.Time) {
	st.Asked, st.AskedAt, st.Timeline, st.Settings, st.Fresh = m.LSN, m.Time, m.Timeline, toNouns(m.Settings), asked
}

// dropTaken removes the spare that was taken for a branch that will not be.
func (s *Service) dropTaken(ctx context.Context, r *createRun) error {
	s.unsettle(r.BranchID)
	s.leaves(r.ProjectID, r.BranchID)
	if r.State.Clone != "" {
		if err := s.destroy(ctx, r.State.Clone); err != nil {
			return err
		}
	}
	if r.State.VolumeID == "" { // the server may have ended, or the step been cancelled, before that was written down
		spare, _, err := s.catalog.TakenSpare(ctx, r.ID)
		if err != nil {
			return err
		}
		r.State.VolumeID = spare.VolumeID
	}
	s.closeQuarantine(ctx, r.State.VolumeID)
	if f, err := s.followerOf(r.ProjectID); err == nil && r.State.VolumeID != "" {
		if err := f.KillSpare(ctx, r.State.VolumeID); err != nil {
			return err
		}
	}
	if r.State.VolumeID != "" {
		if err := s.destroy(ctx, r.State.VolumeID); err != nil {
			return err
		}
	}
	return s.catalog.Tx(ctx, func(tx *catalog.Tx) error {
		if r.State.VolumeID != "" {
			if err := tx.DeleteSpare(r.State.VolumeID); err != nil {
				return err
			}
		}
		return tx.DeleteBranch(r.BranchID)
	})
}

// taken is the spare of this run, when it answers: the running one, or after a
// restart the one that is adopted or started again on its volume.
func (s *Service) taken(ctx context.Context, r *createRun, rows []postgres.Setting) (*follower.Standby, error) {
	if err := sameBoot(r.State.Boot); err != nil {
		return nil, err
	}
	f, err := s.followerOf(r.ProjectID)
	if err != nil {
		return nil, err
	}
	spare, ok := f.Spare(r.State.VolumeID)
	if !ok {
		if spare, err = s.startTaken(ctx, f, r, rows); err != nil {
			return nil, err
		}
	}
	return spare, spare.WaitReady(ctx)
}

// catchUpTimeout bounds the replay of a spare that goes on, but too slowly.
const catchUpTimeout = 5 * time.Minute

// catchUp waits until the spare has replayed what production had at the request.
func (s *Service) catchUp(ctx context.Context, r *createRun) error {
	ctx, cancel := context.WithTimeout(ctx, catchUpTimeout)
	defer cancel()
	spare, err := s.taken(ctx, r, fromNouns(r.State.Settings))
	if err != nil {
		return err
	}
	if err := s.hurry(ctx, r, spare); err != nil {
		return err
	}
	opened := make(chan struct{})
	go func() { defer close(opened); s.openQuarantine(ctx, r.ProjectID, spare.Server) }()
	err = spare.WaitReplay(ctx, r.State.Asked, short)
	<-opened
	if f, ferr := s.followerOf(r.ProjectID); ferr == nil && (errors.Is(err, follower.ErrStalled) || errors.Is(err, context.DeadlineExceeded)) {
		st := f.Status()
		return pgbough.Errorf(pgbough.EUnreachable, "the spare does not reach production's position %s: the follower is %s (%s), %d bytes behind", r.State.Asked, st.State, st.Reason, st.LagBytes).
			WithHint("pgbough status tells how far it is; try again")
	}
	return err
}

// now asks production where it is. Its Source takes no other production's answer.
func (s *Service) now(ctx context.Context, projectID string) (source.Moment, error) {
	f, err := s.followerOf(projectID)
	if err != nil {
		return source.Moment{}, err
	}
	st := f.Status()
	m, err := f.Source().Now(ctx)
	if err != nil {
		var e *pgbough.Error
		if errors.As(err, &e) && e.Code == pgbough.EUnreachable && !st.AskedAt.IsZero() {
			return m, e.WithHint("the newest state here is %s, replayed %s ago; pgbough status tells more", st.Replay, time.Since(st.AskedAt).Round(time.Second))
		}
		return m, err
	}
	return m, nil
}

// lately is the newest moment that production has told and the follower has
// replayed, if that is no older than maxLag; else the error that now gave.
func (s *Service) lately(ctx context.Context, projectID string, maxLag time.Duration, cause error) (source.Moment, error) {
	f, err := s.followerOf(projectID)
	if err != nil {
		return source.Moment{}, err
	}
	st := f.Status()
	if st.AskedAt.IsZero() || time.Since(st.AskedAt) > maxLag || st.Replay < st.SourceLSN {
		return source.Moment{}, cause
	}
	p, err := s.catalog.Project(ctx, projectID)
	return source.Moment{
		LSN: st.SourceLSN, Time: st.AskedAt, SystemID: p.Source.SystemID, Timeline: st.Timeline, Settings: fromNouns(p.Source.Settings),
	}, err
}

// promote cuts the spare from production and gives it a timeline of its own.
func (s *Service) promote(ctx context.Context, r *createRun) error {
	if r.State.done {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	spare, err := s.taken(ctx, r, nil)
	if err != nil {
		return err
	}
	// The manifest is written meanwhile: from the promotion on the volume is the branch's.
	marked := make(chan error, 1)
	go func() { marked <- s.pool.SetRole(ctx, r.State.VolumeID, pointRole(r), r.BranchID) }()
	if spare.CutOff(ctx) {
		s.lookAhead(s.ctx, r.State.VolumeID)
	}
	cut, err := spare.Promote(ctx)
	if err := errors.Join(err, <-marked); err != nil {
		return err
	}
	if cut.LSN < r.State.Asked {
		return pgbough.Errorf(pgbough.EInternal, "the branch was cut at %s, before production's position %s", cut.LSN, r.State.Asked)
	}
	if r.State.Past != nil && cut.LSN != r.State.Asked {
		return pgbough.Errorf(pgbough.EInternal, "the branch was cut at %s, and %s was wanted", cut.LSN, r.State.Asked)
	}
	if cut.Parent != r.State.Timeline {
		return pgbough.Errorf(pgbough.ELocked, "production changed to timeline %d (a failover), and the spare was still on %d", r.State.Timeline, cut.Parent).
			WithHint("try again; pgbough status shows when the follower has followed")
	}
	if cut.Time.IsZero() || r.State.Past != nil {
		cut.Time = r.State.AskedAt
	}
	r.State.Cut = &cut
	return spare.TrimSegment(ctx)
}

// quarantine cuts everything in the branch that reaches outside, and gives each
// login role a fresh password. It may run again: then the passwords are newer.
func (s *Service) quarantine(ctx context.Context, r *createRun) error {
	if r.State.done {
		return nil
	}
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
	// What waits for a disk goes on beside quarantine. Of the settings too: they are
	// in force for all who connect once quarantine has run.
	var disk errgroup.Group
	began := time.Now()
	disk.Go(func() error { return postgres.SyncWAL(spare.Config().DataDir, r.State.TakenAt.Add(-clockMargin)) })
	disk.Go(func() error { return spare.Configure(s.branchSettings(p, fromNouns(r.State.Settings), false)) })
	report, err := s.runQuarantine(ctx, p, spare.Server)
	if err := errors.Join(err, disk.Wait()); err != nil {
		return fmt.Errorf("quarantine: %w", err)
	}
	if err := spare.Reread(); err != nil {
		return err
	}
	if err := s.hardenAll(ctx, r, spare, began); err != nil {
		return err
	}
	if report.Differences, err = s.differences(p, fromNouns(r.State.Settings), report.Differences); err != nil {
		return err
	}
	r.State.report = &report
	return nil
}

// differences are all of a branch, with those that quarantine has made.
func (s *Service) differences(p pgbough.Project, rows []postgres.Setting, made []pgbough.Difference) ([]pgbough.Difference, error) {
	_, differences := s.preload(p, rows)
	left, err := s.leftOut(p, rows)
	return append(append(differences, left...), made...), err
}

// publish makes the spare the branch: its volume and its Postgres change hands.
func (s *Service) publish(ctx context.Context, r *createRun) error {
	p, err := s.catalog.Project(ctx, r.ProjectID)
	if err != nil {
		return err
	}
	if !r.State.done && r.State.report == nil { // an earlier version saved the end of quarantine
		if err := s.quarantine(ctx, r); err != nil {
			return err
		}
	}
	b, err := s.record(ctx, r)
	if err != nil {
		return err
	}
	time.AfterFunc(firstUse, func() { s.wakeKeeper(p.ID) })
	return s.serve(ctx, p, b)
}

// record writes all that is known of the branch, which is ready with it.
func (s *Service) record(ctx context.Context, r *createRun) (b pgbough.Branch, err error) {
	err = s.catalog.Tx(ctx, func(tx *catalog.Tx) error {
		b, err = recordIn(tx, r)
		return err
	})
	return b, err
}

func recordIn(tx *catalog.Tx, r *createRun) (pgbough.Branch, error) {
	b, err := tx.Branch(r.ProjectID, r.BranchID)
	if err != nil || r.State.done {
		return b, err
	}
	if !b.ExpiresAt.IsZero() { // who asked gets some time to see it, and to renew it
		b.ExpiresAt = later(b.ExpiresAt, time.Now().Add(leastLife))
	}
	b.VolumeID, b.Settings, b.Differences = r.State.VolumeID, r.State.Settings, r.State.report.Differences
	b.ParentLSN, b.ParentTime, b.State = r.State.Cut.LSN, r.State.Cut.Time, pgbough.BranchReady
	b.Settled = r.State.Point != "" // the point was purged and checkpointed before it was one
	for i := range r.State.report.Roles {
		r.State.report.Roles[i].BranchID = b.ID
	}
	if err := tx.UpdateBranch(b); err != nil {
		return b, err
	}
	if err := tx.PutRoles(b.ID, r.State.report.Roles); err != nil {
		return b, err
	}
	return b, tx.DeleteSpare(r.State.VolumeID)
}

// firstUse is how long a new branch has the processors to itself: whoever waits
// for it connects now, and what is to be done in the background has time.
const firstUse = 200 * time.Millisecond

// leastLife is how long a branch that expires is there at least, also when
// making it took longer than it was to live.
const leastLife = time.Minute

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
