package storage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/volume"
	"github.com/pgbough/pgbough/internal/volume/disk"
	"github.com/pgbough/pgbough/internal/volume/image"
	"github.com/pgbough/pgbough/internal/volume/zfs"
)

// leastImage is the smallest image that is made when no size is asked for.
const leastImage = 1 * disk.GiB

// Config of a server's storage.
type Config struct {
	DataDir string // the server's data directory, which exists
	Want    string // as for Choose
	// Size of a new image in bytes; zero is half of what the disk has free.
	Size      int64
	Sparse    bool               // a new image is not preallocated
	CatalogID string             // as in volume.Config, and so are the following
	PoolID    string             //
	Reserve   int64              // zero is a twentieth of the file system
	UID, GID  int                //
	Log       *slog.Logger       //
	Failpoint func(string) error //
}

// Storage is an open pool and what is below it.
type Storage struct {
	Pool   *volume.Pool
	Image  *image.Image // nil when the pool is a directory of the machine's own file systems
	Choice Choice

	resizing sync.Mutex
}

// Open chooses, makes what is missing, mounts and opens the pool. It may be
// called again after a crash or a reboot at any moment of it.
func Open(ctx context.Context, cfg Config) (*Storage, error) {
	choice, err := Choose(ctx, cfg.DataDir, cfg.Want)
	if err != nil {
		return nil, err
	}
	cfg.Log.InfoContext(ctx, "pool chosen", "kind", choice.Kind, "dir", choice.Dir, "image", choice.Image, "reason", choice.Reason)
	s := &Storage{Choice: choice}
	backing := ""
	if choice.Image != "" {
		if err := s.openImage(ctx, cfg); err != nil {
			return nil, err
		}
		if s.Image.Sparse {
			backing = filepath.Dir(s.Image.File)
		}
	}
	if kind, _, _ := strings.Cut(cfg.Want, ":"); kind != Auto && kind != s.Choice.Kind {
		return nil, pgbough.Errorf(pgbough.EConflict, "the pool in %s is of kind %s, not %s", choice.Dir, s.Choice.Kind, kind).
			WithHint("start with --pool auto, or choose another data directory")
	}
	driver, err := s.Choice.driver()
	if err != nil {
		return nil, err
	}
	if cfg.Reserve == 0 {
		if cfg.Reserve, err = defaultReserve(choice.Dir); err != nil {
			return nil, err
		}
	}
	size := int64(0)
	if choice.Dataset != "" {
		if size, err = zfs.Size(ctx, choice.Dataset); err != nil {
			return nil, err
		}
	}
	s.Pool, err = volume.Open(ctx, volume.Config{
		Dir:       choice.Dir,
		Driver:    driver,
		CatalogID: cfg.CatalogID,
		PoolID:    cfg.PoolID,
		Reserve:   cfg.Reserve,
		Size:      size,
		Backing:   backing,
		UID:       cfg.UID,
		GID:       cfg.GID,
		Log:       cfg.Log,
		Failpoint: cfg.Failpoint,
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (s *Storage) openImage(ctx context.Context, cfg Config) error {
	if cfg.PoolID != "" {
		// The catalog knows a pool, so there must be an image: a new one would be empty.
		if ok, err := disk.Exists(s.Choice.Image); err != nil {
			return fmt.Errorf("open image: %w", err)
		} else if !ok {
			return pgbough.Errorf(pgbough.EConflict, "the image %s of pool %s is missing", s.Choice.Image, cfg.PoolID).
				WithHint("put it back, or start with an empty data directory")
		}
	}
	size := disk.Bytes(cfg.Size)
	if size == 0 {
		host, err := disk.SpaceOf(cfg.DataDir)
		if err != nil {
			return fmt.Errorf("open image: %w", err)
		}
		size = max(leastImage, host.Free/2/disk.GiB*disk.GiB)
	}
	img, err := image.Open(ctx, image.Config{
		File: s.Choice.Image, Mount: s.Choice.Dir, FS: s.Choice.FS, Size: size, Sparse: cfg.Sparse, Log: cfg.Log,
	})
	if err != nil {
		return err
	}
	s.Image, s.Choice.FS, s.Choice.Kind = img, img.FS, volume.KindReflink
	if img.FS == image.Btrfs {
		s.Choice.Kind = volume.KindBtrfs
	}
	return nil
}

// Resize makes the pool's image size bytes large, while it is used.
func (s *Storage) Resize(ctx context.Context, size int64) error {
	if s.Image == nil {
		return pgbough.Errorf(pgbough.EConflict, "the pool is in %s, a directory of the machine's own file systems, and has no size of its own", s.Choice.Dir).
			WithHint("resize that file system with its own tools; pgbough uses all of it")
	}
	s.resizing.Lock()
	defer s.resizing.Unlock()
	return s.Image.Resize(ctx, disk.Bytes(size))
}

// defaultReserve is a twentieth of the file system that the pool is on.
func defaultReserve(dir string) (int64, error) {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return 0, fmt.Errorf("make the pool's directory: %w", err)
	}
	space, err := disk.SpaceOf(dir)
	if err != nil {
		return 0, fmt.Errorf("measure the pool: %w", err)
	}
	return int64(space.Size) / 20, nil
}

// Remove removes what Open has made, with everything in it: the volumes, the image,
// its mount and its loop device. Nothing may use them any more. It may be called
// again after a crash at any moment of it, and when nothing is there.
func Remove(ctx context.Context, cfg Config) error {
	choice, err := Choose(ctx, cfg.DataDir, cfg.Want)
	if err != nil {
		return err
	}
	if choice.Image != "" {
		if ok, err := disk.Exists(choice.Image); !ok {
			return err
		}
		img, err := image.Find(ctx, choice.Image, choice.Dir, cfg.Log)
		if err != nil {
			return err
		}
		return img.Remove(ctx)
	}
	if _, err := volume.ReadIdentity(choice.Dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	driver, err := choice.driver()
	if err != nil {
		return err
	}
	pool, err := volume.Open(ctx, volume.Config{
		Dir: choice.Dir, Driver: driver, CatalogID: cfg.CatalogID, PoolID: cfg.PoolID, UID: cfg.UID, GID: cfg.GID, Log: cfg.Log,
	})
	if err != nil {
		return err
	}
	return pool.Remove(ctx)
}

// Close unmounts an image, which nothing may use any more. A server that stops
// need not call it: what is mounted is found again.
func (s *Storage) Close(ctx context.Context) error {
	if s.Image == nil {
		return nil
	}
	return s.Image.Close(ctx)
}
