package follower

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/postgres"
	"github.com/pgbough/pgbough/internal/replication"
)

// replayPoll is how often a standby is asked how far it is while a request
// waits for it. One question costs about 0.1 ms.
const replayPoll = time.Millisecond

// Standby is a Postgres in recovery together with the relay that it streams
// through. The relay is the only way from its sandbox to its upstream.
type Standby struct {
	*postgres.Server
	Relay *replication.Relay
	log   *slog.Logger
	// logged is how long its log was when it last streamed, or began under our eyes. Only the follower's watch uses it.
	logged int64
	// upstream is the standby that it streams from now; nil for one that streams from production.
	upstream func() *Standby

	mu     sync.Mutex // guards conn, which serves one question at a time, and silent
	conn   *pgx.Conn
	silent time.Time // since when a ready spare has not streamed, although its upstream serves
	// abandoned: it is somebody else's, who wants no session of ours in it.
	abandoned bool
}

// Position is how far a standby is.
type Position struct {
	InRecovery bool
	Paused     bool // replay stands still: a setting is smaller than the primary's
	Receiving  bool // its walreceiver streams
	Received   pgbough.LSN
	Replay     pgbough.LSN
	ReplayTime time.Time // commit stamp of the last transaction replayed; zero before the first
	Redo       pgbough.LSN
	Timeline   uint32
}

// Cut is where a promoted standby left its parent.
type Cut struct {
	LSN      pgbough.LSN // the switch point in its timeline's history file
	Time     time.Time   // commit stamp of the last transaction before it
	Timeline uint32      // its own
	Parent   uint32      // the timeline that it left
}

// start starts a standby on cfg that streams through dial, or takes over the
// one that already runs on that volume.
func start(ctx context.Context, l postgres.Launcher, cfg postgres.Config, dial replication.Dial, log *slog.Logger) (*Standby, error) {
	cfg.Standby = true
	if err := os.MkdirAll(cfg.RelayDir(), 0o755); err != nil {
		return nil, fmt.Errorf("make the relay's directory: %w", err)
	}
	relay, err := replication.StartRelay(ctx, replication.RelayOptions{
		Dir: cfg.RelayDir(), GID: cfg.Credential.GID, UID: cfg.Credential.UID, Dial: dial, Log: log.With("relay", cfg.ID),
	})
	if err != nil {
		return nil, fmt.Errorf("open the relay of volume %s: %w", cfg.ID, err)
	}
	logged := logSize(cfg)
	server, ok, err := postgres.Adopt(ctx, l, cfg, log)
	if err == nil && !ok {
		server, err = postgres.Start(ctx, l, cfg, log)
	}
	if err != nil {
		relay.Cut()
		return nil, err
	}
	return &Standby{Server: server, Relay: relay, log: log.With("volume", cfg.ID), logged: logged}, nil
}

// logSize is how long a Postgres's log is; one that cannot be looked at has nothing.
func logSize(cfg postgres.Config) int64 {
	info, err := os.Stat(cfg.LogFile())
	if err != nil {
		return 0
	}
	return info.Size()
}

// ask runs f with the standby's own connection, and makes a new one when the
// old one has died (a recovery conflict may have ended it).
func (s *Standby) ask(ctx context.Context, f func(*pgx.Conn) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.abandoned {
		return errors.New("the standby is given up")
	}
	for attempt := 0; ; attempt++ {
		fresh := s.conn == nil
		if fresh {
			conn, err := s.Connect(ctx, "template1")
			if err != nil {
				return fmt.Errorf("connect to the standby: %w", err)
			}
			s.conn = conn
		}
		err := f(s.conn)
		if err == nil || !s.conn.IsClosed() {
			return err
		}
		s.conn = nil
		if fresh || attempt > 0 || ctx.Err() != nil {
			return err
		}
	}
}

// disconnect closes its connection, so that nothing of ours holds up a stop.
func (s *Standby) disconnect(ctx context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.abandoned = true
	if s.conn != nil {
		_ = s.conn.Close(ctx) // it is given up in any case
		s.conn = nil
	}
}

