package replication

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/pgbough/pgbough"
)

// unpacker writes the tar archive of a base backup into a directory and keeps
// the size and checksum of every file, until the manifest comes to compare.
type unpacker struct {
	root      *os.Root
	uid, gid  int // of what is written; -1 leaves it
	algorithm string
	buffer    []byte
	files     map[string]unpacked
	bytes     int64 // in files
}

type unpacked struct {
	size int64
	sum  []byte
}

func newUnpacker(root *os.Root, uid, gid int, algorithm string) (*unpacker, error) {
	if _, err := newChecksum(algorithm); err != nil {
		return nil, err
	}
	return &unpacker{root: root, uid: uid, gid: gid, algorithm: algorithm, buffer: make([]byte, 256<<10), files: map[string]unpacked{}}, nil
}

// unpack reads one archive to its end.
func (u *unpacker) unpack(archive io.Reader) error {
	entries := tar.NewReader(archive)
	for {
		header, err := entries.Next()
		if errors.Is(err, io.EOF) {
			_, err := io.Copy(io.Discard, archive) // padding behind the end
			return err
		}
		if err != nil {
			return fmt.Errorf("read the archive: %w", err)
		}
		if err := u.entry(header, entries); err != nil {
			return err
		}
	}
}

func (u *unpacker) entry(header *tar.Header, content io.Reader) error {
	name := strings.TrimSuffix(strings.TrimPrefix(header.Name, "./"), "/")
	if name == "" || name == "." {
		return nil // the data directory itself
	}
	if !safePath(name) {
		return fmt.Errorf("the archive has an entry %q, which leads out of the data directory", header.Name)
	}
	switch header.Typeflag {
	case tar.TypeDir:
		return u.directory(name)
	case tar.TypeReg:
		return u.file(name, header.Size, content)
	case tar.TypeSymlink:
		if path.Dir(name) == "pg_tblspc" {
			return tablespaceError(header.Linkname)
		}
	}
	return fmt.Errorf("the archive has an entry %q of type %q, which a data directory cannot have", name, header.Typeflag)
}

func (u *unpacker) directory(name string) error {
	if err := u.root.Mkdir(name, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return writeError("make the directory", name, err)
	}
	info, err := u.root.Lstat(name)
	if err != nil {
		return writeError("look at", name, err)
	}
	if !info.IsDir() {
		return fmt.Errorf("the archive has %s both as a file and as a directory", printable(name))
	}
	if err := u.root.Lchown(name, u.uid, u.gid); err != nil {
		return writeError("give away", name, err)
	}
	return nil
}

func (u *unpacker) file(name string, size int64, content io.Reader) (err error) {
	f, err := u.root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return writeError("make", name, err)
	}
	defer func() {
		if closed := f.Close(); err == nil && closed != nil {
			err = writeError("close", name, closed)
		}
	}()
	if err := f.Chown(u.uid, u.gid); err != nil {
		return writeError("give away", name, err)
	}
	sum, err := newChecksum(u.algorithm)
	if err != nil {
		return err
	}
	written, err := u.copy(f, name, sum, content)
	if err != nil {
		return err
	}
	if written != size {
		return fmt.Errorf("the archive ends within %s", printable(name))
	}
	// Let the kernel begin to write, so that the sync at the end is short.
	_ = unix.SyncFileRange(int(f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE) // a hint; errors show in the sync
	u.bytes += written
	u.files[name] = unpacked{size: written, sum: sum.Sum(nil)}
	return nil
}

func (u *unpacker) copy(f *os.File, name string, sum hash.Hash, content io.Reader) (written int64, err error) {
	for {
		n, err := content.Read(u.buffer)
		if n > 0 {
			_, _ = sum.Write(u.buffer[:n]) // never fails (hash.Hash)
			if _, err := f.Write(u.buffer[:n]); err != nil {
				return written, writeError("write", name, err)
			}
			written += int64(n)
		}
		if errors.Is(err, io.EOF) {
			return written, nil
		}
		if err != nil {
			return written, fmt.Errorf("read %s from the archive: %w", printable(name), err)
		}
	}
}

// verify compares everything that was unpacked with the manifest. WAL is not
// in the manifest, and not in our backups either.
func (u *unpacker) verify(m *Manifest) error {
	for name, want := range m.Files {
		got, ok := u.files[name]
		switch {
		case !ok:
			return corrupt("%s is missing", name)
		case got.size != want.Size:
			return corrupt("%s has %d bytes, not %d", name, got.size, want.Size)
		case want.Algorithm != u.algorithm:
			return corrupt("the checksum of %s is of kind %q, not %s", name, want.Algorithm, u.algorithm)
		case !bytes.Equal(got.sum, want.Checksum):
			return corrupt("the checksum of %s is %x, not %x", name, got.sum, want.Checksum)
		}
	}
	for name := range u.files {
		if _, ok := m.Files[name]; !ok {
			return corrupt("%s is not in the manifest", name)
		}
	}
	for _, name := range []string{"PG_VERSION", "backup_label", "global/pg_control"} {
		if _, ok := m.Files[name]; !ok {
			return corrupt("%s is missing, in the manifest too", name)
		}
	}
	return nil
}

// sync makes everything durable: the file system that holds the directory is
// synced as a whole, which takes one call where there are thousands of files.
func (u *unpacker) sync() error {
	dir, err := u.root.Open(".")
	if err != nil {
		return fmt.Errorf("open the data directory: %w", err)
	}
	defer func() { _ = dir.Close() }() // read only
	if err := unix.Syncfs(int(dir.Fd())); err != nil {
		return writeError("sync", "the data directory", err)
	}
	return nil
}

// checkEmpty refuses a directory that has something in it.
func checkEmpty(root *os.Root) error {
	dir, err := root.Open(".")
	if err != nil {
		return fmt.Errorf("open the data directory: %w", err)
	}
	defer func() { _ = dir.Close() }() // read only
	names, err := dir.Readdirnames(1)
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list the data directory: %w", err)
	}
	return pgbough.Errorf(pgbough.EConflict, "the directory for the base backup is not empty: it has %s", printable(names[0]))
}

func corrupt(format string, args ...any) error {
	return pgbough.Errorf(pgbough.EInternal, "the base backup does not match its manifest: "+format, args...).
		WithHint("try again; if it fails again, something between the server's disk and this one changes bytes")
}

func tablespaceError(location string) error {
	return pgbough.Errorf(pgbough.EConflict, "the server has a tablespace at %s; pgbough can follow only servers that keep everything in their data directory", location).
		WithHint("move what is in it to pg_default (ALTER TABLE ALL IN TABLESPACE ... SET TABLESPACE pg_default) and drop it")
}

func writeError(verb, name string, err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return pgbough.Errorf(pgbough.ENoSpace, "no space left for the base backup (%s %s: %w)", verb, printable(name), err).
			WithHint("free space in the pool (pgbough pool shows where the bytes are), or start with a larger one, and try again")
	}
	return fmt.Errorf("%s %s: %w", verb, printable(name), err)
}
