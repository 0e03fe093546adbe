// Package zfs is the volume driver for ZFS, which is experimental: the data of
// a volume is a file system of its own below one dataset, and a clone is a ZFS
// clone of a snapshot.
//
// ZFS ties a clone to the snapshot that it was made of. The snapshot is marked
// for deferred destruction at once, so it goes with its last clone; and before a
// file system that clones depend on is destroyed, one of the clones is promoted,
// which then owns what they share.
package zfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/moby/sys/mountinfo"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/volume"
)

// cloneCost is what a clone takes at once, in bytes: a few metadata blocks.
const cloneCost = 1 << 20

// options of each file system. Its records are as large as Postgres's blocks: larger
// ones would be read, and copied in whole, for each block that is written.
var options = []string{"-o", "recordsize=8k", "-o", "atime=off", "-o", "canmount=noauto", "-o", "devices=off", "-o", "setuid=off"}

// Driver keeps volumes in file systems below Dataset.
type Driver struct {
	Dataset string

	// Promoting while another clone is made of the same one would make them
	// fail; with ZFS's speed, one after the other is no loss.
	change sync.Mutex
}

var (
	_ volume.Driver  = (*Driver)(nil)
	_ volume.Mounter = (*Driver)(nil)
)

// Mountpoint is where a dataset is mounted.
func Mountpoint(ctx context.Context, dataset string) (string, error) {
	if err := checkDataset(dataset); err != nil {
		return "", err
	}
	if _, err := run(ctx, "list", "-H", "-o", "name", dataset); err != nil {
		return "", pgbough.Errorf(pgbough.EConflict, "ZFS dataset %s cannot be used: %w", dataset, err).
			WithHint("make it first: zfs create %s", dataset)
	}
	at, err := mountsOf(func(m *mountinfo.Info) bool { return m.Source == dataset })
	if err != nil {
		return "", err
	}
	if len(at) == 0 {
		return "", pgbough.Errorf(pgbough.EConflict, "ZFS dataset %s is not mounted", dataset).WithHint("mount it: zfs mount %s", dataset)
	}
	return at[0].Mountpoint, nil
}

// checkDataset keeps everything but plain names of datasets off command lines.
func checkDataset(name string) error {
	ok := name != "" && name[0] != '-' && name[0] != '/'
	for _, c := range []byte(name) {
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("_-.:/", c) >= 0)
	}
	if !ok {
		return pgbough.Errorf(pgbough.EInvalid, "%q is not the name of a ZFS dataset", name).WithHint("give --pool zfs:POOL/DATASET")
	}
	return nil
}

// Size is how many bytes a dataset and all below it can hold at most.
func Size(ctx context.Context, dataset string) (int64, error) {
	sizes, err := numbers(ctx, dataset, "used,available")
	if err != nil {
		return 0, fmt.Errorf("measure ZFS dataset %s: %w", dataset, err)
	}
	return sizes[0] + sizes[1], nil
}

// Kind is "zfs".
func (d *Driver) Kind() string { return volume.KindZFS }

func (d *Driver) dataset(dir string) string { return d.Dataset + "/" + volume.IDOf(dir) }

// Create makes an empty file system and mounts it on dir.
func (d *Driver) Create(ctx context.Context, dir string) error {
	d.change.Lock()
	defer d.change.Unlock()
	if err := d.fill(ctx, dir, func(name string, options []string) error {
		_, err := run(ctx, slices.Concat([]string{"create"}, options, []string{name})...)
		return err
	}); err != nil {
		return fmt.Errorf("create file system for %s: %w", dir, err)
	}
	return os.Chmod(dir, 0o700) // its root is ours until the pool gives it away
}

// Clone makes a clone of a snapshot, which is atomic, and mounts it on dst.
func (d *Driver) Clone(ctx context.Context, src, dst string) error {
	d.change.Lock()
	defer d.change.Unlock()
	if err := d.mounted(src); err != nil {
		return fmt.Errorf("clone %s: %w", src, err)
	}
	if err := d.fill(ctx, dst, func(name string, options []string) error {
		// The names of its snapshots are those of volumes, so that none meets another
		// when they pass to a promoted clone.
		snapshot := d.dataset(src) + "@" + volume.IDOf(dst)
		if _, err := run(ctx, "destroy", "-d", snapshot); err != nil && !missing(err) { // of an earlier call
			return err
		}
		if _, err := run(ctx, "snapshot", snapshot); err != nil {
			return err
		}
		_, err := run(ctx, slices.Concat([]string{"clone"}, options, []string{snapshot, name})...)
		_, derr := run(context.WithoutCancel(ctx), "destroy", "-d", snapshot)
		return errors.Join(err, derr)
	}); err != nil {
		return fmt.Errorf("clone %s: %w", src, err)
	}
	return nil
}

// fill makes the directory dir, and a file system that is mounted there.
func (d *Driver) fill(ctx context.Context, dir string, make func(name string, options []string) error) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	name := d.dataset(dir)
	if err := make(name, append(slices.Clone(options), "-o", "mountpoint="+dir)); err != nil {
		return err
	}
	if d.mounted(dir) == nil {
		return nil // older versions do so whatever canmount is
	}
	_, err := run(ctx, "mount", name)
	return err
}

