package branch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/follower"
	"github.com/pgbough/pgbough/internal/pgtest"
	"github.com/pgbough/pgbough/internal/replication"
)

// lines is a log that a test reads.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

// taken are the lines since it was last asked.
func (l *lines) taken() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.b.Reset()
	return l.b.String()
}

// followed is a production with a ready spare, whose log is read.
type followed struct {
	*rig
	p     *pgtest.Server
	f     *follower.Follower
	spare *follower.Standby
	log   *lines
}

func newFollowed(t *testing.T) *followed {
	t.Helper()
	x := &followed{rig: newRig(t), p: production(t, pgtest.Options{}), log: &lines{}}
	x.Service.log = slog.New(slog.NewTextHandler(x.log, nil))
	project := x.attach(x.p)
	var err error
	x.f, err = x.followerOf(project.ID)
	must(t, err)
	eventually(t, time.Minute, "a spare is ready", func() bool {
		spares, err := x.catalog.Spares(t.Context(), project.ID)
		must(t, err)
		if len(spares) == 1 && spares[0].State == pgbough.SpareReady {
			x.spare, _ = x.f.Spare(spares[0].VolumeID)
		}
		return x.spare != nil
	})
	x.stopKeeper(project.ID) // it stays as it is
	return x
}

// wait waits until the spare has what production has just written.
func (x *followed) wait(stall time.Duration) error {
	x.t.Helper()
	x.p.Exec(x.t, "postgres", "INSERT INTO t VALUES (1)")
	m, err := x.f.Source().Now(x.t.Context())
	must(x.t, err)
	return x.spare.WaitReplay(x.t.Context(), m.LSN, stall)
}

// child is a process of a Postgres whose title holds a word.
func child(t *testing.T, postmaster int, word string) int {
	t.Helper()
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", postmaster, postmaster))
	must(t, err)
	for _, pid := range strings.Fields(string(children)) {
		if title, _ := os.ReadFile("/proc/" + pid + "/cmdline"); strings.Contains(string(title), word) {
			n, err := strconv.Atoi(pid)
			must(t, err)
			return n
		}
	}
	t.Fatalf("Postgres %d has no %s", postmaster, word)
	return 0
}

// deaf is a way to an upstream whose answers get lost while it is so.
type deaf struct {
	on   atomic.Bool
	dial replication.Dial
}

func (d *deaf) connect(ctx context.Context) (*pgconn.HijackedConn, error) {
	h, err := d.dial(ctx)
	if err == nil {
		h.Conn = &deafConn{h.Conn, d}
	}
	return h, err
}

type deafConn struct {
	net.Conn
	deaf *deaf
}

func (c *deafConn) Read(b []byte) (int, error) {
	for {
		n, err := c.Conn.Read(b)
		if err != nil || !c.deaf.on.Load() {
			return n, err
		}
	}
}

// Whoever waits for a spare that cannot go on is told so in time, and the log says
// where everything stands. A stream that hangs is made anew before that.
func TestStalledSpare(t *testing.T) {
	x := newFollowed(t)
	const soon = 300 * time.Millisecond
	stalls := func(what string, err error, says ...string) {
		t.Helper()
		if !errors.Is(err, follower.ErrStalled) {
			t.Errorf("%s: %v", what, err)
		}
		log := x.log.taken()
		for _, s := range append(says, "has stalled", "walreceiver", "walsender", "startup") {
			if !strings.Contains(log, s) {
				t.Errorf("%s: the log does not say %q:\n%s", what, s, log)
			}
		}
	}
	goesOn := func(what string, renewed ...*follower.Standby) {
		t.Helper()
		if err := x.wait(short); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		log := x.log.taken()
		for _, s := range renewed {
			if !strings.Contains(log, "renewed=true of="+s.Config().ID) {
				t.Errorf("%s: the log does not say what was renewed:\n%s", what, log)
			}
		}
	}
	goesOn("a spare that streams")

	m, err := x.f.Source().Now(t.Context())
	must(t, err)
	stalls("nobody gets there", x.spare.WaitReplay(t.Context(), m.LSN+1<<30, soon), "asked="+(m.LSN+1<<30).String(), "upstream.connected=true")

	must(t, x.spare.Process().Freeze(t.Context()))
	err = x.wait(soon)
	must(t, x.spare.Process().Thaw())
	stalls("the spare stands still", err, " T ", "standby.no_answer")
	goesOn("a spare that stood still")

	root, err := x.catalog.Project(t.Context(), "shop")
	must(t, err)
	sender := child(t, x.postmaster(root), "walsender")
	must(t, syscall.Kill(sender, syscall.SIGSTOP))
	defer func() { _ = syscall.Kill(sender, syscall.SIGCONT) }()
	goesOn("the follower's walsender hangs", x.spare)
}

