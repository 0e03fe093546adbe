package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/volume/disk"
)

// margin stays free on the disk of a preallocated image.
const margin = 256 * disk.MiB

// checkRoom refuses when need bytes more do not fit beside an image of size.
func checkRoom(file string, need, size disk.Bytes) error {
	host, err := disk.SpaceOf(filepath.Dir(file))
	if err != nil {
		return fmt.Errorf("make image: %w", err)
	}
	if need+margin <= host.Free {
		return nil
	}
	return pgbough.Errorf(pgbough.ENoSpace, "an image of %v for the pool does not fit: %s has %v free, and %v must stay free",
		size, filepath.Dir(file), host.Free, margin).
		WithHint("choose a smaller one (--pool-size), make room, or choose a data directory on a larger disk")
}

// extend makes the file at path size long, with or without blocks behind it.
func extend(path string, size disk.Bytes, sparse bool) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0) //nolint:forbidigo // an image is too large to be written aside and renamed
	if err != nil {
		return fmt.Errorf("make image: %w", err)
	}
	if sparse {
		if err = f.Truncate(int64(size)); errors.Is(err, unix.EFBIG) {
			err = pgbough.Errorf(pgbough.ENoSpace, "an image of %v does not fit: the disk's file system cannot have so large a file", size)
		}
	} else {
		err = allocate(f, size)
	}
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("make image: %w", err)
	}
	return nil
}

func allocate(f *os.File, size disk.Bytes) error {
	for {
		err := unix.Fallocate(int(f.Fd()), 0, 0, int64(size))
		switch {
		case errors.Is(err, unix.EINTR):
			continue // as the runtime's signals may, on a slow disk
		case errors.Is(err, unix.EOPNOTSUPP):
			return pgbough.Errorf(pgbough.EConflict, "%s is on a file system that cannot set space aside", f.Name()).
				WithHint("choose another data directory, or a sparse image")
		case err != nil:
			return &os.PathError{Op: "allocate", Path: f.Name(), Err: err}
		default:
			return nil
		}
	}
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func measure(file string) (allocated, size disk.Bytes, err error) {
	var st unix.Stat_t
	if err := unix.Stat(file, &st); err != nil {
		return 0, 0, &os.PathError{Op: "stat", Path: file, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return 0, 0, &os.PathError{Op: "stat", Path: file, Err: errors.New("not a regular file")}
	}
	return disk.Bytes(st.Blocks) * 512, disk.Bytes(st.Size), nil
}

// fileSystemIn is the name of the file system in file, empty when there is none.
func fileSystemIn(ctx context.Context, file string) (string, error) {
	out, err := run(ctx, "blkid", "--probe", "--output", "value", "--match-tag", "TYPE", file)
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 2 { // blkid(8): nothing found
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("look into image: %w", err)
	}
	return strings.TrimSpace(out), nil
}

// attach finds the image's loop device or sets one up.
func (img *Image) attach(ctx context.Context) error {
	devices, err := loopDevices(ctx, img.File)
	if err != nil {
		return err
	}
	if len(devices) > 0 {
		img.Device = devices[0]
		return nil
	}
	// Direct I/O keeps the image's pages from being cached twice, and from being
	// written back late. Where the disk cannot do it, losetup fails.
	args := []string{"--find", "--show", "--nooverlap", "--direct-io=on", img.File}
	out, err := run(ctx, "losetup", args...)
	if err != nil {
		img.log.WarnContext(ctx, "image gets no direct I/O", "file", img.File, "error", err)
		args[3] = "--direct-io=off"
		out, err = run(ctx, "losetup", args...)
	}
	if err != nil {
		return fmt.Errorf("attach image: %w", err)
	}
	img.Device = strings.TrimSpace(out)
	img.log.InfoContext(ctx, "image attached", "file", img.File, "device", img.Device)
	return nil
}

// loopDevices are the loop devices of file, by device and inode number.
func loopDevices(ctx context.Context, file string) ([]string, error) {
	out, err := run(ctx, "losetup", "--list", "--noheadings", "--raw", "--output", "NAME", "--associated", file)
	if err != nil {
		return nil, fmt.Errorf("look for the image's loop device: %w", err)
	}
	return strings.Fields(out), nil
}

// mount mounts the image unless it is mounted there.
func (img *Image) mount(ctx context.Context) error {
	if err := os.MkdirAll(img.Mount, 0o711); err != nil {
		return fmt.Errorf("mount image: %w", err)
	}
	place, err := resolve(img.Mount)
	if err != nil {
		return fmt.Errorf("mount image: %w", err)
	}
	img.Mount = place
	at, err := mountedAt(place)
	if err != nil {
		return err
	}
	if at != nil && at.Source != img.Device {
		return img.errOccupied(at)
	}
	if at != nil {
		return nil
	}
	recipe, _ := recipes(img.FS)
	options := recipe.mount
	if img.Sparse {
		options += "," + recipe.sparse
	}
	if _, err := run(ctx, "mount", "-t", string(img.FS), "-o", options, img.Device, img.Mount); err != nil {
		return fmt.Errorf("mount image: %w", err)
	}
	img.log.InfoContext(ctx, "image mounted", "file", img.File, "mount", img.Mount, "options", options)
	return nil
}

func (img *Image) errOccupied(at *mountinfo.Info) error {
	return pgbough.Errorf(pgbough.EConflict, "%s is mounted on %s, where %s belongs", at.Source, img.Mount, img.File).
		WithHint("unmount it (umount %s)", img.Mount)
}

// mountedAt is the topmost mount on path, nil when there is none.
func mountedAt(path string) (*mountinfo.Info, error) {
	found, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) { return m.Mountpoint != path, false })
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	if len(found) == 0 {
		return nil, nil
	}
	return found[len(found)-1], nil
}

// run runs a program without a shell and returns what it printed.
func run(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if errors.Is(err, exec.ErrNotFound) {
		return "", pgbough.Errorf(pgbough.EConflict, "program %s is not installed", name).
			WithHint("install util-linux, and xfsprogs or btrfs-progs")
	}
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}
