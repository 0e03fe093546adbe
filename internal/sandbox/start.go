package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/postgres"
)

// startTimeout bounds a start up to the execution of postgres; it takes 20 ms
// on an idle machine.
const startTimeout = time.Minute

var errClosed = errors.New("the launcher is closed")

// deadlinePast makes a read return at once.
var deadlinePast = time.Unix(1, 0)

// initScript is pid 1. Its child says hello to the server, which learns its
// pid from the kernel that way, and becomes the postmaster. Is there no server
// any more, the hello fails, and the sandbox ends. The subshell is no
// background job: those ignore SIGINT.
const initScript = `exec 5<&-
(echo >&4; exec 4>&-; exec "$@")
exit $?`

// Start starts postgres in a new sandbox.
func (l *Launcher) Start(ctx context.Context, spec postgres.Spec) (postgres.Process, error) {
	if err := checkID(spec.ID); err != nil {
		return nil, err
	}
	if err := l.reserve(spec.ID); err != nil {
		return nil, err
	}
	defer l.release(spec.ID)
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, errors.New("the sandbox was not ready in time"))
	defer cancel()
	lock, err := l.lock(ctx, spec)
	if err != nil {
		return nil, err
	}
	// Closing is not unlocking: the sandbox has a duplicate.
	defer func() { _ = lock.Close() }()
	if spec.Prepare != nil {
		if err := spec.Prepare(); err != nil {
			return nil, err
		}
	}
	r, binary, err := newRoot(spec)
	if err != nil {
		return nil, err
	}
	log, err := openLog(spec.LogFile)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	group, err := l.newGroup(ctx, spec)
	if err != nil {
		return nil, fmt.Errorf("start the sandbox of volume %s: %w", spec.ID, err)
	}
	if r.who, err = l.newIdentity(ctx, spec.ID, mappable(spec)...); err != nil {
		return nil, errors.Join(fmt.Errorf("start the sandbox of volume %s: %w", spec.ID, err), group.remove())
	}
	defer r.who.close()
	p, err := l.launch(ctx, group, r, append([]string{binary}, spec.Args...), lock, log)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start the sandbox of volume %s: %w", spec.ID, err), group.remove())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.watchOver(p)
	return p, nil
}

// newGroup makes the cgroup of a sandbox, when no process of an earlier one on
// the volume is left. It is nil where there are none.
func (l *Launcher) newGroup(ctx context.Context, spec postgres.Spec) (*group, error) {
	if l.groups == nil {
		return nil, nil
	}
	if err := l.groups.clear(ctx, spec.ID); err != nil {
		return nil, err
	}
	return l.groups.make(spec.ID, spec.Limits)
}

func (l *Launcher) reserve(id string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return errClosed
	}
	if p := l.running[id]; l.starting[id] || p != nil && alive(p.init) {
		return locked(id)
	}
	l.starting[id] = true
	return nil
}

func (l *Launcher) release(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.starting, id)
}

func locked(id string) error {
	return pgbough.Errorf(pgbough.ELocked, "a Postgres already runs on volume %s: %w", id, postgres.ErrLocked).
		WithHint("wait until it has ended")
}

func checkID(id string) error {
	if id == "" || strings.ContainsAny(id, "/\n\x00") || len(hostPrefix+id) > 64 { // HOST_NAME_MAX
		return fmt.Errorf("%q is not the id of a volume", id)
	}
	return nil
}

// newRoot checks a Spec and resolves the path of its binary.
func newRoot(spec postgres.Spec) (root, string, error) {
	dirs := []string{spec.DataDir, spec.EtcDir, spec.Socket}
	if spec.Relay != "" {
		dirs = append(dirs, spec.Relay)
	}
	for _, dir := range dirs {
		fi, err := os.Lstat(dir)
		if err != nil {
			return root{}, "", fmt.Errorf("start a sandbox: %w", err)
		}
		if !fi.IsDir() {
			return root{}, "", fmt.Errorf("start a sandbox: %s is not a directory", dir)
		}
	}
	binary, err := filepath.EvalSymlinks(filepath.Join(spec.BinDir, "postgres"))
	if err != nil {
		return root{}, "", fmt.Errorf("find the postgres binary: %w", err)
	}
	return root{id: spec.ID, bin: filepath.Dir(binary), spec: spec}, binary, nil
}