// CloneCost is the same for all sizes.
func (d *Driver) CloneCost(context.Context, string) (int64, error) { return cloneCost, nil }

// Destroy removes dir with its file system. What clones still need of it passes
// to one of them.
func (d *Driver) Destroy(ctx context.Context, dir string) error {
	d.change.Lock()
	defer d.change.Unlock()
	if err := d.destroy(ctx, dir); err != nil {
		return fmt.Errorf("destroy %s: %w", dir, err)
	}
	return nil
}

func (d *Driver) destroy(ctx context.Context, dir string) error {
	name := d.dataset(dir)
	switch _, err := run(ctx, "list", "-H", "-o", "name", name); {
	case missing(err):
		return os.RemoveAll(dir)
	case err != nil:
		return err
	}
	at, err := mountsOf(func(m *mountinfo.Info) bool { return m.Source == name })
	if err != nil {
		return err
	}
	if len(at) > 0 {
		if d.mounted(dir) != nil {
			return os.RemoveAll(dir) // the file system is in use elsewhere, and dir has no part of it
		}
		// By its place, which the property does not know when the pool has renamed
		// the directory above.
		if err := unmount(at[len(at)-1].Mountpoint); err != nil {
			return err
		}
	}
	if err := d.release(ctx, name); err != nil {
		return err
	}
	if err := destroyIdle(ctx, name); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// destroyIdle destroys a file system with its snapshots. One that was just
// unmounted may be busy for a moment.
func destroyIdle(ctx context.Context, name string) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var err error
	for range 50 {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-timer.C:
		}
		if _, err = run(ctx, "destroy", "-r", name); !busy(err) {
			return err
		}
		timer.Reset(100 * time.Millisecond)
	}
	return err
}

// release promotes clones until none depends on the file system name. The clone
// of its last snapshot takes all earlier ones with it.
func (d *Driver) release(ctx context.Context, name string) error {
	const enough = 10_000
	for range enough {
		clone, err := d.cloneOf(ctx, name)
		if err != nil || clone == "" {
			return err
		}
		if _, err := run(ctx, "promote", clone); err != nil {
			return err
		}
	}
	return fmt.Errorf("clones of %s cannot be promoted", name)
}

// cloneOf is the clone of the last snapshot of name that has one, or empty.
func (d *Driver) cloneOf(ctx context.Context, name string) (string, error) {
	out, err := run(ctx, "list", "-H", "-r", "-t", "filesystem", "-o", "name,origin", d.Dataset)
	if err != nil {
		return "", err
	}
	clones := map[string]string{} // by snapshot
	for line := range strings.Lines(out) {
		clone, origin, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		clones[origin] = clone
	}
	out, err = run(ctx, "list", "-H", "-r", "-t", "snapshot", "-s", "creation", "-o", "name", name)
	if err != nil {
		return "", err
	}
	last := ""
	for line := range strings.Lines(out) {
		if clone, ok := clones[strings.TrimSuffix(line, "\n")]; ok {
			last = clone
		}
	}
	return last, nil
}

// Usage is what ZFS counts, which is some seconds old. Blocks that only a
// snapshot still holds are nobody's own.
func (d *Driver) Usage(ctx context.Context, dir string) (volume.Usage, error) {
	sizes, err := numbers(ctx, d.dataset(dir), "usedbydataset,referenced")
	if missing(err) {
		err = fs.ErrNotExist
	}
	if err != nil {
		return volume.Usage{}, fmt.Errorf("measure %s: %w", dir, err)
	}
	return volume.Usage{OwnBytes: sizes[0], LogicalBytes: sizes[1]}, nil
}

// numbers are two properties of a dataset.
func numbers(ctx context.Context, dataset, properties string) ([2]int64, error) {
	var values [2]int64
	out, err := run(ctx, "get", "-H", "-p", "-o", "value", properties, dataset)
	if err != nil {
		return values, err
	}
	if _, err := fmt.Sscan(out, &values[0], &values[1]); err != nil {
		return values, fmt.Errorf("ZFS says %q: %w", out, err)
	}
	return values, nil
}

// Mount mounts the file system of dir again, after a reboot or an import of its
// ZFS pool.
func (d *Driver) Mount(ctx context.Context, dir string) error {
	d.change.Lock()
	defer d.change.Unlock()
	if d.mounted(dir) == nil {
		return nil
	}
	name := d.dataset(dir)
	if _, err := run(ctx, "set", "mountpoint="+dir, name); err != nil {
		if missing(err) {
			return nil // it was never finished
		}
		return fmt.Errorf("mount %s: %w", dir, err)
	}
	if _, err := run(ctx, "mount", name); err != nil {
		return fmt.Errorf("mount %s: %w", dir, err)
	}
	return nil
}

// mounted tells whether the file system of dir is mounted there.
func (d *Driver) mounted(dir string) error {
	place, err := filepath.EvalSymlinks(filepath.Dir(dir))
	if err != nil {
		return err
	}
	place, name := filepath.Join(place, filepath.Base(dir)), d.dataset(dir)
	at, err := mountsOf(func(m *mountinfo.Info) bool { return m.Source == name && m.Mountpoint == place })
	if err == nil && len(at) == 0 {
		err = &os.PathError{Op: "find file system of", Path: dir, Err: fs.ErrNotExist}
	}
	return err
}
