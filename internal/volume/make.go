package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/volume/disk"
)

// Create makes an empty volume with the id, project and role of m; the pool
// fills in the rest. When the volume is there already, it is returned as it is.
// After an error the same call may be made again, or Destroy.
func (p *Pool) Create(ctx context.Context, m Manifest) (Volume, error) {
	m.Parent = ""
	v, err := p.make(ctx, m, func(data string) error {
		if err := p.cfg.Driver.Create(ctx, data); err != nil {
			return err
		}
		if p.cfg.UID == 0 && p.cfg.GID == 0 {
			return nil
		}
		return os.Lchown(data, p.cfg.UID, p.cfg.GID)
	})
	if err != nil {
		return Volume{}, fmt.Errorf("create volume %s: %w", m.ID, err)
	}
	return v, nil
}

// Clone makes a volume with the id, project and role of m and the content of
// the volume src, which nothing may write to meanwhile unless the driver takes
// snapshots. Otherwise it is as Create.
func (p *Pool) Clone(ctx context.Context, src string, m Manifest) (Volume, error) {
	m.Parent = src
	v, err := p.make(ctx, m, func(data string) error {
		release, err := p.holds.shared(ctx, src)
		if err != nil {
			return err
		}
		defer release()
		parent, err := p.Get(src)
		if err != nil {
			return err
		}
		return p.cfg.Driver.Clone(ctx, parent.Data, data)
	})
	if err != nil {
		return Volume{}, fmt.Errorf("clone volume %s to %s: %w", src, m.ID, err)
	}
	return v, nil
}

// make prepares a volume beside its place and renames it there when all of it
// is durable.
func (p *Pool) make(ctx context.Context, m Manifest, fill func(data string) error) (Volume, error) {
	if err := checkID(m.ID); err != nil {
		return Volume{}, err
	}
	if m.ID == m.Parent {
		return Volume{}, pgbough.Errorf(pgbough.EInvalid, "a volume cannot be a clone of itself")
	}
	release, err := p.holds.exclusive(ctx, m.ID)
	if err != nil {
		return Volume{}, err
	}
	defer release()

	m.Version, m.PoolID, m.CatalogID = manifestVersion, p.identity.ID, p.cfg.CatalogID
	final := filepath.Join(p.volumes, m.ID)
	if v, done, err := p.made(final, m); done || err != nil {
		return v, err
	}
	m.CreatedAt = time.Now().UTC()
	if err := p.prepare(ctx, volumeIn(final+makingTail, m), fill); err != nil {
		return Volume{}, err
	}
	if err := disk.Rename(final+makingTail, final); err != nil {
		return Volume{}, err
	}
	if err := p.failpoint(FailpointRenamed); err != nil {
		return Volume{}, err
	}
	return volumeIn(final, m), nil
}

// made looks for a finished volume that an earlier call with m made.
func (p *Pool) made(dir string, m Manifest) (Volume, bool, error) {
	switch dead, err := disk.Exists(dir + goneTail); {
	case err != nil:
		return Volume{}, false, err
	case dead:
		return Volume{}, false, pgbough.Errorf(pgbough.EConflict, "volume %s is being destroyed", m.ID)
	}
	v, err := readVolume(dir, m.ID)
	if errors.Is(err, ErrNotExist) {
		return Volume{}, false, nil
	}
	if err != nil {
		return Volume{}, false, err
	}
	if v.PoolID != m.PoolID || v.CatalogID != m.CatalogID || v.ProjectID != m.ProjectID || v.Parent != m.Parent {
		return Volume{}, false, pgbough.Errorf(pgbough.EConflict, "volume %s exists and is another one (project %q, clone of %q)", v.ID, v.Project, v.Parent)
	}
	return v, true, disk.SyncDir(p.volumes) // a crash may have come between rename and sync
}

// prepare makes v in its temporary place, after it has removed what an earlier
// call left there.
func (p *Pool) prepare(ctx context.Context, v Volume, fill func(data string) error) error {
	if err := p.remove(ctx, v.Dir); err != nil {
		return err
	}
	if err := os.Mkdir(v.Dir, 0o711); err != nil {
		return err
	}
	if err := os.Chmod(v.Dir, 0o711); err != nil { // whatever the umask is
		return err
	}
	if err := p.failpoint(FailpointMade); err != nil {
		return err
	}
	if err := fill(v.Data); err != nil {
		return err
	}
	if err := p.failpoint(FailpointData); err != nil {
		return err
	}
	if err := disk.CreateFile(v.Lock, 0o600); err != nil {
		return err
	}
	if err := writeManifest(v.Dir, v.Manifest); err != nil { // syncs the directory
		return err
	}
	return p.failpoint(FailpointManifest)
}
