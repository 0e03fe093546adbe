package compute

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/postgres"
)

// instance is a running Postgres as its keeper sees it.
type instance interface {
	PID() int
	MemoryKills() int      // of its processes, at its memory limit
	Refusals() int         // of processes, at the limit of their number
	Done() <-chan struct{} // closed when its last process has ended
	// Ready waits until it takes connections, and returns the first one.
	Ready(ctx context.Context) (net.Conn, error)
	Dial(ctx context.Context) (net.Conn, error)
	Activity(ctx context.Context) (Activity, error)
	// Login is what pg_authid says of a role.
	Login(ctx context.Context, role string) (pgbough.Login, error)
	// Quiet ends every session in it and returns all that pg_authid says then.
	Quiet(ctx context.Context) ([]pgbough.Login, error)
	// Stop shuts it down, and tells whether a next start replays nothing.
	Stop(ctx context.Context) (clean bool, err error)
	Kill(ctx context.Context) error
	Reload(settings string) error
	Server() *postgres.Server
	LogTail() string
}

// Activity is what the sessions of a Postgres do.
type Activity struct {
	Sessions int           // of clients
	Busy     int           // of them those that are not idle outside a transaction; and walsenders, and autovacuum
	Idle     time.Duration // since the last one of the idle ones became idle
}

type phase int

const (
	asleep   phase = iota
	starting       // or waiting to be started again
	active
	suspending
)

type compute struct {
	branchID string
	ctx      context.Context // its life under our eyes
	cancel   context.CancelCauseFunc
	done     chan struct{}   // closed when its keeper has ended
	ending   chan struct{}   // holds a token while no Stop sees to its end
	nudge    chan struct{}   // has the keeper look again
	requests chan suspension // taken while it is active
	placed   bool            // among those that are awake; guarded by Computes.mu

	connected bool // clients were there when the keeper looked last; the keeper's own
	recorded  bool // as awake; the keeper's own
	adopt     bool // a Postgres may run that is not known; the keeper's own

	mu       sync.Mutex
	spec     Spec
	phase    phase
	inst     instance // nil while none runs
	wanted   bool     // somebody waits for it to be active
	activeAt time.Time
	queued   int      // clients that want a connection
	first    net.Conn // of a Postgres that has just started, for one of them
	attempts int      // starts that did not succeed
	failure  error    // why it does not run; nil while it does
	changed  chan struct{}
}

func newCompute(s Spec, inst instance) *compute {
	ctx, cancel := context.WithCancelCause(context.Background())
	k := &compute{
		branchID: s.BranchID, ctx: ctx, cancel: cancel, done: make(chan struct{}), ending: make(chan struct{}, 1),
		nudge: make(chan struct{}, 1), requests: make(chan suspension),
		spec: s, phase: starting, inst: inst, recorded: !s.Asleep, adopt: !s.Asleep, activeAt: time.Now(), changed: make(chan struct{}),
	}
	k.ending <- struct{}{}
	switch {
	case s.Asleep:
		k.phase = asleep
	case inst != nil:
		k.phase = active // it has answered its owner before
	}
	return k
}

// seen is a compute at one moment.
type seen struct {
	phase    phase
	inst     instance
	attempts int
	failure  error
	changed  <-chan struct{} // closed when any of it changes
}

func (k *compute) look() seen {
	k.mu.Lock()
	defer k.mu.Unlock()
	return seen{k.phase, k.inst, k.attempts, k.failure, k.changed}
}

// want is look for a client that wants it to be active: it cannot fall asleep
// by itself in the next moment.
func (k *compute) want(first bool) seen {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case k.phase == active:
		k.activeAt = time.Now()
	case first, k.phase == suspending, k.phase == asleep && k.failure == nil:
		k.wanted = true
	}
	return seen{k.phase, k.inst, k.attempts, k.failure, k.changed}
}

func (k *compute) set(change func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	change()
	close(k.changed)
	k.changed = make(chan struct{})
}

func (k *compute) poke() {
	select {
	case k.nudge <- struct{}{}:
	default:
	}
}

func (k *compute) state() State {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := State{Failure: k.failure, LastActive: k.activeAt}
	switch k.phase {
	case asleep:
		s.State, s.LastActive, s.Failure = pgbough.ComputeIdle, time.Time{}, nil
	case starting:
		s.State = pgbough.ComputeInit
	case active, suspending:
		s.State = pgbough.ComputeActive
	}
	if k.inst != nil {
		s.PID, s.MemoryKills, s.Refusals = k.inst.PID(), k.inst.MemoryKills(), k.inst.Refusals()
	}
	return s
}

func (k *compute) settings() Spec {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.spec
}

// refusal is what a client is told that waited for a start that failed.
func (k *compute) refusal(failure error) error {
	var told *pgbough.Error
	if errors.As(failure, &told) && told.Code == pgbough.EConflict {
		return told
	}
	name := k.settings().Name
	return pgbough.Errorf(pgbough.EInternal, "the Postgres of branch %s does not start: %w", name, failure).
		WithHint("pgbough logs %s shows its log", name)
}

// run is the keeper.
func (c *Computes) run(k *compute) {
	log := c.log.With("branch", k.branchID)
	pause := firstPause
	for k.ctx.Err() == nil {
		if k.look().phase == asleep && !c.rouse(k) {
			continue
		}
		began := time.Now()
		err := c.live(k)
		if err == nil || k.ctx.Err() != nil {
			pause = firstPause
			continue
		}
		if time.Since(began) > steadyTime {
			pause = firstPause
		}
		log.WarnContext(k.ctx, "a compute does not run; starting it again", "err", err, "in", pause)
		c.failed(k, err)
		k.rest(pause)
		pause = min(2*pause, maxPause)
	}
	c.end(k)
}

