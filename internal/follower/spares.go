package follower

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/postgres"
)

// usableTimeout bounds the question to a spare, whose mutex is held meanwhile.
const usableTimeout = 5 * time.Second

// Spares of a follower are its clones that stream from it, by volume id.

// StartSpare starts a clone of the follower as a standby of the follower, or
// adopts the one that runs. cfg.Settings is the caller's: what the spare may
// do, and what the branch that it becomes needs. Starting a started spare
// returns it.
func (f *Follower) StartSpare(ctx context.Context, cfg postgres.Config) (*Standby, error) {
	if s, ok := f.Spare(cfg.ID); ok {
		return s, nil
	}
	s, err := start(ctx, f.opts.Launcher, cfg, f.dialStandby, f.log)
	if err != nil {
		return nil, err
	}
	s.upstream = f.current
	f.mu.Lock()
	defer f.mu.Unlock()
	f.spares[cfg.ID] = s
	return s, nil
}

// Spare is the running spare on volume id. One whose Postgres has ended is none.
func (f *Follower) Spare(id string) (*Standby, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, ok := f.spares[id]
	if !ok {
		return nil, false
	}
	select {
	case <-s.Done():
		s.Relay.Cut()
		delete(f.spares, id)
		return nil, false
	default:
		return s, true
	}
}

// upstreamGrace is how long a spare may be without its stream while the follower
// serves: a connection that was lost is made again within a second.
const upstreamGrace = 30 * time.Second

// Usable tells whether a ready spare still can become a branch: it runs, its
// replay has not stopped at a setting that production raised above its own
// (facts 6), and it streams, but for moments.
func (f *Follower) Usable(ctx context.Context, id string) bool {
	ctx, cancel := context.WithTimeout(ctx, usableTimeout)
	defer cancel()
	s, ok := f.Spare(id)
	if !ok {
		return false
	}
	p, err := s.Position(ctx)
	if err != nil {
		return true // one that does not answer now is asked again later
	}
	st := f.Status().State
	serves := st == pgbough.FollowerStreaming || st == pgbough.FollowerDisconnected
	return s.usable(p, serves, time.Now())
}

// usable takes in where a spare is at a time. upstream tells whether the
// follower serves it.
func (s *Standby) usable(p Position, upstream bool, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case p.Paused:
		return false
	case p.Receiving || !upstream:
		s.silent = time.Time{}
	case s.silent.IsZero():
		s.silent = now
	}
	return s.silent.IsZero() || now.Sub(s.silent) < upstreamGrace
}

// ReleaseSpare gives the Postgres of a promoted spare away: it is a branch's
// compute from now on.
func (f *Follower) ReleaseSpare(ctx context.Context, id string) (*postgres.Server, bool) {
	s, ok := f.forget(id)
	if !ok {
		return nil, false
	}
	s.Abandon(ctx)
	return s.Server, true
}

// KillSpare ends a spare at once.
func (f *Follower) KillSpare(ctx context.Context, id string) error {
	s, ok := f.forget(id)
	if !ok {
		return nil
	}
	s.Abandon(ctx)
	return s.Kill(ctx)
}

func (f *Follower) forget(id string) (*Standby, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, ok := f.spares[id]
	delete(f.spares, id)
	return s, ok
}

// CatchUp waits until a spare streams and has replayed what the follower had
// replayed when it was asked. report is told how many bytes of how many are replayed.
func (f *Follower) CatchUp(ctx context.Context, s *Standby, report func(done, total int64)) error {
	ready, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := s.WaitReady(ready); err != nil {
		return err
	}
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for {
		p, err := s.Position(ctx)
		if err != nil && ctx.Err() != nil {
			return err
		}
		if err == nil {
			target := f.Status().Replay
			if p.Receiving && p.Replay >= target {
				return nil
			}
			if err := stuck(s, p); err != nil {
				return err
			}
			report(max(0, p.Replay.Sub(p.Redo)), max(0, target.Sub(p.Redo)))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait until the spare has caught up: %w", context.Cause(ctx))
		case <-s.Done():
			return pgbough.Errorf(pgbough.EInternal, "the spare's Postgres ended: %s", postgres.LogTail(s.Config().LogFile(), 3))
		case <-ticker.C:
		}
	}
}

// stuck is why a spare that is being filled can never catch up.
func stuck(s *Standby, p Position) error {
	switch {
	case p.Paused:
		return pgbough.Errorf(pgbough.EConflict, "the spare's replay stopped: production raised a setting above the one it was started with")
	case !p.Receiving && strings.Contains(postgres.LogTail(s.Config().LogFile(), 3), walRemoved):
		return pgbough.Errorf(pgbough.EConflict, "the follower no longer has the WAL that the spare needs next")
	}
	return nil
}

// walRemoved is what a walsender says of WAL that is asked for and gone
// (walsender.c), and a walreceiver's log repeats.
const walRemoved = "has already been removed"

// Scrub takes out of a fresh clone of a running standby what belongs to the
// original alone: its lock file and its replication slots (facts 8). The
// directory may be a branch's, so nothing is followed.
func Scrub(dataDir string) error {
	root, err := os.OpenRoot(dataDir)
	if err != nil {
		return fmt.Errorf("open the clone: %w", err)
	}
	defer func() { _ = root.Close() }()
	for _, name := range []string{"postmaster.pid", "postmaster.opts"} {
		if err := root.Remove(name); err != nil && !os.IsNotExist(err) {
			return fmt.Errorf("scrub the clone: %w", err)
		}
	}
	slots, err := fs.ReadDir(root.FS(), "pg_replslot")
	if err != nil {
		return fmt.Errorf("scrub the clone: %w", err)
	}
	for _, e := range slots {
		if err := root.RemoveAll("pg_replslot/" + e.Name()); err != nil {
			return fmt.Errorf("scrub the clone: %w", err)
		}
	}
	return nil
}
