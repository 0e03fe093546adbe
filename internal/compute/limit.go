package compute

import (
	"context"
	"slices"
	"time"

	"github.com/pgbough/pgbough"
)

// evictable is how long a compute must have been without a client before its
// place is given to another.
const evictable = 2 * time.Second

// Awake is how many computes are awake, and how many may be; 0 is any number.
func (c *Computes) Awake() (n, most int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.awake, c.o.MaxAwake
}

// Room makes sure that so many more computes can be awake. For that it suspends
// those that have no client, the longest idle first.
func (c *Computes) Room(ctx context.Context, more int) error {
	for {
		n, most := c.Awake()
		if most == 0 || n+more <= most {
			return nil
		}
		if !c.makeRoom(ctx) {
			return tooMany(n, most)
		}
	}
}

func tooMany(n, most int) error {
	return pgbough.Errorf(pgbough.EConflict, "%d computes are awake and in use, and this server allows %d", n, most).
		WithHint("suspend a branch that is not needed now (pgbough branch suspend NAME), or start the server with a larger --max-awake")
}

// admit gives a compute a place among those that are awake.
func (c *Computes) admit(k *compute) error {
	for {
		c.mu.Lock()
		n, most := c.awake, c.o.MaxAwake
		if most == 0 || n < most {
			c.awake++
			c.wakes++
			k.placed = true
			c.mu.Unlock()
			return nil
		}
		c.mu.Unlock()
		if !c.makeRoom(k.ctx) {
			return tooMany(n, most)
		}
	}
}

// leave gives up the place of a compute, if it has one.
func (c *Computes) leave(k *compute) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if k.placed {
		k.placed = false
		c.awake--
	}
}

type candidate struct {
	k     *compute
	since time.Time // without a client
}

// candidates are the computes that could give up their place, the longest idle
// first, and a channel that closes when one has that is just falling asleep.
func (c *Computes) candidates() (list []candidate, leaving <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range c.all {
		k.mu.Lock()
		switch k.phase {
		case active:
			list = append(list, candidate{k, k.activeAt})
		case suspending:
			leaving = k.changed
		case asleep, starting:
		}
		k.mu.Unlock()
	}
	slices.SortFunc(list, func(a, b candidate) int { return a.since.Compare(b.since) })
	return list, leaving
}

// makeRoom suspends the compute that was without a client for the longest time.
// It is false if there is none.
func (c *Computes) makeRoom(ctx context.Context) bool {
	list, leaving := c.candidates()
	for _, l := range list {
		spec := l.k.settings()
		if n, _ := c.connected(l.k); n > 0 || time.Since(l.since) < evictable || spec.Busy != nil && spec.Busy() {
			continue
		}
		if err := c.ask(ctx, l.k, evicted); err == nil {
			return true
		}
	}
	if leaving == nil {
		return false
	}
	select {
	case <-leaving:
		return true
	case <-ctx.Done():
		return false
	}
}
