// Package compute keeps the Postgres processes of branches as they should be: it
// starts or adopts them, starts them again when they end by themselves, suspends
// those that nobody uses, wakes them for the next client, and stops them. A
// branch has at most one compute, named by its volume's id.
//
// Each compute has a keeper, a goroutine that alone changes its phase:
//
//	asleep ──somebody wants it──▶ starting ──▶ active ──idle, or asked──▶ suspending ──▶ asleep
//	                                 ▲            │                            │
//	                                 └────────────┴──its Postgres has ended────┘
//
// Asleep is durable only after a clean shutdown, together with what clients must
// prove to log in; awake is durable before a client reaches the Postgres.
// Whatever instant the server dies at, a compute that is recorded as asleep has
// verifiers that are those of its files.
package compute

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/postgres"
)

const (
	startTimeout  = 10 * time.Minute // an unclean stop may have left much WAL to replay
	stopTimeout   = 30 * time.Second
	quietTimeout  = 10 * time.Second       // to look at sessions and to end them
	recordTimeout = 30 * time.Second       // to write to the catalog
	firstPause    = 200 * time.Millisecond // between the end of a Postgres and its next start
	wantedPause   = time.Second            // the same, at most, while a client waits for it
	maxPause      = time.Minute
	dyingTime     = 2 * time.Second // from the end of a postmaster to that of its last process
	steadyTime    = time.Minute     // a Postgres that ran this long is started again without delay
)

// Records keeps what must survive the server. A method has made its fact durable
// when it returns.
type Records interface {
	// SetAwake: a Postgres should run for the branch.
	SetAwake(ctx context.Context, branchID string) error
	// SetAsleep: it was shut down cleanly, and logins are what its pg_authid holds.
	SetAsleep(ctx context.Context, branchID string, logins []pgbough.Login, lastActive time.Time) error
	// NoteFailure: it ended by itself.
	NoteFailure(ctx context.Context, branchID string, at time.Time, failure string) error
}

// Clients are those who are connected to branches through the proxy.
type Clients interface {
	// Clients is how many are connected to a branch.
	Clients(branchID string) int
	// Hold lets nothing more that a client sends reach the compute, until Release.
	Hold(branchID string)
	Release(branchID string)
	// End sends each client a FATAL error and closes its connection.
	End(branchID, code, message string)
}

// Options of Computes.
type Options struct {
	Launcher     postgres.Launcher
	Records      Records
	SuspendAfter time.Duration // of branches with SuspendByDefault; SuspendNever is never
	MaxAwake     int           // how many may be awake at a time; 0 is any number
	Log          *slog.Logger
	// Failpoint is called with the name of each place where the end of the server
	// would be interesting. It may be nil.
	Failpoint func(name string)
}

// Spec is one compute.
type Spec struct {
	ID           string // its volume's
	BranchID     string
	Name         string // the branch's, for messages
	SuspendAfter time.Duration
	// Asleep: no Postgres should run until somebody wants it.
	Asleep bool
	// Config is asked for at each start.
	Config func(context.Context) (postgres.Config, error)
	// Busy tells that something of ours works in it, so that it may not sleep.
	Busy func() bool
}

// Computes are the computes of all branches of a server.
type Computes struct {
	o     Options
	log   *slog.Logger
	start func(ctx context.Context, s Spec, adopt bool) (instance, error)

	mu      sync.Mutex
	all     map[string]*compute
	awake   int // how many have a place among those that are awake
	wakes   int64
	clients Clients
	closing bool
	wg      sync.WaitGroup
}

// State is what is known of a compute.
type State struct {
	State      pgbough.ComputeState
	PID        int
	LastActive time.Time // zero while it sleeps
	Failure    error     // why it does not run, if it should
	// MemoryKills is how many processes of it, as it runs now, were killed at its memory limit.
	MemoryKills int
	// Refusals is how many processes of it were not started at its limit of processes.
	Refusals int
}

var (
	errStop  = errors.New("the compute is stopped")
	errLeave = errors.New("the compute is left running")
)

