package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sys/unix"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/postgres"
)

func TestStart(t *testing.T) {
	l := newLauncher(t)
	s := newSpec(t, l)
	p := start(t, l, s)
	conn := connect(t, s)
	peer, uid := peer(t, s)
	if peer != p.PID() {
		t.Errorf("the socket belongs to process %d, want the postmaster %d", peer, p.PID())
	}
	if !p.Owns(peer, uid) || p.Owns(os.Getpid(), uid) || p.Owns(1, uid) || p.Owns(peer, uid+1) {
		t.Errorf("owns its postmaster, this process, pid 1, itself as another user: got %v %v %v %v", p.Owns(peer, uid), p.Owns(os.Getpid(), uid), p.Owns(1, uid), p.Owns(peer, uid+1))
	}
	if got := fds(t, p.PID()); !slices.Equal(got, []string{"0", "1", "2", "3"}) {
		t.Errorf("descriptors at the start of a program inside: %v, want 0 to 2 and the lock", got)
	}
	again, ok, err := l.Find(t.Context(), s.ID)
	if err != nil || !ok || again != p {
		t.Errorf("find: got %v, %v, %v, want the process that was started", again, ok, err)
	}
	outer := p.(*process).cmd.Process.Pid
	_ = conn.Close(t.Context())
	if err := p.Signal(unix.SIGINT); err != nil {
		t.Fatal(err)
	}
	waitDone(t, p)
	wait(t, "bwrap is reaped", func() bool { _, err := os.Stat(fmt.Sprintf("/proc/%d", outer)); return err != nil })
	if err := errors.Join(p.Signal(unix.SIGINT), p.Freeze(t.Context()), p.Thaw(), p.Kill(t.Context())); err != nil || p.Owns(peer, uid) {
		t.Errorf("after its end: got %v, owns %v", err, p.Owns(peer, uid))
	}
	if _, ok, err := l.Find(t.Context(), s.ID); ok || err != nil {
		t.Errorf("find after its end: got %v, %v", ok, err)
	}
	connect(t, restart(t, l, s))
}

func restart(t testing.TB, l *Launcher, s postgres.Spec) postgres.Spec {
	t.Helper()
	start(t, l, s) // at once: the lock is free when Done closes
	return s
}

