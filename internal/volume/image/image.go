// Package image keeps a file system in a file: it makes the file, formats it,
// attaches it to a loop device with direct I/O and mounts it, so that a machine
// without a copy-on-write file system can have one.
//
// Everything is found again after a crash or a reboot: the file stands under
// its name only when it is formatted, a loop device is known by its file and a
// mount by its place. Programs of util-linux, xfsprogs and btrfs-progs do the
// work.
package image

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/volume/disk"
)

// Config of an image.
type Config struct {
	File   string       // the image; its directory exists
	Mount  string       // where it is mounted; made if it is not there
	FS     FS           // for a new image
	Size   disk.Bytes   // of a new image
	Sparse bool         // a new image takes only what is written to it, and the disk may fill up below it
	Log    *slog.Logger // what is made, attached and mounted
	// Failpoint, if given, is called between the steps of Resize; when it fails,
	// Resize returns at once, as if killed there.
	Failpoint func(name string) error
}

// Image is a mounted image.
type Image struct {
	File   string
	Mount  string
	FS     FS
	Size   disk.Bytes
	Sparse bool   // the file has fewer blocks than its size
	Device string // the loop device

	log  *slog.Logger
	fail func(name string) error
}

// Open makes the image unless it is there, and attaches and mounts it unless
// that has been done. An existing image is never formatted: its size and file
// system stay as they are, whatever cfg says.
func Open(ctx context.Context, cfg Config) (*Image, error) {
	file, err := resolve(cfg.File)
	if err != nil {
		return nil, fmt.Errorf("open image: %w", err)
	}
	cfg.File = file
	switch ok, err := disk.Exists(cfg.File); {
	case err != nil:
		return nil, fmt.Errorf("open image: %w", err)
	case !ok:
		if err := create(ctx, cfg); err != nil {
			return nil, err
		}
	}
	img, err := inspect(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if err := img.attach(ctx); err != nil {
		return nil, err
	}
	if err := img.mount(ctx); err != nil {
		return nil, err
	}
	return img, nil
}

// Find finds an image that is there, attached and mounted or not, and changes
// nothing. What is in it is not looked at.
func Find(ctx context.Context, file, mount string, log *slog.Logger) (*Image, error) {
	img := &Image{log: log}
	var err error
	if img.File, err = resolve(file); err != nil {
		return nil, fmt.Errorf("find image: %w", err)
	}
	if img.Mount, err = resolve(mount); err != nil {
		return nil, fmt.Errorf("find image: %w", err)
	}
	devices, err := loopDevices(ctx, img.File)
	if err != nil {
		return nil, err
	}
	if len(devices) > 0 {
		img.Device = devices[0]
	}
	return img, nil
}

// resolve makes path absolute and free of symbolic links in its directory, as
// the kernel shows it for loop devices and mounts.
func resolve(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	dir, err := filepath.EvalSymlinks(filepath.Dir(abs))
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, filepath.Base(abs)), nil
}

// inspect looks at an image file that is there.
func inspect(ctx context.Context, cfg Config) (*Image, error) {
	allocated, size, err := measure(cfg.File)
	if err != nil {
		return nil, fmt.Errorf("open image: %w", err)
	}
	name, err := fileSystemIn(ctx, cfg.File)
	if err != nil {
		return nil, err
	}
	kind := FS(name)
	if _, ok := recipes(kind); !ok {
		return nil, pgbough.Errorf(pgbough.EConflict, "%s holds %s, not a file system that pgbough made", cfg.File, orNothing(name)).
			WithHint("move the file away if nobody needs it; pgbough formats no file that is there already")
	}
	mount, err := filepath.Abs(cfg.Mount)
	if err != nil {
		return nil, fmt.Errorf("open image: %w", err)
	}
	return &Image{
		File: cfg.File, Mount: mount, FS: kind, Size: size,
		// An allocated file has at least its size in blocks.
		Sparse: allocated < size,
		log:    cfg.Log,
		fail:   cfg.Failpoint,
	}, nil
}

func orNothing(name string) string {
	if name == "" {
		return "nothing known"
	}
	return name
}

// Close unmounts the image and detaches its loop device. It succeeds when that
// has been done before, and fails while somebody uses a file in it.
func (img *Image) Close(ctx context.Context) error {
	at, err := mountedAt(img.Mount)
	if err != nil {
		return err
	}
	if at != nil {
		if at.Source != img.Device {
			return img.errOccupied(at)
		}
		if _, err := run(ctx, "umount", img.Mount); err != nil {
			return fmt.Errorf("unmount image: %w", err)
		}
		img.log.InfoContext(ctx, "image unmounted", "file", img.File, "mount", img.Mount)
	}
	devices, err := loopDevices(ctx, img.File)
	if err != nil {
		return err
	}
	for _, device := range devices {
		if _, err := run(ctx, "losetup", "--detach", device); err != nil {
			return fmt.Errorf("detach image: %w", err)
		}
	}
	return nil
}

// Remove closes the image and deletes the file with everything in it.
func (img *Image) Remove(ctx context.Context) error {
	if err := img.Close(ctx); err != nil {
		return err
	}
	if err := os.RemoveAll(img.File); err != nil {
		return fmt.Errorf("remove image: %w", err)
	}
	return disk.SyncDir(filepath.Dir(img.File))
}

// create makes, formats and syncs the file under a temporary name, so that a
// crash leaves no half image under its own.
func create(ctx context.Context, cfg Config) (err error) {
	recipe, ok := recipes(cfg.FS)
	if !ok {
		return pgbough.Errorf(pgbough.EInvalid, "an image cannot hold %q", cfg.FS).WithHint("choose xfs or btrfs")
	}
	if cfg.Size < recipe.least {
		return pgbough.Errorf(pgbough.EInvalid, "an image with %s needs at least %v, not %v", cfg.FS, recipe.least, cfg.Size)
	}
	temp := cfg.File + ".tmp"
	if err := os.RemoveAll(temp); err != nil { // of an earlier call
		return fmt.Errorf("make image: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(temp))
		}
	}()
	if !cfg.Sparse {
		if err := checkRoom(cfg.File, cfg.Size, cfg.Size); err != nil {
			return err
		}
	}
	if err := disk.CreateFile(temp, 0o600); err != nil {
		return fmt.Errorf("make image: %w", err)
	}
	if err := extend(temp, cfg.Size, cfg.Sparse); err != nil {
		return err
	}
	if _, err := run(ctx, recipe.format[0], append(recipe.format[1:], temp)...); err != nil {
		return fmt.Errorf("format image: %w", err)
	}
	if err := syncFile(temp); err != nil {
		return fmt.Errorf("make image: %w", err)
	}
	if err := disk.Rename(temp, cfg.File); err != nil {
		return fmt.Errorf("make image: %w", err)
	}
	cfg.Log.InfoContext(ctx, "image made", "file", cfg.File, "file_system", cfg.FS, "size_bytes", int64(cfg.Size), "sparse", cfg.Sparse)
	return nil
}
