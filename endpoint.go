package pgbough

import "time"

// Endpoint is the stable address of a branch, with what must be remembered of
// the compute behind it.
type Endpoint struct {
	ID       string
	BranchID string
	// Awake tells that a Postgres should run. It is false only between a clean
	// shutdown, at which all verifiers were kept, and the next start.
	Awake bool
	// SuspendAfter is how long the compute may be idle before it is suspended:
	// SuspendByDefault as the server is told, SuspendNever not at all.
	SuspendAfter time.Duration
	LastActive   time.Time // when it was suspended last, as far as clients go
	// Restarts counts how often its Postgres ended by itself; Failure is what
	// was known of the last time, at FailedAt.
	Restarts int
	FailedAt time.Time
	Failure  string
}

// Values of Endpoint.SuspendAfter that are no time.
const (
	SuspendByDefault time.Duration = -1
	SuspendNever     time.Duration = 0
)

// Route is what a client's name for a branch leads to.
type Route struct {
	ProjectID   string
	ProjectName string
	BranchID    string
	BranchName  string
	EndpointID  string
	State       BranchState
	VolumeID    string
	Major       int // of the branch's Postgres
}

// BranchChange is what should be changed of a branch; nil leaves it as it is.
type BranchChange struct {
	Name         *string
	ExpiresAt    *time.Time // zero: never
	SuspendAfter *time.Duration
	Protected    *bool
}
