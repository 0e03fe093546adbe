package front

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// title is the name of the process in lists of processes.
const title = "pgbough-front"

// confine gives up all that this process could do beyond what it was given: from
// root, in namespaces of its own, to a user without rights in an empty directory.
// Nothing that a stranger says was read before.
func confine(user User) error {
	if os.Getuid() != 0 || user.UID <= 0 || user.GID <= 0 {
		return errors.New("it has to begin as root, and to become another user")
	}
	_ = os.WriteFile("/proc/self/comm", []byte(title), 0) //nolint:forbidigo // no file; it is only a name
	_ = time.Now().Local().String()                       // has the time zone read while there are files
	if err := leaveFiles(); err != nil {
		return err
	}
	none := unix.Rlimit{}
	for _, what := range []int{unix.RLIMIT_CORE, unix.RLIMIT_FSIZE} {
		if err := unix.Setrlimit(what, &none); err != nil {
			return fmt.Errorf("limit resources: %w", err)
		}
	}
	return becomeUser(user)
}

// leaveFiles makes an empty directory that nobody can write to the root of this
// process, and of all its threads. Its mount namespace holds nothing else then.
func leaveFiles() error {
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("cut the mount namespace off: %w", err)
	}
	const over = "/proc" // it is there, and needed no more
	if err := unix.Mount("none", over, "tmpfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0555,size=4k"); err != nil {
		return fmt.Errorf("make an empty directory: %w", err)
	}
	if err := unix.Chdir(over); err != nil {
		return fmt.Errorf("go to the empty directory: %w", err)
	}
	// The old root is put over the new one, where it is what Unmount finds.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("make the empty directory the root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the old root: %w", err)
	}
	return unix.Chdir("/")
}

// becomeUser is for all threads. With root, the capabilities go.
func becomeUser(user User) error {
	if err := syscall.Setgroups(nil); err != nil {
		return fmt.Errorf("leave all groups: %w", err)
	}
	if err := syscall.Setresgid(user.GID, user.GID, user.GID); err != nil {
		return fmt.Errorf("become gid %d: %w", user.GID, err)
	}
	if err := syscall.Setresuid(user.UID, user.UID, user.UID); err != nil {
		return fmt.Errorf("become uid %d: %w", user.UID, err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("be not dumpable: %w", err)
	}
	// To become another user has undone what was set before. Should the engine have
	// died already, the link tells so.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("end with the engine: %w", err)
	}
	return nil
}
