// Package reflink is the volume driver for file systems that share extents
// between files (FICLONE): XFS made with reflink=1, btrfs without subvolumes,
// bcachefs.
//
// A clone is made file by file, so it takes longer with more files and is of
// one moment only while nothing writes to its source.
package reflink

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/pgbough/pgbough/internal/volume"
	"github.com/pgbough/pgbough/internal/volume/disk"
	"github.com/pgbough/pgbough/internal/volume/tree"
)

// cloneCost is what a clone takes at once, in bytes: inodes, directories and
// extent maps of about 1,000 files of up to 1 GB.
const cloneCost = 8 << 20

// Driver clones with FICLONE. The zero value is ready.
type Driver struct{}

var _ volume.Driver = Driver{}

// Kind is "reflink".
func (Driver) Kind() string { return volume.KindReflink }

// Create makes an ordinary directory, on XFS with a hint for all files in it.
func (Driver) Create(_ context.Context, dir string) error {
	if err := create(dir); err != nil {
		return fmt.Errorf("create volume data: %w", err)
	}
	return nil
}

func create(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	kind, err := disk.TypeOf(dir)
	if err != nil || kind != disk.TypeXFS {
		return err
	}
	return hintSmallCOW(dir)
}

// Clone shares the extents of all files of src with new ones in dst.
func (Driver) Clone(ctx context.Context, src, dst string) error {
	if err := create(dst); err != nil {
		return fmt.Errorf("clone with reflinks: %w", err)
	}
	if err := tree.Copy(ctx, src, dst, shareExtents); err != nil {
		return fmt.Errorf("clone with reflinks: %w", err)
	}
	kind, err := disk.TypeOf(dst)
	if err != nil {
		return fmt.Errorf("clone with reflinks: %w", err)
	}
	if kind == disk.TypeXFS {
		// FICLONE has written out the source's data, and XFS logs metadata in
		// order: once a later change is durable, so is all of the clone. That
		// spares a sync of everything else on the file system.
		return disk.SyncDir(dst)
	}
	return disk.SyncFileSystem(dst)
}

func shareExtents(_ context.Context, dst, src *os.File, _ int64) error {
	if err := unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())); err != nil {
		return &os.PathError{Op: "share extents", Path: src.Name(), Err: err}
	}
	return nil
}

// CloneCost is the same for all sizes.
func (Driver) CloneCost(context.Context, string) (int64, error) { return cloneCost, nil }

// Destroy removes dir. os.RemoveAll follows no symbolic link.
func (Driver) Destroy(_ context.Context, dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("destroy volume data: %w", err)
	}
	return nil
}

// Usage asks every file for its extents.
func (Driver) Usage(ctx context.Context, dir string) (volume.Usage, error) {
	size, err := tree.Measure(ctx, dir, true)
	return volume.Usage{OwnBytes: size.Own, LogicalBytes: size.Allocated}, err
}

// Probe tells whether extents can be shared between files of dir, by trying it.
func Probe(dir string) error {
	src, err := os.CreateTemp(dir, ".pgbough-probe-*")
	if err != nil {
		return fmt.Errorf("probe for reflinks: %w", err)
	}
	defer func() { _ = errors.Join(src.Close(), os.RemoveAll(src.Name())) }() // a leftover is empty and harmless
	dst, err := os.CreateTemp(dir, ".pgbough-probe-*")
	if err != nil {
		return fmt.Errorf("probe for reflinks: %w", err)
	}
	defer func() { _ = errors.Join(dst.Close(), os.RemoveAll(dst.Name())) }()
	if _, err := src.Write(make([]byte, 64<<10)); err != nil {
		return fmt.Errorf("probe for reflinks: %w", err)
	}
	if err := unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())); err != nil {
		return fmt.Errorf("probe for reflinks: %w", err)
	}
	if st, err := dst.Stat(); err != nil || st.Size() != 64<<10 {
		return fmt.Errorf("probe for reflinks: %w", errors.Join(err, fs.ErrInvalid))
	}
	return nil
}
