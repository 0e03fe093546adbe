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
// paths below the pool that the pool made up itself, in directories that only
// root can change; what is inside of dir and src belongs to a possibly hostile
// user. A Driver is safe for concurrent use; the pool never lets two calls
// change the same path at a time, and clones one src many times at once.
// volumetest holds every driver to this contract.
type Driver interface {
	// Kind is the name in pool.json and on the command line: btrfs, reflink, copy, zfs.
	Kind() string
	// Create makes an empty directory dir whose files can be cloned. It is
	// durable when Create returns and dir's parent is synced.
	Create(ctx context.Context, dir string) error
	// Clone makes dst a writable copy of the whole tree src, which nothing
	// writes meanwhile (a driver that takes an atomic snapshot says so): owners,
	// modes, times, symbolic links and empty directories are kept; sockets and
	// FIFOs may be left out. It is durable when Clone returns and dst's parent is
	// synced. When it fails, dst may exist in part.
	Clone(ctx context.Context, src, dst string) error
	// CloneCost is about how many bytes a clone of src takes at once.
	CloneCost(ctx context.Context, src string) (int64, error)
	// Destroy removes dir and all below it. It succeeds when dir is not there, when it is there only in part,
	// when clones of it are alive, and on a full file system. Its space may come back a little later.
	Destroy(ctx context.Context, dir string) error
	// Usage measures dir, which may be written to meanwhile.
	Usage(ctx context.Context, dir string) (Usage, error)
}

// Mounter is a Driver whose volumes have to be mounted. After a reboot the pool
// calls Mount for each of them, finished or not; one that is mounted stays so.
type Mounter interface {
	Mount(ctx context.Context, dir string) error
}

// The kinds of drivers.
const (
	KindBtrfs   = "btrfs"
	KindReflink = "reflink"
	KindCopy    = "copy"
	KindZFS     = "zfs" // experimental
)

// Usage of a volume in bytes. OwnBytes is what no other volume shares, so what its removal would free;
// LogicalBytes is what a full copy of it would take.
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
	RolePast   Role = "past"  // a clone of the root as it once was
	RoleClone  Role = "clone" // of a point, for a branch that nobody has asked for yet
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

// State is what an Entry of a pool is.
type State string

// The states of an entry.
const (
	StateReady      State = "ready"
	StateMaking     State = "making"     // a create or clone that is not finished
	StateGone       State = "gone"       // a destroy that is not finished
	StateUnreadable State = "unreadable" // no volume, or its manifest cannot be read
)

// Entry is one thing found in a pool's volumes directory.
type Entry struct {
	ID     string // the file's own name when it is no volume
	State  State
	Volume Volume // its manifest is empty when that cannot be read
	Err    error  // why it is unreadable
}
