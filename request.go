package pgbough

import "time"

// SourceRequest says how to reach production (ConnString, a secret) and how to
// follow it.
type SourceRequest struct {
	ConnString          string
	RestoreCommand      string
	MaxRate             int64 // bytes a second; 0 is unlimited
	AcceptUnlimitedSlot bool
}

// CheckRequest asks whether a source could be attached.
type CheckRequest struct {
	SourceRequest
	Role     string
	Database string
}

// CheckReport is what a check found.
type CheckReport struct {
	Findings []Finding
	Facts    CheckFacts
}

// CheckFacts is what production said about itself; zero when it could not be
// asked.
type CheckFacts struct {
	SystemID  uint64
	Version   string // "15.18"
	Timeline  uint32
	DataBytes int64
	Databases []string
}

// AttachRequest describes the project that is wanted. Role and Database are
// what connection URIs name by default.
type AttachRequest struct {
	Name string
	SourceRequest
	Role     string
	Database string
	History  *time.Duration // nil is the default
}

// CreateRequest describes the branch that is wanted.
type CreateRequest struct {
	Name      string
	Parent    string    // id or name; empty is the root branch
	At        Past      // zero is now
	ExpiresAt time.Time // zero is never
	Protected bool
	// SuspendAfter is how long its compute may be idle; nil is the server's default.
	SuspendAfter *time.Duration
	// MaxLag allows a state that is older than the request by so much.
	MaxLag time.Duration
	// Reuse asks for the branch of that name if there is one already.
	Reuse bool
}

// Created is a branch that was asked for. It is in state init until Operation
// is finished, and has no roles before that.
type Created struct {
	Branch    BranchView
	Operation Operation // zero if the branch was there already (Reuse)
}

// BranchView is a branch as it is now.
type BranchView struct {
	Branch
	Compute ComputeState
	// Host is the name of its endpoint for clients. Empty gives one that
	// resolves nowhere.
	Host         string
	OwnBytes     int64  // what no other volume shares
	LimitBytes   int64  // what it may hold of its own; zero is no limit
	LogicalBytes int64  // what it would be as a full copy
	Path         string // the directory of its volume
	// Notes tell what went wrong with its Postgres, such as a limit that it ran into.
	Notes        []string
	Endpoint     Endpoint
	SuspendAfter time.Duration // in force; SuspendNever is never
	BehindBytes  int64         // WAL that the root branch has replayed since it was cut
}

// Connection is one way to connect to a branch. All of it is secret.
type Connection struct {
	URI      string
	Host     string // a host name, or the directory of a Unix socket
	Port     string // empty is 5432
	Role     string
	Password string
	Database string
	Options  string // libpq's options
	SSLMode  string
}
