package pgbough

import "time"

// BranchState is where a branch is in its life, in Neon's words.
type BranchState string

// The states of a branch.
const (
	BranchInit     BranchState = "init"
	BranchReady    BranchState = "ready"
	BranchDeleting BranchState = "deleting"
)

// ComputeState tells whether a Postgres serves a branch, in Neon's words.
type ComputeState string

// The states of a compute.
const (
	ComputeInit   ComputeState = "init"
	ComputeActive ComputeState = "active"
	ComputeIdle   ComputeState = "idle" // no process
)

// RootBranchName is the name of every project's root branch.
const RootBranchName = "main"

// Branch is a node of a project's tree. The root branch has no parent and no
// endpoint: its volume is the follower's.
type Branch struct {
	ID        string
	ProjectID string
	Name      string // unique in its project
	State     BranchState
	ParentID  string
	// ParentLSN is where the branch leaves its parent: the switch point in its
	// timeline's history file. ParentTime is the commit stamp of the last
	// transaction it contains.
	ParentLSN  LSN
	ParentTime time.Time
	VolumeID   string
	EndpointID string
	CreatedAt  time.Time
	ExpiresAt  time.Time // zero: never
	Protected  bool      // it is neither deleted nor does it expire
	// Settled tells that what quarantine cut out is in no file any more, and that a crash replays nothing.
	Settled bool
	// Settings are production's when the branch was cut.
	Settings []Setting
	// Differences lists what in the branch is not as it is in production.
	Differences []Difference
}

// Difference is one thing in a branch that is not as it is in production, by
// nature (unlogged tables) or by quarantine (a subscription taken away).
type Difference struct {
	Kind   string `json:"kind"`               // "subscription", "unlogged_table", "preload_library", ...
	Object string `json:"object"`             // its name, qualified: "shop.public.cart"
	Action string `json:"action"`             // what was done: "dropped", "emptied", "disabled", "not loaded", ...
	Reason string `json:"reason"`             // why, in a sentence
	Detail string `json:"detail,omitempty"`   // what a person needs to put it back, never a secret
	DB     string `json:"database,omitempty"` // where it is, for objects of one database
}

// Role is a login role of a branch with the password that pgbough gave it.
type Role struct {
	BranchID string
	Name     string
	Password string // a secret
}

// NameRule says in words what CheckName accepts.
const NameRule = "1 to 63 letters, digits, '.', '_', '-' or '/', starting with a letter or a digit"

// CheckName tells whether s can be the name of a project or a branch.
func CheckName(s string) error {
	ok := len(s) >= 1 && len(s) <= 63
	for i, c := range []byte(s) {
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || c != '.' && c != '_' && c != '-' && c != '/') {
			ok = false
		}
	}
	if !ok {
		return Errorf(EInvalid, "%q cannot be a name: want %s", s, NameRule)
	}
	return nil
}
