package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/pgbough/pgbough/internal/postgres"
)

// root describes the root file system of a sandbox.
type root struct {
	id   string // of the volume
	bin  string // directory of the postgres binary, resolved; empty for none
	spec postgres.Spec
	who  *identity // nil for the Launcher's credential
}

// uid is the one that it runs as, as the host sees it.
func (r root) uid(cred postgres.Credential) int {
	if r.who == nil {
		return cred.UID
	}
	return r.who.uid
}

// idFile says which volume a sandbox runs on. It lies in a root that the
// processes inside cannot write, rename in, or mount over.
const idFile = "/volume-id"

// dicts are Debian's text search dictionaries, into which its tsearch_data links.
const dicts = "/var/cache/postgresql/dicts"

// hostPrefix and the id make the sandbox's host name. It also marks the
// command line of a bwrap that has not come to its end.
const hostPrefix = "pgbough-"

// args are bwrap's options. pass gives a content to bwrap and tells its
// descriptor.
func (r root) args(cred postgres.Credential, pass func([]byte) (int, error)) ([]string, error) {
	args := []string{
		"--unshare-net", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup",
		"--as-pid-1", "--new-session", "--hostname", hostPrefix + r.id, "--clearenv", "--chdir", "/",
		"--ro-bind", "/usr", "/usr",
	}
	links, err := topLevel()
	if err != nil {
		return nil, err
	}
	args = append(args, links...)
	args = append(args, parents(insideEtc)...)
	args = append(args, parents(insideSocket)...)
	args = append(args, parents(dicts)...)
	for _, path := range []string{
		"/etc/ld.so.cache",
		"/etc/alternatives", // the way to libblas and others
		"/etc/localtime",    // what timezone = 'localtime' means
		dicts,
	} {
		args = append(args, "--ro-bind-try", path, path)
	}
	args = append(args, "--proc", "/proc", "--dev", "/dev",
		// Without these permissions shm_open fails for an unprivileged user.
		"--perms", "1777", "--tmpfs", "/dev/shm", "--perms", "1777", "--tmpfs", "/tmp")
	for _, f := range generated(cred, r.id) {
		fd, err := pass([]byte(f.text))
		if err != nil {
			return nil, err
		}
		args = append(args, "--perms", "0444", "--file", fmt.Sprint(fd), f.path)
	}
	args = append(args, r.binaries()...)
	if s := r.spec; s.DataDir != "" {
		args = append(args, "--bind", s.DataDir, insideData, "--ro-bind", s.EtcDir, insideEtc, "--bind", s.Socket, insideSocket)
		if s.Relay != "" {
			// Connecting to a socket needs no writable mount.
			args = append(args, "--ro-bind", s.Relay, insideRelay)
		}
	}
	for _, kv := range r.spec.Env {
		name, value, ok := strings.Cut(kv, "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("%q is not NAME=VALUE", kv)
		}
		args = append(args, "--setenv", name, value)
	}
	return append(args, "--remount-ro", "/"), nil
}

type textFile struct{ path, text string }

func generated(cred postgres.Credential, id string) []textFile {
	return []textFile{
		{idFile, id + "\n"},
		{"/etc/passwd", fmt.Sprintf("root:x:0:0:root:/:/bin/false\npgbough:x:%d:%d:pgbough:/tmp:/bin/sh\n", cred.UID, cred.GID)},
		{"/etc/group", fmt.Sprintf("root:x:0:\npgbough:x:%d:\n", cred.GID)},
		// The statistics collector of Postgres 14 and older talks to itself over it.
		{"/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"},
	}
}

// binaries binds the parts of an installation that is not below /usr.
func (r root) binaries() []string {
	if r.bin == "" || strings.HasPrefix(r.bin, "/usr/") {
		return nil
	}
	args := append(parents(r.bin), "--ro-bind", r.bin, r.bin)
	for _, sibling := range []string{"lib", "lib64", "share"} {
		path := filepath.Join(filepath.Dir(r.bin), sibling)
		args = append(args, "--ro-bind-try", path, path)
	}
	return args
}

// parents makes the directories above path: those that bwrap makes unasked only
// root may enter.
func parents(path string) []string {
	var args []string
	for i, c := range path {
		if c == '/' && i > 0 {
			args = append(args, "--dir", path[:i])
		}
	}
	return args
}

// topLevel shows /bin, /lib and so on as the host has them: as links into /usr,
// or as directories where /usr is not merged.
func topLevel() ([]string, error) {
	var args []string
	for _, path := range []string{"/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"} {
		fi, err := os.Lstat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return nil, err
		case fi.Mode().Type() == os.ModeSymlink:
			target, err := os.Readlink(path)
			if err != nil {
				return nil, err
			}
			args = append(args, "--symlink", target, path)
		default:
			args = append(args, "--ro-bind", path, path)
		}
	}
	return args, nil
}
