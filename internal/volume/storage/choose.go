// Package storage puts a server's volume pool on what its machine has: it
// chooses a driver, makes an image where the machine has no copy-on-write file
// system, and opens the pool.
package storage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/volume"
	"github.com/pgbough/pgbough/internal/volume/btrfs"
	"github.com/pgbough/pgbough/internal/volume/copydir"
	"github.com/pgbough/pgbough/internal/volume/disk"
	"github.com/pgbough/pgbough/internal/volume/image"
	"github.com/pgbough/pgbough/internal/volume/reflink"
	"github.com/pgbough/pgbough/internal/volume/zfs"
)

// Auto is the wish to have the best kind that the machine can do.
const Auto = "auto"

// autoFS is what auto puts into an image. XFS beats btrfs in write transactions
// on a clone, which count for longer than the clone's few milliseconds.
const autoFS = image.XFS

// The names in a server's data directory.
const (
	poolName  = "pool"
	imageName = "pool.img"
)

// Choice is what a pool stands on.
type Choice struct {
	Kind    string   // of the driver
	Dir     string   // the pool's root
	Image   string   // the image file that is mounted there; empty for none
	FS      image.FS // in the image
	Dataset string   // of ZFS, that the pool is in; empty for none
	Reason  string   // why, for people
}

// Choose tells what the pool of the server with data directory dataDir stands
// on, or will stand on when it is made, for the wish want: auto, btrfs, reflink
// or copy, with the pool's own directory after a colon, if it has one, or zfs with
// the dataset after it. A pool
// that is there already decides. dataDir exists; Choose tries things out in it
// and leaves nothing behind.
func Choose(ctx context.Context, dataDir, want string) (Choice, error) {
	kind, dir, own := strings.Cut(want, ":")
	if kind == volume.KindZFS {
		return onZFS(ctx, dir)
	}
	if err := checkKind(kind); err != nil {
		return Choice{}, err
	}
	if !own {
		dir = filepath.Join(dataDir, poolName)
	}
	c, err := existing(dataDir, dir, own)
	if err != nil {
		return Choice{}, fmt.Errorf("choose a pool: %w", err)
	}
	switch {
	case c.Kind == "" && c.Image == "": // none yet
		return fresh(ctx, kind, dataDir, dir, own)
	case kind != Auto && c.Kind != "" && c.Kind != kind:
		return Choice{}, pgbough.Errorf(pgbough.EConflict, "the pool in %s is of kind %s, not %s", dir, c.Kind, kind).
			WithHint("start with --pool auto, or choose another data directory")
	default:
		return c, nil
	}
}

// onZFS chooses the place where a dataset is mounted. Only being asked for
// leads there: it is experimental.
func onZFS(ctx context.Context, dataset string) (Choice, error) {
	dir, err := zfs.Mountpoint(ctx, dataset)
	if err != nil {
		return Choice{}, err
	}
	return Choice{Kind: volume.KindZFS, Dir: dir, Dataset: dataset, Reason: "asked for; ZFS is experimental"}, nil
}

// driver is the driver of the choice.
func (c Choice) driver() (volume.Driver, error) {
	if c.Kind == volume.KindZFS {
		return &zfs.Driver{Dataset: c.Dataset}, nil
	}
	return Driver(c.Kind)
}

func checkKind(kind string) error {
	if kind == Auto {
		return nil
	}
	_, err := Driver(kind)
	return err
}

// Driver is the driver of a kind that needs no more than a directory.
func Driver(kind string) (volume.Driver, error) {
	switch kind {
	case volume.KindBtrfs:
		return btrfs.Driver{}, nil
	case volume.KindReflink:
		return reflink.Driver{}, nil
	case volume.KindCopy:
		return copydir.Driver{}, nil
	default:
		return nil, pgbough.Errorf(pgbough.EInvalid, "%q is no kind of pool", kind).
			WithHint("choose auto, btrfs, reflink, copy or zfs:POOL/DATASET")
	}
}

