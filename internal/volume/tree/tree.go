// Package tree walks, copies and measures directory trees that belong to
// somebody hostile: the owner of a PGDATA may plant symbolic links, FIFOs or
// nested subvolumes in it, and may go on doing so during the walk.
//
// Every step goes from the open file of a directory to the name of an entry in
// it with O_NOFOLLOW, so nothing outside the tree is ever reached, whatever is
// planted or swapped.
package tree

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// maxDepth bounds the open files of a walk. A PGDATA is 5 deep.
const maxDepth = 100

// OpenDir opens the directory name in the directory parent, or by path when
// parent is nil. The last step is never a symbolic link.
func OpenDir(parent *os.File, name string) (*os.File, error) {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	at, path := unix.AT_FDCWD, name
	if parent != nil {
		at, path = int(parent.Fd()), parent.Name()+"/"+name
	}
	fd, err := unix.Openat(at, name, flags, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// openFile opens a regular file for reading and returns what it is. It returns
// nil when name turns out not to be a regular file (any more).
func openFile(dir *os.File, name string) (*os.File, *unix.Stat_t, error) {
	// O_NONBLOCK: a FIFO without a writer must not hold us.
	const flags = unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	fd, err := unix.Openat(int(dir.Fd()), name, flags, 0)
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO) {
		return nil, nil, nil // a link or a socket now
	}
	if err != nil {
		return nil, nil, &os.PathError{Op: "open", Path: dir.Name() + "/" + name, Err: err}
	}
	f := os.NewFile(uintptr(fd), dir.Name()+"/"+name)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, nil, errors.Join(&os.PathError{Op: "stat", Path: f.Name(), Err: err}, f.Close())
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, nil, f.Close()
	}
	return f, &st, nil
}

// Entries calls visit for every entry of dir with its lstat, until visit fails.
// Entries that go away meanwhile are passed over.
func Entries(ctx context.Context, dir *os.File, visit func(name string, st *unix.Stat_t) error) error {
	for {
		names, err := dir.Readdirnames(512)
		for _, name := range names {
			if err := ctx.Err(); err != nil {
				return err
			}
			var st unix.Stat_t
			err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
			if errors.Is(err, unix.ENOENT) {
				continue
			}
			if err != nil {
				return &os.PathError{Op: "stat", Path: dir.Name() + "/" + name, Err: err}
			}
			if err := visit(name, &st); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("list directory: %w", err)
		}
	}
}

// walkFiles calls visit for every regular file below dir.
func walkFiles(ctx context.Context, dir *os.File, depth int, visit func(f *os.File, st *unix.Stat_t) error) error {
	if depth > maxDepth {
		return errTooDeep(dir)
	}
	return Entries(ctx, dir, func(name string, st *unix.Stat_t) error {
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			child, err := OpenDir(dir, name)
			if gone(err) {
				return nil
			}
			if err != nil {
				return err
			}
			return errors.Join(walkFiles(ctx, child, depth+1, visit), child.Close())
		case unix.S_IFREG:
			f, st, err := openFile(dir, name)
			if f == nil || gone(err) {
				return ignoreGone(err)
			}
			return errors.Join(visit(f, st), f.Close())
		default:
			return nil
		}
	})
}

// gone tells whether an entry vanished or became something else since it was listed.
func gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}

func ignoreGone(err error) error {
	if gone(err) {
		return nil
	}
	return err
}

func errTooDeep(dir *os.File) error {
	return fmt.Errorf("walk %.60s...: directories are nested more than %d deep", dir.Name(), maxDepth)
}
