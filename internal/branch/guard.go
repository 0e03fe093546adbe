package branch

import (
	"context"
	"fmt"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/volume"
	"github.com/pgbough/pgbough/internal/volume/disk"
)

const (
	guardPause = 500 * time.Millisecond
	tightPause = 100 * time.Millisecond // while the pool is nearly full
	stillBytes = 8 << 20                // growth that is no sign of a branch that runs away
)

// guard keeps branches from filling the pool. File systems limit a directory
// late or not at all, and most count what clones share, so it looks for itself:
// at the pool's free space, which costs nothing, and at a branch as soon as the
// pool's growth would be enough for it to be over its limit.
//
// A branch that is over its limit is stopped. When the reserve of the followers
// is touched, so is the branch that has grown most since it was looked at.
type guard struct {
	s       *Service
	used    int64 // of the pool, at the last look
	written int64 // how much the pool has grown in all, whatever was freed meanwhile
	seen    map[string]look
}

// look is what the guard saw of a volume.
type look struct {
	own     int64
	grown   int64 // since the look before
	written int64 // the guard's, at that time
}

// guardDisk looks after the pool until the service ends.
func (s *Service) guardDisk() {
	g := &guard{s: s, seen: map[string]look{}}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-timer.C:
		}
		next, err := g.look(s.ctx)
		if err != nil && s.ctx.Err() == nil {
			s.log.WarnContext(s.ctx, "the pool's space cannot be guarded", "err", err)
		}
		timer.Reset(next)
	}
}

// look does what has to be done now, and tells when to look again.
func (g *guard) look(ctx context.Context) (time.Duration, error) {
	space, err := g.s.pool.Space()
	if err != nil {
		return guardPause, err
	}
	g.written += max(0, space.Used-g.used)
	g.used = space.Used
	tight := space.Free < space.Reserve
	running := map[string]bool{}
	for _, id := range g.s.computes.Running() {
		if g.s.whyStopped(id) != nil {
			continue // it is being stopped
		}
		running[id] = true
		if err := g.consider(ctx, id, space, tight); err != nil {
			return guardPause, err
		}
	}
	for id := range g.seen {
		if !running[id] {
			delete(g.seen, id)
		}
	}
	if space.Free == 0 {
		g.stopFastest(ctx, space)
	}
	if tight {
		return tightPause, nil
	}
	return guardPause, nil
}

// consider measures a volume when that may tell something new, and stops its
// branch when it is over its limit.
func (g *guard) consider(ctx context.Context, id string, space volume.Space, tight bool) error {
	last, known := g.seen[id]
	since, limit := g.written-last.written, g.s.disk
	enough := since > space.Size/20 || tight && since > stillBytes || limit > 0 && last.own+since > limit && since > stillBytes
	if known && !enough {
		return nil
	}
	if _, fresh := g.s.fresh.LoadAndDelete(id); fresh && !known {
		g.seen[id] = look{written: g.written} // to measure it takes as long as half of its making
		return nil
	}
	u, err := g.s.pool.Usage(ctx, id)
	if err != nil {
		g.s.log.DebugContext(ctx, "a branch was not measured", "volume", id, "err", err)
		return ctx.Err() // it is being deleted
	}
	now := look{own: u.OwnBytes, written: g.written}
	if known {
		now.grown = max(0, u.OwnBytes-last.own)
	}
	g.seen[id] = now
	if limit > 0 && u.OwnBytes > limit {
		g.stop(ctx, id, fmt.Sprintf("it holds %v of its own, more than its limit of %v", disk.Bytes(u.OwnBytes), disk.Bytes(limit)))
	}
	return nil
}

// stopFastest stops the branch that has grown most, if any has.
func (g *guard) stopFastest(ctx context.Context, space volume.Space) {
	fastest := ""
	for id, l := range g.seen {
		if l.grown > stillBytes && (fastest == "" || l.grown > g.seen[fastest].grown) {
			fastest = id
		}
	}
	if fastest == "" {
		return
	}
	g.stop(ctx, fastest, fmt.Sprintf("the pool had no more than its reserve of %v left, and of all branches it was growing most", disk.Bytes(space.Reserve)))
	for id, l := range g.seen { // what the others did before counts no more
		l.grown = 0
		g.seen[id] = l
	}
}

// stop stops the Postgres of a branch that takes too much of the pool.
func (g *guard) stop(ctx context.Context, id, why string) {
	g.s.log.WarnContext(ctx, "stopping a branch that fills the pool", "volume", id, "why", why)
	delete(g.seen, id)
	g.s.stopped.Store(id, why)
	g.s.sizes.forget(id)
	g.s.wg.Go(func() { // others may fill the pool meanwhile
		if err := g.s.computes.Stop(ctx, id); err != nil {
			g.s.log.ErrorContext(ctx, "a branch that fills the pool was not stopped", "volume", id, "err", err)
		}
	})
}

// resume starts the Postgres of a branch that the guard has stopped, if it holds
// no more than it may and the pool has room again; else it says why not.
func (s *Service) resume(ctx context.Context, p pgbough.Project, b pgbough.Branch) error {
	why := s.whyStopped(b.VolumeID)
	if why == nil {
		return nil
	}
	if s.computes.Knows(b.VolumeID) {
		return why // it is still being stopped
	}
	u, err := s.pool.Usage(ctx, b.VolumeID)
	if err != nil {
		return err
	}
	if s.disk > 0 && u.OwnBytes > s.disk || s.pool.CheckSpace(0) != nil {
		return why
	}
	return s.serve(ctx, p, b)
}

// whyStopped tells why the guard has stopped the Postgres of a volume; nil when
// it has not.
func (s *Service) whyStopped(volumeID string) error {
	why, ok := s.stopped.Load(volumeID)
	if !ok {
		return nil
	}
	return pgbough.Errorf(pgbough.ENoSpace, "the branch was stopped because %s", why).
		WithHint("delete it or other branches (pgbough branch list shows their sizes), or give it more with --branch-disk and --pool-size, or pgbough pool resize")
}