// lock takes the volume's lock.
func (l *Launcher) lock(ctx context.Context, spec postgres.Spec) (*os.File, error) {
	f, err := os.OpenFile(spec.LockFile, os.O_RDONLY|os.O_CREATE|unix.O_NOFOLLOW, 0o600) //nolint:forbidigo // a lock has no content
	if err != nil {
		return nil, fmt.Errorf("open the volume's lock: %w", err)
	}
	for {
		err = flock(f)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			break
		}
		stuck, serr := l.clearStuck(ctx, spec.ID)
		if serr != nil || !stuck {
			err = errors.Join(locked(spec.ID), serr)
			break
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func flock(f *os.File) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func openLog(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW, 0o600) //nolint:forbidigo // a log need not survive the machine
	if err != nil {
		return nil, fmt.Errorf("open the log of postgres: %w", err)
	}
	return f, nil
}

// launch runs bwrap and waits for the hello of the process that becomes the
// postmaster.
func (l *Launcher) launch(ctx context.Context, g *group, r root, argv []string, lock, log *os.File) (*process, error) {
	ours, theirs, err := helloSockets()
	if err != nil {
		return nil, err
	}
	defer func() { _ = ours.Close() }()
	run, err := l.command(context.WithoutCancel(ctx), g, r, append([]string{"/bin/sh", "-c", initScript, "init"}, argv...), []*os.File{lock, theirs}, log)
	if err != nil {
		return nil, errors.Join(err, theirs.Close())
	}
	run.files = append(run.files, theirs)
	run.cmd.Stdout = log
	pidfd := -1
	run.cmd.SysProcAttr.PidFD = &pidfd
	before, err := log.Seek(0, io.SeekEnd)
	if err == nil {
		err = run.start()
	}
	run.close()
	if err != nil {
		return nil, fmt.Errorf("run bwrap: %w", err)
	}
	outer, err := pidFile(pidfd, run.cmd.Process.Pid)
	if err != nil {
		return nil, errors.Join(err, run.cmd.Process.Kill(), run.cmd.Wait())
	}
	pid, err := l.hello(ctx, ours)
	var p *process
	if err == nil {
		p, err = l.attach(r.id, pid)
	}
	if err == nil && p.uid != r.uid(l.cred) {
		p.close()
		err = fmt.Errorf("it runs as uid %d instead of %d", p.uid, r.uid(l.cred))
	}
	if err != nil {
		l.abort(ctx, run.cmd.Process.Pid, outer)
		_ = run.cmd.Wait() // the log says more than its exit status
		if _, cerr := l.clearStuck(context.WithoutCancel(ctx), r.id); cerr != nil {
			err = errors.Join(err, cerr)
		}
		return nil, fmt.Errorf("%w; the log says: %s", err, textSince(log.Name(), before))
	}
	p.outer, p.cmd, p.group = outer, run.cmd, g
	return p, nil
}

// helloSockets makes a pair of connected sockets; the kernel tells the reader
// at ours who wrote (SO_PASSCRED in unix(7)), in numbers of our namespaces.
func helloSockets() (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a pair of sockets: %w", err)
	}
	mine, theirs := os.NewFile(uintptr(fds[0]), "hello"), os.NewFile(uintptr(fds[1]), "hello")
	err = unix.SetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_PASSCRED, 1)
	var conn net.Conn
	if err == nil {
		conn, err = net.FileConn(mine) // a duplicate
	}
	_ = mine.Close()
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("prepare a pair of sockets: %w", err), theirs.Close())
	}
	return conn.(*net.UnixConn), theirs, nil
}

// hello waits for the sandbox to be made and tells the pid of its postmaster.
func (l *Launcher) hello(ctx context.Context, conn *net.UnixConn) (int, error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(deadlinePast) })
	defer stop()
	b, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(unix.SizeofUcred))
	n, oobn, _, _, err := conn.ReadMsgUnix(b, oob)
	switch {
	case ctx.Err() != nil:
		return 0, context.Cause(ctx)
	case errors.Is(err, io.EOF) || err == nil && n == 0:
		return 0, errors.New("bwrap failed")
	case err != nil:
		return 0, err
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(msgs) != 1 {
		return 0, fmt.Errorf("the sandbox did not say who it is: %w", err)
	}
	cred, err := unix.ParseUnixCredentials(&msgs[0])
	if err != nil {
		return 0, err
	}
	return int(cred.Pid), nil
}

// abort ends a bwrap and the sandbox that it was making or has made.
func (l *Launcher) abort(ctx context.Context, pid int, outer *os.File) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), thawTimeout)
	defer cancel()
	err := errors.Join(sendSignal(outer, unix.SIGSTOP), waitStopped(ctx, pid, outer)) // it makes no more children
	all, perr := pids("/proc")
	err = errors.Join(err, perr)
	for _, child := range all {
		st, serr := readStatus(child)
		if serr != nil || st.ppid != pid || !alive(outer) {
			continue
		}
		// The pid stays its own: its parent, which would reap it, is stopped.
		if pidfd, oerr := openPID(child); oerr == nil {
			err = errors.Join(err, endAndWait(ctx, pidfd))
		}
	}
	if err = errors.Join(err, endAndWait(ctx, outer)); err != nil {
		l.log.WarnContext(ctx, "a failed start may have left processes behind", "bwrap", pid, "err", err)
	}
}

// waitStopped waits until a process that was sent SIGSTOP has stopped, or ended:
// until then it may be making a child that nobody sees.
func waitStopped(ctx context.Context, pid int, pidfd *os.File) error {
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for alive(pidfd) {
		if st, err := readStatus(pid); err != nil || st.dead() || st.state == 'T' {
			return nil
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return fmt.Errorf("wait until bwrap has stopped: %w", context.Cause(ctx))
		}
	}
	return nil
}

// textSince is what was written to a log after an offset, cut to a length that
// fits a message.
func textSince(path string, offset int64) string {
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	b, err := io.ReadAll(io.NewSectionReader(f, offset, 2000))
	if err = errors.Join(err, f.Close()); err != nil {
		return err.Error()
	}
	if text := strings.TrimSpace(string(b)); text != "" {
		return text
	}
	return "nothing"
}
