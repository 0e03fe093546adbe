package postgres

import (
	"context"
	"errors"
	"os"
	"syscall"
)

// ErrLocked says that something still runs on a volume, so that nothing else
// may start on it.
var ErrLocked = errors.New("the volume's lock is held")

// Spec is what a Launcher needs to start one postmaster. All paths are on the
// host; the Launcher decides where they appear to the process, and Args are
// written for the inside (see Inside).
type Spec struct {
	ID       string   // the volume's id; names the process for Find
	BinDir   string   // directory of the postgres binary
	DataDir  string   // PGDATA, read-write
	EtcDir   string   // our configuration files, read-only
	Socket   string   // directory for its unix socket, read-write
	Relay    string   // directory with the relay's socket, read-only; empty without
	LogFile  string   // stdout and stderr are appended to it
	LockFile string   // held with flock(2) by the process for its whole life
	Args     []string // of postgres
	Env      []string
	Limits   Limits
	// Prepare, if given, is called once the lock is held and before anything else: what it changes cannot be a running postmaster's.
	Prepare func() error `json:"-"`
}

// Limits is what all processes of one Postgres together may use. A zero leaves it open.
type Limits struct {
	Memory    int64   // bytes, its shared memory and what it has of the page cache included
	CPUs      float64 // how many at most
	Processes int64
	Favoured  bool // gets more than others when CPUs are scarce
}

// Inside tells where a Launcher shows the directories of a Spec to the process.
type Inside struct {
	DataDir, EtcDir, Socket, Relay string
}

// Launcher starts postmasters and finds those that an earlier run of the
// server left behind.
type Launcher interface {
	// Inside tells the paths that Args and configuration files must use.
	Inside(Spec) Inside
	// Start starts postgres and returns once the process exists; it may not accept connections yet. It fails with
	// ErrLocked while anything still holds LockFile, so one volume never has two postmasters.
	Start(ctx context.Context, spec Spec) (Process, error)
	// Find returns the running postmaster of the volume id, or false.
	Find(ctx context.Context, id string) (Process, bool, error)
	// List returns the ids of all volumes whose postmaster runs, also those that no catalog knows.
	List(ctx context.Context) ([]string, error)
}

// Process is one running postmaster with all its children. Methods are safe
// for concurrent use, and do nothing after its end.
type Process interface {
	PID() int // of the postmaster, as the host sees it
	Signal(sig syscall.Signal) error
	// Freeze stops every process of the sandbox and returns when none can write; Thaw lets them go on. Thaw of a
	// process that is not frozen does nothing.
	Freeze(ctx context.Context) error
	Thaw() error
	// Kill ends every process of the sandbox at once and waits for the end of the last.
	Kill(ctx context.Context) error
	Done() <-chan struct{} // closed when the last process of the sandbox has ended
	// Owns tells whether pid is a process of this sandbox, and uid is whom they all run as: for SO_PEERCRED of its
	// sockets.
	Owns(pid, uid int) bool
	// SetLimits gives it others; what they leave open stays as it is.
	SetLimits(Limits) error
	// MemoryKills is how many of its processes the kernel has killed because all of them used more than its memory
	// limit. It is told after its end too.
	MemoryKills() int
	// Refusals is how many processes the kernel has not started because there were as many as its limit allows.
	Refusals() int
}

// Credential is the uid and gid that all files of Postgres belong to. Inside its
// sandbox a postmaster runs as them; outside, a Launcher may give it others.
type Credential struct{ UID, GID int }

// Chown gives path to c, without following a symbolic link.
func (c Credential) Chown(path string) error { return os.Lchown(path, c.UID, c.GID) }