// Position asks it how far it is.
func (s *Standby) Position(ctx context.Context) (Position, error) {
	var p Position
	var received, replay, redo string
	var at *time.Time
	var timeline int64
	err := s.ask(ctx, func(c *pgx.Conn) error {
		return c.QueryRow(ctx, `
			SELECT pg_is_in_recovery(),
			       CASE WHEN pg_is_in_recovery() THEN pg_get_wal_replay_pause_state() = 'paused' ELSE false END,
			       EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming'),
			       coalesce(pg_last_wal_receive_lsn(), '0/0')::text, coalesce(pg_last_wal_replay_lsn(), '0/0')::text,
			       pg_last_xact_replay_timestamp(), c.redo_lsn::text,
			       coalesce((SELECT received_tli FROM pg_stat_wal_receiver), c.timeline_id)
			FROM pg_control_checkpoint() c`).
			Scan(&p.InRecovery, &p.Paused, &p.Receiving, &received, &replay, &at, &redo, &timeline)
	})
	if err != nil {
		return p, fmt.Errorf("ask the standby how far it is: %w", err)
	}
	if at != nil {
		p.ReplayTime = *at
	}
	p.Timeline = uint32(timeline)
	for _, f := range []struct {
		to   *pgbough.LSN
		text string
	}{{&p.Received, received}, {&p.Replay, replay}, {&p.Redo, redo}} {
		if *f.to, err = pgbough.ParseLSN(f.text); err != nil {
			return p, err
		}
	}
	return p, nil
}

// ErrStalled says that a standby has replayed nothing for as long as was allowed.
var ErrStalled = errors.New("the standby replays nothing")

// WaitReplay waits until it has replayed lsn, as long as it replays something
// within every stall. A stream that hangs is made anew meanwhile; that and why it
// is given up is logged. It does not wait for one that is promoted: its cut is final.
func (s *Standby) WaitReplay(ctx context.Context, lsn pgbough.LSN, stall time.Duration) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	seen := progress{moved: time.Now()}
	for {
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait until %s is replayed: %w", lsn, context.Cause(ctx))
		case <-s.Done():
			return pgbough.Errorf(pgbough.EInternal, "the standby ended while it replayed: %s", postgres.LogTail(s.Config().LogFile(), 3))
		case <-timer.C:
		}
		question, cancel := context.WithTimeout(ctx, stall)
		there, at, err := s.replayed(question, lsn)
		hangs := question.Err() != nil && ctx.Err() == nil
		cancel()
		switch {
		case hangs:
			return seen.gaveUp(ctx, s, lsn)
		case err != nil:
			return fmt.Errorf("wait until %s is replayed: %w", lsn, err)
		case there:
			return nil
		}
		if err := seen.waits(ctx, s, at, lsn, stall); err != nil {
			return err
		}
		timer.Reset(replayPoll)
	}
}

// replayed tells whether it has replayed lsn, and up to where it has.
func (s *Standby) replayed(ctx context.Context, lsn pgbough.LSN) (there bool, at string, err error) {
	err = s.ask(ctx, func(c *pgx.Conn) error {
		return c.QueryRow(ctx, `SELECT coalesce(l >= $1::text::pg_lsn, false) OR NOT pg_is_in_recovery(), coalesce(l::text, '')
			FROM pg_last_wal_replay_lsn() l`, lsn.String()).Scan(&there, &at)
	})
	return there, at, err
}

// catchUpPatience is how long CutOff waits for the last records to be replayed.
const catchUpPatience = 20 * time.Millisecond

// CutOff cuts it from its upstream for good, so that it can only be promoted. It
// tells whether everything is replayed now that ever will be. It is false, too,
// where that is not known, or WAL ends within a record.
func (s *Standby) CutOff(ctx context.Context) bool {
	s.Relay.Hush()
	ctx, cancel := context.WithTimeout(ctx, catchUpPatience)
	defer cancel()
	for {
		all, err := s.replayedAll(ctx)
		if all || err != nil || !wait(ctx, replayPoll) {
			return all && err == nil
		}
	}
}

// replayedAll compares with what the relay has passed on: what is in the socket
// still, the standby does not know of.
func (s *Standby) replayedAll(ctx context.Context) (all bool, err error) {
	delivered, ok := s.Relay.Delivered()
	if !ok {
		return false, errors.New("it is not known what the relay has passed on")
	}
	err = s.ask(ctx, func(c *pgx.Conn) error {
		return c.QueryRow(ctx, "SELECT coalesce(pg_last_wal_replay_lsn() = $1::text::pg_lsn, false)", delivered.String()).Scan(&all)
	})
	return all, err
}

