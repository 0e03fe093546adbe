package btrfs_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/pgbough/pgbough/internal/volume/btrfs"
	"github.com/pgbough/pgbough/internal/volume/disk"
	"github.com/pgbough/pgbough/internal/volume/image"
	"github.com/pgbough/pgbough/internal/volume/volumetest"
)

// Any user may make subvolumes in a directory of his own, and snapshots, also
// read-only ones; the kernel destroys no subvolume that has others inside.
func TestDestroyNested(t *testing.T) {
	var d btrfs.Driver
	dir := volumetest.Mount(t, image.Btrfs, 300*disk.MiB)
	data := filepath.Join(dir, "data")
	if err := d.Create(t.Context(), data); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(data, 64420, 64420); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"subvolume", "create", data + "/one"},
		{"subvolume", "create", data + "/one/two"},
		{"subvolume", "snapshot", "-r", data + "/one", data + "/frozen"},
		{"property", "set", data + "/one", "ro", "true"},
	} {
		cmd := exec.Command("btrfs", args...)
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 64420, Gid: 64420}}
		if out, err := asUser(t, dir, cmd); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	if err := os.Remove(data); !errors.Is(err, syscall.ENOTEMPTY) {
		t.Fatalf("plain removal: %v; the test has planted nothing", err)
	}
	clone := filepath.Join(dir, "clone")
	if err := d.Clone(t.Context(), data, clone); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{data, clone} {
		if err := d.Destroy(t.Context(), path); err != nil {
			t.Error(err)
		}
		if ok, _ := disk.Exists(path); ok {
			t.Errorf("%s is still there", path)
		}
	}
}

// asUser runs cmd as another user, who has to be let through to dir.
func asUser(t *testing.T, dir string, cmd *exec.Cmd) ([]byte, error) {
	t.Helper()
	for at := dir; at != "/"; at = filepath.Dir(at) {
		st, err := os.Stat(at)
		if err != nil {
			return nil, err
		}
		if st.Mode().Perm()&0o001 == 0 {
			if err := os.Chmod(at, st.Mode().Perm()|0o011); err != nil {
				return nil, err
			}
		}
	}
	return cmd.CombinedOutput()
}

func TestDataCOW(t *testing.T) {
	dir := volumetest.Mount(t, image.Btrfs, 300*disk.MiB)
	for _, c := range []struct {
		driver btrfs.Driver
		want   bool
	}{{btrfs.Driver{}, false}, {btrfs.Driver{DataCOW: true}, true}} {
		data := filepath.Join(dir, fmt.Sprint("data", c.want))
		if err := c.driver.Create(t.Context(), data); err != nil {
			t.Fatal(err)
		}
		file := data + "/base/1"
		if err := errors.Join(os.Mkdir(data+"/base", 0o700), os.WriteFile(file, []byte("x"), 0o600)); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("lsattr", file).Output()
		if err != nil {
			t.Fatal(err)
		}
		if flags, _, _ := strings.Cut(string(out), " "); strings.Contains(flags, "C") == c.want {
			t.Errorf("with DataCOW=%v a new file has flags %s", c.want, flags)
		}
	}
}

func TestProbe(t *testing.T) {
	dir := volumetest.Mount(t, image.Btrfs, 300*disk.MiB)
	if err := btrfs.Probe(t.Context(), dir); err != nil {
		t.Error(err)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 0 {
		t.Errorf("the probe left %v (%v)", names, err)
	}
	if err := btrfs.Probe(t.Context(), volumetest.Mount(t, image.XFS, 300*disk.MiB)); err == nil {
		t.Error("the probe takes XFS for btrfs")
	}
}
