package volume

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/volume/disk"
)

const (
	// identityName is the file that makes a directory a pool.
	identityName = "pool.json"
	// identityFormat tells a pool from any other file of that name.
	identityFormat = "pgbough pool"
	// poolVersion is the format of a pool's directory: 1 is the first.
	poolVersion = 1
)

// Identity is what pool.json says of a pool.
type Identity struct {
	Format    string    `json:"format"`
	Version   int       `json:"version"`
	ID        string    `json:"id"`
	Kind      string    `json:"kind"` // the driver that made its volumes
	CreatedAt time.Time `json:"created_at"`
}

// ReadIdentity reads what dir says of itself; it is fs.ErrNotExist where dir is
// no pool yet.
func ReadIdentity(dir string) (Identity, error) {
	path := filepath.Join(dir, identityName)
	b, err := os.ReadFile(path)
	if err != nil {
		return Identity{}, fmt.Errorf("read pool: %w", err)
	}
	var id Identity
	if err := json.Unmarshal(b, &id); err != nil || id.Format != identityFormat || id.ID == "" {
		return Identity{}, pgbough.Errorf(pgbough.EConflict, "%s does not describe a pool of pgbough", path).
			WithHint("choose another directory for the pool, or put the file back")
	}
	if id.Version != poolVersion {
		return Identity{}, pgbough.Errorf(pgbough.EConflict, "the pool in %s has format version %d, and this pgbough knows %d", dir, id.Version, poolVersion).
			WithHint("use the version of pgbough that made it")
	}
	return id, nil
}

// identify reads or makes the identity of the pool in cfg.Dir.
func identify(cfg Config) (Identity, error) {
	id, err := ReadIdentity(cfg.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return establish(cfg)
	}
	if err != nil {
		return Identity{}, err
	}
	if kind := cfg.Driver.Kind(); id.Kind != kind {
		return Identity{}, pgbough.Errorf(pgbough.EConflict, "the pool in %s was made by driver %s, not %s", cfg.Dir, id.Kind, kind).
			WithHint("start with --pool %s, or choose another directory", id.Kind)
	}
	if cfg.PoolID != "" && id.ID != cfg.PoolID {
		return Identity{}, pgbough.Errorf(pgbough.EConflict, "%s holds pool %s, but the catalog belongs to pool %s", cfg.Dir, id.ID, cfg.PoolID).
			WithHint("mount the right file system there, or use the data directory that belongs to it")
	}
	return id, nil
}

// establish makes an empty directory a pool.
func establish(cfg Config) (Identity, error) {
	if cfg.PoolID != "" {
		return Identity{}, pgbough.Errorf(pgbough.EConflict, "%s is empty, but the catalog belongs to pool %s", cfg.Dir, cfg.PoolID).
			WithHint("mount the pool's file system there")
	}
	switch names, err := os.ReadDir(filepath.Join(cfg.Dir, volumesName)); {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return Identity{}, fmt.Errorf("make pool: %w", err)
	case len(names) > 0:
		return Identity{}, pgbough.Errorf(pgbough.EConflict, "%s has volumes but no %s", cfg.Dir, identityName).
			WithHint("put the file back, or choose another directory for the pool")
	}
	id := Identity{
		Format:    identityFormat,
		Version:   poolVersion,
		ID:        "pool-" + strings.ToLower(rand.Text()[:16]),
		Kind:      cfg.Driver.Kind(),
		CreatedAt: time.Now().UTC(),
	}
	b, err := json.MarshalIndent(id, "", "  ")
	if err != nil {
		return Identity{}, fmt.Errorf("encode pool: %w", err)
	}
	if err := disk.WriteFile(filepath.Join(cfg.Dir, identityName), append(b, '\n'), 0o600); err != nil {
		return Identity{}, fmt.Errorf("make pool: %w", err)
	}
	return id, nil
}
