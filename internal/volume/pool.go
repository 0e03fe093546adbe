package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/volume/disk"
)

const (
	volumesName = "volumes" // the directory of all volumes, in the pool's
	makingTail  = ".tmp"    // of a volume that is not finished
	goneTail    = ".gone"   // of one that is being destroyed
)

// Config of a pool.
type Config struct {
	Dir    string // the pool's root; made if it is not there
	Driver Driver
	// CatalogID is written into manifests: Destroy touches no volume of another catalog.
	CatalogID string
	// PoolID, if given, is the only pool that Open accepts in Dir. It keeps a
	// server whose pool is not mounted from starting an empty one.
	PoolID string
	// Reserve is what Space keeps back for the followers, in bytes.
	Reserve int64
	// Size, if given, is the pool's: for file systems that tell only of a part of it.
	Size int64
	// Backing is a path on the file system that the pool grows into when it is a
	// sparse image file; its free space then bounds the pool's.
	Backing string
	// UID and GID own the data directories that Create makes; zero leaves them.
	UID, GID int
	Log      *slog.Logger
	// Failpoint, if given, is called between the steps of Create, Clone and
	// Destroy; when it fails, the call returns at once, as if killed there.
	Failpoint func(name string) error
}

// The failpoints, in the order in which they are passed. FailpointMade is only
// the directory; the data of FailpointData is complete but nothing is synced.
const (
	FailpointMade     = "volume:made"
	FailpointData     = "volume:data"
	FailpointManifest = "volume:manifest"
	FailpointRenamed  = "volume:renamed"

	FailpointTombstone = "volume:tombstone"
	FailpointDestroyed = "volume:destroyed"
	FailpointRemoved   = "volume:removed"
)

// Pool is a directory of volumes. All its methods may be called at the same
// time, and again after a crash in the middle of them: Create, Clone and
// Destroy then finish or redo what is left. Ids are the caller's, who has
// recorded them before.
type Pool struct {
	cfg      Config
	identity Identity
	volumes  string // the directory
	holds    holds

	manifests sync.Mutex // held to change a manifest
}

// Open opens the pool in cfg.Dir, or makes one there.
func Open(ctx context.Context, cfg Config) (*Pool, error) {
	// Computes pass through with the uid of their data; nobody can list.
	if err := mkdirAll(cfg.Dir, 0o711); err != nil {
		return nil, fmt.Errorf("open pool: %w", err)
	}
	identity, err := identify(cfg)
	if err != nil {
		return nil, err
	}
	p := &Pool{
		cfg:      cfg,
		identity: identity,
		volumes:  filepath.Join(cfg.Dir, volumesName),
		holds:    holds{of: make(map[string]*hold)},
	}
	if err := mkdirAll(p.volumes, 0o711); err != nil {
		return nil, fmt.Errorf("open pool: %w", err)
	}
	if err := disk.SyncDir(cfg.Dir); err != nil {
		return nil, fmt.Errorf("open pool: %w", err)
	}
	if err := p.mount(ctx); err != nil {
		return nil, fmt.Errorf("open pool: %w", err)
	}
	cfg.Log.InfoContext(ctx, "pool opened", "pool_id", identity.ID, "kind", identity.Kind, "dir", cfg.Dir)
	return p, nil
}

// mount mounts what a reboot has unmounted. One volume that cannot be mounted
// must not keep the others from being used.
func (p *Pool) mount(ctx context.Context) error {
	mounter, ok := p.cfg.Driver.(Mounter)
	if !ok {
		return nil
	}
	found, err := os.ReadDir(p.volumes)
	if err != nil {
		return err
	}
	for _, f := range found {
		data := filepath.Join(p.volumes, f.Name(), dataName)
		if ok, err := disk.Exists(data); !ok || err != nil {
			continue
		}
		if err := mounter.Mount(ctx, data); err != nil {
			p.cfg.Log.ErrorContext(ctx, "a volume cannot be mounted", "volume_id", IDOf(data), "err", err)
		}
	}
	return nil
}

// IDOf is the id of the volume whose data is at dir, finished or not; a dir of
// nobody's pool goes by its own name. It never changes while the data lives.
func IDOf(dir string) string {
	if filepath.Base(dir) != dataName {
		return filepath.Base(dir)
	}
	name := filepath.Base(filepath.Dir(dir))
	return strings.TrimSuffix(strings.TrimSuffix(name, makingTail), goneTail)
}

