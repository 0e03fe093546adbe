package image

import (
	"context"
	"fmt"
	"os"
	"strconv"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/volume/disk"
)

// The failpoints of a Resize, in the order in which it passes them.
const (
	FailpointFile   = "image:file"
	FailpointDevice = "image:device"
	FailpointShrunk = "image:shrunk" // the file system, and nothing below it yet
)

// Resize makes the image and its file system size large, while it is mounted
// and used. Each step finds out by itself what is left to do: after a crash at
// any moment of it, it is called again.
func (img *Image) Resize(ctx context.Context, size disk.Bytes) error {
	_, now, err := measure(img.File)
	if err != nil {
		return fmt.Errorf("resize image: %w", err)
	}
	recipe, _ := recipes(img.FS)
	if size < recipe.least {
		return pgbough.Errorf(pgbough.EInvalid, "an image with %s needs at least %v, not %v", img.FS, recipe.least, size)
	}
	if size < now {
		err = img.shrink(ctx, recipe, size, now)
	} else {
		err = img.grow(ctx, recipe, size, now)
	}
	if err != nil {
		return fmt.Errorf("resize image: %w", err)
	}
	img.Size = size
	img.log.InfoContext(ctx, "image resized", "file", img.File, "size_bytes", int64(size), "before_bytes", int64(now))
	return nil
}

// grow goes from the file up: each layer may be larger than the one above it.
func (img *Image) grow(ctx context.Context, recipe recipe, size, now disk.Bytes) error {
	if size > now {
		if err := img.lengthen(size, now); err != nil {
			return err
		}
	}
	if err := img.failpoint(FailpointFile); err != nil {
		return err
	}
	if err := img.fitDevice(ctx); err != nil {
		return err
	}
	_, err := run(ctx, recipe.resize[0], append(recipe.resize[1:], img.Mount)...)
	return err
}

func (img *Image) lengthen(size, now disk.Bytes) error {
	if !img.Sparse {
		// What is lacking below now was set aside when it became so long.
		if err := checkRoom(img.File, size-now, size); err != nil {
			return err
		}
	}
	return extend(img.File, size, img.Sparse)
}

// shrink goes from the file system down.
func (img *Image) shrink(ctx context.Context, recipe recipe, size, now disk.Bytes) error {
	if recipe.shrink == nil {
		return pgbough.Errorf(pgbough.EConflict, "a pool image with %s cannot become smaller: it has %v", img.FS, now).
			WithHint("make a new pool in another data directory")
	}
	space, err := disk.SpaceOf(img.Mount)
	if err != nil {
		return err
	}
	if space.Used+margin > size {
		return pgbough.Errorf(pgbough.ENoSpace, "a pool that holds %v cannot become as small as %v", space.Used, size).
			WithHint("delete branches that nobody needs, or choose a larger size")
	}
	args := append(append([]string{}, recipe.shrink[1:]...), strconv.FormatInt(int64(size), 10), img.Mount)
	if _, err := run(ctx, recipe.shrink[0], args...); err != nil {
		return err
	}
	if err := img.failpoint(FailpointShrunk); err != nil {
		return err
	}
	if err := os.Truncate(img.File, int64(size)); err != nil {
		return err
	}
	if err := img.failpoint(FailpointFile); err != nil {
		return err
	}
	return img.fitDevice(ctx)
}

// fitDevice makes the loop device as large as its file.
func (img *Image) fitDevice(ctx context.Context) error {
	if _, err := run(ctx, "losetup", "--set-capacity", img.Device); err != nil {
		return err
	}
	return img.failpoint(FailpointDevice)
}

func (img *Image) failpoint(name string) error {
	if img.fail == nil {
		return nil
	}
	return img.fail(name)
}
