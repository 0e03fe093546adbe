package postgres

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// SyncWAL makes durable what Postgres itself flushes and no checkpoint does:
// the WAL with its history files that was written since a time, the control
// file, and what was removed beside them (standby.signal). It is for a time in
// which fsync was off.
func SyncWAL(dataDir string, since time.Time) error {
	if err := syncTree(dataDir, since, "pg_wal", "global/pg_control"); err != nil {
		return err
	}
	dir, err := os.Open(dataDir)
	if err != nil {
		return fmt.Errorf("open the data directory: %w", err)
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// SyncAll makes every file of a data directory durable, whatever its checkpointer
// has done.
func SyncAll(dataDir string) error { return syncTree(dataDir, time.Time{}, ".") }

// SyncSince is SyncAll for what was written since a time.
func SyncSince(dataDir string, since time.Time) error { return syncTree(dataDir, since, ".") }

// syncTree flushes files and directories below dataDir. A branch's superuser can
// put anything there: links are not followed, and only files are opened.
func syncTree(dataDir string, since time.Time, names ...string) error {
	root, err := os.OpenRoot(dataDir)
	if err != nil {
		return fmt.Errorf("open the data directory: %w", err)
	}
	defer func() { _ = root.Close() }() // read only
	for _, name := range names {
		err := fs.WalkDir(root.FS(), name, func(path string, e fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // Postgres removed it meanwhile
			}
			if err != nil || !e.IsDir() && !e.Type().IsRegular() {
				return err
			}
			return syncOne(root, path, e, since)
		})
		if err != nil {
			return fmt.Errorf("make the data directory durable: %w", err)
		}
	}
	return nil
}

func syncOne(root *os.Root, path string, e fs.DirEntry, since time.Time) error {
	fi, err := e.Info()
	if err == nil && fi.ModTime().Before(since) {
		return nil
	}
	var f *os.File
	if err == nil {
		f, err = root.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
