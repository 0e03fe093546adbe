package compute

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/postgres"
)

func spec(i int) Spec {
	return Spec{ID: fmt.Sprintf("v%d", i), BranchID: fmt.Sprintf("b%d", i), Name: fmt.Sprintf("n%d", i), SuspendAfter: pgbough.SuspendByDefault}
}

func sleeping(i int) Spec {
	s := spec(i)
	s.Asleep = true
	return s
}

// in runs a test of one machine in a bubble whose time passes by itself.
func in(t *testing.T, o Options, f func(t *testing.T, m *machine, c *Computes)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		c := m.computes(o)
		f(t, m, c)
		c.Close(true)
		if len(m.running) > 0 {
			t.Errorf("%d Postgres run after Close", len(m.running))
		}
	})
}

func wantState(t *testing.T, c *Computes, id string, want pgbough.ComputeState) {
	t.Helper()
	synctest.Wait()
	if got := c.State(id).State; got != want {
		t.Errorf("%s is %s, want %s", id, got, want)
	}
}

func TestOneStartForMany(t *testing.T) {
	in(t, Options{}, func(t *testing.T, m *machine, c *Computes) {
		for i := range 16 {
			c.Keep(sleeping(i))
		}
		synctest.Wait()
		if len(m.starts) > 0 {
			t.Errorf("computes that sleep are started: %v", m.starts)
		}
		var wg sync.WaitGroup
		for i := range 64 {
			wg.Go(func() {
				conn, err := c.Connect(t.Context(), fmt.Sprintf("v%d", i%16))
				if err != nil {
					t.Error(err)
					return
				}
				_ = conn.Close()
			})
		}
		wg.Wait()
		for i := range 16 {
			if n := m.count(fmt.Sprintf("v%d", i)); n != 1 {
				t.Errorf("v%d was started %d times", i, n)
			}
		}
		if n := c.Wakes(); n != 16 {
			t.Errorf("%d wakes are counted, of 16", n)
		}
	})
}

func TestSleepsWhenIdle(t *testing.T) {
	in(t, Options{SuspendAfter: 5 * time.Minute}, func(t *testing.T, m *machine, c *Computes) {
		clients := &crowd{m: m, n: map[string]int{}}
		c.SetClients(clients)
		c.Keep(spec(1))
		wantState(t, c, "v1", pgbough.ComputeInit)
		time.Sleep(time.Second)
		wantState(t, c, "v1", pgbough.ComputeActive)
		wantEvents(t, "nothing is recorded of what was recorded as awake", m.happened())

		// A client of four minutes: its end counts, not its beginning.
		if _, err := c.Connect(t.Context(), "v1"); err != nil {
			t.Fatal(err)
		}
		clients.set("b1", 1)
		time.Sleep(4 * time.Minute)
		clients.set("b1", 0)
		time.Sleep(5*time.Minute - 10*time.Second)
		wantState(t, c, "v1", pgbough.ComputeActive)
		time.Sleep(20 * time.Second)
		wantState(t, c, "v1", pgbough.ComputeIdle)
		wantEvents(t, "the order of a suspension", m.happened(), "look", "hold", "look",
			"end 57P01 the branch n1 sleeps after being idle; connecting again wakes it", "quiet", "stop", "record asleep with 1", "release")

		if _, err := c.Connect(t.Context(), "v1"); err != nil {
			t.Fatal(err)
		}
		wantEvents(t, "a wake", m.happened(), "record awake")
		if m.count("v1") != 2 || m.asleep["b1"] {
			t.Errorf("%d starts; recorded as asleep: %t", m.count("v1"), m.asleep["b1"])
		}
	})
}

func TestIdleSessions(t *testing.T) {
	in(t, Options{SuspendAfter: 5 * time.Minute}, func(t *testing.T, m *machine, c *Computes) {
		clients := &crowd{m: m, n: map[string]int{"b1": 1}}
		c.SetClients(clients)
		c.Keep(spec(1))
		time.Sleep(time.Second)
		p := m.on("v1")
		p.sessions(1, 1) // in a transaction
		time.Sleep(time.Hour)
		wantState(t, c, "v1", pgbough.ComputeActive)
		p.sessions(2, 0)
		time.Sleep(5*time.Minute - time.Second)
		wantState(t, c, "v1", pgbough.ComputeActive)
		time.Sleep(5 * time.Minute)
		wantState(t, c, "v1", pgbough.ComputeIdle)
		if clients.Clients("b1") != 0 {
			t.Error("idle clients were not told")
		}
	})
}

