package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbough/pgbough/internal/pgtest"
)

const (
	herdBranches = 16
	herdClients  = 64
	herdPassing  = 3                // more branches, that come and go
	patience     = 90 * time.Second // after which a client counts as left hanging
)

// refusals are what the proxy and a branch may say to a client in a herd, and when.
var refusals = map[string]string{
	"3D000": "its branch was deleted",
	"57P01": "its branch was suspended or deleted while it was connected",
	"57P03": "its branch cannot be woken now: so many are awake, or it goes",
}

// herd is many clients of a few branches, and what happens to the branches meanwhile.
type herd struct {
	t *testing.T
	s *server

	mu       sync.Mutex
	random   *rand.Rand
	branches []*grazed // that are there
	made     int
	outages  []outage
	visits   map[string]int // by how they ended
	wrong    []string
}

// grazed is a branch of a herd.
type grazed struct {
	name, uri string
	acked     int  // rows of clients that are there for good
	stays     bool // until the end
}

// outage is a time without a server.
type outage struct{ from, to time.Time }

func newHerd(t *testing.T, seed uint64) *herd {
	t.Helper()
	p := production(t, pgtest.Options{})
	// Fewer may be awake than there are branches, so that some wakes are refused
	// or have another branch fall asleep.
	s := startServer(t, "--shared-buffers", "16MB", "--max-awake", "12")
	s.attach(p)
	h := &herd{t: t, s: s, random: rand.New(rand.NewPCG(seed, 0)), visits: map[string]int{}}
	var wg sync.WaitGroup
	for range herdBranches {
		wg.Go(func() {
			for began := time.Now(); time.Since(began) < patience; { // refused while all that may be awake are in use
				if b := h.create(); b != nil {
					b.stays = true
					return
				}
			}
		})
	}
	wg.Wait()
	h.giveUp()
	if len(h.branches) != herdBranches {
		t.Fatalf("%d branches, want %d", len(h.branches), herdBranches)
	}
	return h
}

// giveUp ends the test when something was wrong.
func (h *herd) giveUp() {
	h.t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.wrong) > 0 {
		h.t.Fatalf("%d things went wrong:\n%s", len(h.wrong), strings.Join(h.wrong[:min(len(h.wrong), 20)], "\n"))
	}
}

func (h *herd) fault(format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.wrong = append(h.wrong, time.Now().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
}

// dice is a number below n.
func (h *herd) dice(n int) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.random.IntN(n)
}

// without tells whether there was no server at any time since then.
func (h *herd) without(since time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.ContainsFunc(h.outages, func(o outage) bool { return o.to.IsZero() || o.to.After(since) })
}

// do runs a command of the CLI; codes are the exit statuses that it may have. The
// end of the server excuses any.
func (h *herd) do(codes []int, args ...string) (result, bool) {
	began := time.Now()
	r := h.s.cli(args...)
	if r.code != 0 && !slices.Contains(codes, r.code) && !h.without(began) {
		h.fault("pgbough %s: exit %d: %s", strings.Join(args, " "), r.code, r.err)
	}
	return r, r.code == 0
}