// existing finds a pool that was made before. The kind of one in an image is
// known when that has been looked into.
func existing(dataDir, dir string, own bool) (Choice, error) {
	if !own {
		file := filepath.Join(dataDir, imageName)
		if ok, err := disk.Exists(file); ok || err != nil {
			return Choice{Dir: dir, Image: file, Reason: "the pool's image is there"}, err
		}
	}
	id, err := volume.ReadIdentity(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return Choice{}, nil
	}
	return Choice{Kind: id.Kind, Dir: dir, Reason: "the pool is there"}, err
}

// fresh chooses for a pool that is still to be made.
func fresh(ctx context.Context, kind, dataDir, dir string, own bool) (Choice, error) {
	at := dataDir // dir itself may not exist yet
	if own {
		at = dir
	}
	on, err := disk.TypeOf(at)
	if err != nil {
		return Choice{}, pgbough.Errorf(pgbough.EInvalid, "the directory for the pool cannot be used: %w", err).
			WithHint("make %s first", at)
	}
	noBtrfs, noReflink := btrfs.Probe(ctx, at), reflink.Probe(at)
	switch {
	case kind == volume.KindCopy:
		return Choice{Kind: kind, Dir: dir, Reason: "asked for"}, nil
	case kind != volume.KindReflink && noBtrfs == nil:
		return Choice{Kind: volume.KindBtrfs, Dir: dir, Reason: at + " is on btrfs"}, nil
	case kind != volume.KindBtrfs && noReflink == nil:
		return Choice{Kind: volume.KindReflink, Dir: dir, Reason: fmt.Sprintf("%s is on %v, which shares extents between files", at, on)}, nil
	}
	if kind == volume.KindBtrfs && own {
		return Choice{}, pgbough.Errorf(pgbough.EConflict, "%s cannot hold a pool of kind btrfs: %w", at, noBtrfs).
			WithHint("choose a directory on btrfs, or leave the directory out to get an image file")
	}
	if kind == volume.KindReflink && own {
		return Choice{}, pgbough.Errorf(pgbough.EConflict, "%s cannot hold a pool of kind reflink: %w", at, noReflink).
			WithHint("choose a directory on XFS, or leave the directory out to get an image file")
	}
	return inImage(kind, dataDir, dir, own, on)
}

// inImage chooses for a directory whose file system shares nothing.
func inImage(kind, dataDir, dir string, own bool, on disk.Type) (Choice, error) {
	fileSystem, driver := autoFS, volume.KindReflink
	if kind == volume.KindBtrfs {
		fileSystem, driver = image.Btrfs, volume.KindBtrfs
	}
	why := cannotImage(fileSystem)
	switch {
	case kind == Auto && own:
		why = "a directory given for the pool is used as it is"
	case why == "":
		return Choice{
			Kind: driver, Dir: dir, Image: filepath.Join(dataDir, imageName), FS: fileSystem,
			Reason: fmt.Sprintf("%s is on %v, which cannot clone files, so the pool gets an image file with %s", dataDir, on, fileSystem),
		}, nil
	case kind != Auto:
		return Choice{}, pgbough.Errorf(pgbough.EConflict, "%s is on %v, and an image file cannot be used: %s", dataDir, on, why).
			WithHint("choose a data directory on btrfs or XFS, or --pool copy")
	}
	return Choice{
		Kind: volume.KindCopy, Dir: dir,
		Reason: fmt.Sprintf("%v cannot clone files, and %s: every branch will be a full copy", on, why),
	}, nil
}

// cannotImage tells what keeps this process from using an image file; empty
// when nothing does.
func cannotImage(fileSystem image.FS) string {
	if os.Geteuid() != 0 {
		return "only root can mount an image file"
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		return "this machine has no loop devices"
	}
	for _, program := range image.Programs(fileSystem) {
		if _, err := exec.LookPath(program); err != nil {
			return "program " + program + " is not installed"
		}
	}
	return ""
}
