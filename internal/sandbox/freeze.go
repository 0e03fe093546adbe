package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// thawTimeout bounds thawing, which takes well under a millisecond a process.
const thawTimeout = 10 * time.Second

// Freeze stops every process of the sandbox and returns when none runs. When
// it fails, it lets them all go on.
func (p *process) Freeze(ctx context.Context) error {
	p.freezer.Lock()
	defer p.freezer.Unlock()
	if p.frozen {
		return nil
	}
	if err := p.freeze(ctx); err != nil {
		if terr := p.thaw(context.WithoutCancel(ctx)); terr != nil {
			err = errors.Join(err, terr)
		}
		return p.ignoreEnded(fmt.Errorf("freeze the sandbox of volume %s: %w", p.id, err))
	}
	p.frozen = true
	return nil
}

// Thaw lets the processes of a frozen sandbox go on.
func (p *process) Thaw() error {
	p.freezer.Lock()
	defer p.freezer.Unlock()
	if !p.frozen {
		return nil
	}
	if err := p.thaw(context.Background()); err != nil {
		return p.ignoreEnded(fmt.Errorf("thaw the sandbox of volume %s: %w", p.id, err))
	}
	p.frozen = false
	return nil
}

// freeze is done after two passes that find nothing running: what the first
// saw stopped can make no new process that the second would miss.
func (p *process) freeze(ctx context.Context) error {
	const enough = 2
	timer := time.NewTimer(0)
	defer timer.Stop()
	for quiet, wait := 0, 200*time.Microsecond; quiet < enough; {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-p.done:
			return os.ErrProcessDone
		case <-timer.C:
		}
		busy, err := p.each(func(m member) (bool, error) {
			stopped, held, err := m.stopped()
			if err != nil || stopped {
				return false, err
			}
			return !held, m.signal(unix.SIGSTOP)
		})
		if err != nil {
			return err
		}
		if busy {
			quiet = 0
			timer.Reset(wait)
			wait = min(2*wait, 20*time.Millisecond)
			continue
		}
		quiet++
		timer.Reset(0)
	}
	return nil
}

// thaw sends SIGCONT until a pass finds nothing stopped.
func (p *process) thaw(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, thawTimeout)
	defer cancel()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-p.done:
			return nil
		case <-timer.C:
		}
		again, err := p.each(func(m member) (bool, error) {
			// Also to those that do not look stopped: SIGSTOP may still be on its way.
			if err := m.signal(unix.SIGCONT); err != nil {
				return false, err
			}
			st, err := m.state(m.pid)
			return st == 'T', err
		})
		if err != nil || !again {
			return err
		}
		timer.Reset(time.Millisecond)
	}
}

// forkCalls are the numbers of clone, clone3 and, where there is one, vfork.
var forkCalls = func() []string {
	calls := []string{strconv.Itoa(unix.SYS_CLONE), strconv.Itoa(unix.SYS_CLONE3)}
	if runtime.GOARCH == "amd64" {
		calls = append(calls, "58") // unix.SYS_VFORK is not everywhere
	}
	return calls
}()

// member is a process of a sandbox, as the sandbox's own procfs shows it. Its
// directory there pins it, and serves as a pidfd (pidfd_send_signal(2)).
type member struct {
	dir *os.File
	pid string // inside
}

// each calls f for every process of the sandbox, the init first, and tells
// whether any call did.
func (p *process) each(f func(member) (bool, error)) (bool, error) {
	proc := fmt.Sprintf("/proc/%d/root/proc", p.boss)
	inside, err := pids(proc)
	if err != nil || !alive(p.init) {
		// Without the init there is nothing left inside, and proc may be another's.
		if !alive(p.init) {
			return false, os.ErrProcessDone
		}
		return false, err
	}
	some := false
	for _, pid := range inside {
		dir, err := os.Open(filepath.Join(proc, strconv.Itoa(pid)))
		if err != nil {
			if gone(err) {
				continue
			}
			return some, err
		}
		if !alive(p.init) {
			return some, errors.Join(os.ErrProcessDone, dir.Close())
		}
		yes, err := f(member{dir: dir, pid: strconv.Itoa(pid)})
		_ = dir.Close() // only read
		if err != nil && !gone(err) {
			return some, err
		}
		some = some || yes
	}
	return some, nil
}

// gone tells whether an error on /proc says that the process has ended.
func gone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) }

func (m member) signal(sig unix.Signal) error {
	err := unix.PidfdSendSignal(int(m.dir.Fd()), sig, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// stopped tells whether no thread of the process runs. One that does not run
// either, but is not stopped, is held by a child that has not executed its
// program yet (vfork(2)): it will find its SIGSTOP when the child goes on.
func (m member) stopped() (stopped, held bool, err error) {
	threads, err := os.ReadDir(m.path("task"))
	if err != nil {
		return false, false, err
	}
	for _, t := range threads {
		st, err := m.state(t.Name())
		if err != nil {
			if gone(err) {
				continue
			}
			return false, false, err
		}
		switch {
		case bytes.ContainsRune([]byte("TtZX"), rune(st)):
		case st == 'D' && m.forks(t.Name()):
			held = true
		default:
			return false, false, nil
		}
	}
	return !held, held, nil
}

// forks tells whether a thread that sleeps is in a system call that makes a
// process (proc_pid_syscall(5)).
func (m member) forks(tid string) bool {
	b, err := os.ReadFile(m.path(filepath.Join("task", tid, "syscall")))
	if err != nil {
		return false
	}
	number, _, _ := strings.Cut(string(b), " ")
	return slices.Contains(forkCalls, number)
}

// state is the state letter of a thread (proc_pid_stat(5)).
func (m member) state(tid string) (byte, error) {
	b, err := os.ReadFile(m.path(filepath.Join("task", tid, "stat")))
	if err != nil {
		return 0, err
	}
	// The name before it is in parentheses and may hold anything.
	i := bytes.LastIndexByte(b, ')')
	if i < 0 || i+2 >= len(b) {
		return 0, fmt.Errorf("cannot read the state in %q", b)
	}
	return b[i+2], nil
}

func (m member) path(name string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", m.dir.Fd(), name)
}
