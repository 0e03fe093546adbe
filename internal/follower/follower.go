package follower

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/postgres"
	"github.com/pgbough/pgbough/internal/replication"
	"github.com/pgbough/pgbough/internal/source"
)

const (
	watchInterval = time.Second      // how often the follower and production are asked where they are
	startTimeout  = 5 * time.Minute  // of a standby until it is consistent
	maxRetryPause = 30 * time.Second // between two starts of a follower that ends by itself
	lagWindow     = 2 * time.Minute  // how far back lag in seconds is known
	longStand     = time.Second      // longer than it should stand still for a clone
	answerTimeout = 5 * time.Second  // of the standby, when it is asked where it is
	muteAfter     = 10 * time.Second // how long it may not answer until that is its state
	stopTimeout   = 30 * time.Second
)

// Options of a Follower.
type Options struct {
	Launcher postgres.Launcher
	// Config is how the root volume's Postgres is started now; Settings is filled in by the Follower.
	Config func(context.Context) (postgres.Config, error)
	Source *source.Source
	Dial   replication.Dial // to production, as a replication connection
	// Settings makes the follower's postgresql.conf from production's pg_settings, which may be nil when production
	// cannot be asked: then those it last had count.
	Settings func([]postgres.Setting) string
	Log      *slog.Logger
}

// Follower keeps a project's root branch current: it owns the standby and
// watches it, restarts it when it ends or when production raised a setting that
// recovery needs, and makes it checkpoint as soon as it has replayed one of
// production's checkpoints (facts 9).
type Follower struct {
	opts   Options
	log    *slog.Logger
	cancel context.CancelCauseFunc
	done   chan struct{}

	// clone serialises what needs the standby to stay as it is: a snapshot and a restart.
	clone sync.Mutex

	mu      sync.Mutex
	standby *Standby // nil while it does not run
	spares  map[string]*Standby
	status  pgbough.FollowerStatus
	asked   []sample // what production said, oldest first, within lagWindow
	changed chan struct{}
}

type sample struct {
	at  time.Time
	lsn pgbough.LSN
}

var errClosed = errors.New("the follower is closed")

// Open starts the follower's standby, or adopts the running one, and watches
// it until Close.
func Open(o Options) *Follower {
	ctx, cancel := context.WithCancelCause(context.Background())
	f := &Follower{opts: o, log: o.Log, cancel: cancel, done: make(chan struct{}), changed: make(chan struct{}), spares: map[string]*Standby{}}
	f.status.State = pgbough.FollowerStarting
	go func() { defer close(f.done); f.run(ctx) }()
	return f
}

// Close ends watching. With stop the standby and its spares are shut down too;
// else they keep running for the next server to adopt, and wait for their relays.
func (f *Follower) Close(ctx context.Context, stop bool) error {
	f.cancel(errClosed)
	<-f.done
	f.mu.Lock()
	standbys := slices.Collect(maps.Values(f.spares)) // before their upstream
	clear(f.spares)
	if f.standby != nil {
		standbys = append(standbys, f.standby)
	}
	f.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	var errs []error
	for _, s := range standbys {
		if stop {
			errs = append(errs, s.Close(ctx))
		} else {
			s.Abandon(ctx)
		}
	}
	return errors.Join(errs...)
}

// Status is what was last seen; it asks nobody.
func (f *Follower) Status() pgbough.FollowerStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.status
}

// WaitStreaming waits until the follower streams, or is broken.
func (f *Follower) WaitStreaming(ctx context.Context) error {
	for {
		f.mu.Lock()
		st, changed := f.status, f.changed
		f.mu.Unlock()
		switch st.State {
		case pgbough.FollowerStreaming:
			return nil
		case pgbough.FollowerBroken:
			return pgbough.Errorf(pgbough.EConflict, "the follower cannot go on: %s", st.Reason)
		}
		select {
		case <-ctx.Done():
			return pgbough.Errorf(pgbough.EUnreachable, "the follower does not stream yet: %s", st.Reason)
		case <-changed:
		}
	}
}

