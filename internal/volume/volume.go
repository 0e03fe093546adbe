// Package volume keeps copy-on-write directories, each with one PGDATA.
//
// A pool is a directory with an id (pool.json); its volumes stand in
// volumes/<id>/ with a manifest beside the data, never inside, that says whose
// it is. A Driver makes, clones and destroys the data directory in the way of
// one file system; everything else (ids, manifests, crash safety, space) is the
// pool's.
package volume

import (
	"context"
	"errors"
	"time"
)

// Driver is copy-on-write in the way of one file system. Methods get absolute
// paths below the pool that the pool made up itself; they are called at most
// once at a time for the same path. volumetest holds every driver to this contract.
type Driver interface {
	// Kind is the name in pool.json and on the command line: btrfs, reflink, copy.
	Kind() string
	// Create makes an empty directory dir whose files can be cloned.
	Create(ctx context.Context, dir string) error
	// Clone makes dst a writable copy of the whole tree src, which nothing writes meanwhile: owners, modes, times,
	// symbolic links and empty directories are kept; sockets and FIFOs are left out. When it fails, dst may exist in part.
	Clone(ctx context.Context, src, dst string) error
	// Destroy removes dir and all below it. It succeeds when dir is not there, when it is there only in part,
	// when clones of it are alive, and on a full file system.
	Destroy(ctx context.Context, dir string) error
	// Usage measures dir.
	Usage(ctx context.Context, dir string) (Usage, error)
}

// Usage of a volume in bytes. OwnBytes is what no other volume shares, so what its removal would free.
type Usage struct {
	OwnBytes     int64
	LogicalBytes int64
}

// Space of a pool in bytes. Free is what new data may use before the reserve is touched.
type Space struct {
	Size, Used, Free, Reserve int64
}

// Role is what a volume is for.
type Role string

// The roles of a volume.
const (
	RoleRoot   Role = "root"
	RoleSpare  Role = "spare"
	RoleBranch Role = "branch"
	RolePoint  Role = "point"
)

// Manifest stands beside a volume's data and says whose it is, so that a pool can be understood without its catalog.
type Manifest struct {
	Version   int       `json:"version"`
	ID        string    `json:"id"`
	PoolID    string    `json:"pool_id"`
	CatalogID string    `json:"catalog_id"`
	ProjectID string    `json:"project_id"`
	Project   string    `json:"project"` // its name when the volume was made
	Role      Role      `json:"role"`
	Owner     string    `json:"owner,omitempty"`  // branch id, once it has one
	Parent    string    `json:"parent,omitempty"` // the volume it was cloned from
	CreatedAt time.Time `json:"created_at"`
}

// Volume is one volume of a pool.
type Volume struct {
	Manifest
	Dir  string // holds manifest.json, lock and data
	Data string // PGDATA
	Lock string // the file whose flock its postmaster holds
}

// ErrNotExist is returned for a volume that the pool does not have.
var ErrNotExist = errors.New("volume does not exist")
