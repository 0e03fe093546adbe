package pgbough

import "time"

// ProjectState is where a project is in its life.
type ProjectState string

// The states of a project.
const (
	ProjectAttaching ProjectState = "attaching" // its base backup is not finished
	ProjectActive    ProjectState = "active"
	ProjectDeleting  ProjectState = "deleting"
)

// Project is one production and all branches of it.
type Project struct {
	ID           string
	Name         string // unique
	State        ProjectState
	Source       Source
	RootBranchID string
	// DefaultRole and DefaultDatabase are what a connection URI names when
	// nobody says otherwise.
	DefaultRole     string
	DefaultDatabase string
	History         time.Duration // how far back it can be branched; 0 is not at all
	CreatedAt       time.Time
}

// Source is the production server that a project follows.
type Source struct {
	ConnString     string // libpq form, with its password: a secret
	SystemID       uint64
	Major          int    // 15
	Version        string // "15.18"
	Timeline       uint32
	Superuser      string // its bootstrap superuser (oid 10), "postgres" nearly everywhere
	Slot           string // our physical slot on it; empty with a RestoreCommand
	RestoreCommand string
	MaxRate        int64 // bytes a second of the base backup; 0 is unlimited
	// AcceptUnlimitedSlot keeps a slot although max_slot_wal_keep_size is -1.
	AcceptUnlimitedSlot bool
	// Settings are production's when it was last asked for them.
	Settings []Setting
}

// Setting is one row of pg_settings. All fields are as Postgres shows them:
// Value is in Unit ("8kB", "ms"), which is empty for settings without one.
type Setting struct {
	Name     string `json:"name"`
	Value    string `json:"value"`
	Unit     string `json:"unit,omitempty"`
	Category string `json:"category"`
	Context  string `json:"context"`
	Source   string `json:"source"`
	VarType  string `json:"vartype"`
}

// FollowerState is what the follower of a project does now.
type FollowerState string

// The states of a follower.
const (
	FollowerStarting     FollowerState = "starting"
	FollowerStreaming    FollowerState = "streaming"
	FollowerDisconnected FollowerState = "disconnected" // production cannot be reached; it goes on by itself
	FollowerBroken       FollowerState = "broken"       // it cannot go on by itself; Reason says what to do
	FollowerStopped      FollowerState = "stopped"
)

// FollowerStatus tells how far the follower of a project is.
type FollowerStatus struct {
	State    FollowerState
	Reason   string // why it is not streaming and what to do; empty while it streams
	Replay   LSN
	Received LSN
	Redo     LSN // of its last restartpoint: what a new spare replays from
	Timeline uint32
	// SourceLSN is production's flush position when it last answered, at AskedAt.
	SourceLSN  LSN
	SourceTime time.Time // by production's clock, right after
	AskedAt    time.Time
	LagBytes   int64
	LagSeconds float64
}

// SpareState is where a spare is in its life.
type SpareState string

// The states of a spare.
const (
	SpareFilling SpareState = "filling" // it replays what production wrote since its checkpoint
	SpareReady   SpareState = "ready"   // it streams and can be promoted
	SpareTaken   SpareState = "taken"   // an operation is making a branch of it
	SpareClone   SpareState = "clone"   // it streams no more: a clone of a clean point, made ahead
)

// Spare is a clone of the follower that keeps streaming, or (SpareClone) one of a
// clean point whose Postgres runs.
type Spare struct {
	VolumeID  string
	ProjectID string
	State     SpareState
	Redo      LSN // where its replay began
	CreatedAt time.Time
	ReadyAt   time.Time
}