// New makes an empty set of computes.
func New(o Options) *Computes {
	if o.Failpoint == nil {
		o.Failpoint = func(string) {}
	}
	c := &Computes{o: o, log: o.Log, all: map[string]*compute{}}
	c.start = func(ctx context.Context, s Spec, adopt bool) (instance, error) {
		return startLocal(ctx, o.Launcher, s, adopt, o.Log)
	}
	return c
}

// SetClients tells who knows the clients. Without it, only their sessions in
// pg_stat_activity are known.
func (c *Computes) SetClients(clients Clients) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.clients = clients
}

// Keep keeps a compute from now until Stop: unless it sleeps, a running Postgres
// is adopted or a new one started. It returns at once.
func (c *Computes) Keep(s Spec) { c.keep(s, nil) }

// Take is Keep for a Postgres that already runs under our eyes, such as a
// promoted spare.
func (c *Computes) Take(s Spec, server *postgres.Server) { c.keep(s, newLocal(server)) }

func (c *Computes) keep(s Spec, inst instance) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.all[s.ID]; ok || c.closing {
		return
	}
	k := newCompute(s, inst)
	c.all[s.ID] = k
	if k.phase != asleep {
		k.placed = true
		c.awake++
	}
	c.wg.Go(func() { defer close(k.done); c.run(k) })
}

// Connect connects to the private socket of a compute, which is woken if it
// sleeps: one start serves all who wait for it.
func (c *Computes) Connect(ctx context.Context, id string) (net.Conn, error) {
	k := c.find(id)
	if k == nil {
		return nil, gone(id)
	}
	k.queue()
	defer k.unqueue()
	for {
		inst, err := c.wake(ctx, k)
		if err != nil {
			return nil, err
		}
		if conn := k.takeFirst(); conn != nil {
			return conn, nil
		}
		conn, err := inst.Dial(ctx)
		if err == nil {
			return conn, nil
		}
		if !dying(ctx, inst) {
			return nil, fmt.Errorf("connect to the compute: %w", err)
		}
	}
}

// dying tells whether a Postgres that does not answer ends in a moment: its
// postmaster goes first, its other processes soon after.
func dying(ctx context.Context, inst instance) bool {
	timer := time.NewTimer(dyingTime)
	defer timer.Stop()
	select {
	case <-inst.Done():
		return true
	case <-timer.C:
	case <-ctx.Done():
	}
	return false
}

// Wake starts a compute that sleeps, and waits until it answers.
func (c *Computes) Wake(ctx context.Context, id string) error {
	k := c.find(id)
	if k == nil {
		return gone(id)
	}
	_, err := c.wake(ctx, k)
	return err
}

func (c *Computes) wake(ctx context.Context, k *compute) (instance, error) {
	before := -1
	for {
		w := k.want(before < 0)
		if before < 0 {
			before = w.attempts
		}
		switch {
		case w.phase == active:
			return w.inst, nil
		case w.attempts > before:
			return nil, k.refusal(w.failure)
		}
		k.poke()
		select {
		case <-w.changed:
		case <-k.done:
			return nil, gone(k.settings().ID)
		case <-ctx.Done():
			return nil, errors.Join(pgbough.Errorf(pgbough.EInternal, "the Postgres of the branch does not answer"), w.failure, context.Cause(ctx))
		}
	}
}

func gone(id string) error {
	return pgbough.Errorf(pgbough.EConflict, "no compute serves volume %s: its branch is being deleted, or the server stops", id).
		WithHint("see: pgbough branch list")
}

// Login asks the compute what a client must prove to be a role; it has no
// verifier where there is no such role. It is false if the compute sleeps, and
// waits while it is neither awake nor asleep.
func (c *Computes) Login(ctx context.Context, id, role string) (pgbough.Login, bool, error) {
	k := c.find(id)
	if k == nil {
		return pgbough.Login{}, false, gone(id)
	}
	before := -1
	for {
		w := k.look()
		if before < 0 {
			before = w.attempts
		}
		switch {
		case w.phase == asleep:
			return pgbough.Login{}, false, nil
		case w.phase == active:
			l, err := w.inst.Login(ctx, role)
			if err == nil {
				l.BranchID, l.Role = k.branchID, role
				return l, true, nil
			}
			if now := k.look(); now.phase == active && now.inst == w.inst && !dying(ctx, w.inst) {
				return pgbough.Login{}, true, fmt.Errorf("ask the compute for a role: %w", err)
			}
		case w.attempts > before:
			// Who has proved nothing yet is told no reason.
			return pgbough.Login{}, true, pgbough.Errorf(pgbough.EInternal, "the Postgres of the branch does not start")
		}
		select {
		case <-w.changed:
		case <-k.done:
			return pgbough.Login{}, false, gone(id)
		case <-ctx.Done():
			return pgbough.Login{}, true, fmt.Errorf("wait for the compute: %w", context.Cause(ctx))
		}
	}
}