func TestWorkKeepsItAwake(t *testing.T) {
	in(t, Options{SuspendAfter: time.Minute}, func(t *testing.T, m *machine, c *Computes) {
		var busy atomic.Bool
		busy.Store(true)
		never, own, settling := spec(1), spec(2), spec(3)
		never.SuspendAfter = pgbough.SuspendNever
		own.SuspendAfter = time.Hour
		settling.Busy = busy.Load
		c.Keep(never)
		c.Keep(own)
		c.Keep(settling)
		time.Sleep(30 * time.Minute)
		for _, id := range []string{"v1", "v2", "v3"} {
			wantState(t, c, id, pgbough.ComputeActive)
		}
		busy.Store(false)
		time.Sleep(2 * time.Minute)
		wantState(t, c, "v3", pgbough.ComputeIdle)
		time.Sleep(time.Hour)
		wantState(t, c, "v2", pgbough.ComputeIdle)
		wantState(t, c, "v1", pgbough.ComputeActive)
		c.SetSuspendAfter("v1", time.Second)
		wantState(t, c, "v1", pgbough.ComputeIdle)
	})
}

// A client that comes while the compute falls asleep waits and wakes it again.
func TestClientComesWhileItFallsAsleep(t *testing.T) {
	var during func()
	in(t, Options{SuspendAfter: time.Minute, Failpoint: func(name string) {
		if name == "suspend_compute/ended" && during != nil {
			during()
			during = nil
		}
	}}, func(t *testing.T, m *machine, c *Computes) {
		came := make(chan error, 1)
		during = func() {
			go func() { _, err := c.Connect(context.Background(), "v1"); came <- err }()
			time.Sleep(time.Second)
			if len(came) > 0 {
				t.Error("the gate is open")
			}
		}
		c.Keep(spec(1))
		if err := <-came; err != nil || m.count("v1") != 2 {
			t.Errorf("%d starts, %v", m.count("v1"), err)
		}
		wantState(t, c, "v1", pgbough.ComputeActive)
		time.Sleep(10 * time.Minute)
		wantState(t, c, "v1", pgbough.ComputeIdle)
		if m.count("v1") != 2 {
			t.Errorf("%d starts: somebody's wish outlived it", m.count("v1"))
		}
	})
}

func TestSuspendAsked(t *testing.T) {
	in(t, Options{}, func(t *testing.T, m *machine, c *Computes) {
		c.SetClients(&crowd{m: m, n: map[string]int{"b1": 1}})
		c.Keep(spec(1))
		if err := c.Suspend(t.Context(), "v1"); err != nil {
			t.Fatal(err)
		}
		wantState(t, c, "v1", pgbough.ComputeIdle)
		wantEvents(t, "whoever is connected", m.happened(), "hold", "end 57P01 the branch n1 was suspended; connecting again wakes it",
			"quiet", "stop", "record asleep with 1", "release")
		if err := c.Suspend(t.Context(), "v1"); err != nil {
			t.Errorf("again: %v", err)
		}
		if err := c.Wake(t.Context(), "v1"); err != nil {
			t.Error(err)
		}
		if err := c.Wake(t.Context(), "v1"); err != nil {
			t.Errorf("again: %v", err)
		}
		if err := c.Suspend(t.Context(), "v9"); err == nil {
			t.Error("a compute that nobody knows is suspended")
		}
	})
}

// What was not shut down cleanly, or cannot be recorded, is never recorded as
// asleep: it is started again, so that its verifiers can be read.
func TestUncleanIsNotAsleep(t *testing.T) {
	for _, how := range []string{"unclean", "not recorded"} {
		t.Run(how, func(t *testing.T) {
			in(t, Options{}, func(t *testing.T, m *machine, c *Computes) {
				c.Keep(spec(1))
				time.Sleep(time.Second)
				if how == "unclean" {
					m.on("v1").unclean = true
				} else {
					m.refuse = errors.New("the disk is full")
				}
				if err := c.Suspend(t.Context(), "v1"); err == nil {
					t.Error("it is said to sleep")
				}
				time.Sleep(time.Second)
				wantState(t, c, "v1", pgbough.ComputeActive)
				if m.asleep["b1"] || m.count("v1") != 2 || len(m.failed["b1"]) != 1 {
					t.Errorf("recorded as asleep: %t, %d starts, failures %q", m.asleep["b1"], m.count("v1"), m.failed["b1"])
				}
			})
		})
	}
}

// A session that lets not even us in does not keep a compute from being suspended
// when somebody asks for that.
func TestStuckSession(t *testing.T) {
	in(t, Options{}, func(t *testing.T, m *machine, c *Computes) {
		c.Keep(spec(1))
		time.Sleep(time.Second)
		m.on("v1").stuck = true
		if err := c.Suspend(t.Context(), "v1"); err != nil {
			t.Error(err)
		}
		wantState(t, c, "v1", pgbough.ComputeIdle)
		if m.count("v1") != 2 || !m.asleep["b1"] {
			t.Errorf("%d starts; recorded as asleep: %t", m.count("v1"), m.asleep["b1"])
		}
	})
}

