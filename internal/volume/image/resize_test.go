package image_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/volume/disk"
	"github.com/pgbough/pgbough/internal/volume/image"
)

var errKilled = errors.New("killed at a failpoint")

// resized checks that file, device and file system have a size.
func resized(t *testing.T, img *image.Image, want disk.Bytes) {
	t.Helper()
	st, err := os.Stat(img.File)
	if err != nil {
		t.Fatal(err)
	}
	space, err := disk.SpaceOf(img.Mount)
	if err != nil {
		t.Fatal(err)
	}
	device := strings.TrimSpace(output(t, "blockdev", "--getsize64", img.Device))
	if disk.Bytes(st.Size()) != want || device != strings.TrimSpace(output(t, "stat", "-c", "%s", img.File)) {
		t.Errorf("the file has %v, its device %s bytes, want %v", disk.Bytes(st.Size()), device, want)
	}
	if space.Size > want || space.Size < want-100*disk.MiB {
		t.Errorf("the file system has %v, want %v", space.Size, want)
	}
}

func TestResize(t *testing.T) {
	for _, kind := range []image.FS{image.XFS, image.Btrfs} {
		t.Run(string(kind), func(t *testing.T) {
			cfg := config(t, kind)
			img := open(t, cfg)
			kept := filepath.Join(img.Mount, "kept")
			if err := os.WriteFile(kept, []byte("kept"), 0o600); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if err := img.Resize(t.Context(), 900*disk.MiB); err != nil {
					t.Fatal(err)
				}
				resized(t, img, 900*disk.MiB)
			}
			if got := allocated(t, cfg.File); got < 900*disk.MiB {
				t.Errorf("only %v of 900 MB are set aside", got)
			}
			if err := img.Resize(t.Context(), 1<<50); pgbough.ErrorCode(err) != pgbough.ENoSpace {
				t.Errorf("larger than the disk: %v, want no space", err)
			}
			if err := img.Resize(t.Context(), disk.MiB); pgbough.ErrorCode(err) != pgbough.EInvalid {
				t.Errorf("smaller than possible: %v, want invalid", err)
			}
			err := img.Resize(t.Context(), 600*disk.MiB)
			if kind == image.XFS {
				if pgbough.ErrorCode(err) != pgbough.EConflict {
					t.Errorf("XFS smaller: %v, want a conflict", err)
				}
				resized(t, img, 900*disk.MiB)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			resized(t, img, 600*disk.MiB)
			if b, err := os.ReadFile(kept); err != nil || string(b) != "kept" {
				t.Errorf("after it all, the file says %q (%v)", b, err)
			}
		})
	}
}

func TestResizeKeepsWhatIsUsed(t *testing.T) {
	cfg := config(t, image.Btrfs)
	img := open(t, cfg)
	if err := img.Resize(t.Context(), 900*disk.MiB); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(img.Mount, "large"), make([]byte, 300<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := disk.SyncFileSystem(img.Mount); err != nil {
		t.Fatal(err)
	}
	if err := img.Resize(t.Context(), 400*disk.MiB); pgbough.ErrorCode(err) != pgbough.ENoSpace {
		t.Errorf("smaller than what it holds: %v, want no space", err)
	}
	resized(t, img, 900*disk.MiB)
}

// TestResizeKilled ends a resize between any two steps, then opens the image
// anew and does it again.
func TestResizeKilled(t *testing.T) {
	for _, c := range []struct {
		name  string
		kind  image.FS
		sizes [2]disk.Bytes // from, to
		steps []string
	}{
		{"grow XFS", image.XFS, [2]disk.Bytes{0, 800 * disk.MiB}, []string{image.FailpointFile, image.FailpointDevice}},
		{"grow btrfs", image.Btrfs, [2]disk.Bytes{0, 800 * disk.MiB}, []string{image.FailpointFile, image.FailpointDevice}},
		{"shrink btrfs", image.Btrfs, [2]disk.Bytes{900 * disk.MiB, 600 * disk.MiB}, []string{image.FailpointShrunk, image.FailpointFile, image.FailpointDevice}},
	} {
		for _, step := range c.steps {
			for _, reboot := range []bool{false, true} {
				t.Run(c.name+" killed at "+step, func(t *testing.T) {
					cfg := config(t, c.kind)
					passed := false
					armed := ""
					cfg.Failpoint = func(name string) error {
						if name != armed {
							return nil
						}
						passed = true
						return errKilled
					}
					img := open(t, cfg)
					if from := c.sizes[0]; from != 0 {
						if err := img.Resize(t.Context(), from); err != nil {
							t.Fatal(err)
						}
					}
					armed = step
					if err := img.Resize(t.Context(), c.sizes[1]); !errors.Is(err, errKilled) || !passed {
						t.Fatalf("killed at %s: %v", step, err)
					}
					if reboot {
						if err := img.Close(t.Context()); err != nil {
							t.Fatal(err)
						}
					}
					cfg.Failpoint = nil
					again := open(t, cfg)
					if err := again.Resize(t.Context(), c.sizes[1]); err != nil {
						t.Fatal(err)
					}
					resized(t, again, c.sizes[1])
				})
			}
		}
	}
}
