package zfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/pgbough/pgbough"
)

// failure is a zfs command that failed, with what it said.
type failure struct {
	command string
	said    string
	err     error
}

func (f *failure) Error() string { return fmt.Sprintf("%s: %v: %s", f.command, f.err, f.said) }
func (f *failure) Unwrap() error { return f.err }

// run runs zfs(8) without a shell and returns what it printed.
func run(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "zfs", args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return "", pgbough.Errorf(pgbough.EConflict, "program zfs is not installed").WithHint("install OpenZFS (Debian, Ubuntu: zfsutils-linux)")
	case ctx.Err() != nil:
		return "", context.Cause(ctx)
	case err != nil:
		return "", &failure{"zfs " + strings.Join(args, " "), strings.TrimSpace(stderr.String()), err}
	}
	return stdout.String(), nil
}

// missing tells whether a command failed because the dataset is not there.
func missing(err error) bool {
	var f *failure
	return errors.As(err, &f) && (strings.Contains(f.said, "does not exist") || strings.Contains(f.said, "could not find any snapshots"))
}

func busy(err error) bool {
	var f *failure
	return errors.As(err, &f) && strings.Contains(f.said, "is busy")
}

func mountsOf(is func(*mountinfo.Info) bool) ([]*mountinfo.Info, error) {
	found, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) { return !is(m), false })
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	return found, nil
}

func unmount(path string) error {
	if err := unix.Unmount(path, unix.UMOUNT_NOFOLLOW); err != nil {
		return &os.PathError{Op: "unmount", Path: path, Err: err}
	}
	return nil
}
