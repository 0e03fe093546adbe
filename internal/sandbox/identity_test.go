package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/postgres"
)

// TestIdentity takes the namespaces away: a process that is only the user of one
// sandbox has no way into the other. The control, two that are one user, has.
func TestIdentity(t *testing.T) {
	for _, shared := range []bool{false, true} {
		t.Run(fmt.Sprintf("shared=%v", shared), func(t *testing.T) {
			l := newLauncher(t)
			if l.Shared() != nil {
				t.Fatalf("sandboxes cannot be different users: %v", l.Shared())
			}
			if shared {
				l.shared = errors.New("for a test")
			}
			own, other := newSpec(t, l), newSpec(t, l)
			p, q := start(t, l, own).(*process), start(t, l, other).(*process)
			connect(t, own)
			connect(t, other)
			attempt := func(name string, of *process, path string) {
				t.Helper()
				open := of == p || shared
				if err := asUser(of, p.uid, "/bin/cat", path); (err == nil) != open {
					t.Errorf("%s: uid %d reads %s: %v, want success: %v", name, p.uid, path, err, open)
				}
			}
			for name, of := range map[string]*process{"its own": p, "the other's": q} {
				attempt(name, of, insideData+"/PG_VERSION")
				if err := asUser(nil, p.uid, "/bin/kill", "-0", fmt.Sprint(of.pid)); (err == nil) != (of == p || shared) {
					t.Errorf("uid %d signals %s postmaster: %v", p.uid, name, err)
				}
			}
			// Nor is the pool, as the host sees it, the sandbox's own.
			pool := func(s postgres.Spec) error {
				return asUser(nil, p.uid, "/bin/cat", filepath.Join(s.DataDir, "PG_VERSION"))
			}
			for _, s := range []postgres.Spec{own, other} {
				if err := os.Chmod(filepath.Dir(s.DataDir), 0o711); err != nil {
					t.Fatal(err)
				}
				if err := pool(s); (err == nil) != shared {
					t.Errorf("uid %d reads a file of the pool from outside: %v", p.uid, err)
				}
			}
		})
	}
}