// create makes a branch that says who it is. It is in the herd from then on.
func (h *herd) create() *grazed {
	h.mu.Lock()
	h.made++
	b := &grazed{name: fmt.Sprintf("h%d", h.made)}
	h.mu.Unlock()
	// It is refused while too many are awake and in use.
	r, ok := h.do([]int{4}, "branch", "create", b.name, "--max-lag", "1h")
	if !ok {
		h.do([]int{3, 4}, "branch", "delete", b.name) // in an outage it may have been made
		return nil
	}
	b.uri = strings.TrimSpace(r.out) + "&sslmode=disable"
	for began := time.Now(); ; {
		err := b.within(func(ctx context.Context, conn *pgx.Conn) error {
			_, err := conn.Exec(ctx, fmt.Sprintf("CREATE TABLE IF NOT EXISTS whose AS SELECT '%s' AS name; CREATE TABLE IF NOT EXISTS visits (client int)", b.name))
			return err
		})
		if err == nil {
			break
		}
		if why := ended(err); !h.without(began) && refusals[why] == "" || time.Since(began) > patience {
			h.fault("the first client of %s: %s", b.name, why)
			return nil
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.branches = append(h.branches, b)
	return b
}

// within connects and does something.
func (b *grazed) within(do func(context.Context, *pgx.Conn) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, b.uri)
	if err != nil {
		return err
	}
	err = do(ctx, conn)
	_ = conn.Close(ctx) // what it has answered counts
	return err
}

// ended is how a client's visit ended: well, with an SQLSTATE, or in other words.
func ended(err error) string {
	var refused *pgconn.PgError
	switch {
	case err == nil:
		return "answered"
	case errors.As(err, &refused):
		return refused.Code
	case errors.Is(err, context.DeadlineExceeded):
		return "left hanging: " + err.Error()
	}
	return "cut off: " + err.Error()
}

// visit connects to a branch, finds out whether it is the right one, and writes a row.
func (h *herd) visit(client int, b *grazed) {
	began := time.Now()
	stay := time.Duration(h.dice(50)) * time.Millisecond
	acked := false
	err := b.within(func(ctx context.Context, conn *pgx.Conn) error {
		var name string
		if err := conn.QueryRow(ctx, "SELECT name FROM whose").Scan(&name); err != nil {
			return err
		}
		if name != b.name {
			h.fault("a client of %s came to %s", b.name, name)
		}
		time.Sleep(stay)
		_, err := conn.Exec(ctx, "INSERT INTO visits VALUES ($1)", client)
		acked = err == nil
		return err
	})
	why := ended(err)
	if why != "answered" && h.without(began) {
		why = "in an outage"
	} else if why != "answered" && refusals[why] == "" {
		h.fault("client %d of %s, after %s: %s (%v)", client, b.name, time.Since(began).Round(time.Millisecond), why, err)
		why = "wrong"
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.visits[why]++
	if acked {
		b.acked++
	}
}

// staying are the branches that are there until the end.
func (h *herd) staying() []*grazed {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(h.branches), func(b *grazed) bool { return !b.stays })
}

// pick is one of the branches.
func (h *herd) pick() *grazed {
	n := h.dice(1 << 30)
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.branches[n%len(h.branches)]
}

// sleep suspends the branches that stay. Nobody else is there.
func (h *herd) sleep() {
	var wg sync.WaitGroup
	for _, b := range h.staying() {
		wg.Go(func() { // again while another suspend or wake is under way
			for began := time.Now(); time.Since(began) < patience; {
				if _, ok := h.do([]int{4}, "branch", "suspend", b.name); ok {
					return
				}
			}
			h.fault("branch %s cannot be suspended", b.name)
		})
	}
	wg.Wait()
}

// round lets all clients loose on the sleeping branches at the same moment, and
// then each once more on any branch.
func (h *herd) round() {
	h.sleep()
	staying := h.staying()
	var wg sync.WaitGroup
	all := make(chan struct{})
	for i := range herdClients {
		wg.Go(func() {
			<-all
			h.visit(i, staying[i%len(staying)])
			h.visit(i, h.pick())
		})
	}
	close(all)
	wg.Wait()
}

// disturb suspends branches and lets others come and go, until ctx ends.
func (h *herd) disturb(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for pause(ctx, time.Duration(h.dice(600))*time.Millisecond) {
			h.do([]int{3, 4}, "branch", "suspend", h.pick().name)
		}
	})
	wg.Go(func() {
		for i := 1; pause(ctx, time.Duration(h.dice(400))*time.Millisecond); i++ {
			h.create()
			if i%herdPassing == 0 {
				h.removePassing()
			}
		}
	})
	wg.Go(func() {
		for pause(ctx, 300*time.Millisecond) {
			for id, pids := range h.s.postmasters() {
				if len(pids) > 1 {
					h.fault("%d postmasters run on volume %s", len(pids), id)
				}
			}
		}
	})
}

