package image_test

import (
	"context"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/volume/disk"
	"github.com/pgbough/pgbough/internal/volume/image"
	"github.com/pgbough/pgbough/internal/volume/volumetest"
)

func config(t *testing.T, kind image.FS) image.Config {
	t.Helper()
	volumetest.RequireRoot(t)
	dir := t.TempDir()
	return image.Config{
		File: filepath.Join(dir, "pool.img"), Mount: filepath.Join(dir, "pool"),
		FS: kind, Size: 320 * disk.MiB, Log: slog.New(slog.DiscardHandler),
	}
}

// open opens an image that is removed with the test.
func open(t *testing.T, cfg image.Config) *image.Image {
	t.Helper()
	img, err := image.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := img.Remove(ctx); err != nil {
			t.Errorf("remove: %v", err)
		}
	})
	return img
}

func allocated(t *testing.T, file string) disk.Bytes {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(file, &st); err != nil {
		t.Fatal(err)
	}
	return disk.Bytes(st.Blocks) * 512
}

func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func TestOpen(t *testing.T) {
	for _, kind := range []image.FS{image.XFS, image.Btrfs} {
		t.Run(string(kind), func(t *testing.T) {
			cfg := config(t, kind)
			// What a kill while formatting may leave; mkfs refuses to overwrite it.
			output(t, "mkfs.ext4", "-q", cfg.File+".tmp", "20M")
			img := open(t, cfg)
			if got := strings.Fields(output(t, "findmnt", "-no", "FSTYPE,SOURCE", cfg.Mount)); len(got) != 2 || got[0] != string(kind) || got[1] != img.Device {
				t.Errorf("mounted: %q, want %s of %s", got, kind, img.Device)
			}
			if got := output(t, "losetup", "-nO", "DIO", img.Device); got != "1" {
				t.Errorf("direct I/O of the loop device: %q, want 1", got)
			}
			if got := output(t, "findmnt", "-no", "OPTIONS", cfg.Mount); !strings.Contains(got, "noatime") || !strings.Contains(got, "nosuid") || !strings.Contains(got, "nodev") || strings.Contains(","+got, ",discard") {
				t.Errorf("mount options: %s", got)
			}
			if img.Sparse || allocated(t, cfg.File) < cfg.Size {
				t.Errorf("%v of %v are allocated (sparse %v)", allocated(t, cfg.File), cfg.Size, img.Sparse)
			}
			if ok, _ := disk.Exists(cfg.File + ".tmp"); ok {
				t.Error("the temporary file is still there")
			}
			mark := filepath.Join(cfg.Mount, "mark")
			if err := os.WriteFile(mark, []byte("1"), 0o600); err != nil {
				t.Fatal(err)
			}
			for what, undo := range map[string]func(){
				"nothing":           func() {},
				"an unmount":        func() { output(t, "umount", cfg.Mount) },
				"a reboot":          func() { output(t, "umount", cfg.Mount); output(t, "losetup", "-d", img.Device) },
				"a close":           func() { closeImage(t, img) },
				"a close and close": func() { closeImage(t, img); closeImage(t, img) },
			} {
				undo()
				again, err := image.Open(t.Context(), cfg)
				if err != nil {
					t.Fatalf("open after %s: %v", what, err)
				}
				if _, err := os.Stat(mark); err != nil {
					t.Errorf("after %s: %v", what, err)
				}
				if n := len(strings.Fields(output(t, "losetup", "-nO", "NAME", "-j", cfg.File))); n != 1 {
					t.Errorf("after %s the image has %d loop devices", what, n)
				}
				if n := strings.Count(output(t, "findmnt", "-no", "TARGET", "--mountpoint", cfg.Mount)+"\n", "\n"); n != 1 {
					t.Errorf("after %s it is mounted %d times", what, n)
				}
				*img = *again
			}
		})
	}
}

func closeImage(t *testing.T, img *image.Image) {
	t.Helper()
	if err := img.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// A preallocated image must not become sparse by what is deleted in it.
func TestStaysAllocated(t *testing.T) {
	for _, kind := range []image.FS{image.XFS, image.Btrfs} {
		t.Run(string(kind), func(t *testing.T) {
			cfg := config(t, kind)
			open(t, cfg)
			file := filepath.Join(cfg.Mount, "file")
			if err := os.WriteFile(file, make([]byte, 64<<20), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := disk.SyncFileSystem(cfg.Mount); err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
			if err := disk.SyncFileSystem(cfg.Mount); err != nil {
				t.Fatal(err)
			}
			if got := allocated(t, cfg.File); got < cfg.Size {
				t.Errorf("only %v of %v are allocated", got, cfg.Size)
			}
		})
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Run("too large", func(t *testing.T) {
		cfg := config(t, image.XFS)
		cfg.Size = 1 << 50
		_, err := image.Open(t.Context(), cfg)
		if pgbough.ErrorCode(err) != pgbough.ENoSpace {
			t.Errorf("got %v, want no space", err)
		}
		t.Logf("refusal: %v", err)
		if names, _ := os.ReadDir(filepath.Dir(cfg.File)); len(names) != 0 {
			t.Errorf("it left %v", names)
		}
	})
	t.Run("too small", func(t *testing.T) {
		cfg := config(t, image.XFS)
		cfg.Size = disk.MiB
		if _, err := image.Open(t.Context(), cfg); pgbough.ErrorCode(err) != pgbough.EInvalid {
			t.Errorf("got %v, want invalid", err)
		}
	})
	for name, prepare := range map[string]func(t *testing.T, file string){
		"a file that is no image": func(t *testing.T, file string) {
			if err := os.WriteFile(file, make([]byte, 1<<20), 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"another file system": func(t *testing.T, file string) {
			output(t, "mkfs.ext4", "-q", file, "20M")
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := config(t, image.XFS)
			prepare(t, cfg.File)
			before, err := os.ReadFile(cfg.File)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := image.Open(t.Context(), cfg); pgbough.ErrorCode(err) != pgbough.EConflict {
				t.Errorf("got %v, want a conflict", err)
			}
			if after, err := os.ReadFile(cfg.File); err != nil || string(after) != string(before) {
				t.Errorf("the file was changed (%v)", err)
			}
		})
	}
	t.Run("occupied", func(t *testing.T) {
		first, second := config(t, image.XFS), config(t, image.XFS)
		first.Sparse, second.Sparse = true, true
		open(t, first)
		second.Mount = first.Mount
		_, err := image.Open(t.Context(), second)
		if pgbough.ErrorCode(err) != pgbough.EConflict {
			t.Errorf("got %v, want a conflict", err)
		}
		for _, device := range strings.Fields(output(t, "losetup", "-nO", "NAME", "-j", second.File)) {
			output(t, "losetup", "-d", device)
		}
	})
}
