// Package copydir is the volume driver for machines whose file systems share
// nothing: a clone is a full copy, takes as long and costs as much.
package copydir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/pgbough/pgbough/internal/volume"
	"github.com/pgbough/pgbough/internal/volume/disk"
	"github.com/pgbough/pgbough/internal/volume/tree"
)

const (
	chunk  = 64 << 20 // copied between two looks at the context, in bytes
	buffer = 1 << 20  // of one read and write, in bytes
)

// Driver copies. The zero value is ready.
type Driver struct{}

var _ volume.Driver = Driver{}

// Kind is "copy".
func (Driver) Kind() string { return volume.KindCopy }

// Create makes an ordinary directory.
func (Driver) Create(_ context.Context, dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("create volume data: %w", err)
	}
	return nil
}

// Clone copies all files of src and writes them out.
func (Driver) Clone(ctx context.Context, src, dst string) error {
	if err := os.Mkdir(dst, 0o700); err != nil {
		return fmt.Errorf("clone by copying: %w", err)
	}
	if err := tree.Copy(ctx, src, dst, copyData); err != nil {
		return fmt.Errorf("clone by copying: %w", err)
	}
	return disk.SyncFileSystem(dst)
}

// copyData copies the parts of src that are not holes.
func copyData(ctx context.Context, dst, src *os.File, size int64) error {
	if err := dst.Truncate(size); err != nil {
		return err
	}
	for at := int64(0); at < size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		data, err := src.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // only a hole is left
		}
		if err != nil {
			return err
		}
		hole, err := src.Seek(data, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if hole <= data {
			return fmt.Errorf("copy %s: it changes meanwhile", src.Name())
		}
		at = min(hole, data+chunk)
		if err := copyRange(dst, src, data, at-data); err != nil {
			return fmt.Errorf("copy %s: %w", src.Name(), err)
		}
	}
	return nil
}

// copyRange reads and writes. copy_file_range(2), which os.File.ReadFrom would
// use, shares extents where the file system can, and then neither CloneCost nor
// Usage would be true.
func copyRange(dst, src *os.File, at, n int64) error {
	if _, err := src.Seek(at, io.SeekStart); err != nil {
		return err
	}
	if _, err := dst.Seek(at, io.SeekStart); err != nil {
		return err
	}
	_, err := io.CopyBuffer(struct{ io.Writer }{dst}, io.LimitReader(src, n), make([]byte, min(n, buffer)))
	return err
}

// CloneCost is all that src takes.
func (d Driver) CloneCost(ctx context.Context, src string) (int64, error) {
	usage, err := d.Usage(ctx, src)
	return usage.LogicalBytes, err
}

// Destroy removes dir. os.RemoveAll follows no symbolic link.
func (Driver) Destroy(_ context.Context, dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("destroy volume data: %w", err)
	}
	return nil
}

// Usage sums what the files have allocated.
func (Driver) Usage(ctx context.Context, dir string) (volume.Usage, error) {
	size, err := tree.Measure(ctx, dir, false)
	return volume.Usage{OwnBytes: size.Own, LogicalBytes: size.Allocated}, err
}
