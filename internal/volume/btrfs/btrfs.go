// Package btrfs is the volume driver for btrfs: the data of a volume is a
// subvolume, and a clone is an atomic snapshot of it, in the same time for any
// number of files and also while somebody writes.
package btrfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/pgbough/pgbough/internal/volume"
	"github.com/pgbough/pgbough/internal/volume/disk"
	"github.com/pgbough/pgbough/internal/volume/tree"
)

// shortage is the part of a file system that is free when space is short.
const shortage = 8

// cloneCost is what a snapshot takes at once, in bytes: a few metadata blocks.
const cloneCost = 1 << 20

// Driver makes subvolumes and snapshots. The zero value makes them nodatacow:
// Postgres writes in place and has checksums of its own, and copying on every
// write would scatter its files. Snapshots still copy what is written first
// after them.
type Driver struct {
	// DataCOW keeps copy-on-write and checksums of btrfs for file contents.
	DataCOW bool
}

var _ volume.Driver = Driver{}

// Kind is "btrfs".
func (Driver) Kind() string { return volume.KindBtrfs }

// Create makes an empty subvolume.
func (d Driver) Create(_ context.Context, dir string) error {
	if err := d.create(dir); err != nil {
		return fmt.Errorf("create subvolume %s: %w", dir, err)
	}
	return nil
}

func (d Driver) create(dir string) error {
	parent, err := tree.OpenDir(nil, filepath.Dir(dir))
	if err != nil {
		return err
	}
	defer func() { _ = parent.Close() }() // was only read
	if err := createSubvolume(parent, filepath.Base(dir)); err != nil {
		return err
	}
	f, err := tree.OpenDir(parent, filepath.Base(dir))
	if err != nil {
		return err
	}
	if err = f.Chmod(0o700); err == nil && !d.DataCOW {
		err = setNoCOW(f)
	}
	return errors.Join(err, f.Close())
}

// Clone takes a snapshot. The kernel commits it before it returns.
func (Driver) Clone(_ context.Context, src, dst string) error {
	if err := snapshot(src, dst); err != nil {
		return fmt.Errorf("snapshot %s: %w", src, err)
	}
	return nil
}

func snapshot(src, dst string) error {
	from, err := tree.OpenDir(nil, src)
	if err != nil {
		return err
	}
	defer func() { _ = from.Close() }() // was only read
	parent, err := tree.OpenDir(nil, filepath.Dir(dst))
	if err != nil {
		return err
	}
	return errors.Join(createSnapshot(parent, filepath.Base(dst), from), parent.Close())
}

// CloneCost is the same for all sizes.
func (Driver) CloneCost(context.Context, string) (int64, error) { return cloneCost, nil }

// Destroy removes the subvolume dir and those that the owner of its data made
// inside. The space comes back when the kernel's cleaner has walked it, up to
// half a minute later.
func (Driver) Destroy(ctx context.Context, dir string) error {
	if err := destroy(ctx, dir); err != nil {
		return fmt.Errorf("destroy subvolume %s: %w", dir, err)
	}
	return nil
}

func destroy(ctx context.Context, dir string) error {
	var st unix.Stat_t
	switch err := unix.Lstat(dir, &st); {
	case errors.Is(err, unix.ENOENT):
		return nil
	case err != nil:
		return &os.PathError{Op: "stat", Path: dir, Err: err}
	case !isSubvolume(&st):
		return os.RemoveAll(dir)
	}
	parent, err := tree.OpenDir(nil, filepath.Dir(dir))
	if err != nil {
		return err
	}
	err = destroyIn(ctx, parent, filepath.Base(dir))
	if err == nil {
		err = settle(parent)
	}
	return errors.Join(err, parent.Close())
}

// settle makes a destroy in dir durable, and its space come back soon where
// space is short.
func settle(dir *os.File) error {
	if err := dir.Sync(); err != nil {
		return err
	}
	space, err := disk.SpaceOf(dir.Name())
	if err != nil || space.Free > space.Size/shortage {
		return err
	}
	return wakeCleaner(dir)
}

// destroyIn removes the subvolume name in dir. Those inside it, which any user
// may make in a directory of his own, have to go first.
func destroyIn(ctx context.Context, dir *os.File, name string) error {
	err := destroySubvolume(dir, name)
	if !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EROFS) {
		return err
	}
	self, err := tree.OpenDir(dir, name)
	if err != nil {
		return err
	}
	if err = setWritable(self); err == nil {
		err = destroyNested(ctx, self)
	}
	if err = errors.Join(err, self.Close()); err != nil {
		return err
	}
	return destroySubvolume(dir, name)
}

func destroyNested(ctx context.Context, dir *os.File) error {
	return tree.Entries(ctx, dir, func(name string, st *unix.Stat_t) error {
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return nil
		}
		if isSubvolume(st) {
			return destroyIn(ctx, dir, name)
		}
		child, err := tree.OpenDir(dir, name)
		if err != nil {
			return err
		}
		return errors.Join(destroyNested(ctx, child), child.Close())
	})
}

// Usage asks every file for its extents, as `btrfs filesystem du` does.
func (Driver) Usage(ctx context.Context, dir string) (volume.Usage, error) {
	size, err := tree.Measure(ctx, dir, true)
	return volume.Usage{OwnBytes: size.Own, LogicalBytes: size.Allocated}, err
}

// Probe tells whether subvolumes can be made and destroyed in dir, by trying it.
func Probe(ctx context.Context, dir string) error {
	kind, err := disk.TypeOf(dir)
	if err != nil {
		return fmt.Errorf("probe for btrfs: %w", err)
	}
	if kind != disk.TypeBtrfs {
		return fmt.Errorf("probe for btrfs: %s is on %v", dir, kind)
	}
	temp, err := os.MkdirTemp(dir, ".pgbough-probe-*")
	if err != nil {
		return fmt.Errorf("probe for btrfs: %w", err)
	}
	defer func() { _ = os.RemoveAll(temp) }() // a leftover is empty and harmless
	var d Driver
	src, dst := filepath.Join(temp, "source"), filepath.Join(temp, "snapshot")
	if err := d.Create(ctx, src); err != nil {
		return fmt.Errorf("probe for btrfs: %w", err)
	}
	if err := d.Clone(ctx, src, dst); err != nil {
		return fmt.Errorf("probe for btrfs: %w", err)
	}
	return errors.Join(d.Destroy(ctx, dst), d.Destroy(ctx, src))
}