// mkdirAll makes dir with mode perm whatever the umask is; one that is there
// keeps its mode.
func mkdirAll(dir string, perm fs.FileMode) error {
	if ok, err := disk.Exists(dir); ok || err != nil {
		return err
	}
	if err := os.MkdirAll(dir, perm); err != nil {
		return err
	}
	return os.Chmod(dir, perm)
}

// ID is the pool's, from pool.json.
func (p *Pool) ID() string { return p.identity.ID }

// Kind is the driver's name.
func (p *Pool) Kind() string { return p.identity.Kind }

// Dir is the pool's root directory.
func (p *Pool) Dir() string { return p.cfg.Dir }

// checkID keeps everything but plain names out of paths.
func checkID(id string) error {
	ok := len(id) >= 1 && len(id) <= 40
	for _, c := range []byte(id) {
		ok = ok && (c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-')
	}
	if !ok {
		return pgbough.Errorf(pgbough.EInvalid, "%q cannot be the id of a volume", id)
	}
	return nil
}

func (p *Pool) failpoint(name string) error {
	if p.cfg.Failpoint == nil {
		return nil
	}
	return p.cfg.Failpoint(name)
}

// Get finds a volume that is ready. It is ErrNotExist when there is none.
func (p *Pool) Get(id string) (Volume, error) {
	if err := checkID(id); err != nil {
		return Volume{}, err
	}
	return readVolume(filepath.Join(p.volumes, id), id)
}

// List finds everything in the pool, unfinished and unreadable things too, in
// the order of their names. It changes nothing.
func (p *Pool) List() ([]Entry, error) {
	found, err := os.ReadDir(p.volumes)
	if err != nil {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	entries := make([]Entry, 0, len(found))
	for _, f := range found {
		entry := p.entry(f.Name())
		if !errors.Is(entry.Err, ErrNotExist) { // destroyed since ReadDir
			entries = append(entries, entry)
		}
	}
	return entries, nil
}

func (p *Pool) entry(name string) Entry {
	dir := filepath.Join(p.volumes, name)
	e := Entry{ID: name, State: StateReady}
	if id, ok := strings.CutSuffix(name, makingTail); ok {
		e.ID, e.State = id, StateMaking
	} else if id, ok := strings.CutSuffix(name, goneTail); ok {
		e.ID, e.State = id, StateGone
	}
	if err := checkID(e.ID); err != nil {
		return Entry{ID: name, State: StateUnreadable, Err: err}
	}
	if e.State == StateReady {
		e.Volume, e.Err = readVolume(dir, e.ID)
		if e.Err != nil {
			e.State, e.Volume = StateUnreadable, volumeIn(dir, Manifest{})
		}
		return e
	}
	m, err := readManifest(dir)
	if err != nil {
		m = Manifest{} // not written yet, or removed already
	}
	e.Volume = volumeIn(dir, m)
	return e
}

// SetRole durably makes a volume serve role for owner, a branch's id.
func (p *Pool) SetRole(ctx context.Context, id string, role Role, owner string) error {
	p.manifests.Lock()
	defer p.manifests.Unlock()
	v, err := p.Get(id)
	if err != nil {
		return fmt.Errorf("set role of volume: %w", err)
	}
	if v.Role == role && v.Owner == owner {
		return nil
	}
	v.Role, v.Owner = role, owner
	if err := writeManifest(v.Dir, v.Manifest); err != nil {
		return fmt.Errorf("set role of volume %s: %w", id, err)
	}
	p.cfg.Log.InfoContext(ctx, "volume has a new role", "volume_id", id, "role", role, "owner", owner)
	return nil
}

// Usage measures the volume id.
func (p *Pool) Usage(ctx context.Context, id string) (Usage, error) {
	v, err := p.Get(id)
	if err != nil {
		return Usage{}, err
	}
	usage, err := p.cfg.Driver.Usage(ctx, v.Data)
	if err != nil {
		return Usage{}, fmt.Errorf("usage of volume %s: %w", id, err)
	}
	return usage, nil
}
