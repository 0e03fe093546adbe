package credential

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/pgbough/pgbough"
)

// maxFileSize is more than any file of this package has, in bytes.
const maxFileSize = 4096

// ensureFile reads the file at path, and first makes it with content() if there
// is none. what says for people what the file holds.
func ensureFile(path, what string, content func() []byte) ([]byte, error) {
	b, err := readFile(path, what)
	if !errors.Is(err, fs.ErrNotExist) {
		return b, err
	}
	if err := createFile(path, content()); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("create %s: %w", path, err)
	}
	return readFile(path, what) // somebody else may have been faster
}

// readFile reads a file that only its owner may read.
func readFile(path, what string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, syscall.ELOOP) {
		return nil, pgbough.Errorf(pgbough.EInvalid, "%s is a symbolic link", path).WithHint("put the file itself there")
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", what, err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", what, err)
	}
	if err := checkFile(path, what, info); err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFileSize))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", what, err)
	}
	return b, nil
}

func checkFile(path, what string, info fs.FileInfo) error {
	if !info.Mode().IsRegular() {
		return pgbough.Errorf(pgbough.EInvalid, "%s is not a regular file", path)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return pgbough.Errorf(pgbough.EInvalid, "%s holds %s and may be read by others (mode %04o)", path, what, mode).
			WithHint("run `chmod 600 %s`, and replace what it protects if somebody may have read it", path)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if euid := os.Geteuid(); ok && int(st.Uid) != euid && st.Uid != 0 {
		return pgbough.Errorf(pgbough.EInvalid, "%s belongs to uid %d, but this process is uid %d", path, st.Uid, euid).
			WithHint("run `chown %d %s`, if you know who put it there", euid, path)
	}
	return nil
}

// createFile makes the file at path, whole and on disk or not at all; it fails
// with fs.ErrExist rather than replace one. link(2) and not rename(2), because
// rename would replace a key that another process has just made and used.
func createFile(path string, content []byte) error {
	dir := filepath.Dir(path)
	draft := filepath.Join(dir, "."+filepath.Base(path)+"."+rand.Text())
	f, err := os.OpenFile(draft, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(draft) }()
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Link(draft, path); err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
