package tree

import (
	"context"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// parallel is how many files of one directory are copied at a time: FICLONE
// waits for the source's dirty pages, so a few overlap well.
const parallel = 4

// FileFunc makes the empty file dst hold what src, of size bytes, holds.
type FileFunc func(ctx context.Context, dst, src *os.File, size int64) error

// Copy makes dst, an empty directory, a copy of the tree src: directories,
// regular files (by file) and symbolic links, with owner, mode and times.
// Sockets, FIFOs and devices are left out; hard links become files of their
// own. Nothing may write to src meanwhile. When Copy fails, dst may exist in part.
func Copy(ctx context.Context, src, dst string, file FileFunc) error {
	from, err := OpenDir(nil, src)
	if err != nil {
		return fmt.Errorf("copy tree: %w", err)
	}
	defer func() { _ = from.Close() }() // was only read
	to, err := OpenDir(nil, dst)
	if err != nil {
		return fmt.Errorf("copy tree: %w", err)
	}
	err = errors.Join(copyDir(ctx, from, to, 0, file), to.Close())
	if err != nil {
		return fmt.Errorf("copy tree: %w", err)
	}
	return nil
}

func copyDir(ctx context.Context, src, dst *os.File, depth int, file FileFunc) error {
	if depth > maxDepth {
		return errTooDeep(src)
	}
	group, fileCtx := errgroup.WithContext(ctx)
	group.SetLimit(parallel)
	err := Entries(fileCtx, src, func(name string, st *unix.Stat_t) error {
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			return copySubdir(fileCtx, src, dst, name, depth, file)
		case unix.S_IFREG:
			group.Go(func() error { return copyFile(fileCtx, src, dst, name, file) })
			return nil
		case unix.S_IFLNK:
			return copyLink(src, dst, name, st)
		default:
			return nil
		}
	})
	if errFiles := group.Wait(); errFiles != nil {
		return errFiles // it cancelled fileCtx, so err only says so
	}
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(src.Fd()), &st); err != nil {
		return &os.PathError{Op: "stat", Path: src.Name(), Err: err}
	}
	return setAttributes(dst, &st)
}

func copySubdir(ctx context.Context, src, dst *os.File, name string, depth int, file FileFunc) error {
	from, err := OpenDir(src, name)
	if err != nil {
		return err
	}
	defer func() { _ = from.Close() }() // was only read
	if err := unix.Mkdirat(int(dst.Fd()), name, 0o700); err != nil {
		return &os.PathError{Op: "mkdir", Path: dst.Name() + "/" + name, Err: err}
	}
	to, err := OpenDir(dst, name)
	if err != nil {
		return err
	}
	return errors.Join(copyDir(ctx, from, to, depth+1, file), to.Close())
}

func copyFile(ctx context.Context, src, dst *os.File, name string, file FileFunc) error {
	from, st, err := openFile(src, name)
	if err != nil || from == nil {
		return err
	}
	defer func() { _ = from.Close() }() // was only read
	const flags = unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(int(dst.Fd()), name, flags, st.Mode&0o777)
	if err != nil {
		return &os.PathError{Op: "create", Path: dst.Name() + "/" + name, Err: err}
	}
	to := os.NewFile(uintptr(fd), dst.Name()+"/"+name)
	if st.Size > 0 {
		err = file(ctx, to, from, st.Size)
	}
	if err == nil {
		err = setAttributes(to, st)
	}
	return errors.Join(err, to.Close())
}

// setAttributes gives f the owner, mode and times of st. The owner comes first,
// because chown(2) clears set-id bits. What it has already is left alone: each
// change is a transaction of the file system, and a tree has a thousand files.
func setAttributes(f *os.File, st *unix.Stat_t) error {
	fd := int(f.Fd())
	var has unix.Stat_t
	if err := unix.Fstat(fd, &has); err != nil {
		return &os.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	if has.Uid != st.Uid || has.Gid != st.Gid {
		if err := unix.Fchown(fd, int(st.Uid), int(st.Gid)); err != nil {
			return &os.PathError{Op: "chown", Path: f.Name(), Err: err}
		}
		has.Mode &= 0o777
	}
	if has.Mode&0o7777 != st.Mode&0o7777 {
		if err := unix.Fchmod(fd, st.Mode&0o7777); err != nil {
			return &os.PathError{Op: "chmod", Path: f.Name(), Err: err}
		}
	}
	// futimens(3), which x/sys/unix lacks: utimensat(2) without a path.
	times := [2]unix.Timespec{st.Atim, st.Mtim}
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(&times)), 0, 0, 0)
	if errno != 0 {
		return &os.PathError{Op: "set times", Path: f.Name(), Err: errno}
	}
	return nil
}

func copyLink(src, dst *os.File, name string, st *unix.Stat_t) error {
	path := dst.Name() + "/" + name
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(src.Fd()), name, buf)
	if err != nil {
		return &os.PathError{Op: "readlink", Path: src.Name() + "/" + name, Err: err}
	}
	to := int(dst.Fd())
	if err := unix.Symlinkat(string(buf[:n]), to, name); err != nil {
		return &os.PathError{Op: "symlink", Path: path, Err: err}
	}
	if err := unix.Fchownat(to, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "chown", Path: path, Err: err}
	}
	if err := unix.UtimesNanoAt(to, name, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "set times", Path: path, Err: err}
	}
	return nil
}
