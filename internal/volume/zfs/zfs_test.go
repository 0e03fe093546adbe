package zfs_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/volume"
	"github.com/pgbough/pgbough/internal/volume/storage"
	"github.com/pgbough/pgbough/internal/volume/volumetest"
	"github.com/pgbough/pgbough/internal/volume/zfs"
)

const (
	ownDaemon  = "PGBOUGH_TEST_ZFS" // set for the tests that have a zfs-fuse of their own
	poolPrefix = "pgboughtest"
)

// TestMain runs zfs-fuse, ZFS in a user's process, with the real commands.
// There can be one on a machine.
func TestMain(m *testing.M) {
	if os.Geteuid() != 0 || os.Getenv(ownDaemon) != "" || exec.Command("zpool", "list").Run() == nil {
		os.Exit(m.Run()) // without root tests skip themselves; this machine may have ZFS
	}
	code, hung := withDaemon()
	if hung {
		fmt.Println("zfs-fuse has stopped answering; once more, with another one")
		code, hung = withDaemon()
	}
	if hung {
		code = 1
	}
	os.Exit(code)
}

// withDaemon runs the tests in a process of their own, since zfs-fuse, which nobody
// maintains, can lock itself up (all its threads wait for one mutex): what then
// hangs in a system call goes on only when the daemon is killed.
func withDaemon() (code int, hung bool) {
	daemon := exec.Command("zfs-fuse", "--no-daemon", "--no-kstat-mount", "-a", "0", "-e", "0")
	daemon.Stderr = os.Stderr
	if err := daemon.Start(); err != nil {
		panic(fmt.Sprintf("zfs-fuse, which scripts/setup installs, cannot be started: %v", err))
	}
	defer func() { _ = daemon.Wait() }()
	for range 100 {
		if exec.Command("zpool", "list").Run() == nil {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	tests := exec.Command(os.Args[0], os.Args[1:]...)
	tests.Env, tests.Stdout, tests.Stderr = append(os.Environ(), ownDaemon+"=1"), os.Stdout, os.Stderr
	if err := tests.Start(); err != nil {
		panic(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = tests.Wait() }() // its exit code tells
	select {
	case <-ended:
		_ = daemon.Process.Signal(os.Interrupt)
		return tests.ProcessState.ExitCode(), false
	case <-time.After(6 * time.Minute): // they take one
	}
	_ = daemon.Process.Kill()
	_ = tests.Process.Kill()
	<-ended
	mounts, _ := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) { return !strings.HasPrefix(m.Source, poolPrefix), false })
	for _, m := range slices.Backward(mounts) {
		_ = unix.Unmount(m.Mountpoint, unix.MNT_DETACH)
	}
	return 0, true
}

func command(t *testing.T, name string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
	defer cancel()
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		t.Errorf("%s %v: %v: %s", name, args, err, out)
	}
}

// written is a driver on a fresh ZFS pool whose Usage is of this moment.
type written struct {
	*zfs.Driver
	t *testing.T
}

// Usage makes ZFS write out what it has: it does so before it takes a snapshot.
func (w written) Usage(ctx context.Context, dir string) (volume.Usage, error) {
	command(w.t, "zfs", "snapshot", w.Dataset+"@now")
	command(w.t, "zfs", "destroy", w.Dataset+"@now")
	return w.Driver.Usage(ctx, dir)
}

// export unmounts and destroys a ZFS pool, which is busy for a moment then.
func export(t *testing.T, pool string) {
	t.Helper()
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) { return !strings.HasPrefix(m.Source, pool+"/"), false })
	if err != nil {
		t.Error(err)
	}
	for _, m := range slices.Backward(mounts) {
		command(t, "umount", m.Mountpoint)
	}
	deadline := time.Now().Add(20 * time.Second)
	for exec.Command("zpool", "destroy", "-f", pool).Run() != nil {
		if time.Now().After(deadline) {
			command(t, "zpool", "destroy", "-f", pool)
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
}

var pools int

func newPool(t *testing.T) (dataset, mountpoint string) {
	t.Helper()
	volumetest.RequireRoot(t)
	pools++
	pool := fmt.Sprintf(poolPrefix+"%dx%d", os.Getpid(), pools)
	dir := t.TempDir()
	image := filepath.Join(dir, "image")
	command(t, "truncate", "-s", "400M", image)
	dataset, mountpoint = pool+"/pgbough", filepath.Join(dir, "mount")
	command(t, "zpool", "create", "-m", "none", pool, image)
	t.Cleanup(func() { export(t, pool) })
	command(t, "zfs", "create", "-o", "mountpoint="+mountpoint, dataset)
	return dataset, mountpoint
}

// TestReboot: what a reboot unmounts is mounted again where it belongs.
func TestReboot(t *testing.T) {
	dataset, dir := newPool(t)
	cfg := storage.Config{DataDir: t.TempDir(), Want: "zfs:" + dataset, CatalogID: "c", Log: slog.New(slog.DiscardHandler)}
	s, err := storage.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	v, err := s.Pool.Create(t.Context(), volume.Manifest{ID: "vroot", Role: volume.RoleRoot})
	if err != nil {
		t.Fatal(err)
	}
	kept := filepath.Join(v.Data, "kept")
	if err := os.WriteFile(kept, []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Pool.Clone(t.Context(), "vroot", volume.Manifest{ID: "vclone", Role: volume.RoleBranch}); err != nil {
		t.Fatal(err)
	}
	if space, err := s.Pool.Space(); err != nil || space.Size < 300<<20 || space.Size > 400<<20 || !strings.HasPrefix(s.Pool.Dir(), dir) {
		t.Errorf("the pool is in %s, with %+v (%v)", s.Pool.Dir(), space, err)
	}
	for _, id := range []string{"vroot", "vclone"} {
		command(t, "umount", filepath.Join(s.Pool.Dir(), "volumes", id, "data"))
	}
	if _, err := os.Stat(kept); err == nil {
		t.Fatal("it is not unmounted")
	}
	cfg.PoolID = s.Pool.ID()
	if s, err = storage.Open(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"vroot", "vclone"} {
		if b, err := os.ReadFile(filepath.Join(s.Pool.Dir(), "volumes", id, "data", "kept")); err != nil || string(b) != "kept" {
			t.Errorf("volume %s after a reboot: %q (%v)", id, b, err)
		}
		if err := s.Pool.Destroy(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
}

func TestRefusals(t *testing.T) {
	dataset, _ := newPool(t)
	for _, want := range []string{"zfs", "zfs:", "zfs:-o", "zfs:" + dataset + "/none", "zfs:/mnt"} {
		_, err := storage.Choose(t.Context(), t.TempDir(), want)
		if code := pgbough.ErrorCode(err); code != pgbough.EInvalid && code != pgbough.EConflict {
			t.Errorf("--pool %s: %v", want, err)
		}
	}
}

func TestDriver(t *testing.T) {
	volumetest.Run(t, func(t *testing.T) (volume.Driver, string) {
		dataset, dir := newPool(t)
		return written{&zfs.Driver{Dataset: dataset}, t}, dir
	})
}