// rouse waits until somebody wants a compute that sleeps, and gives it a place
// among those that are awake. It is false if that may not be, or its life ends.
func (c *Computes) rouse(k *compute) bool {
	for {
		k.mu.Lock()
		wanted := k.wanted
		k.mu.Unlock()
		if wanted {
			break
		}
		select {
		case <-k.nudge:
		case <-k.ctx.Done():
			return false
		}
	}
	if err := c.admit(k); err != nil {
		k.set(func() { k.wanted, k.failure = false, err; k.attempts++ })
		return false
	}
	k.adopt = false // it was shut down
	k.set(func() { k.phase, k.wanted, k.failure = starting, false, nil })
	return true
}

// live runs a Postgres until it has ended by itself, which is the error, or was
// suspended.
func (c *Computes) live(k *compute) error {
	inst, err := c.bring(k)
	if err != nil && k.ctx.Err() != nil {
		return err // no try that failed: who waits is told that it is gone
	}
	if err != nil {
		k.set(func() { k.failure, k.wanted = err, false; k.attempts++ })
		return err
	}
	k.set(func() {
		k.phase, k.inst, k.failure, k.wanted, k.activeAt = active, inst, nil, false, time.Now()
	})
	return c.attend(k, inst)
}

// bring returns a Postgres that answers and is recorded to run.
func (c *Computes) bring(k *compute) (instance, error) {
	if inst := k.look().inst; inst != nil {
		return inst, nil
	}
	began := time.Now()
	recorded := make(chan error, 1)
	if k.recorded {
		recorded <- nil
	} else {
		// It need not be durable before a client is let in.
		go func() {
			c.o.Failpoint("start_compute/record")
			recorded <- c.record(k, c.o.Records.SetAwake)
		}()
	}
	inst, err := c.start(k.ctx, k.settings(), k.adopt)
	launched := time.Since(began)
	if err == nil {
		k.set(func() { k.inst = inst })
		c.o.Failpoint("start_compute/launched")
		err = c.ready(k, inst)
	}
	ready := time.Since(began)
	rerr := <-recorded
	k.recorded = rerr == nil
	if err == nil && rerr != nil && k.ctx.Err() == nil {
		ctx, cancel := context.WithTimeout(k.ctx, stopTimeout)
		defer cancel()
		_, serr := inst.Stop(ctx)
		return nil, errors.Join(rerr, serr)
	}
	if err != nil {
		return nil, errors.Join(err, rerr)
	}
	c.o.Failpoint("start_compute/recorded")
	c.log.DebugContext(k.ctx, "a compute started", "branch", k.branchID, "launched", launched, "ready", ready, "recorded", time.Since(began))
	return inst, nil
}

func (c *Computes) ready(k *compute, inst instance) error {
	ctx, cancel := context.WithTimeout(k.ctx, startTimeout)
	defer cancel()
	first, err := inst.Ready(ctx)
	switch {
	case err == nil:
		k.offer(first)
		return nil
	case k.ctx.Err() != nil:
		return err // end stops it or leaves it
	}
	return errors.Join(err, inst.Kill(k.ctx))
}

// offer gives a connection on which nothing was said to the first who waits.
func (k *compute) offer(conn net.Conn) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.queued == 0 {
		_ = conn.Close() // nobody needs it
		return
	}
	k.first = conn
}

func (k *compute) takeFirst() net.Conn {
	k.mu.Lock()
	defer k.mu.Unlock()
	conn := k.first
	k.first = nil
	return conn
}

func (k *compute) queue() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.queued++
}

// unqueue closes what was offered when nobody is left to take it.
func (k *compute) unqueue() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.queued--; k.queued == 0 && k.first != nil {
		_ = k.first.Close() // nothing was said on it
		k.first = nil
	}
}

func (c *Computes) record(k *compute, write func(context.Context, string) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(k.ctx), recordTimeout)
	defer cancel()
	if err := write(ctx, k.branchID); err != nil {
		return fmt.Errorf("record how the compute is: %w", err)
	}
	return nil
}

// failed notes that a Postgres does not run that should.
func (c *Computes) failed(k *compute, err error) {
	k.adopt = true
	if conn := k.takeFirst(); conn != nil {
		_ = conn.Close() // its other end is gone
	}
	k.set(func() { k.phase, k.inst, k.failure = starting, nil, err })
	at, why := time.Now(), brief(err)
	if err := c.record(k, func(ctx context.Context, id string) error { return c.o.Records.NoteFailure(ctx, id, at, why) }); err != nil {
		c.log.WarnContext(k.ctx, "the end of a compute cannot be noted", "branch", k.branchID, "err", err)
	}
}

// brief is an error's text, cut to what a table can show.
func brief(err error) string {
	const most = 1000
	text := []rune(err.Error())
	return string(text[:min(len(text), most)])
}

// rest waits before the next start, not so long if somebody waits for it.
func (k *compute) rest(pause time.Duration) {
	began := time.Now()
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			return
		case <-k.ctx.Done():
			return
		case <-k.nudge:
		}
		k.mu.Lock()
		wanted := k.wanted
		k.mu.Unlock()
		if wanted {
			timer.Reset(max(0, min(pause, wantedPause)-time.Since(began)))
		}
	}
}

// end carries out what its keeper was told: stop the Postgres, or leave it.
func (c *Computes) end(k *compute) {
	inst := k.look().inst
	if inst == nil || errors.Is(context.Cause(k.ctx), errLeave) {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(k.ctx), stopTimeout)
	defer cancel()
	clean, err := inst.Stop(ctx)
	if err != nil || !clean {
		c.log.WarnContext(ctx, "a compute was not stopped cleanly", "branch", k.branchID, "err", err)
	}
	k.set(func() { k.inst, k.phase = nil, asleep })
}
