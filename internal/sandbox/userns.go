package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/pgbough/pgbough/internal/postgres"
)

// newUserNamespace makes a user namespace in which only c exists, and is outside
// to the rest of the machine. It can have no children. It lives as long as its
// file is open, a process is in it, or a mount maps owners as it does.
//
// bwrap's own --unshare-user serves a user who sandboxes his own programs: as
// root it would map root. So bwrap works in the host's namespace, where it can
// open every directory of the pool, and enters this one last (--userns2).
func newUserNamespace(ctx context.Context, c, outside postgres.Credential) (*os.File, error) {
	var errs strings.Builder
	// Its one process sets the limit and waits; namespaces outlive it.
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", "echo 0 >/proc/sys/user/max_user_namespaces && echo && read -r line")
	cmd.Stderr = &errs
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:                 unix.CLONE_NEWUSER,
		UidMappings:                []syscall.SysProcIDMap{{ContainerID: c.UID, HostID: outside.UID, Size: 1}},
		GidMappings:                []syscall.SysProcIDMap{{ContainerID: c.GID, HostID: outside.GID, Size: 1}},
		GidMappingsEnableSetgroups: true, // to give up the supplementary groups
		// Root does not exist in it, so exec would take away what the limit needs.
		AmbientCaps: []uintptr{unix.CAP_SYS_RESOURCE},
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("make a user namespace: %w", err)
	}
	var file *os.File
	if _, err = io.ReadFull(stdout, make([]byte, 1)); err == nil {
		file, err = os.Open(fmt.Sprintf("/proc/%d/ns/user", cmd.Process.Pid))
	}
	_ = stdin.Close() // the end of its work; its exit status says nothing then
	werr := cmd.Wait()
	if err != nil {
		return nil, fmt.Errorf("limit a user namespace: %w: %s", errors.Join(context.Cause(ctx), err, werr), strings.TrimSpace(errs.String()))
	}
	return file, nil
}
