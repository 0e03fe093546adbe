package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/pgbough/pgbough/internal/postgres"
)

// process is a running sandbox.
type process struct {
	id   string
	pid  int      // of the postmaster
	main *os.File // pidfd of the postmaster
	boss int      // pid of the init, pid 1 inside
	init *os.File // pidfd of the init
	ns   uint64   // its PID namespace
	uid  int      // of all its processes, on the host
	done chan struct{}

	freezer sync.Mutex // held while frozen is being changed
	frozen  bool

	group    *group // nil without one
	kills    atomic.Int64
	refusals atomic.Int64

	// The bwrap outside, when this server started it and not an earlier one.
	outer *os.File
	cmd   *exec.Cmd
}

var _ postgres.Process = (*process)(nil)

// attach pins the sandbox of volume id whose postmaster is process pid.
func (l *Launcher) attach(id string, pid int) (*process, error) {
	p := &process{id: id, pid: pid, done: make(chan struct{})}
	err := p.pin(l.ours)
	if err != nil {
		p.close()
		return nil, fmt.Errorf("take hold of the sandbox of volume %s: %w", id, err)
	}
	return p, nil
}

func (p *process) pin(ours func(status) bool) error {
	var err error
	if p.main, err = openPID(p.pid); err != nil {
		return err
	}
	st, err := readStatus(p.pid)
	if err != nil {
		return err
	}
	p.boss = st.ppid
	if p.init, err = openPID(p.boss); err != nil {
		return err
	}
	boss, err := readStatus(p.boss)
	if err != nil {
		return err
	}
	id, err := volumeID(p.boss)
	if err != nil {
		return err
	}
	if p.ns, err = namespace(p.pid); err != nil {
		return err
	}
	p.uid = st.uid()
	if st.inner() != 2 || boss.inner() != 1 || !ours(st) || boss.uid() != p.uid || id != p.id {
		return fmt.Errorf("process %d is not its postmaster", p.pid)
	}
	if !alive(p.main) || !alive(p.init) {
		return errors.New("it has ended")
	}
	return nil
}

func (p *process) close() {
	for _, f := range []*os.File{p.main, p.init} {
		if f != nil {
			_ = f.Close() // of a pidfd: cannot fail
		}
	}
}

// watchOver closes Done at the end of p and forgets it. The caller holds l.mu.
func (l *Launcher) watchOver(p *process) {
	l.running[p.id] = p
	l.watch.Go(func() {
		err := waitPID(p.init)
		if err == nil {
			p.kills.Store(int64(p.MemoryKills()))
			p.refusals.Store(int64(p.Refusals()))
			l.mu.Lock()
			if l.running[p.id] == p {
				delete(l.running, p.id)
			}
			l.mu.Unlock()
			close(p.done)
			if err := p.group.remove(); err != nil {
				l.log.Debug("a cgroup is left to the next start", "volume", p.id, "err", err)
			}
		}
		p.close()
	})
	if p.cmd != nil {
		l.watch.Go(func() {
			if waitPID(p.outer) == nil {
				_ = p.cmd.Wait() // its exit status is the postmaster's, which its log explains
			}
			_ = p.outer.Close() // of a pidfd: cannot fail
		})
	}
	if l.closed {
		p.unwatch()
	}
}

// unwatch ends the watch over p.
func (p *process) unwatch() {
	_ = p.init.SetReadDeadline(deadlinePast) // fails only when closed
	if p.outer != nil {
		_ = p.outer.SetReadDeadline(deadlinePast)
	}
}

// PID is the postmaster's on the host.
func (p *process) PID() int { return p.pid }

// Done is closed when the last process of the sandbox has ended.
func (p *process) Done() <-chan struct{} { return p.done }

// Signal signals the postmaster.
func (p *process) Signal(sig syscall.Signal) error {
	return p.ignoreEnded(sendSignal(p.main, sig))
}

// Kill ends the init, and with it the kernel ends every process inside.
func (p *process) Kill(ctx context.Context) error {
	if err := p.ignoreEnded(sendSignal(p.init, unix.SIGKILL)); err != nil {
		return fmt.Errorf("kill the sandbox of volume %s: %w", p.id, err)
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the end of the sandbox of volume %s: %w", p.id, context.Cause(ctx))
	}
}

// ignoreEnded drops the error of using a descriptor that was closed at the end.
func (p *process) ignoreEnded(err error) error {
	select {
	case <-p.done:
		return nil
	default:
		return err
	}
}

// SetLimits changes what the sandbox may use.
func (p *process) SetLimits(limits postgres.Limits) error {
	if p.group == nil {
		return nil
	}
	return p.ignoreEnded(p.group.limit(limits))
}

// MemoryKills is how many processes the kernel has killed at the memory limit.
func (p *process) MemoryKills() int { return p.count(&p.kills, (*group).killed) }

// Refusals is how many processes the kernel has not started at the limit of processes.
func (p *process) Refusals() int { return p.count(&p.refusals, (*group).refused) }

// count reads a number of the cgroup; last is what it was at the end.
func (p *process) count(last *atomic.Int64, read func(*group) (int, error)) int {
	select {
	case <-p.done: // and the cgroup is gone
		return int(last.Load())
	default:
	}
	if p.group == nil {
		return 0
	}
	n, err := read(p.group)
	if err != nil {
		return int(last.Load()) // it ends right now
	}
	return n
}

// Owns tells whether pid, which uid has told to be its own, is a process of
// this sandbox.
func (p *process) Owns(pid, uid int) bool {
	ns, err := namespace(pid)
	return err == nil && uid == p.uid && ns == p.ns && alive(p.init)
}
