package storage_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/volume"
	"github.com/pgbough/pgbough/internal/volume/disk"
	"github.com/pgbough/pgbough/internal/volume/image"
	"github.com/pgbough/pgbough/internal/volume/storage"
	"github.com/pgbough/pgbough/internal/volume/volumetest"
)

// plain is a directory whose file system cannot clone files.
func plain(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	switch on, err := disk.TypeOf(dir); {
	case err != nil:
		t.Fatal(err)
	case on != disk.TypeExt4 && on != disk.TypeTmpfs:
		t.Skipf("%s is on %v: this test wants a file system that cannot clone", dir, on)
	}
	return dir
}

func TestChoose(t *testing.T) {
	volumetest.RequireRoot(t)
	ext4 := plain(t)
	xfs := volumetest.Mount(t, image.XFS, 300*disk.MiB)
	btrfs := volumetest.Mount(t, image.Btrfs, 300*disk.MiB)
	for _, c := range []struct {
		name, dir, want, kind string
		image                 image.FS
		refused               pgbough.Code
	}{
		{name: "auto on btrfs", dir: btrfs, want: "auto", kind: "btrfs"},
		{name: "auto on XFS", dir: xfs, want: "auto", kind: "reflink"},
		{name: "auto on ext4", dir: ext4, want: "auto", kind: "reflink", image: image.XFS},
		{name: "btrfs on ext4", dir: ext4, want: "btrfs", kind: "btrfs", image: image.Btrfs},
		{name: "reflink on ext4", dir: ext4, want: "reflink", kind: "reflink", image: image.XFS},
		{name: "reflink on btrfs", dir: btrfs, want: "reflink", kind: "reflink"},
		{name: "copy on XFS", dir: xfs, want: "copy", kind: "copy"},
		{name: "own directory", dir: ext4, want: "auto:" + xfs, kind: "reflink"},
		{name: "own directory that cannot clone", dir: xfs, want: "auto:" + ext4, kind: "copy"},
		{name: "own directory of the wrong kind", dir: ext4, want: "btrfs:" + xfs, refused: pgbough.EConflict},
		{name: "own directory that is not there", dir: ext4, want: "auto:" + ext4 + "/none", refused: pgbough.EInvalid},
		{name: "unknown kind", dir: ext4, want: "lvm", refused: pgbough.EInvalid},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := storage.Choose(t.Context(), c.dir, c.want)
			if pgbough.ErrorCode(err) != c.refused {
				t.Fatalf("error %v, want code %q", err, c.refused)
			}
			if err != nil {
				return
			}
			t.Logf("%s: %s", got.Kind, got.Reason)
			if got.Kind != c.kind || got.FS != c.image || (got.Image != "") != (c.image != "") || got.Reason == "" {
				t.Errorf("got %+v", got)
			}
			if names, _ := os.ReadDir(c.dir); len(names) != 0 {
				t.Errorf("left behind: %v", names)
			}
		})
	}
}

func config(dir, want string) storage.Config {
	return storage.Config{DataDir: dir, Want: want, Size: int64(320 * disk.MiB), CatalogID: "c", Log: slog.New(slog.DiscardHandler)}
}

func TestOpenInImage(t *testing.T) {
	volumetest.RequireRoot(t)
	cfg := config(plain(t), "auto")
	s := open(t, cfg)
	v, err := s.Pool.Create(t.Context(), volume.Manifest{ID: "v1", Role: volume.RoleRoot})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(t.Context()); err != nil { // a reboot
		t.Fatal(err)
	}
	cfg.PoolID = s.Pool.ID()
	again := open(t, cfg)
	if got, err := again.Pool.Get("v1"); err != nil || got.CreatedAt != v.CreatedAt || again.Choice.Kind != volume.KindReflink {
		t.Errorf("after a reboot: %+v (%v), kind %s", got, err, again.Choice.Kind)
	}
	cfg.Want = "btrfs"
	if _, err := storage.Open(t.Context(), cfg); pgbough.ErrorCode(err) != pgbough.EConflict {
		t.Errorf("another kind than the image's: %v, want a conflict", err)
	}
	cfg.Want = "auto"
	if err := again.Image.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := storage.Open(t.Context(), cfg); pgbough.ErrorCode(err) != pgbough.EConflict {
		t.Errorf("the image is lost: %v, want a conflict", err)
	}
	if ok, _ := disk.Exists(filepath.Join(cfg.DataDir, "pool.img")); ok {
		t.Error("a new image was made in place of the lost one")
	}
}

// TestRemove: nothing is left of a pool, mounted or not, and removing it again does nothing.
func TestRemove(t *testing.T) {
	volumetest.RequireRoot(t)
	for _, want := range []string{"auto", "copy"} {
		for _, mounted := range []bool{true, false} {
			cfg := config(plain(t), want)
			s := open(t, cfg)
			if _, err := s.Pool.Create(t.Context(), volume.Manifest{ID: "v1", Role: volume.RoleRoot}); err != nil {
				t.Fatal(err)
			}
			if !mounted {
				if err := s.Close(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			cfg.Want, cfg.PoolID = "auto", s.Pool.ID()
			for range 2 {
				if err := storage.Remove(t.Context(), cfg); err != nil {
					t.Errorf("%s, mounted %t: %v", want, mounted, err)
				}
			}
			left, err := filepath.Glob(filepath.Join(cfg.DataDir, "*", "*"))
			if ok, _ := disk.Exists(filepath.Join(cfg.DataDir, "pool.img")); ok || err != nil || len(left) > 0 {
				t.Errorf("%s, mounted %t: left are %v (%v), the image %t", want, mounted, left, err, ok)
			}
		}
	}
}

func open(t *testing.T, cfg storage.Config) *storage.Storage {
	t.Helper()
	s, err := storage.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if s.Image == nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := s.Image.Remove(ctx); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestOpenDirectory(t *testing.T) {
	cfg := config(t.TempDir(), "copy")
	s := open(t, cfg)
	cfg.Want, cfg.PoolID = "auto", s.Pool.ID()
	if again := open(t, cfg); again.Pool.ID() != s.Pool.ID() || again.Pool.Kind() != volume.KindCopy || again.Image != nil {
		t.Errorf("opened again: %+v", again)
	}
	cfg.Want = "reflink"
	if _, err := storage.Open(t.Context(), cfg); pgbough.ErrorCode(err) != pgbough.EConflict {
		t.Errorf("another kind: %v, want a conflict", err)
	}
}

func TestSparseImageHeedsItsDisk(t *testing.T) {
	volumetest.RequireRoot(t)
	// A small file system stands for a disk that is nearly full.
	host := volumetest.Mount(t, image.XFS, 300*disk.MiB)
	cfg := config(host, "btrfs")
	cfg.Size, cfg.Sparse = int64(4*disk.GiB), true
	s := open(t, cfg)
	space, err := s.Pool.Space()
	if err != nil || space.Free > int64(300*disk.MiB) || space.Size < int64(3*disk.GiB) {
		t.Errorf("space of a 4 GB image on 300 MB: %+v (%v)", space, err)
	}
}
