//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/pgbough/pgbough"
)

// lockPool keeps a second server, with a copied catalog or another one, from
// the pool in dir. Closing the file, or the end of the process, gives it up.
func lockPool(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "pool.lock"), os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the pool: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close() // nothing was written
		return nil, pgbough.Errorf(pgbough.EConflict, "another pgbough server uses the pool in %s", dir).
			WithHint("stop it first, or choose another directory with --pool")
	}
	return f, nil
}
