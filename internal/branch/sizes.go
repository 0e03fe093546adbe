package branch

import (
	"context"
	"sync"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/volume"
)

const (
	// usageAge is how old the measured size of what runs may be: measuring looks at
	// every extent of every file, and lists ask for all of them.
	usageAge = 3 * time.Second
	// What sleeps is measured again when something was removed that it may have
	// shared, one volume after the other, and not all of the time.
	measurePause = 5 * time.Second
	measureShare = 10 // a tenth of it
)

// measured is the size of a volume.
type measured struct {
	usage    volume.Usage
	at       time.Time
	asleep   bool  // its compute slept, and has not been started since
	removals int64 // of other volumes, before
}

// sizes are what volumes were measured to be. Nothing writes to the volume of a
// branch that sleeps, so its size stays; what it has of its own grows when one goes
// that it shared with.
type sizes struct {
	mu       sync.Mutex
	known    map[string]measured
	starts   map[string]int // of computes, by volume id
	removals int64
}

func newSizes() *sizes { return &sizes{known: map[string]measured{}, starts: map[string]int{}} }

// started says that a volume is written to from now on.
func (z *sizes) started(id string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.starts[id]++
	delete(z.known, id)
}

// removed says that a volume is gone.
func (z *sizes) removed(id string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.removals++
	delete(z.known, id)
	delete(z.starts, id)
}

// forget has a volume measured when it is asked for next.
func (z *sizes) forget(id string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	delete(z.known, id)
}

// get is what is known of a volume, and whether it is so now.
func (z *sizes) get(id string) (m measured, ok, exact bool) {
	z.mu.Lock()
	defer z.mu.Unlock()
	m, ok = z.known[id]
	fresh := time.Since(m.at) < usageAge
	return m, ok && (m.asleep || fresh), ok && (m.asleep && m.removals == z.removals || fresh)
}

// begin is the state in which a volume is about to be measured.
func (z *sizes) begin(id string) (starts int, removals int64) {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.starts[id], z.removals
}

// put keeps what was measured.
func (z *sizes) put(id string, m measured, starts int) {
	z.mu.Lock()
	defer z.mu.Unlock()
	m.asleep = m.asleep && starts == z.starts[id]
	z.known[id] = m
}

// usage is the size of a volume as it is now.
func (s *Service) usage(ctx context.Context, id string) (volume.Usage, error) {
	if m, _, exact := s.sizes.get(id); exact {
		return m.usage, nil
	}
	return s.measure(ctx, id)
}

// listed is the size of a volume for a list of many. What a branch that sleeps has
// of its own may be as it was before others were removed.
func (s *Service) listed(ctx context.Context, id string) (volume.Usage, error) {
	if m, ok, _ := s.sizes.get(id); ok {
		return m.usage, nil
	}
	return s.measure(ctx, id)
}

func (s *Service) measure(ctx context.Context, id string) (volume.Usage, error) {
	starts, removals := s.sizes.begin(id)
	asleep := s.computes.Knows(id) && s.computes.State(id).State == pgbough.ComputeIdle
	at := time.Now()
	u, err := s.pool.Usage(ctx, id)
	if err == nil {
		s.sizes.put(id, measured{usage: u, at: at, asleep: asleep, removals: removals}, starts)
	}
	return u, err
}

// measureAsleep measures the volumes of branches that sleep, where that may tell
// something new, until the service ends.
func (s *Service) measureAsleep() {
	timer := time.NewTimer(measurePause)
	defer timer.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-timer.C:
		}
		next := measurePause
		if id := s.unmeasured(); id != "" {
			began := time.Now()
			if _, err := s.measure(s.ctx, id); err != nil {
				s.log.DebugContext(s.ctx, "a branch was not measured", "volume", id, "err", err) // it is being deleted
			} else {
				next = measureShare * time.Since(began)
			}
		}
		timer.Reset(next)
	}
}

// unmeasured is the volume of a branch that sleeps whose size is not known exactly;
// empty when there is none.
func (s *Service) unmeasured() string {
	for _, id := range s.computes.Sleeping() {
		if _, _, exact := s.sizes.get(id); !exact {
			return id
		}
	}
	return ""
}
