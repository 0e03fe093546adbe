package neonapi

import (
	"time"

	"github.com/pgbough/pgbough"
)

// Status answers GET /status: the whole server at one moment.
type Status struct {
	Version  string          `json:"version"`
	Projects []ProjectStatus `json:"projects"`
	Pool     Pool            `json:"pool"` // without its volumes
	Notes    []string        `json:"notes"`
}

// ProjectStatus is one project at one moment.
type ProjectStatus struct {
	ID       string               `json:"id"`
	Name     string               `json:"name"`
	State    pgbough.ProjectState `json:"state"`
	Follower Follower             `json:"follower"`
	Spares   Spares               `json:"spares"`
	Branches int                  `json:"branches"`
	Source   Source               `json:"source"`
}

// Follower tells how far the follower of a project is.
type Follower struct {
	State       pgbough.FollowerState `json:"state"`
	Reason      string                `json:"reason,omitempty"`
	ReplayLSN   pgbough.LSN           `json:"replay_lsn,omitzero"`
	ReceivedLSN pgbough.LSN           `json:"received_lsn,omitzero"`
	RedoLSN     pgbough.LSN           `json:"redo_lsn,omitzero"`
	Timeline    uint32                `json:"timeline,omitempty"`
	SourceLSN   pgbough.LSN           `json:"source_lsn,omitzero"`
	AskedAt     time.Time             `json:"asked_at,omitzero"`
	LagBytes    int64                 `json:"lag_bytes"`
	LagSeconds  float64               `json:"lag_seconds"`
}

// Spares counts a project's spares and lists them.
type Spares struct {
	Ready  int     `json:"ready"`
	Wanted int     `json:"wanted"`
	List   []Spare `json:"list"`
}

// Spare is a clone of the follower that keeps streaming.
type Spare struct {
	VolumeID  string             `json:"volume_id"`
	State     pgbough.SpareState `json:"state"`
	RedoLSN   pgbough.LSN        `json:"redo_lsn,omitzero"`
	CreatedAt time.Time          `json:"created_at"`
	ReadyAt   time.Time          `json:"ready_at,omitzero"`
}

// Pool tells where the bytes are.
type Pool struct {
	Kind         string   `json:"kind"`
	Path         string   `json:"path"`
	Image        string   `json:"image,omitempty"`
	SizeBytes    int64    `json:"size_bytes"`
	UsedBytes    int64    `json:"used_bytes"`
	FreeBytes    int64    `json:"free_bytes"`
	ReserveBytes int64    `json:"reserve_bytes"`
	Volumes      []Volume `json:"volumes,omitzero"`
}

// Volume is one volume of the pool. Known is false for one that the catalog
// does not name; only prune removes such.
type Volume struct {
	ID           string `json:"id"`
	Role         string `json:"role,omitempty"`
	Project      string `json:"project,omitempty"`
	Branch       string `json:"branch,omitempty"`
	OwnBytes     int64  `json:"own_bytes"`
	LogicalBytes int64  `json:"logical_bytes"`
	Known        bool   `json:"known"`
}

// PoolResponse answers GET /pool.
type PoolResponse struct {
	Pool Pool `json:"pool"`
}

// ResizeRequest is the body of POST /pool/resize, which is answered as GET
// /pool, without volumes.
type ResizeRequest struct {
	SizeBytes int64 `json:"size_bytes"`
}

// PruneRequest is the body of POST /pool/prune.
type PruneRequest struct {
	DryRun bool `json:"dry_run"`
}

// PruneResponse answers POST /pool/prune: the volumes that were removed, or
// would be.
type PruneResponse struct {
	DryRun  bool     `json:"dry_run"`
	Volumes []Volume `json:"volumes"`
}