func TestDiedIsStartedAgain(t *testing.T) {
	in(t, Options{}, func(t *testing.T, m *machine, c *Computes) {
		c.Keep(spec(1))
		time.Sleep(time.Second)
		m.on("v1").die()
		if _, err := c.Connect(t.Context(), "v1"); err != nil {
			t.Errorf("a client that comes meanwhile: %v", err)
		}
		if got := m.failed["b1"]; len(got) != 1 || !strings.Contains(got[0], "the last lines") {
			t.Errorf("noted: %q", got)
		}
		// One that dies again and again is started ever more seldom.
		for range 10 {
			for m.on("v1") == nil {
				time.Sleep(time.Second)
			}
			m.on("v1").die()
			synctest.Wait()
		}
		before := m.count("v1")
		time.Sleep(30 * time.Second)
		if n := m.count("v1") - before; n > 1 {
			t.Errorf("%d starts in 30 s", n)
		}
	})
}

func TestWillNotStart(t *testing.T) {
	in(t, Options{}, func(t *testing.T, m *machine, c *Computes) {
		c.Keep(sleeping(1))
		m.broken["v1"] = errors.New("FATAL: it is broken")
		for range 3 {
			_, err := c.Connect(t.Context(), "v1")
			if pgbough.ErrorCode(err) != pgbough.EInternal || !strings.Contains(err.Error(), "FATAL: it is broken") || !strings.Contains(err.Error(), "pgbough logs n1") {
				t.Errorf("a client is told %v", err)
			}
		}
		if n := m.count("v1"); n > 6 {
			t.Errorf("three clients caused %d starts", n)
		}
		_, _, err := c.Login(t.Context(), "v1", "app")
		if err == nil || strings.Contains(err.Error(), "broken") {
			t.Errorf("who has proved nothing is told %v", err)
		}
		if err := c.Suspend(t.Context(), "v1"); pgbough.ErrorCode(err) != pgbough.EConflict {
			t.Errorf("suspend: %v", err)
		}
		m.mu.Lock()
		delete(m.broken, "v1")
		m.mu.Unlock()
		time.Sleep(2 * time.Minute)
		wantState(t, c, "v1", pgbough.ComputeActive)
	})
}

