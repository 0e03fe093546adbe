package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/pgbough/pgbough/internal/postgres"
)

// found is a sandbox seen in /proc.
type found struct {
	id   string
	main int // pid of its postmaster
}

// Find returns the running postmaster of volume id. One that an earlier server
// left frozen goes on.
func (l *Launcher) Find(ctx context.Context, id string) (postgres.Process, bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p := l.running[id]; p != nil && alive(p.init) {
		return p, true, nil
	}
	if l.closed {
		return nil, false, errClosed
	}
	all, err := l.scan(ctx)
	if err != nil {
		return nil, false, err
	}
	for _, f := range all {
		if f.id != id {
			continue
		}
		p, err := l.attach(id, f.main)
		if err != nil {
			// It ended since it was seen, or is ending.
			l.log.DebugContext(ctx, "a sandbox was not adopted", "volume", id, "err", err)
			continue
		}
		if p.group, err = l.groupOf(p); err != nil {
			l.log.WarnContext(ctx, "the limits of a running sandbox are not known", "volume", id, "err", err)
		}
		if err := p.thaw(context.WithoutCancel(ctx)); err != nil {
			ended := !alive(p.init)
			p.close()
			if ended {
				continue
			}
			return nil, false, fmt.Errorf("thaw the sandbox of volume %s: %w", id, err)
		}
		l.watchOver(p)
		return p, true, nil
	}
	return nil, false, nil
}

// groupOf is the cgroup of a running sandbox, nil when it has none.
func (l *Launcher) groupOf(p *process) (*group, error) {
	if l.groups == nil {
		return nil, nil
	}
	return l.groups.of(p.id, p.boss)
}

// List returns the ids of all volumes whose postmaster runs in a sandbox.
func (l *Launcher) List(ctx context.Context) ([]string, error) {
	all, err := l.scan(ctx)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, f := range all {
		ids = append(ids, f.id)
	}
	slices.Sort(ids)
	return slices.Compact(ids), nil
}

// scan looks for sandboxes among all processes of the machine: for a pid 1 of
// a nested PID namespace that has our uid and idFile, and for its pid 2. It
// does not look at command lines: the programs inside can change them.
func (l *Launcher) scan(ctx context.Context) ([]found, error) {
	all, err := pids("/proc")
	if err != nil {
		return nil, fmt.Errorf("look for sandboxes: %w", err)
	}
	inits := map[int]bool{}
	mains := map[int]int{} // by pid of the parent
	for _, pid := range all {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		st, err := readStatus(pid)
		if err != nil || st.dead() || !l.ours(st) {
			continue // an error: it has ended
		}
		switch st.inner() {
		case 1:
			inits[pid] = true
		case 2:
			mains[st.ppid] = pid
		}
	}
	var out []found
	for boss, main := range mains {
		if !inits[boss] {
			continue
		}
		id, err := volumeID(boss)
		if err != nil {
			continue // it has ended, or is no sandbox of ours
		}
		out = append(out, found{id: id, main: main})
	}
	return out, nil
}

// clearStuck ends what holds the lock of volume id and will not let go of it by
// itself. That is what is left of a start whose bwrap was killed halfway: the
// half inside waits forever for the half outside. And it is a sandbox that was
// frozen when its postmaster was killed, and the server that would have thawed
// it. It tells whether there was any.
func (l *Launcher) clearStuck(ctx context.Context, id string) (bool, error) {
	all, err := pids("/proc")
	if err != nil {
		return false, fmt.Errorf("look for half-made sandboxes: %w", err)
	}
	some := false
	for _, pid := range all {
		pidfd, ok := l.stuck(pid, id)
		if !ok {
			pidfd, ok = l.headless(pid, id, all)
		}
		if !ok {
			continue
		}
		some = true
		l.log.WarnContext(ctx, "end what is left of a sandbox", "volume", id, "pid", pid)
		if err := endAndWait(ctx, pidfd); err != nil {
			return some, fmt.Errorf("end what is left of the sandbox of volume %s: %w", id, err)
		}
	}
	return some, nil
}

// stuck pins process pid when it is such a half. Only root can look like one.
func (l *Launcher) stuck(pid int, id string) (*os.File, bool) {
	half := func(pid int) (status, bool) {
		st, err := readStatus(pid)
		return st, err == nil && !st.dead() && st.uid() == 0 && hasArgument(pid, hostPrefix+id)
	}
	st, ok := half(pid)
	if !ok || st.inner() != 1 {
		return nil, false
	}
	pidfd, err := openPID(pid)
	if err != nil {
		return nil, false
	}
	st, ok = half(pid)
	if _, outside := half(st.ppid); !ok || outside || !alive(pidfd) {
		_ = pidfd.Close() // of a pidfd: cannot fail
		return nil, false
	}
	return pidfd, true
}

// headless pins process pid when it is the stopped init of a sandbox of volume
// id that has no postmaster.
func (l *Launcher) headless(pid int, id string, all []int) (*os.File, bool) {
	is := func() bool {
		st, err := readStatus(pid)
		if err != nil || st.state != 'T' || st.inner() != 1 || !l.ours(st) {
			return false
		}
		found, err := volumeID(pid)
		return err == nil && found == id
	}
	if !is() {
		return nil, false
	}
	for _, child := range all {
		if st, err := readStatus(child); err == nil && st.ppid == pid && st.inner() == 2 && !st.dead() {
			return nil, false
		}
	}
	pidfd, err := openPID(pid)
	if err != nil {
		return nil, false
	}
	if !is() || !alive(pidfd) {
		_ = pidfd.Close() // of a pidfd: cannot fail
		return nil, false
	}
	return pidfd, true
}

// endAndWait kills a process, waits for its end and closes pidfd.
func endAndWait(ctx context.Context, pidfd *os.File) error {
	stop := context.AfterFunc(ctx, func() { _ = pidfd.SetReadDeadline(deadlinePast) })
	defer stop()
	err := sendSignal(pidfd, unix.SIGKILL)
	if err == nil {
		err = waitPID(pidfd)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = context.Cause(ctx)
	}
	return errors.Join(err, pidfd.Close())
}