// Wait waits until the compute of a volume answers. It wakes nothing.
func (c *Computes) Wait(ctx context.Context, id string) (*postgres.Server, error) {
	k := c.find(id)
	if k == nil {
		return nil, gone(id)
	}
	for {
		w := k.look()
		switch w.phase {
		case active:
			return w.inst.Server(), nil
		case asleep:
			return nil, pgbough.Errorf(pgbough.EConflict, "the compute of volume %s sleeps", id)
		case starting, suspending:
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(pgbough.Errorf(pgbough.EInternal, "the branch's Postgres does not answer"), w.failure, context.Cause(ctx))
		case <-k.done:
			return nil, gone(id)
		case <-w.changed:
		}
	}
}

// Reload gives the compute of a volume new settings. One that sleeps gets them
// at its next start.
func (c *Computes) Reload(id, settings string) error {
	if k := c.find(id); k != nil {
		if w := k.look(); w.inst != nil {
			return w.inst.Reload(settings)
		}
	}
	return nil
}

// SetSuspendAfter changes how long the compute of a volume may be idle.
func (c *Computes) SetSuspendAfter(id string, d time.Duration) {
	if k := c.find(id); k != nil {
		k.set(func() { k.spec.SuspendAfter = d })
		k.poke()
	}
}

// Rename changes the branch's name, for messages.
func (c *Computes) Rename(id, name string) {
	if k := c.find(id); k != nil {
		k.set(func() { k.spec.Name = name })
	}
}

// State tells about the compute of a volume; a volume without one is idle.
func (c *Computes) State(id string) State {
	if k := c.find(id); k != nil {
		return k.state()
	}
	return State{State: pgbough.ComputeIdle}
}

// Running are the ids of all volumes that a Postgres of ours runs on.
func (c *Computes) Running() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var ids []string
	for id, k := range c.all {
		if k.look().inst != nil {
			ids = append(ids, id)
		}
	}
	return ids
}

// Sleeping are the ids of the volumes of all computes that are asleep.
func (c *Computes) Sleeping() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var ids []string
	for id, k := range c.all {
		if k.look().phase == asleep {
			ids = append(ids, id)
		}
	}
	return ids
}

// Wakes counts the computes that were woken, since New.
func (c *Computes) Wakes() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.wakes
}

// Knows tells whether a volume has a compute, awake or asleep.
func (c *Computes) Knows(id string) bool { return c.find(id) != nil }

// Stop ends the compute of a volume and waits for its end. A Postgres that runs
// there unknown to us is ended too. Until then the volume has its compute, so that
// Keep begins nothing that would be ended in the place of the old one.
func (c *Computes) Stop(ctx context.Context, id string) error {
	k := c.find(id)
	if k == nil {
		return c.kill(ctx, id)
	}
	k.cancel(errStop)
	for _, turn := range []<-chan struct{}{k.done, k.ending} {
		select {
		case <-turn:
		case <-ctx.Done():
			return fmt.Errorf("wait for the compute to stop: %w", context.Cause(ctx))
		}
	}
	defer func() { k.ending <- struct{}{} }()
	if c.find(id) != k {
		return nil // another Stop has ended it; what may run now is a new one's
	}
	c.leave(k)
	if err := c.kill(ctx, id); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.all, id)
	return nil
}

// kill ends the Postgres that runs on a volume unknown to us, if one does.
func (c *Computes) kill(ctx context.Context, id string) error {
	proc, ok, err := c.o.Launcher.Find(ctx, id)
	if err != nil || !ok {
		return err
	}
	return proc.Kill(ctx)
}

// Close ends keeping. With stop all computes are shut down, else they keep
// running for the next server to adopt. Both leave them recorded as they are:
// the next server wakes those that are awake.
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