// The same of production's own stream.
func TestStalledFollower(t *testing.T) {
	x := newFollowed(t)
	conn := sourceOf(x.p).ConnString
	dial, err := replication.Dialer(conn, applicationName)
	must(t, err)
	d := &deaf{dial: dial}
	must(t, x.f.SetSource(conn, d.connect))
	must(t, x.wait(short))
	x.log.taken()
	d.on.Store(true)
	time.AfterFunc(2*time.Second, func() { d.on.Store(false) }) // what is on its way then is lost
	if err := x.wait(short); err != nil {
		t.Error(err)
	}
	root, err := x.catalog.Project(t.Context(), "shop")
	must(t, err)
	b, err := x.catalog.Branch(t.Context(), root.ID, root.RootBranchID)
	must(t, err)
	if log := x.log.taken(); !strings.Contains(log, "renewed=true of="+b.VolumeID) {
		t.Errorf("the log does not say that the follower's stream was renewed:\n%s", log)
	}
}

// A Postgres cannot make the server take more into its memory than a message may hold.
func TestLongestMessage(t *testing.T) {
	x := newFollowed(t)
	for megabytes, fits := range map[int]bool{15: true, 17: false} {
		conn, err := x.spare.Connect(t.Context(), "postgres")
		must(t, err)
		var got string
		err = conn.QueryRow(t.Context(), "SELECT repeat('x', $1)", megabytes<<20).Scan(&got)
		if (err == nil) != fits || conn.IsClosed() == fits {
			t.Errorf("a message of %d MB: %v, closed %t", megabytes, err, conn.IsClosed())
		}
		_ = conn.Close(t.Context())
	}
}

// A spare that is cut off tells that it is what it will be, if it has replayed all
// that its relay passed on, and only then. It does not stream again.
func TestCutOff(t *testing.T) {
	x := newFollowed(t)
	must(t, x.wait(short))
	replay := func(sql string) {
		t.Helper()
		conn, err := x.spare.Connect(t.Context(), "template1")
		must(t, err)
		_, err = conn.Exec(t.Context(), sql)
		must(t, errors.Join(err, conn.Close(t.Context())))
	}
	replay("SELECT pg_wal_replay_pause()")
	x.p.Exec(t, "postgres", "INSERT INTO t VALUES (1)")
	m, err := x.f.Source().Now(t.Context())
	must(t, err)
	eventually(t, short, "the relay has passed it on", func() bool {
		at, ok := x.spare.Relay.Delivered()
		return ok && at >= m.LSN
	})
	if x.spare.CutOff(t.Context()) {
		t.Error("a spare that does not replay has replayed everything")
	}
	replay("SELECT pg_wal_replay_resume()")
	must(t, x.spare.WaitReplay(t.Context(), m.LSN, short)) // it had it already
	eventually(t, short, "all is replayed", func() bool { return x.spare.CutOff(t.Context()) })
	if err := x.wait(300 * time.Millisecond); !errors.Is(err, follower.ErrStalled) {
		t.Errorf("what production wrote later gets to a spare that was cut off: %v", err)
	}
}