func fds(t *testing.T, pid int) []string {
	t.Helper()
	// The postmaster opens more: what counts is what it inherited, which its
	// init still has but for the socket.
	st, err := readStatus(pid)
	if err != nil {
		t.Fatal(err)
	}
	d, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", st.ppid))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range d {
		if e.Name() != fmt.Sprint(fdHello) {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names
}

// peer is the process that listens on the socket.
func peer(t *testing.T, s postgres.Spec) (pid, uid int) {
	t.Helper()
	conn, err := net.Dial("unix", filepath.Join(s.Socket, ".s.PGSQL.5432"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var cred *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil || cerr != nil {
		t.Fatal(err, cerr)
	}
	return int(cred.Pid), int(cred.Uid)
}

func TestOnePostmasterPerVolume(t *testing.T) {
	l := newLauncher(t)
	s := newSpec(t, l)
	refused := func(when string) {
		t.Helper()
		if _, err := l.Start(t.Context(), s); !errors.Is(err, postgres.ErrLocked) || pgbough.ErrorCode(err) != pgbough.ELocked {
			t.Errorf("%s, from the same server: got %v, want ErrLocked", when, err)
		}
		if _, err := newLauncher(t).Start(t.Context(), s); !errors.Is(err, postgres.ErrLocked) {
			t.Errorf("%s, from another launcher: got %v, want ErrLocked", when, err)
		}
		srv := startServer(t, s)
		_ = srv.line(t)
		if got := srv.line(t); !strings.HasPrefix(got, "true") {
			t.Errorf("%s, from another server: got %s, want ErrLocked", when, got)
		}
	}
	p := start(t, l, s)
	refused("just started")
	conn := connect(t, s)
	refused("running")
	if err := unix.Kill(p.(*process).cmd.Process.Pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	refused("without its bwrap")
	if err := p.Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	refused("frozen")
	if err := p.Thaw(); err != nil {
		t.Fatal(err)
	}
	// A superuser of the branch cannot unlock: descriptor 3 is the lock.
	if got := inside(t, conn, `perl -e 'open(my $f, "<&=", 3) or print "open: $!"; flock($f, 8) or print "refused"'`); got != "refused" {
		t.Errorf("unlock from inside: got %q, want refused", got)
	}
	refused("after an attempt to unlock")
	// Nor does a program that outlives its session free the lock before the end.
	inside(t, conn, `setsid sleep 1000 >/dev/null 2>&1 </dev/null &`)
	if err := p.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	connect(t, restart(t, l, s))
}

func TestStartsAtTheSameTime(t *testing.T) {
	l := newLauncher(t)
	s := newSpec(t, l)
	const n = 6
	errs := make(chan error, n)
	for i := range n {
		from := l
		if i%2 == 0 {
			from = newLauncher(t)
		}
		go func() { _, err := from.Start(t.Context(), s); errs <- err }()
	}
	won := 0
	for range n {
		switch err := <-errs; {
		case err == nil:
			won++
		case !errors.Is(err, postgres.ErrLocked):
			t.Error(err)
		}
	}
	if won != 1 {
		t.Errorf("%d of %d starts succeeded, want 1", won, n)
	}
}

func TestAdoption(t *testing.T) {
	l := newLauncher(t)
	for _, frozen := range []bool{false, true} {
		t.Run(fmt.Sprintf("frozen=%v", frozen), func(t *testing.T) {
			s := newSpec(t, l)
			var env []string
			if frozen {
				env = append(env, "SANDBOX_TEST_FREEZE=1")
			}
			srv := startServer(t, s, env...)
			_ = srv.line(t)
			pid := srv.line(t)
			if frozen {
				if got := srv.line(t); got != "frozen <nil>" {
					t.Fatal(got)
				}
			} else {
				connect(t, s)
			}
			srv.kill(t)
			if _, err := l.Start(t.Context(), s); !errors.Is(err, postgres.ErrLocked) {
				t.Errorf("start beside an orphan: got %v, want ErrLocked", err)
			}
			ids, err := l.List(t.Context())
			if err != nil || !slices.Contains(ids, s.ID) {
				t.Fatalf("list: got %v, %v, want %s in it", ids, err, s.ID)
			}
			p, ok, err := l.Find(t.Context(), s.ID)
			if err != nil || !ok || fmt.Sprint(p.PID()) != pid {
				t.Fatalf("find: got %v, %v, %v, want process %s", p, ok, err, pid)
			}
			conn := connect(t, s)
			if pid, uid := peer(t, s); !p.Owns(pid, uid) {
				t.Errorf("process %d of uid %d is not its own", pid, uid)
			}
			_ = conn.Close(t.Context())
			if err := p.Signal(unix.SIGINT); err != nil {
				t.Fatal(err)
			}
			waitDone(t, p)
			if _, ok, err := l.Find(t.Context(), s.ID); ok || err != nil {
				t.Errorf("find after its end: got %v, %v", ok, err)
			}
		})
	}
}

// TestServerDiesDuringStart kills a server at moments spread over a start:
// afterwards the sandbox runs or it does not, and never holds the lock for nothing.
func TestServerDiesDuringStart(t *testing.T) {
	l := newLauncher(t)
	s := newSpec(t, l)
	survived := 0
	for i := range 12 {
		srv := startServer(t, s)
		if got := srv.line(t); got != "ready" {
			t.Fatal(got)
		}
		time.Sleep(time.Duration(i) * 3 * time.Millisecond)
		srv.kill(t)
		p, found := settle(t, l, s)
		if found {
			survived++
		}
		if err := p.Kill(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d of 12 sandboxes survived their server", survived)
}

// settle starts or finds the sandbox, within the time that a dying one takes.
func settle(t *testing.T, l *Launcher, s postgres.Spec) (p postgres.Process, found bool) {
	t.Helper()
	wait(t, "it can be started or found", func() bool {
		var err error
		if p, err = l.Start(t.Context(), s); err == nil {
			return true
		}
		if !errors.Is(err, postgres.ErrLocked) {
			t.Fatal(err)
		}
		if p, found, err = l.Find(t.Context(), s.ID); err != nil {
			t.Fatal(err)
		}
		return found
	})
	return p, found
}

// TestHalfMade kills only the outer half of bwrap, at many moments of a start.
func TestHalfMade(t *testing.T) {
	l := newLauncher(t)
	s := newSpec(t, l)
	r, _, err := newRoot(s)
	if err != nil {
		t.Fatal(err)
	}
	stuck := 0
	for i := range 60 {
		lock, err := l.lock(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		run, err := l.command(t.Context(), nil, r, []string{"/bin/sleep", "0.01"}, []*os.File{lock}, nil)
		if err != nil {
			t.Fatal(err)
		}
		err = run.cmd.Start()
		run.close()
		_ = lock.Close()
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(i) * 100 * time.Microsecond)
		_ = run.cmd.Process.Kill()
		_ = run.cmd.Wait()
		time.Sleep(50 * time.Millisecond) // what can end by itself has ended
		if some, err := l.clearStuck(t.Context(), s.ID); err != nil {
			t.Fatal(err)
		} else if some {
			stuck++
		}
		f, err := os.Open(s.LockFile)
		if err != nil {
			t.Fatal(err)
		}
		wait(t, "the lock is free", func() bool { return flock(f) == nil })
		_ = f.Close()
	}
	t.Logf("%d of 60 were stuck", stuck)
}

// A start that is told to end leaves nothing behind, whenever that is.
func TestCancelledStart(t *testing.T) {
	l := newLauncher(t)
	s := newSpec(t, l)
	cancelled := 0
	for i := range 40 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*500*time.Microsecond)
		p, err := l.Start(ctx, s)
		cancel()
		if err == nil {
			if err := p.Kill(t.Context()); err != nil {
				t.Fatal(err)
			}
			continue
		}
		cancelled++
		f, err := os.Open(s.LockFile)
		if errors.Is(err, os.ErrNotExist) {
			continue // it had not come so far
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := flock(f); err != nil {
			t.Errorf("after %d x 0.5 ms something holds the lock: %v", i, err)
		}
		_ = f.Close()
	}
	if cancelled == 0 {
		t.Error("no start was cancelled")
	}
	t.Logf("%d of 40 were cancelled", cancelled)
}

// A postmaster that is killed while its sandbox is frozen leaves the rest of it
// stopped. If the server is killed too, nobody thaws it: the next start does away with it.
func TestFrozenWithoutPostmaster(t *testing.T) {
	l := newLauncher(t)
	s := newSpec(t, l)
	p := start(t, l, s)
	if err := p.Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(p.PID(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	wait(t, "the postmaster is dead", func() bool {
		st, err := readStatus(p.PID())
		return err != nil || st.dead()
	})
	next := newLauncher(t)
	if _, found, err := next.Find(t.Context(), s.ID); err != nil || found {
		t.Fatalf("found %v, %v: there is no postmaster", found, err)
	}
	start(t, next, s)
	exec1(t, connect(t, s), "SELECT 1")
}

func TestFreeze(t *testing.T) {
	l := newLauncher(t)
	s := newSpec(t, l)
	p := start(t, l, s)
	conn := connect(t, s)
	exec1(t, conn, "CREATE TABLE n (i int)")
	ctx, cancel := context.WithCancel(t.Context())
	writers := make(chan error, 3)
	for range cap(writers) {
		c := connect(t, s)
		go func() { writers <- insert(ctx, c) }()
	}
	defer func() {
		cancel()
		for range cap(writers) {
			if err := <-writers; err != nil {
				t.Error(err)
			}
		}
	}()
	inside(t, conn, "(while true; do date >/tmp/clock; done) >/dev/null 2>&1 </dev/null &")
	wal := func() string { return state(t, s) }
	before := wal()
	wait(t, "writers write", func() bool { return wal() != before })
	for range 3 {
		began := time.Now()
		if err := p.Freeze(t.Context()); err != nil {
			t.Fatal(err)
		}
		t.Logf("frozen in %v", time.Since(began))
		frozen := wal()
		time.Sleep(100 * time.Millisecond)
		if got := wal(); got != frozen {
			t.Errorf("it wrote while it was frozen:\n%s\n%s", frozen, got)
		}
		if err := p.Freeze(t.Context()); err != nil { // again: nothing to do
			t.Fatal(err)
		}
		began = time.Now()
		if err := p.Thaw(); err != nil {
			t.Fatal(err)
		}
		t.Logf("thawed in %v", time.Since(began))
		wait(t, "writers write again", func() bool { return wal() != frozen })
	}
	short, stop := context.WithCancel(t.Context())
	stop()
	if err := p.Freeze(short); !errors.Is(err, context.Canceled) {
		t.Errorf("freeze with a cancelled context: got %v", err)
	}
	now := wal()
	wait(t, "writers write after a failed freeze", func() bool { return wal() != now })
	if err := p.Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := p.Kill(t.Context()); err != nil { // frozen as it is
		t.Fatal(err)
	}
}

// TestFreezeForking freezes programs that start others all the time: one that
// waits for its child in vfork(2) cannot stop as long as the child is stopped.
func TestFreezeForking(t *testing.T) {
	l := newLauncher(t)
	s := newSpec(t, l)
	p := start(t, l, s)
	inside(t, connect(t, s), strings.Repeat("(exec >/dev/null 2>&1 </dev/null; while :; do date; done) & ", 4))
	for i := range 60 {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		err := p.Freeze(ctx)
		cancel()
		if err != nil {
			t.Fatalf("freeze number %d: %v", i, err)
		}
		if err := p.Thaw(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
}

func insert(ctx context.Context, c *pgx.Conn) error {
	for ctx.Err() == nil {
		if _, err := c.Exec(ctx, "INSERT INTO n VALUES (1)"); err != nil {
			break // killed in the end
		}
	}
	return nil
}

// state sums up what can be seen from outside of what the sandbox writes: its
// WAL, and a clock that a program inside writes.
func state(t *testing.T, s postgres.Spec) string {
	t.Helper()
	var out strings.Builder
	files, err := filepath.Glob(filepath.Join(s.DataDir, "pg_wal", "0*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if fi, err := os.Stat(f); err == nil {
			fmt.Fprintln(&out, filepath.Base(f), fi.ModTime().UnixNano())
		}
	}
	return out.String()
}

func TestNothingOutlivesThePostmaster(t *testing.T) {
	l := newLauncher(t)
	s := newSpec(t, l)
	p := start(t, l, s)
	conn := connect(t, s)
	seconds := fmt.Sprint(100_000_000 + os.Getpid()) // to know it by
	inside(t, conn, "setsid sleep "+seconds+" >/dev/null 2>&1 </dev/null &")
	sleeper := find(t, l, seconds)
	if !p.Owns(sleeper, p.(*process).uid) {
		t.Errorf("process %d is not its own", sleeper)
	}
	if err := p.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	waitDone(t, p)
	if exists(sleeper) {
		t.Error("a program started inside outlived the postmaster")
	}
	connect(t, restart(t, l, s))
}

// TestOrphans is why the postmaster is not pid 1: an orphan that dies of a
// signal or with status 7 would be taken for a crashed backend, and end every session.
func TestOrphans(t *testing.T) {
	l := newLauncher(t)
	s := newSpec(t, l)
	p := start(t, l, s)
	conn := connect(t, s)
	for range 5 {
		inside(t, conn, "setsid sh -c 'kill -9 $$' >/dev/null 2>&1 </dev/null & (setsid sh -c 'sleep 0.01; exit 7' >/dev/null 2>&1 </dev/null &)")
	}
	time.Sleep(100 * time.Millisecond)
	if err := conn.Ping(t.Context()); err != nil {
		t.Errorf("the session ended with an orphan: %v", err)
	}
	zombies := 0
	all, err := pids("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range all {
		if st, err := readStatus(pid); err == nil && st.dead() && st.ppid == p.(*process).boss {
			zombies++
		}
	}
	if zombies > 0 {
		t.Errorf("%d orphans are not reaped", zombies)
	}
}

func find(t *testing.T, l *Launcher, arg string) int {
	t.Helper()
	var found int
	wait(t, "the program runs", func() bool {
		all, err := pids("/proc")
		if err != nil {
			t.Fatal(err)
		}
		for _, pid := range all {
			if st, err := readStatus(pid); err == nil && l.ours(st) && hasArgument(pid, arg) && hasArgument(pid, "sleep") {
				found = pid
			}
		}
		return found != 0
	})
	return found
}

func TestFailedStart(t *testing.T) {
	l := newLauncher(t)
	s := newSpec(t, l)
	bad := s
	bad.Env = []string{"LC_ALL=C.UTF-8", "X" + strings.Repeat("=", 2) + strings.Repeat("y", 200_000)} // E2BIG
	if _, err := l.Start(t.Context(), bad); err == nil {
		t.Error("a start that cannot succeed did")
	}
	// bwrap itself fails: its reason is in the error.
	l2 := newLauncher(t)
	l2.filter = []byte("not a filter")
	_, err := l2.Start(t.Context(), s)
	if err == nil || !strings.Contains(err.Error(), "seccomp") {
		t.Errorf("got %v, want bwrap's own words about seccomp", err)
	}
	gone := s
	gone.BinDir = "/usr/lib/nowhere"
	if _, err := l.Start(t.Context(), gone); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no binary: got %v", err)
	}
	link := s
	link.DataDir = s.DataDir + "-link"
	if err := os.Symlink(s.DataDir, link.DataDir); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Start(t.Context(), link); err == nil {
		t.Error("a start on a symbolic link succeeded")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Millisecond)
	defer cancel()
	if _, err := l.Start(ctx, s); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("too short a time: got %v", err)
	}
	connect(t, restart(t, l, s)) // nothing of all that holds the lock
}

func TestNewNeeds(t *testing.T) {
	needRoot(t)
	if _, err := New(Options{Credential: postgres.Credential{UID: 0, GID: 64420}}); pgbough.ErrorCode(err) != pgbough.EInvalid {
		t.Errorf("as root: got %v", err)
	}
	t.Setenv("PATH", t.TempDir())
	if _, err := New(Options{Credential: testCredential}); err == nil || !strings.Contains(err.Error(), "apt-get install bubblewrap") {
		t.Errorf("without bwrap: got %v, want how to install it", err)
	}
}

// TestClose leaves the sandbox running for the next launcher.
func TestClose(t *testing.T) {
	l := newLauncher(t)
	s := newSpec(t, l)
	first := newLauncher(t)
	p := start(t, first, s)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := first.Start(t.Context(), s); err == nil {
		t.Error("a closed launcher started a sandbox")
	}
	got, ok, err := l.Find(t.Context(), s.ID)
	if err != nil || !ok || got.PID() != p.PID() {
		t.Errorf("find after Close: got %v, %v, %v", got, ok, err)
	}
	connect(t, s)
}