// notInRecovery is the SQLSTATE of pg_promote where there is nothing to promote
// (object_not_in_prerequisite_state).
const notInRecovery = "55000"

// Promote cuts it from its upstream and makes it a primary on a timeline of its
// own. Whatever it had received is part of it. Promoting a promoted one returns
// the same cut.
func (s *Standby) Promote(ctx context.Context) (Cut, error) {
	s.Relay.Hush()
	defer s.Relay.Cut()
	var inRecovery bool
	err := s.ask(ctx, func(c *pgx.Conn) error {
		if err := c.QueryRow(ctx, "SELECT pg_is_in_recovery()").Scan(&inRecovery); err != nil || !inRecovery {
			return err
		}
		// Not waiting: pg_promote looks only every 100 ms (xlogfuncs.c).
		_, err := c.Exec(ctx, "SELECT pg_promote(false)")
		if over := new(pgconn.PgError); errors.As(err, &over) && over.Code == notInRecovery {
			return nil // it has come to its target meanwhile, and promotes itself
		}
		return err
	})
	if err != nil {
		return Cut{}, fmt.Errorf("promote: %w", err)
	}
	timer := time.NewTimer(replayPoll)
	defer timer.Stop()
	for inRecovery {
		select {
		case <-ctx.Done():
			return Cut{}, fmt.Errorf("wait for the promotion: %w", context.Cause(ctx))
		case <-s.Done():
			return Cut{}, pgbough.Errorf(pgbough.EInternal, "the standby ended at its promotion: %s", postgres.LogTail(s.Config().LogFile(), 3))
		case <-timer.C:
		}
		err := s.ask(ctx, func(c *pgx.Conn) error { return c.QueryRow(ctx, "SELECT pg_is_in_recovery()").Scan(&inRecovery) })
		if err != nil {
			return Cut{}, fmt.Errorf("wait for the promotion: %w", err)
		}
		timer.Reset(replayPoll)
	}
	return s.cut(ctx)
}

// cut reads the last line of the timeline's history file: "parent timeline,
// switch point, reason" (timeline.c, writeTimeLineHistory).
func (s *Standby) cut(ctx context.Context) (Cut, error) {
	var name, text string
	var at *time.Time
	err := s.ask(ctx, func(c *pgx.Conn) error {
		return c.QueryRow(ctx, `
			SELECT f.name, pg_read_file('pg_wal/' || f.name || '.history'), pg_last_xact_replay_timestamp()
			FROM (SELECT left(pg_walfile_name(pg_current_wal_insert_lsn()), 8)) f(name)`).Scan(&name, &text, &at)
	})
	if err != nil {
		return Cut{}, fmt.Errorf("read the timeline's history: %w", err)
	}
	history, err := replication.ParseHistory([]byte(text))
	if err != nil || len(history) == 0 {
		return Cut{}, fmt.Errorf("read the history of timeline %s: %w", name, errors.Join(err, errors.New("no usable line")))
	}
	var cut Cut
	if _, err := fmt.Sscanf(name, "%08X", &cut.Timeline); err != nil {
		return Cut{}, fmt.Errorf("read the timeline in %q: %w", name, err)
	}
	last := history[len(history)-1]
	cut.LSN, cut.Parent = last.SwitchLSN, last.Timeline
	if at != nil {
		cut.Time = *at
	}
	return cut, nil
}

// Checkpoint asks for a restartpoint (on a standby) or a checkpoint, at once.
// A standby that has replayed no new checkpoint of its primary does nothing.
func (s *Standby) Checkpoint(ctx context.Context) error {
	conn, err := s.Connect(ctx, "template1") // its own: it may take seconds
	if err != nil {
		return fmt.Errorf("connect for a checkpoint: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if _, err := conn.Exec(ctx, "CHECKPOINT"); err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	return nil
}

// Close ends the standby cleanly within the context's deadline, else hard.
func (s *Standby) Close(ctx context.Context) error {
	s.disconnect(ctx)
	s.Relay.Cut()
	_, err := s.Stop(ctx)
	return err
}

// Abandon leaves its Postgres running without us: for a server that goes away
// and comes back.
func (s *Standby) Abandon(ctx context.Context) {
	s.disconnect(ctx)
	s.Relay.Cut()
}
