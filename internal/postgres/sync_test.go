package postgres

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A branch's superuser can put anything into PGDATA: nothing of it is followed,
// waited for, or taken for a fault.
func TestSyncIsNotLedAstray(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"pg_wal/archive_status", "global", "base"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"pg_wal/000000010000000000000001", "global/pg_control", "base/1"} {
		if err := os.WriteFile(filepath.Join(dir, f), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(dir, "pg_wal", "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/zero", filepath.Join(dir, "base", "link")); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 3)
	go func() {
		done <- SyncWAL(dir, time.Time{})
		done <- SyncAll(dir)
		done <- SyncSince(dir, time.Now().Add(-time.Minute))
	}()
	for range 3 {
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("it waits for a pipe")
		}
	}
	if err := os.Remove(filepath.Join(dir, "global", "pg_control")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/zero", filepath.Join(dir, "global", "pg_control")); err != nil {
		t.Fatal(err)
	}
	if err := SyncWAL(dir, time.Time{}); err == nil {
		t.Error("a link in the place of the control file is followed")
	}
	if err := SyncWAL(filepath.Join(dir, "none"), time.Time{}); err == nil {
		t.Error("a directory that is not there is no fault")
	}
}
