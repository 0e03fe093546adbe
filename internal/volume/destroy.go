package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/volume/disk"
)

// Destroy removes the volume id, in whatever state it is, and succeeds when
// there is none. It refuses a volume that a running Postgres has locked, and one
// that belongs to another catalog.
func (p *Pool) Destroy(ctx context.Context, id string) error {
	return p.destroy(ctx, id, func(m Manifest) error {
		if m.CatalogID == p.cfg.CatalogID {
			return nil
		}
		return pgbough.Errorf(pgbough.EConflict, "volume %s belongs to another catalog", id).
			WithHint("pgbough pool prune removes volumes that this server does not know")
	})
}

// Prune removes the volume id as Destroy does, whosever it is. It is for
// people who have looked at it.
func (p *Pool) Prune(ctx context.Context, id string) error {
	return p.destroy(ctx, id, func(Manifest) error { return nil })
}

// Remove removes every volume in the pool, whosever it is, and what makes its
// directory a pool. Nothing else may use the pool, now or later.
func (p *Pool) Remove(ctx context.Context) error {
	entries, err := p.List()
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := p.Prune(ctx, e.ID); err != nil {
			return err
		}
	}
	for _, name := range []string{volumesName, identityName} { // in this order: what has volumes is a pool
		if err := os.RemoveAll(filepath.Join(p.cfg.Dir, name)); err != nil {
			return fmt.Errorf("remove pool: %w", err)
		}
	}
	return disk.SyncDir(p.cfg.Dir)
}

func (p *Pool) destroy(ctx context.Context, id string, allow func(Manifest) error) error {
	if err := checkID(id); err != nil {
		return err
	}
	release, err := p.holds.exclusive(ctx, id)
	if err != nil {
		return fmt.Errorf("destroy volume %s: %w", id, err)
	}
	defer release()
	final := filepath.Join(p.volumes, id)
	for _, dir := range []string{final + makingTail, final + goneTail} {
		if err := p.remove(ctx, dir); err != nil {
			return fmt.Errorf("destroy volume %s: %w", id, err)
		}
	}
	if err := p.bury(ctx, id, final, allow); err != nil {
		return fmt.Errorf("destroy volume %s: %w", id, err)
	}
	return nil
}

// bury removes a finished volume by way of its tombstone, so that no half of it is
// ever taken for a volume.
func (p *Pool) bury(ctx context.Context, id, dir string, allow func(Manifest) error) error {
	if ok, err := disk.Exists(dir); !ok {
		return err
	}
	// A manifest that cannot be read belongs to nobody else: the caller knows the id.
	if m, err := readManifest(dir); err == nil {
		if err := allow(m); err != nil {
			return err
		}
	}
	unlock, err := lock(id, filepath.Join(dir, lockName))
	if err != nil {
		return err
	}
	defer unlock()
	gone := dir + goneTail
	err = disk.Rename(dir, gone)
	if errors.Is(err, unix.ENOSPC) { // a full ZFS only removes: without its manifest it is no volume either
		gone = dir
		err = errors.Join(os.RemoveAll(filepath.Join(dir, manifestName)), disk.SyncDir(dir))
	}
	if err != nil {
		return err
	}
	if err := p.failpoint(FailpointTombstone); err != nil {
		return err
	}
	return p.remove(ctx, gone)
}

// remove durably removes an unfinished volume or a tombstone. The data goes
// first, the manifest after it: what is left always says whose it is.
func (p *Pool) remove(ctx context.Context, dir string) error {
	if ok, err := disk.Exists(dir); !ok {
		return err
	}
	if err := p.cfg.Driver.Destroy(ctx, filepath.Join(dir, dataName)); err != nil {
		return err
	}
	if err := p.failpoint(FailpointDestroyed); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := p.failpoint(FailpointRemoved); err != nil {
		return err
	}
	return disk.SyncDir(p.volumes)
}

// lock takes a volume's lock, which its Postgres holds as long as any process
// of it lives. A volume without the file has never run.
func lock(id, path string) (unlock func(), err error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return func() {}, nil
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	err = unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, errors.Join(pgbough.Errorf(pgbough.ELocked, "a Postgres runs on volume %s", id).
			WithHint("stop it first"), f.Close())
	}
	if err != nil {
		return nil, errors.Join(&os.PathError{Op: "lock", Path: path, Err: err}, f.Close())
	}
	return func() { _ = f.Close() }, nil // nothing was written
}
