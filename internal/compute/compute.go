// Package compute keeps the Postgres processes of branches running: it starts
// or adopts them, starts them again when they end by themselves, and stops
// them. A branch has at most one compute, named by its volume's id.
package compute

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/postgres"
)

const (
	startTimeout  = 10 * time.Minute // an unclean stop may have left much WAL to replay
	stopTimeout   = 30 * time.Second
	firstPause    = 200 * time.Millisecond // between the end of a Postgres and its next start
	maxPause      = time.Minute
	steadySeconds = 60 // a Postgres that ran this long is started again without delay
)

// Computes are the computes of all branches of a server.
type Computes struct {
	launcher postgres.Launcher
	log      *slog.Logger

	mu      sync.Mutex
	all     map[string]*compute
	closing bool
	wg      sync.WaitGroup
}

type compute struct {
	cfg    postgres.Config
	cancel context.CancelCauseFunc
	ctx    context.Context // its life under our eyes
	done   chan struct{}   // closed when its keeper has ended

	mu       sync.Mutex
	server   *postgres.Server // nil while none runs
	state    pgbough.ComputeState
	restarts int
	failure  error
	changed  chan struct{}
}

// State is what is known of a compute.
type State struct {
	State    pgbough.ComputeState
	PID      int
	Restarts int   // times it ended by itself since this server has known it
	Failure  error // why it does not run, if it should
	// MemoryKills is how many processes of it, as it runs now, were killed at its memory limit.
	MemoryKills int
}

var (
	errStop  = errors.New("the compute is stopped")
	errLeave = errors.New("the compute is left running")
)

// New makes an empty set of computes.
func New(l postgres.Launcher, log *slog.Logger) *Computes {
	return &Computes{launcher: l, log: log, all: map[string]*compute{}}
}

// Keep makes sure that a Postgres runs on cfg's volume from now until Stop: it
// adopts a running one or starts it. It returns at once; Wait waits until it answers.
func (c *Computes) Keep(cfg postgres.Config) { c.keep(cfg, nil) }

// Take is Keep for a Postgres that already runs under our eyes, such as a
// promoted spare. When it ends, cfg is what it is started with again.
func (c *Computes) Take(cfg postgres.Config, server *postgres.Server) { c.keep(cfg, server) }

func (c *Computes) keep(cfg postgres.Config, server *postgres.Server) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.all[cfg.ID]; ok || c.closing {
		return
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	k := &compute{cfg: cfg, ctx: ctx, cancel: cancel, done: make(chan struct{}), state: pgbough.ComputeInit, changed: make(chan struct{})}
	if server != nil {
		k.server, k.state = server, pgbough.ComputeActive
	}
	c.all[cfg.ID] = k
	c.wg.Go(func() { defer close(k.done); c.run(k) })
}

// run starts its Postgres whenever there is none, until it is told to end.
func (c *Computes) run(k *compute) {
	log := c.log.With("volume", k.cfg.ID)
	pause := firstPause
	for {
		began := time.Now()
		server, err := c.bring(k)
		if err == nil {
			k.set(func() { k.server, k.state, k.failure = server, pgbough.ComputeActive, nil })
			select {
			case <-k.ctx.Done():
			case <-server.Done():
				err = k.ended(server)
			}
		}
		if k.ctx.Err() != nil {
			c.end(k, log)
			return
		}
		if time.Since(began) > steadySeconds*time.Second {
			pause = firstPause
		}
		log.WarnContext(k.ctx, "a compute ended; starting it again", "err", err, "in", pause)
		k.set(func() { k.server, k.state, k.failure = nil, pgbough.ComputeInit, err; k.restarts++ })
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-k.ctx.Done():
			timer.Stop()
		}
		pause = min(2*pause, maxPause)
	}
}

// bring returns a Postgres that answers.
func (c *Computes) bring(k *compute) (*postgres.Server, error) {
	if s := k.running(); s != nil {
		return s, nil
	}
	server, ok, err := postgres.Adopt(k.ctx, c.launcher, k.config(), c.log)
	if err == nil && !ok {
		server, err = postgres.Start(k.ctx, c.launcher, k.config(), c.log)
	}
	if err != nil {
		return nil, err
	}
	k.set(func() { k.server = server })
	ctx, cancel := context.WithTimeout(k.ctx, startTimeout)
	defer cancel()
	if err := server.WaitReady(ctx); err != nil {
		if k.ctx.Err() != nil {
			return nil, err // end stops it or leaves it
		}
		return nil, errors.Join(err, server.Kill(k.ctx))
	}
	return server, nil
}