// removePassing deletes the branches that do not stay. Clients may be there.
func (h *herd) removePassing() {
	h.mu.Lock()
	var passing []*grazed
	h.branches = slices.DeleteFunc(h.branches, func(b *grazed) bool {
		if !b.stays {
			passing = append(passing, b)
		}
		return !b.stays
	})
	h.mu.Unlock()
	for _, b := range passing {
		for began := time.Now(); ; {
			if _, ok := h.do([]int{4}, "branch", "delete", b.name); ok {
				break
			}
			if r := h.s.cli("branch", "get", b.name); r.code == 3 {
				break // an outage took the answer
			}
			if time.Since(began) > patience {
				h.fault("branch %s cannot be deleted", b.name)
				break
			}
		}
	}
}

// pause is false when ctx has ended.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// check looks at what the clients were told is there, and at what is left over.
func (h *herd) check() {
	h.t.Helper()
	h.removePassing()
	h.sleep() // not all may be awake
	h.giveUp()
	for _, b := range h.staying() {
		var rows int
		err := b.within(func(ctx context.Context, conn *pgx.Conn) error {
			return conn.QueryRow(ctx, "SELECT count(*) FROM visits").Scan(&rows)
		})
		if err != nil || rows < b.acked {
			h.t.Errorf("branch %s has %d rows of %d that were acknowledged (%v)", b.name, rows, b.acked, err)
		}
		h.s.must("branch", "suspend", b.name)
	}
	h.s.nothingLost()
	h.alternating()
	h.t.Logf("visits: %v", h.visits)
}

// alternating checks in the logs of the branches that none was started while it
// ran, and that each has begun with what a clean shutdown left.
func (h *herd) alternating() {
	h.t.Helper()
	for _, b := range h.staying() {
		running := false
		for line := range strings.Lines(h.s.must("logs", b.name)) {
			switch {
			case strings.Contains(line, "starting PostgreSQL"):
				if running {
					h.t.Errorf("branch %s was started while it ran: %s", b.name, line)
				}
				running = true
			case strings.Contains(line, "database system is shut down"):
				running = false
			case strings.Contains(line, "was interrupted"), strings.Contains(line, "was not properly shut down"):
				h.t.Errorf("branch %s did not begin with a clean shutdown: %s", b.name, line)
			}
		}
	}
}

// herdTime is how long a herd is there.
func herdTime(t *testing.T) (length time.Duration, seed uint64) {
	t.Helper()
	length, err := time.ParseDuration(envOr("PGBOUGH_SOAK_TIME", "30s"))
	check(t, err)
	seed, err = strconv.ParseUint(envOr("PGBOUGH_SOAK_SEED", fmt.Sprint(time.Now().UnixNano())), 10, 64)
	check(t, err)
	t.Logf("seed %d", seed)
	return length, seed
}

// TestSoakHerd has 64 clients connect to 16 sleeping branches at once, over and
// over, while branches are created, suspended and deleted: each is answered, or
// told in words of Postgres why not, and nothing is left of any.
func TestSoakHerd(t *testing.T) {
	length, seed := herdTime(t)
	h := newHerd(t, seed)
	h.round()
	h.sleep()
	before := h.s.holds()
	began := time.Now()
	ctx, stop := context.WithTimeout(context.Background(), length)
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() { h.disturb(ctx) })
	for time.Since(began) < length {
		h.round()
	}
	wg.Wait()
	h.check()
	h.s.holdsNoMore(before)
}

// TestSoakHerdKilled is the same with a server that is killed now and then. What
// was acknowledged is there, and every client of the next server is served.
func TestSoakHerdKilled(t *testing.T) {
	length, seed := herdTime(t)
	h := newHerd(t, seed)
	began := time.Now()
	ctx, stop := context.WithTimeout(context.Background(), length)
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() { h.disturb(ctx) })
	wg.Go(func() {
		for pause(ctx, time.Duration(1000+h.dice(5000))*time.Millisecond) {
			h.outage()
		}
	})
	for time.Since(began) < length {
		h.round()
	}
	wg.Wait()
	h.check()
	h.round()
	h.giveUp()
}

// outage kills the server and starts it again.
func (h *herd) outage() {
	h.mu.Lock()
	h.outages = append(h.outages, outage{from: time.Now()})
	h.mu.Unlock()
	h.s.kill()
	if err := h.s.tryStart(); err != nil {
		h.fault("start the server again: %v", err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.outages[len(h.outages)-1].to = time.Now()
}
