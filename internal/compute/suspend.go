package compute

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pgbough/pgbough"
)

const (
	// adminShutdown is what Postgres itself says to clients that it closes.
	adminShutdown = "57P01"

	leastPoll = 50 * time.Millisecond
	mostPoll  = 5 * time.Second
)

var (
	errUnclean = errors.New("its Postgres did not shut down cleanly")
	errStuck   = errors.New("its sessions could not be ended one by one, so all of its Postgres was")
)

// suspension asks a keeper to suspend its compute.
type suspension struct {
	reason reason
	done   chan error // takes one; an error says why it is not suspended
}

type reason int

const (
	idle    reason = iota // for its whole time
	evicted               // others need its place, and it has no session
	asked                 // by a person: whoever is connected
)

// outcome of trying to suspend.
type outcome int

const (
	stayed outcome = iota
	slept
	lost // its Postgres has ended, and is not known to be clean
)

// Suspend suspends the compute of a volume whether it is idle or not, and waits
// for that. One that sleeps already is left as it is.
func (c *Computes) Suspend(ctx context.Context, id string) error {
	k := c.find(id)
	if k == nil {
		return gone(id)
	}
	err := c.ask(ctx, k, asked)
	if errors.Is(err, errStuck) {
		err = c.ask(ctx, k, asked) // it is started again, without those sessions
	}
	return err
}

// ask has a keeper suspend its compute.
func (c *Computes) ask(ctx context.Context, k *compute, why reason) error {
	before := k.look().attempts
	for {
		w := k.look()
		var requests chan<- suspension
		switch {
		case w.phase == asleep:
			return nil
		case w.phase == active:
			requests = k.requests
		case why == evicted:
			return errInUse(why)
		case w.attempts > before:
			return pgbough.Errorf(pgbough.EConflict, "its Postgres does not run, so it cannot be shut down cleanly: %w", w.failure).
				WithHint("pgbough logs %s shows why it does not start", k.settings().Name)
		case w.phase == starting:
			k.hurry()
		}
		r := suspension{reason: why, done: make(chan error, 1)}
		select {
		case requests <- r:
			select {
			case err := <-r.done:
				return err
			case <-ctx.Done():
				return fmt.Errorf("wait for the compute to sleep: %w", context.Cause(ctx))
			}
		case <-w.changed:
		case <-k.done:
			return gone(k.settings().ID)
		case <-ctx.Done():
			return fmt.Errorf("wait for the compute to sleep: %w", context.Cause(ctx))
		}
	}
}

// hurry shortens the pause before the next start.
func (k *compute) hurry() {
	k.mu.Lock()
	if k.phase == starting {
		k.wanted = true
	}
	k.mu.Unlock()
	k.poke()
}

// attend looks after a Postgres that runs. It returns nil when the compute was
// suspended, else why its Postgres is no more.
func (c *Computes) attend(k *compute, inst instance) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		result, err := stayed, error(nil)
		select {
		case <-k.ctx.Done():
			return context.Cause(k.ctx)
		case <-inst.Done():
			if inst.MemoryKills() > 0 {
				return fmt.Errorf("its Postgres was killed for using more than its memory limit; its log ends: %s", inst.LogTail())
			}
			return fmt.Errorf("its Postgres ended by itself: %s", inst.LogTail())
		case r := <-k.requests:
			result, err = c.suspend(k, inst, r.reason)
			r.done <- err
		case <-k.nudge:
		case <-timer.C:
		}
		var next time.Duration
		if result == stayed {
			if next = c.due(k); next == 0 {
				if result, err = c.suspend(k, inst, idle); err != nil {
					c.log.WarnContext(k.ctx, "a compute cannot be suspended", "branch", k.branchID, "err", err)
				}
				next = max(leastPoll, c.due(k))
			}
		}
		switch result {
		case slept:
			return nil
		case lost:
			return err
		case stayed:
			timer.Reset(next)
		}
	}
}

// due is how long a compute has until it must be looked at again; zero says that
// it seems to have been idle for its whole time.
func (c *Computes) due(k *compute) time.Duration {
	after, poll := c.timeout(k), mostPoll
	if after != pgbough.SuspendNever {
		poll = min(max(after/20, leastPoll), mostPoll)
	}
	n, known := c.connected(k)
	if known && n == 0 && k.connected {
		k.touch(time.Now()) // the last one has just gone
	}
	k.connected = known && n > 0
	k.mu.Lock()
	left := time.Until(k.activeAt.Add(after))
	k.mu.Unlock()
	switch spec := k.settings(); {
	case after == pgbough.SuspendNever:
		return poll
	case left <= 0 && spec.Busy != nil && spec.Busy():
		return poll
	case left <= 0:
		return 0
	case known:
		return min(left, poll)
	}
	return left
}

func (c *Computes) timeout(k *compute) time.Duration {
	if d := k.settings().SuspendAfter; d != pgbough.SuspendByDefault {
		return d
	}
	return c.o.SuspendAfter
}

