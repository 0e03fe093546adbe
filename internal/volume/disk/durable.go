// Package disk writes files and renames directories so that they survive a
// crash of the machine, and measures the free space of a file system.
//
// A change is durable when the call that made it has returned: a crash then
// leaves either all of it or none.
package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// WriteFile durably makes path hold data. A crash leaves the old content or the
// new one, and at most a file path+".new" that the next call overwrites.
// Two calls for one path must not run at the same time.
func WriteFile(path string, data []byte, perm fs.FileMode) error {
	temp := path + ".new"
	if err := writeSynced(temp, data, perm); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := unix.Rename(temp, path); err != nil {
		return fmt.Errorf("write %s: %w", path, &os.LinkError{Op: "rename", Old: temp, New: path, Err: err})
	}
	return SyncDir(filepath.Dir(path))
}

// CreateFile makes an empty file at path unless there is one. Only the
// directory's next SyncDir makes it durable.
func CreateFile(path string, perm fs.FileMode) error {
	fd, err := unix.Open(path, unix.O_CREAT|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, uint32(perm.Perm()))
	if err != nil {
		return &os.PathError{Op: "create", Path: path, Err: err}
	}
	return unix.Close(fd)
}

func writeSynced(path string, data []byte, perm fs.FileMode) (err error) {
	fd, err := unix.Open(path, unix.O_CREAT|unix.O_WRONLY|unix.O_TRUNC|unix.O_NOFOLLOW|unix.O_CLOEXEC, uint32(perm.Perm()))
	if err != nil {
		return &os.PathError{Op: "create", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.Sync()
}

// Rename durably renames a file or directory within one directory. It fails
// with fs.ErrExist when there is something at newPath already.
func Rename(oldPath, newPath string) error {
	err := unix.Renameat2(unix.AT_FDCWD, oldPath, unix.AT_FDCWD, newPath, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) {
		err = renameChecked(oldPath, newPath)
	}
	if err != nil {
		return &os.LinkError{Op: "rename", Old: oldPath, New: newPath, Err: err}
	}
	return SyncDir(filepath.Dir(newPath))
}

// renameChecked is for file systems without RENAME_NOREPLACE, such as ZFS before
// 2.2. Only its callers, which keep out of each other's way, change newPath.
func renameChecked(oldPath, newPath string) error {
	switch ok, err := Exists(newPath); {
	case err != nil:
		return err
	case ok:
		return fs.ErrExist
	}
	return unix.Rename(oldPath, newPath)
}

// SyncDir makes the entries of dir durable.
func SyncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	return errors.Join(f.Sync(), f.Close())
}

// SyncFileSystem makes everything written so far to the file system that holds
// dir durable, whoever wrote it (syncfs(2)).
func SyncFileSystem(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync file system: %w", err)
	}
	err = unix.Syncfs(int(f.Fd()))
	if err != nil {
		err = &os.PathError{Op: "syncfs", Path: dir, Err: err}
	}
	return errors.Join(err, f.Close())
}

// Exists tells whether there is anything at path, a dangling symbolic link
// included.
func Exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