// asUser runs a program as uid, in the namespaces of a sandbox that are not of
// users, or in the host's.
func asUser(in *process, uid int, argv ...string) error {
	argv = append([]string{"setpriv", "--reuid", fmt.Sprint(uid), "--regid", fmt.Sprint(uid), "--clear-groups"}, argv...)
	if in != nil {
		argv = append([]string{"nsenter", "--target", fmt.Sprint(in.pid), "--mount", "--pid", "--ipc"}, argv...)
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = "/"
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// TestFilesKeepTheirOwner writes through a sandbox what the next one, as another
// user, and the server go on with.
func TestFilesKeepTheirOwner(t *testing.T) {
	l := newLauncher(t)
	s := newSpec(t, l)
	p := start(t, l, s).(*process)
	if p.uid <= testCredential.UID || p.uid > testCredential.UID+Spread {
		t.Errorf("the sandbox runs as uid %d", p.uid)
	}
	exec1(t, connect(t, s), "CREATE TABLE kept AS SELECT 1 AS a; CHECKPOINT")
	for _, path := range []string{s.DataDir, filepath.Join(s.DataDir, "postmaster.pid"), filepath.Join(s.Socket, ".s.PGSQL.5432"), filepath.Join(s.DataDir, "global", "pg_control")} {
		fi, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if st := fi.Sys().(*syscall.Stat_t); int(st.Uid) != testCredential.UID || int(st.Gid) != testCredential.GID {
			t.Errorf("%s belongs to %d:%d", path, st.Uid, st.Gid)
		}
	}
	if err := p.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.shared = errors.New("for a test")
	next := start(t, l, s).(*process)
	if next.uid != testCredential.UID {
		t.Errorf("without users of their own, sandboxes run as uid %d", next.uid)
	}
	exec1(t, connect(t, s), "INSERT INTO kept VALUES (2)")
}

// TestMountsStayInside looks for mounts of a sandbox anywhere else, while it
// runs, and after it, its bwrap and its server were killed.
func TestMountsStayInside(t *testing.T) {
	l := newLauncher(t)
	s := newSpec(t, l)
	srv := startServer(t, s)
	_ = srv.line(t)
	_ = srv.line(t)
	connect(t, s)
	p, ok, err := l.Find(t.Context(), s.ID)
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	if n := mounted(t, p.PID(), s); n == 0 {
		t.Error("control: the sandbox has no mounts of its directories")
	}
	// Both bwrap's and the postmaster's mount namespaces have them, and no other.
	all, err := pids("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range all {
		if hasArgument(pid, hostPrefix+s.ID) || p.(*process).ns == nsOf(pid) {
			continue
		}
		if n := mounted(t, pid, s); n != 0 {
			t.Errorf("process %d sees %d mounts of the sandbox", pid, n)
		}
	}
	for _, pid := range all {
		if hasArgument(pid, hostPrefix+s.ID) {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
	srv.kill(t)
	if err := p.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	// What is mounted nowhere can be renamed and removed.
	if err := os.RemoveAll(s.DataDir); err != nil {
		t.Error(err)
	}
	if n := mounted(t, os.Getpid(), s); n != 0 {
		t.Errorf("%d mounts are left", n)
	}
}

// TestOtherMountsAreNotHeld gives up a file system that was mounted when a
// sandbox was started which has nothing to do with it.
func TestOtherMountsAreNotHeld(t *testing.T) {
	l := newLauncher(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	s := newSpec(t, l)
	start(t, l, s)
	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatal(err)
	}
	all, err := pids("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range all {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid)) // it may have ended
		if hasArgument(pid, hostPrefix+s.ID) && strings.Contains(string(b), dir) {
			t.Errorf("process %d still holds a mount that was given up", pid)
		}
	}
}

// silent is a directory of a file system that stops answering.
type silent struct {
	fs.Inode
	quiet, answer chan struct{}
}

func (s *silent) OnAdd(ctx context.Context) {
	s.AddChild("below", s.NewPersistentInode(ctx, &fs.Inode{}, fs.StableAttr{Mode: unix.S_IFDIR}), false)
}

func (s *silent) Lookup(_ context.Context, name string, _ *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	select {
	case <-s.quiet:
		<-s.answer
	default:
	}
	return s.GetChild(name), 0
}

// TestSilentMount starts a sandbox beside the mount of a file system whose server
// does not answer, with another one mounted below it.
func TestSilentMount(t *testing.T) {
	l, dir := newLauncher(t), t.TempDir()
	root := &silent{quiet: make(chan struct{}), answer: make(chan struct{})}
	never := time.Duration(0) // is an answer kept
	mounted, err := fs.Mount(dir, root, &fs.Options{EntryTimeout: &never, AttrTimeout: &never, MountOptions: fuse.MountOptions{DirectMountStrict: true}})
	if err != nil {
		t.Fatal(err)
	}
	below := filepath.Join(dir, "below")
	if err := unix.Mount("tmpfs", below, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		close(root.answer)
		if err := errors.Join(unix.Unmount(below, 0), mounted.Unmount()); err != nil {
			t.Error(err)
		}
	})
	close(root.quiet)
	var st unix.Stat_t
	waits := make(chan error, 1)
	go func() { waits <- unix.Stat(below, &st) }()
	s, started := newSpec(t, l), make(chan error, 1)
	go func() {
		_, err := l.Start(t.Context(), s)
		started <- err
	}()
	select {
	case err := <-started:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("a sandbox waits for a file system that it does not need")
	}
	connect(t, s)
	select {
	case err := <-waits:
		t.Errorf("control: the file system answers: %v", err)
	default:
	}
}

func nsOf(pid int) uint64 {
	ns, _ := namespace(pid)
	return ns
}

// mounted counts the mounts that a process sees of a sandbox's directories.
func mounted(t *testing.T, pid int, s postgres.Spec) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil && !gone(err) && !errors.Is(err, unix.EINVAL) { // of a zombie
		t.Fatal(err)
	}
	return strings.Count(string(b), filepath.Base(filepath.Dir(s.DataDir))+"/")
}

func TestUIDs(t *testing.T) {
	l := newLauncher(t)
	seen := map[int]bool{}
	for i := range Spread {
		uid, err := l.takeUID(fmt.Sprint("volume", i))
		if err != nil {
			break // others run sandboxes too
		}
		if seen[uid] || uid <= testCredential.UID || uid > testCredential.UID+Spread {
			t.Fatalf("uid %d is given twice, or not one to give", uid)
		}
		seen[uid] = true
	}
	if len(seen) < Spread/2 {
		t.Errorf("there are only %d uids", len(seen))
	}
	s := newSpec(t, l)
	for i := range Spread { // also those that others had a moment ago
		l.taken[testCredential.UID+1+i] = true
	}
	if _, err := l.Start(t.Context(), s); pgbough.ErrorCode(err) != pgbough.EConflict {
		t.Errorf("a start without a free uid: got %v", err)
	}
	clear(l.taken)
	p := start(t, l, s).(*process)
	if len(l.taken) != 0 {
		t.Errorf("after a start %v are taken", l.taken)
	}
	// A uid is free when nothing runs with it, whoever started that.
	if got, err := newLauncher(t).takeUID(s.ID); err != nil || got == p.uid {
		t.Errorf("another launcher would take uid %d, %v, which sandbox %s runs as", got, err, s.ID)
	}
	if err := p.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	wait(t, "the uid of a sandbox that has ended is free", func() bool {
		got, err := l.takeUID(s.ID)
		if err != nil {
			t.Fatal(err)
		}
		l.leaveUID(got)
		return got == p.uid
	})
}

// Kernel limits of one user are not used up by another: pipes are the cheapest.
func TestLimitsOfUsers(t *testing.T) {
	for _, shared := range []bool{false, true} {
		t.Run(fmt.Sprintf("shared=%v", shared), func(t *testing.T) {
			l := newLauncher(t)
			if shared {
				l.shared = errors.New("for a test")
			}
			hog, other := newSpec(t, l), newSpec(t, l)
			start(t, l, hog)
			start(t, l, other)
			size := `perl -e 'pipe(my $r, my $w); print fcntl($w, 1032, 0)'` // F_GETPIPE_SZ
			conn := connect(t, other)
			if got := inside(t, conn, size); got != "65536" {
				t.Fatalf("control: a pipe has %s bytes", got)
			}
			hold := `perl -e 'my @p; for (1..1100) { pipe(my $r, my $w) or last; push @p, $r, $w } print scalar(@p), "\n"; close STDOUT; close STDERR; sleep 100' &`
			held := connect(t, hog)
			if got := inside(t, held, "ulimit -n 4096; "+hold); got != "2200" {
				t.Fatalf("control: the hog has %s ends of pipes", got)
			}
			if got := inside(t, held, size); got == "65536" {
				t.Error("control: the hog has not used up its pipes")
			}
			if got := inside(t, conn, size); (got == "65536") == shared {
				t.Errorf("the other's pipe has %s bytes", got)
			}
		})
	}
}

func TestNoUsersOfTheirOwn(t *testing.T) {
	needRoot(t)
	// procfs is a file system whose mounts cannot map owners.
	l, err := New(Options{Credential: testCredential, Dirs: []string{os.TempDir(), "/proc/self"}, Log: newLauncher(t).log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	if l.Shared() == nil || !strings.Contains(l.Shared().Error(), "/proc/self") {
		t.Errorf("why sandboxes are one user: %v", l.Shared())
	}
	s := newSpec(t, l)
	if p := start(t, l, s).(*process); p.uid != testCredential.UID {
		t.Errorf("it runs as uid %d", p.uid)
	}
	connect(t, s)
	for _, c := range []postgres.Credential{{UID: 0, GID: 1}, {UID: 1, GID: 0}, {UID: 65534, GID: 65534}, {UID: 65200, GID: 65200}} {
		if _, err := New(Options{Credential: c}); pgbough.ErrorCode(err) != pgbough.EInvalid {
			t.Errorf("%+v: got %v", c, err)
		}
	}
}