func TestLogin(t *testing.T) {
	in(t, Options{}, func(t *testing.T, m *machine, c *Computes) {
		c.Keep(sleeping(1))
		if _, awake, err := c.Login(t.Context(), "v1", "app"); awake || err != nil {
			t.Errorf("asleep: %t, %v", awake, err)
		}
		if m.count("v1") != 0 {
			t.Error("a login started a compute")
		}
		go func() { _ = c.Wake(context.Background(), "v1") }()
		synctest.Wait()
		l, awake, err := c.Login(t.Context(), "v1", "app")
		if want := (pgbough.Login{BranchID: "b1", Role: "app", Verifier: "of app"}); l != want || !awake || err != nil {
			t.Errorf("while it starts: %+v, %t, %v", l, awake, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		m.startup = time.Minute
		m.on("v1").die()
		synctest.Wait()
		if _, _, err := c.Login(ctx, "v1", "app"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a wait that is too long: %v", err)
		}
	})
}

func TestLimit(t *testing.T) {
	in(t, Options{MaxAwake: 2}, func(t *testing.T, m *machine, c *Computes) {
		clients := &crowd{m: m, n: map[string]int{}}
		c.SetClients(clients)
		for i := range 5 {
			c.Keep(sleeping(i))
		}
		connect := func(i int) error {
			_, err := c.Connect(t.Context(), fmt.Sprintf("v%d", i))
			if err == nil {
				clients.set(fmt.Sprintf("b%d", i), 1)
			}
			return err
		}
		if err := errors.Join(connect(0), connect(1)); err != nil {
			t.Fatal(err)
		}
		err := connect(2)
		if pgbough.ErrorCode(err) != pgbough.EConflict || !strings.Contains(err.Error(), "2 computes are awake") {
			t.Errorf("a third one: %v", err)
		}
		wantState(t, c, "v2", pgbough.ComputeIdle)
		if err := c.Room(t.Context(), 1); pgbough.ErrorCode(err) != pgbough.EConflict {
			t.Errorf("room for a new branch: %v", err)
		}
		clients.set("b1", 0)
		time.Sleep(time.Minute)
		clients.set("b0", 0)
		time.Sleep(time.Minute)
		if err := connect(2); err != nil { // the longest idle gives way
			t.Error(err)
		}
		wantState(t, c, "v1", pgbough.ComputeIdle)
		wantState(t, c, "v0", pgbough.ComputeActive)
		m.on("v0").sessions(1, 0) // not through the proxy
		if err := connect(3); pgbough.ErrorCode(err) != pgbough.EConflict {
			t.Errorf("a session was ended for another branch: %v", err)
		}
		m.on("v0").sessions(0, 0)
		time.Sleep(time.Minute)
		if err := c.Room(t.Context(), 1); err != nil {
			t.Error(err)
		}
		if n, most := c.Awake(); n != 1 || most != 2 {
			t.Errorf("%d of %d are awake", n, most)
		}
		// Those that the catalog has as awake are started whatever the limit is.
		for i := 10; i < 14; i++ {
			c.Keep(spec(i))
		}
		time.Sleep(time.Second)
		for i := 10; i < 14; i++ {
			wantState(t, c, fmt.Sprintf("v%d", i), pgbough.ComputeActive)
			if err := c.Stop(t.Context(), fmt.Sprintf("v%d", i)); err != nil {
				t.Error(err)
			}
		}
		if n, _ := c.Awake(); n != 1 {
			t.Errorf("%d places are taken", n)
		}
	})
}

func TestStopWhatIsInAnyPhase(t *testing.T) {
	for _, phase := range []string{"asleep", "starting", "active", "failing", "suspending"} {
		t.Run(phase, func(t *testing.T) {
			var hold time.Duration
			in(t, Options{Failpoint: func(name string) {
				if name == "suspend_compute/held" {
					time.Sleep(hold)
				}
			}}, func(t *testing.T, m *machine, c *Computes) {
				switch phase {
				case "asleep":
					c.Keep(sleeping(1))
				case "failing":
					m.broken["v1"] = errors.New("broken")
					c.Keep(spec(1))
				default:
					c.Keep(spec(1))
				}
				if phase == "active" || phase == "suspending" {
					time.Sleep(time.Second)
				}
				if phase == "suspending" {
					hold = time.Minute
					go func() { _ = c.Suspend(context.Background(), "v1") }()
				}
				synctest.Wait()
				waiting := make(chan error, 1)
				if phase != "active" {
					m.startup = time.Hour
					go func() { _, err := c.Connect(context.Background(), "v1"); waiting <- err }()
					synctest.Wait()
				}
				if err := c.Stop(t.Context(), "v1"); err != nil {
					t.Error(err)
				}
				if m.on("v1") != nil {
					t.Error("its Postgres runs")
				}
				if phase != "active" {
					if err := <-waiting; err == nil || phase != "failing" && pgbough.ErrorCode(err) != pgbough.EConflict {
						t.Errorf("who waited was told: %v", err)
					}
				}
				if n, _ := c.Awake(); n != 0 {
					t.Errorf("%d places are taken", n)
				}
			})
		})
	}
}

// stray is a Launcher that finds the Postgres of a machine, when it is let.
type stray struct {
	postgres.Launcher
	m           *machine
	asked, told chan struct{}
}

func (l *stray) Find(_ context.Context, id string) (postgres.Process, bool, error) {
	l.asked <- struct{}{}
	<-l.told
	p := l.m.on(id)
	return found{memory: p}, p != nil, nil
}

type found struct {
	postgres.Process
	memory *memory
}

func (f found) Kill(ctx context.Context) error { return f.memory.Kill(ctx) }

// What is kept on a volume while a Stop looks for the last Postgres there is
// neither started beside that one nor ended in its place.
func TestKeepWhileItIsStopped(t *testing.T) {
	in(t, Options{}, func(t *testing.T, m *machine, c *Computes) {
		c.Keep(spec(1))
		time.Sleep(time.Second)
		l := &stray{m: m, asked: make(chan struct{}, 2), told: make(chan struct{})}
		c.o.Launcher = l
		stopped := make(chan error, 2)
		stop := func() { stopped <- c.Stop(context.Background(), "v1") }
		go stop()
		<-l.asked
		c.Keep(spec(1))
		synctest.Wait()
		if !c.Knows("v1") || m.on("v1") != nil {
			t.Errorf("before its end: known %t, another one runs %t", c.Knows("v1"), m.on("v1") != nil)
		}
		go stop() // comes to its turn when the first is through
		synctest.Wait()
		close(l.told)
		for range 2 {
			if err := <-stopped; err != nil {
				t.Error(err)
			}
		}
		c.o.Launcher = nothing{}
		c.Keep(spec(1))
		time.Sleep(time.Second)
		wantState(t, c, "v1", pgbough.ComputeActive)
		if n := m.count("v1"); n != 2 {
			t.Errorf("%d starts", n)
		}
	})
}
