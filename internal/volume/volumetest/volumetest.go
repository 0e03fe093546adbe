// Package volumetest holds every driver of volumes, and the pool over it, to
// their contract, on real file systems.
package volumetest

import (
	"context"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/pgbough/pgbough/internal/volume"
	"github.com/pgbough/pgbough/internal/volume/disk"
	"github.com/pgbough/pgbough/internal/volume/image"
)

// NewDriver makes the driver under test and an empty directory of at most
// 512 MB for it to work in.
type NewDriver func(t *testing.T) (volume.Driver, string)

// Run holds the driver to the contract of volume.Driver, and a volume.Pool over
// it to its own.
func Run(t *testing.T, newDriver NewDriver) {
	for _, c := range []struct {
		name string
		test func(t *testing.T, d *driven)
	}{
		{"create", testCreate},
		{"clone keeps everything", testCloneKeeps},
		{"clones are independent", testIndependence},
		{"clone of a clone", testChain},
		{"usage", testUsage},
		{"full", testFull},
		{"hostile trees", testHostile},
		{"partial and missing", testPartial},
		{"thousand files", testThousandFiles},
	} {
		t.Run(c.name, func(t *testing.T) {
			driver, dir := newDriver(t)
			c.test(t, &driven{Driver: driver, dir: dir})
		})
	}
	t.Run("pool", func(t *testing.T) { runPool(t, newDriver) })
}

// RequireRoot skips a test that mounts, and fails it in CI.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("this test mounts an image and needs root")
	}
	t.Skip("mounts an image: needs root")
}

// Mount mounts a fresh sparse image of size with the file system kind until the
// test ends, and returns where.
func Mount(t testing.TB, kind image.FS, size disk.Bytes) string {
	t.Helper()
	RequireRoot(t)
	dir := t.TempDir()
	img, err := image.Open(t.Context(), image.Config{
		File: filepath.Join(dir, "image"), Mount: filepath.Join(dir, "mount"),
		FS: kind, Size: size, Sparse: true, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := img.Remove(ctx); err != nil {
			t.Errorf("remove image: %v", err)
		}
	})
	return img.Mount
}

// driven is a driver with shortcuts that fail the test.
type driven struct {
	volume.Driver
	dir string
}

func (d *driven) path(name string) string { return filepath.Join(d.dir, name) }

func (d *driven) create(t *testing.T, name string) string {
	t.Helper()
	if err := d.Create(t.Context(), d.path(name)); err != nil {
		t.Fatal(err)
	}
	return d.path(name)
}

func (d *driven) clone(t *testing.T, src, dst string) string {
	t.Helper()
	if err := d.Clone(t.Context(), d.path(src), d.path(dst)); err != nil {
		t.Fatal(err)
	}
	return d.path(dst)
}

func (d *driven) destroy(t *testing.T, name string) {
	t.Helper()
	if err := d.Destroy(t.Context(), d.path(name)); err != nil {
		t.Fatal(err)
	}
	if ok, err := disk.Exists(d.path(name)); ok || err != nil {
		t.Fatalf("%s is still there (%v)", name, err)
	}
}

func (d *driven) usage(t *testing.T, name string) volume.Usage {
	t.Helper()
	if err := disk.SyncFileSystem(d.dir); err != nil {
		t.Fatal(err)
	}
	usage, err := d.Usage(t.Context(), d.path(name))
	if err != nil {
		t.Fatal(err)
	}
	return usage
}

// settledFree is the free space once the file system's background work on it
// is over: the same for a while.
func settledFree(t *testing.T, dir string) int64 {
	t.Helper()
	if kind, err := disk.TypeOf(dir); err == nil && kind == disk.TypeBtrfs {
		for _, args := range [][]string{{"filesystem", "sync", dir}, {"subvolume", "sync", "-s", "1", dir}} {
			if out, err := exec.Command("btrfs", args...).CombinedOutput(); err != nil {
				t.Fatalf("btrfs %v: %v: %s", args, err, out)
			}
		}
	}
	ticker := time.NewTicker(300 * time.Millisecond)
	defer ticker.Stop()
	last, same := int64(-1), 0
	for range 100 {
		if err := disk.SyncFileSystem(dir); err != nil {
			t.Fatal(err)
		}
		space, err := disk.SpaceOf(dir)
		if err != nil {
			t.Fatal(err)
		}
		free := int64(space.Size - space.Used)
		if free == last {
			same++
		} else {
			last, same = free, 0
		}
		if same == 3 {
			break
		}
		<-ticker.C
	}
	return last
}
