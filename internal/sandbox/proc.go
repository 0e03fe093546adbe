package sandbox

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// status is what we use of /proc/PID/status (proc_pid_status(5)).
type status struct {
	state byte
	ppid  int
	uids  []string // real, effective, saved, file system
	// nspid is the process's id in our PID namespace and in each one nested in
	// it, down to its own.
	nspid []string
}

// inner is its id in its own PID namespace when that is not ours, else 0.
func (s status) inner() int {
	if len(s.nspid) < 2 {
		return 0
	}
	n, err := strconv.Atoi(s.nspid[len(s.nspid)-1])
	if err != nil {
		return 0
	}
	return n
}

// uid is the only one that it has, or -1.
func (s status) uid() int {
	if len(s.uids) == 0 {
		return -1
	}
	for _, u := range s.uids[1:] {
		if u != s.uids[0] {
			return -1
		}
	}
	uid, err := strconv.Atoi(s.uids[0])
	if err != nil {
		return -1
	}
	return uid
}

func (s status) dead() bool { return s.state == 'Z' || s.state == 'X' }

func readStatus(pid int) (status, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return status{}, err
	}
	var s status
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(line, ":")
		fields := strings.Fields(value)
		if len(fields) == 0 {
			continue
		}
		switch key {
		case "State":
			s.state = fields[0][0]
		case "PPid":
			if s.ppid, err = strconv.Atoi(fields[0]); err != nil {
				return status{}, err
			}
		case "Uid":
			s.uids = fields
		case "NSpid":
			s.nspid = fields
		}
	}
	return s, nil
}

// pids lists the processes that the procfs at dir shows.
func pids(dir string) ([]int, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	names, err := d.Readdirnames(-1)
	if err = errors.Join(err, d.Close()); err != nil {
		return nil, err
	}
	var out []int
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			out = append(out, pid)
		}
	}
	return out, nil
}

// namespace identifies the PID namespace of a process. The number may be used
// again after the namespace's end.
func namespace(pid int) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d/ns/pid", pid), &st); err != nil {
		return 0, err
	}
	return st.Ino, nil
}

// volumeID reads idFile in the root of a process. Only a sandbox of ours has
// both that file and a uid of ours.
func volumeID(pid int) (string, error) {
	f, err := os.OpenFile(fmt.Sprintf("/proc/%d/root%s", pid, idFile), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0) //nolint:forbidigo // only reads
	if err != nil {
		return "", err
	}
	b, err := io.ReadAll(io.LimitReader(f, 256))
	if err = errors.Join(err, f.Close()); err != nil {
		return "", err
	}
	return strings.TrimSuffix(string(b), "\n"), nil
}

// hasArgument tells whether arg stands on the command line of a process.
func hasArgument(pid int, arg string) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return false
	}
	for word := range bytes.SplitSeq(b, []byte{0}) {
		if string(word) == arg {
			return true
		}
	}
	return false
}

// openPID pins a process: the descriptor never means another one, and becomes
// readable when the process has ended, a pid 1 after all of its namespace.
func openPID(pid int) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("pin process %d: %w", pid, err)
	}
	return pidFile(fd, pid)
}

// pidFile makes a file that Go's poller waits for.
func pidFile(fd, pid int) (*os.File, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), fmt.Sprintf("pidfd:%d", pid)), nil
}

// waitPID waits for the end of a process, or for the file's deadline.
func waitPID(pidfd *os.File) error {
	c, err := pidfd.SyscallConn()
	if err != nil {
		return err
	}
	return c.Read(hasEnded)
}

// alive tells whether the process has not ended. What was read of it before is
// then its own, and not of a later process with its number.
func alive(pidfd *os.File) bool {
	c, err := pidfd.SyscallConn()
	if err != nil {
		return false
	}
	ended := true
	err = c.Control(func(fd uintptr) { ended = hasEnded(fd) })
	return err == nil && !ended
}

func hasEnded(fd uintptr) bool {
	set := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(set, 0)
	return n > 0 || err != nil && !errors.Is(err, unix.EINTR)
}

// sendSignal signals a process; one that has ended already is no error.
func sendSignal(pidfd *os.File, sig unix.Signal) error {
	c, err := pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	if err := c.Control(func(fd uintptr) { serr = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); err != nil {
		return err
	}
	if errors.Is(serr, unix.ESRCH) {
		return nil
	}
	return serr
}