// WaitChange waits until something of the status may have changed.
func (f *Follower) WaitChange(ctx context.Context) error {
	f.mu.Lock()
	changed := f.changed
	f.mu.Unlock()
	select {
	case <-changed:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// SetSource changes how production is reached, for the present standby and all
// later ones.
func (f *Follower) SetSource(connString string, dial replication.Dial) error {
	if err := f.opts.Source.SetConnString(connString); err != nil {
		return err
	}
	f.mu.Lock()
	f.opts.Dial = dial
	s := f.standby
	f.mu.Unlock()
	if s != nil {
		s.Relay.SetDial(dial)
	}
	return nil
}

// Source is the production it follows.
func (f *Follower) Source() *source.Source { return f.opts.Source }

// Snapshot runs clone while every process of the standby stands still, so that
// a copy of its files, however it is made, is what a kill would have left.
func (f *Follower) Snapshot(ctx context.Context, clone func(context.Context) error) error {
	f.clone.Lock()
	defer f.clone.Unlock()
	s := f.current()
	if s == nil {
		return pgbough.Errorf(pgbough.EConflict, "the follower does not run").WithHint("pgbough status tells why")
	}
	began := time.Now()
	if err := s.Process().Freeze(ctx); err != nil {
		return errors.Join(fmt.Errorf("freeze the follower: %w", err), s.Process().Thaw())
	}
	frozen := time.Now()
	err := clone(ctx)
	err = errors.Join(err, s.Process().Thaw())
	f.stood(ctx, frozen.Sub(began), time.Since(began))
	return err
}

// stood logs how long the standby stood still, and how much of that passed until
// the last of its processes did.
func (f *Follower) stood(ctx context.Context, freezing, all time.Duration) {
	if all > longStand {
		f.log.WarnContext(ctx, "the follower stood still for long while it was cloned", "took", all, "until_all_stood", freezing)
		return
	}
	f.log.DebugContext(ctx, "the follower was cloned", "stood_still", all, "until_all_stood", freezing)
}

// Position asks the standby how far it is now.
func (f *Follower) Position(ctx context.Context) (Position, error) {
	s := f.current()
	if s == nil {
		return Position{}, pgbough.Errorf(pgbough.EConflict, "the follower does not run").WithHint("pgbough status tells why")
	}
	return f.position(ctx, s)
}

// dialStandby opens a replication connection to the follower for a spare.
func (f *Follower) dialStandby(ctx context.Context) (*pgconn.HijackedConn, error) {
	s := f.current()
	if s == nil {
		return nil, errors.New("the follower does not run")
	}
	cfg, err := s.ConnConfig("")
	if err != nil {
		return nil, err
	}
	cfg.RuntimeParams = map[string]string{"replication": "true", "application_name": "spare"}
	conn, err := pgconn.ConnectConfig(ctx, &cfg.Config)
	if err != nil {
		return nil, err
	}
	return replication.Hijack(ctx, conn)
}

// Connect connects to the follower, which can be read as long as it is consistent.
// Nothing was said on the connection.
func (f *Follower) Connect(ctx context.Context) (net.Conn, error) {
	s := f.current()
	if s == nil {
		return nil, pgbough.Errorf(pgbough.ELocked, "the follower does not run").WithHint("pgbough status says why")
	}
	return s.Dial(ctx)
}

func (f *Follower) current() *Standby {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.standby
}

// run is the life of the standby: start, watch until it ends, start again.
func (f *Follower) run(ctx context.Context) {
	pause := time.Second
	for ctx.Err() == nil {
		began := time.Now()
		err := f.live(ctx)
		if ctx.Err() != nil {
			return
		}
		steady := time.Since(began) > time.Minute
		if steady {
			pause = time.Second
		}
		reason := "its Postgres was restarted"
		if err != nil {
			reason = err.Error()
			f.log.WarnContext(ctx, "the follower's Postgres ended", "err", err, "again_in", pause)
		}
		state := pgbough.FollowerStarting
		if pause >= 8*time.Second {
			state = pgbough.FollowerBroken
		}
		f.set(func(s *pgbough.FollowerStatus) { s.State, s.Reason = state, reason })
		if err == nil && steady {
			continue
		}
		if !wait(ctx, pause) {
			return
		}
		pause = min(2*pause, maxRetryPause)
	}
}

// live is one life of the standby. Nil asks for another.
func (f *Follower) live(ctx context.Context) error {
	cfg, err := f.opts.Config(ctx)
	if err != nil {
		return err
	}
	var rows []postgres.Setting
	if m, err := f.opts.Source.Now(ctx); err == nil {
		rows = m.Settings
	}
	cfg.Settings = f.opts.Settings(rows)
	f.mu.Lock()
	dial := f.opts.Dial
	f.mu.Unlock()
	s, err := start(ctx, f.opts.Launcher, cfg, dial, f.log)
	if err != nil {
		return err
	}
	f.swap(s)
	defer func() {
		if ctx.Err() == nil { // else Close decides what becomes of it
			f.swap(nil)
		}
	}()
	ready, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := s.WaitReady(ready); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		select {
		case <-s.Done():
			err = ended(s)
		default:
		}
		stop, cancelStop := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancelStop()
		return errors.Join(err, s.Close(stop))
	}
	restart, err := f.watch(ctx, s)
	if ctx.Err() != nil {
		return nil
	}
	f.clone.Lock()
	defer f.clone.Unlock()
	stop, cancelStop := context.WithTimeout(ctx, stopTimeout)
	defer cancelStop()
	if restart {
		f.log.InfoContext(ctx, "restarting the follower with production's new settings")
	}
	return errors.Join(err, s.Close(stop))
}

// watch asks the standby and production where they are, until the standby ends
// or must be restarted.
func (f *Follower) watch(ctx context.Context, s *Standby) (restart bool, err error) {
	ticker := time.NewTicker(watchInterval)
	defer ticker.Stop()
	answered := time.Now()
	for {
		m, serr := f.opts.Source.Position(ctx) // before the standby: so that no lag is seen where there is none
		p, perr := f.position(ctx, s)
		if perr == nil {
			answered = time.Now()
			if p.Paused && f.raised(ctx) {
				return true, nil
			}
			f.look(ctx, s, p, m, serr)
		} else if ctx.Err() == nil {
			f.log.DebugContext(ctx, "the follower does not answer", "err", perr)
			f.mute(time.Since(answered))
		}
		select {
		case <-ctx.Done():
			return false, nil
		case <-s.Done():
			return false, ended(s)
		case <-ticker.C:
		}
	}
}

// position asks a standby that may hang where it is.
func (f *Follower) position(ctx context.Context, s *Standby) (Position, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	return s.Position(ctx)
}

// mute takes in that the standby has not answered for some time. One that stands
// still for a clone need not: a copy on a pool that cannot share takes long.
func (f *Follower) mute(silent time.Duration) {
	if silent < muteAfter || !f.clone.TryLock() {
		return
	}
	f.clone.Unlock()
	f.set(func(st *pgbough.FollowerStatus) {
		st.State, st.Reason = pgbough.FollowerDisconnected, fmt.Sprintf("its Postgres has not answered for %s", silent.Round(time.Second))
	})
}

// ended says why a follower's Postgres ended by itself.
func ended(s *Standby) error {
	if strings.Contains(postgres.LogTail(s.Config().LogFile(), 30), "for Tablespace/CREATE") {
		return pgbough.Errorf(pgbough.EConflict, "production made a tablespace, which cannot be followed").
			WithHint("drop it there, delete the project and attach it again")
	}
	return fmt.Errorf("its Postgres ended: %s", postgres.LogTail(s.Config().LogFile(), 3))
}

// raised tells whether production can be asked for the setting that it raised
// above the standby's: a restart with the old ones would pause at the same record.
func (f *Follower) raised(ctx context.Context) bool {
	_, err := f.opts.Source.Now(ctx)
	return err == nil
}

// look takes in where the standby and production are, and checkpoints where
// that moves the redo point.
func (f *Follower) look(ctx context.Context, s *Standby, p Position, m source.Moment, serr error) {
	now := time.Now()
	f.set(func(st *pgbough.FollowerStatus) {
		st.Replay, st.Received, st.Redo, st.Timeline = p.Replay, p.Received, p.Redo, p.Timeline
		if serr == nil {
			st.SourceLSN, st.SourceTime, st.AskedAt = m.LSN, m.Time, now
			f.asked = append(f.asked, sample{now, m.LSN})
			for len(f.asked) > 2 && now.Sub(f.asked[0].at) > lagWindow {
				f.asked = f.asked[1:]
			}
		}
		st.LagBytes = max(0, st.SourceLSN.Sub(p.Replay))
		st.LagSeconds = f.lag(p.Replay, now)
		st.State, st.Reason = f.judge(s, p)
	})
	if serr != nil {
		return
	}
	c, err := f.opts.Source.LastCheckpoint(ctx)
	if err != nil || p.Replay < c.LSN || p.Redo >= c.Redo {
		return
	}
	if err := s.Checkpoint(ctx); err != nil && ctx.Err() == nil {
		f.log.WarnContext(ctx, "the follower could not checkpoint", "err", err)
	}
}

// lag is how long ago production was where the follower is, by linear
// interpolation between what production said. f.mu is held.
func (f *Follower) lag(replay pgbough.LSN, now time.Time) float64 {
	for i := len(f.asked) - 1; i >= 0; i-- {
		old := f.asked[i]
		if old.lsn > replay {
			continue
		}
		if i == len(f.asked)-1 {
			return now.Sub(old.at).Seconds() // 0 while production answers
		}
		next := f.asked[i+1]
		part := float64(replay.Sub(old.lsn)) / float64(next.lsn.Sub(old.lsn))
		return now.Sub(old.at.Add(time.Duration(part * float64(next.at.Sub(old.at))))).Seconds()
	}
	if len(f.asked) == 0 {
		return 0
	}
	return now.Sub(f.asked[0].at).Seconds()
}

// judge says in words why a standby does not stream. What production or its own
// log tells of a position that can never be reached means it is broken.
// What was logged before it last streamed is over.
func (f *Follower) judge(s *Standby, p Position) (pgbough.FollowerState, string) {
	if p.Receiving && !p.Paused {
		s.logged = logSize(s.Config())
		return pgbough.FollowerStreaming, ""
	}
	if p.Paused {
		return pgbough.FollowerDisconnected, "production raised a setting that replay needs, and cannot be asked for it now"
	}
	rs := s.Relay.Status()
	tail := postgres.LogTailAfter(s.Config().LogFile(), s.logged, 12)
	again := "attach it again: pgbough project delete, then pgbough attach"
	switch {
	case strings.Contains(tail, "has already been removed"), strings.Contains(tail, "can no longer get changes from replication slot"),
		strings.Contains(tail, "can no longer access replication slot"):
		return pgbough.FollowerBroken, "production no longer has the WAL that the follower needs next (it lagged behind max_slot_wal_keep_size, or its slot was dropped); " + again
	case strings.Contains(tail, "forked off current database system timeline"), strings.Contains(tail, "is not in this server's history"),
		strings.Contains(tail, "is ahead of the WAL flush position"):
		return pgbough.FollowerBroken, "production's new timeline left the old one before what the follower has replayed (a failover that lost transactions); " + again
	case strings.Contains(tail, "database system identifier differs"):
		return pgbough.FollowerBroken, "the source is another database cluster than the one attached; point it back with: pgbough source set"
	case strings.Contains(tail, "replication slot") && strings.Contains(tail, "does not exist"):
		return pgbough.FollowerDisconnected, "the follower's replication slot is not on production (after a failover it must be made anew): pgbough source set"
	case refusedLogin(rs.LastError):
		return pgbough.FollowerDisconnected, rs.LastError.Error() + "; if the role's password has changed: pgbough source set"
	case rs.LastError != nil:
		return pgbough.FollowerDisconnected, rs.LastError.Error()
	}
	return pgbough.FollowerDisconnected, "not connected to production yet"
}

// refusedLogin tells whether production refused our role or its password.
func refusedLogin(err error) bool {
	var e *pgconn.PgError
	return errors.As(err, &e) && (e.Code == "28P01" || e.Code == "28000")
}

func (f *Follower) set(change func(*pgbough.FollowerStatus)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(&f.status)
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *Follower) swap(s *Standby) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.standby = s
}

// wait sleeps, and tells whether the context still lives.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