func (c *Computes) connected(k *compute) (n int, known bool) {
	c.mu.Lock()
	clients := c.clients
	c.mu.Unlock()
	if clients == nil {
		return 0, false
	}
	return clients.Clients(k.branchID), true
}

// touch notes that a compute was active at a time.
func (k *compute) touch(at time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if at.After(k.activeAt) {
		k.activeAt = at
	}
}

// suspend closes the gate, makes sure that nobody is at work, ends the sessions,
// and shuts down. Who comes meanwhile waits at the gate.
func (c *Computes) suspend(k *compute, inst instance, why reason) (outcome, error) {
	ctx, cancel := context.WithTimeout(k.ctx, quietTimeout)
	defer cancel()
	// First without disturbing anybody, then again behind the closed gate.
	if ok, err := c.unused(ctx, k, inst, why); !ok {
		return stayed, err
	}
	if !c.closeGate(k, why) {
		return stayed, errInUse(why)
	}
	c.mu.Lock()
	clients := c.clients
	c.mu.Unlock()
	if clients != nil {
		clients.Hold(k.branchID)
		defer clients.Release(k.branchID)
	}
	c.o.Failpoint("suspend_compute/held")
	ok, err := c.unused(ctx, k, inst, why)
	if ok {
		if clients != nil {
			clients.End(k.branchID, adminShutdown, farewell(k.settings().Name, why))
		}
		c.o.Failpoint("suspend_compute/ended")
		var logins []pgbough.Login
		if logins, err = inst.Quiet(ctx); err == nil {
			return c.shutDown(k, inst, logins)
		}
		if why == asked && k.ctx.Err() == nil && pgbough.ErrorCode(err) != pgbough.EConflict {
			return c.unstick(k, inst, err)
		}
		err = fmt.Errorf("end the sessions of the compute: %w", err)
		k.touch(time.Now())
	}
	k.set(func() { k.phase, k.wanted = active, false })
	return stayed, err
}

// unstick ends a Postgres that lets not even us in: a session of it may have
// locked what every login reads. What it holds is asked when it runs again.
func (c *Computes) unstick(k *compute, inst instance, cause error) (outcome, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(k.ctx), stopTimeout)
	defer cancel()
	if _, err := inst.Stop(ctx); err != nil {
		return lost, errors.Join(err, cause)
	}
	return lost, fmt.Errorf("%w: %w", errStuck, cause)
}

func farewell(name string, why reason) string {
	if why == asked {
		return fmt.Sprintf("the branch %s was suspended; connecting again wakes it", name)
	}
	return fmt.Sprintf("the branch %s sleeps after being idle; connecting again wakes it", name)
}

// closeGate has new clients wait, unless one came since the compute was looked at.
func (c *Computes) closeGate(k *compute, why reason) bool {
	after := c.timeout(k)
	closed := false
	k.set(func() {
		quiet := time.Since(k.activeAt)
		if why == idle && (after == pgbough.SuspendNever || quiet < after) || why == evicted && quiet < evictable {
			return
		}
		k.phase, k.wanted, closed = suspending, false, true
	})
	return closed
}

func errInUse(why reason) error {
	if why == evicted {
		return errors.New("the compute is in use")
	}
	return nil // somebody came: no failure
}

// unused tells whether nothing in a Postgres keeps it from being suspended.
func (c *Computes) unused(ctx context.Context, k *compute, inst instance, why reason) (bool, error) {
	if why == asked {
		return true, nil
	}
	a, err := inst.Activity(ctx)
	if err != nil {
		k.touch(time.Now()) // not again at once
		return false, fmt.Errorf("look at the sessions of the compute: %w", err)
	}
	switch {
	case a.Busy > 0:
		k.touch(time.Now())
		return false, errInUse(why)
	case a.Sessions == 0:
		return true, nil
	case why == evicted:
		return false, errInUse(why)
	}
	k.touch(time.Now().Add(-a.Idle))
	return a.Idle >= c.timeout(k), nil
}

// shutDown ends a Postgres without sessions and records that it sleeps.
func (c *Computes) shutDown(k *compute, inst instance, logins []pgbough.Login) (outcome, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(k.ctx), stopTimeout)
	defer cancel()
	clean, err := inst.Stop(ctx)
	c.o.Failpoint("suspend_compute/stopped")
	if err == nil && !clean {
		err = errUnclean
	}
	k.mu.Lock()
	activeAt := k.activeAt
	k.mu.Unlock()
	if err == nil {
		err = c.record(k, func(ctx context.Context, id string) error { return c.o.Records.SetAsleep(ctx, id, logins, activeAt) })
	}
	if err != nil {
		return lost, err
	}
	c.o.Failpoint("suspend_compute/recorded")
	k.recorded = false
	k.set(func() { k.phase, k.inst = asleep, nil })
	c.leave(k)
	c.log.InfoContext(ctx, "a compute sleeps", "branch", k.branchID, "last_active", activeAt)
	return slept, nil
}