// end carries out what its keeper was told: stop the Postgres, or leave it.
func (c *Computes) end(k *compute, log *slog.Logger) {
	server := k.running()
	if server == nil || errors.Is(context.Cause(k.ctx), errLeave) {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	clean, err := server.Stop(ctx)
	if err != nil || !clean {
		log.WarnContext(ctx, "a compute was not stopped cleanly", "err", err)
	}
	k.set(func() { k.server, k.state = nil, pgbough.ComputeIdle })
}

// ended tells why a Postgres ended that nobody stopped.
func (k *compute) ended(server *postgres.Server) error {
	tail := postgres.LogTail(k.cfg.LogFile(), 3)
	if server.Process().MemoryKills() > 0 {
		return fmt.Errorf("its Postgres was killed for using more than its memory limit; its log ends: %s", tail)
	}
	return fmt.Errorf("its Postgres ended by itself: %s", tail)
}

func (k *compute) running() *postgres.Server {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.server
}

func (k *compute) config() postgres.Config {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.cfg
}

func (k *compute) set(change func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	change()
	close(k.changed)
	k.changed = make(chan struct{})
}

// Wait waits until the compute of a volume answers.
func (c *Computes) Wait(ctx context.Context, id string) (*postgres.Server, error) {
	for {
		k := c.find(id)
		if k == nil {
			return nil, pgbough.Errorf(pgbough.EConflict, "no compute runs on volume %s", id)
		}
		k.mu.Lock()
		server, state, changed, failure := k.server, k.state, k.changed, k.failure
		k.mu.Unlock()
		if state == pgbough.ComputeActive && server != nil {
			return server, nil
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(pgbough.Errorf(pgbough.EInternal, "the branch's Postgres does not answer"), failure, context.Cause(ctx))
		case <-changed:
		}
	}
}

// Reload gives the compute of a volume new settings, now and for its next start.
func (c *Computes) Reload(id, settings string) error {
	k := c.find(id)
	if k == nil {
		return nil // it gets them at its next start
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.cfg.Settings = settings
	if k.server == nil {
		return nil
	}
	return k.server.Reload(settings)
}

// State tells about the compute of a volume; a volume without one is idle.
func (c *Computes) State(id string) State {
	k := c.find(id)
	if k == nil {
		return State{State: pgbough.ComputeIdle}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	s := State{State: k.state, Restarts: k.restarts, Failure: k.failure}
	if k.server != nil {
		s.PID, s.MemoryKills = k.server.Process().PID(), k.server.Process().MemoryKills()
	}
	return s
}

// Running are the ids of all volumes that a compute is kept on.
func (c *Computes) Running() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Collect(maps.Keys(c.all))
}

// Stop ends the compute of a volume and waits for its end. A Postgres that runs
// there unknown to us is ended too.
func (c *Computes) Stop(ctx context.Context, id string) error {
	if k := c.find(id); k != nil {
		k.cancel(errStop)
		select {
		case <-k.done:
		case <-ctx.Done():
			return fmt.Errorf("wait for the compute to stop: %w", context.Cause(ctx))
		}
		c.mu.Lock()
		delete(c.all, id)
		c.mu.Unlock()
	}
	proc, ok, err := c.launcher.Find(ctx, id)
	if err != nil || !ok {
		return err
	}
	return proc.Kill(ctx)
}

// Close ends keeping. With stop all computes are shut down, else they keep
// running for the next server to adopt.
func (c *Computes) Close(stop bool) {
	cause := errLeave
	if stop {
		cause = errStop
	}
	c.mu.Lock()
	c.closing = true
	for _, k := range c.all {
		k.cancel(cause)
	}
	c.mu.Unlock()
	c.wg.Wait()
}

func (c *Computes) find(id string) *compute {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.all[id]
}
