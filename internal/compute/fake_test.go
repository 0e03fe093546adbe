package compute

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/postgres"
)

// machine is where instances run in memory, so that timers can be tested with
// synctest. What real ones do is tested with real ones.
type machine struct {
	t testing.TB

	mu      sync.Mutex
	starts  map[string]int
	running map[string]*memory
	broken  map[string]error // starts that fail, by volume
	events  []string
	asleep  map[string]bool // what is recorded
	failed  map[string][]string
	refuse  error // of SetAsleep
	startup time.Duration
}

// memory is an instance in memory.
type memory struct {
	m        *machine
	id       string
	done     chan struct{}
	mu       sync.Mutex
	activity Activity
	unclean  bool
	stuck    bool
	idleAt   time.Time // when its sessions became idle
}

func newMachine(t testing.TB) *machine {
	return &machine{
		t: t, starts: map[string]int{}, running: map[string]*memory{}, broken: map[string]error{}, asleep: map[string]bool{}, failed: map[string][]string{},
		startup: 100 * time.Millisecond,
	}
}

func (m *machine) computes(o Options) *Computes {
	o.Records, o.Log, o.Launcher = m, slog.New(slog.DiscardHandler), nothing{}
	c := New(o)
	c.start = m.start
	return c
}

// nothing is a Launcher on a machine where nothing runs.
type nothing struct{ postgres.Launcher }

func (nothing) Find(context.Context, string) (postgres.Process, bool, error) { return nil, false, nil }

func (m *machine) start(_ context.Context, s Spec, _ bool) (instance, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.starts[s.ID]++
	if err := m.broken[s.ID]; err != nil {
		return nil, err
	}
	if m.running[s.ID] != nil {
		m.t.Errorf("a second Postgres is started on %s", s.ID)
	}
	p := &memory{m: m, id: s.ID, done: make(chan struct{})}
	m.running[s.ID] = p
	return p, nil
}

func (m *machine) note(format string, args ...any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.events = append(m.events, fmt.Sprintf(format, args...))
}

// happened are the events since it was last asked.
func (m *machine) happened() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	defer func() { m.events = nil }()
	return m.events
}

func (m *machine) SetAwake(_ context.Context, id string) error {
	m.note("record awake")
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asleep[id] = false
	return nil
}

func (m *machine) SetAsleep(_ context.Context, id string, logins []pgbough.Login, _ time.Time) error {
	m.note("record asleep with %d", len(logins))
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.running["v"+id[1:]] != nil {
		m.t.Errorf("%s is recorded as asleep while its Postgres runs", id)
	}
	if m.refuse != nil {
		return m.refuse
	}
	m.asleep[id] = true
	return nil
}

func (m *machine) NoteFailure(_ context.Context, id string, _ time.Time, why string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failed[id] = append(m.failed[id], why)
	return nil
}

func (m *machine) on(id string) *memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.running[id]
}

func (m *machine) count(id string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.starts[id]
}

func (p *memory) PID() int              { return 1 }
func (p *memory) Done() <-chan struct{} { return p.done }
func (p *memory) Ready(ctx context.Context) (net.Conn, error) {
	select {
	case <-time.After(p.m.startup):
		return p.Dial(ctx)
	case <-p.done:
		return nil, errors.New("it ended")
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (p *memory) Dial(context.Context) (net.Conn, error) {
	select {
	case <-p.done:
		return nil, errors.New("nobody listens")
	default:
	}
	ours, theirs := net.Pipe()
	go func() { <-p.done; _ = theirs.Close() }()
	return ours, nil
}

func (p *memory) Activity(context.Context) (Activity, error) {
	p.m.note("look")
	p.mu.Lock()
	defer p.mu.Unlock()
	a := p.activity
	a.Idle = time.Since(p.idleAt)
	return a, nil
}

func (p *memory) sessions(n, busy int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.activity, p.idleAt = Activity{Sessions: n, Busy: busy}, time.Now()
}

func (p *memory) Login(_ context.Context, role string) (pgbough.Login, error) {
	return pgbough.Login{Verifier: "of " + role}, nil
}

func (p *memory) Quiet(context.Context) ([]pgbough.Login, error) {
	p.m.note("quiet")
	if p.stuck {
		return nil, errors.New("it does not let us in")
	}
	return []pgbough.Login{{Role: "app"}}, nil
}

func (p *memory) Stop(context.Context) (bool, error) {
	p.m.note("stop")
	p.die()
	return !p.unclean, nil
}

func (p *memory) Kill(context.Context) error { p.die(); return nil }

func (p *memory) die() {
	p.m.mu.Lock()
	defer p.m.mu.Unlock()
	if p.m.running[p.id] == p {
		delete(p.m.running, p.id)
		close(p.done)
	}
}

func (p *memory) Reload(string) error      { return nil }
func (p *memory) Server() *postgres.Server { return nil }
func (p *memory) MemoryKills() int         { return 0 }
func (p *memory) Refusals() int            { return 0 }
func (p *memory) LogTail() string          { return "the last lines" }

// crowd are clients in memory.
type crowd struct {
	m  *machine
	mu sync.Mutex
	n  map[string]int
}

func (c *crowd) set(id string, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n[id] = n
}

func (c *crowd) Clients(id string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n[id]
}
func (c *crowd) Hold(string)    { c.m.note("hold") }
func (c *crowd) Release(string) { c.m.note("release") }
func (c *crowd) End(id, code, message string) {
	c.m.note("end %s %s", code, message)
	c.set(id, 0)
}

func wantEvents(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}
