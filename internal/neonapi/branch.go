package neonapi

import (
	"encoding/json"
	"time"

	"github.com/pgbough/pgbough"
)

// Branch is a node of a project's tree.
type Branch struct {
	ID                 string    `json:"id"`
	ProjectID          string    `json:"project_id"`
	ParentID           string    `json:"parent_id,omitempty"`
	ParentLSN          string    `json:"parent_lsn,omitempty"`
	ParentTimestamp    time.Time `json:"parent_timestamp,omitzero"`
	Name               string    `json:"name"`
	CurrentState       string    `json:"current_state"`
	StateChangedAt     time.Time `json:"state_changed_at"`
	LogicalSize        int64     `json:"logical_size,omitempty"` // bytes
	CreationSource     string    `json:"creation_source"`
	Primary            bool      `json:"primary"`
	Default            bool      `json:"default"`
	Protected          bool      `json:"protected"`
	CPUUsedSec         int64     `json:"cpu_used_sec"`
	ComputeTimeSeconds int64     `json:"compute_time_seconds"`
	ActiveTimeSeconds  int64     `json:"active_time_seconds"`
	WrittenDataBytes   int64     `json:"written_data_bytes"`
	DataTransferBytes  int64     `json:"data_transfer_bytes"`
	CreatedAt          time.Time `json:"created_at"`
	UpdatedAt          time.Time `json:"updated_at"`
	ExpiresAt          time.Time `json:"expires_at,omitzero"`
	InitSource         string    `json:"init_source,omitempty"`

	// pgbough's own.
	ComputeState string `json:"compute_state,omitempty"` // init, active, idle; the root branch has none
	// SuspendTimeoutSeconds is in force: also where it is the server's default. -1 is never.
	SuspendTimeoutSeconds float64   `json:"suspend_timeout_seconds,omitempty"`
	LastActive            time.Time `json:"last_active,omitzero"`
	BehindBytes           int64     `json:"behind_bytes,omitempty"` // WAL that its root branch has replayed since it was cut
	Restarts              int       `json:"restarts,omitempty"`     // times that its Postgres ended by itself
	LastFailure           string    `json:"last_failure,omitempty"`
	LastFailureAt         time.Time `json:"last_failure_at,omitzero"`
	OwnBytes              int64     `json:"own_bytes"`             // what no other volume shares
	LimitBytes            int64     `json:"limit_bytes,omitempty"` // what it may hold of its own; without it, no limit
	LogicalBytes          int64     `json:"logical_bytes"`         // what it would be as a full copy
	// Differences lists what in the branch is not as it is in production. Only
	// the answer for one branch has it.
	Differences []pgbough.Difference `json:"differences,omitempty"`
	// Path is the directory of its volume on the server's machine. Only the
	// answer for one branch has it.
	Path string `json:"path,omitempty"`
	// Notes tell what went wrong with its Postgres, such as a limit that it ran into.
	Notes []string `json:"notes,omitempty"`
}

// AnnotationObject names what an annotation belongs to.
type AnnotationObject struct {
	Type string `json:"type"`
	ID   string `json:"id"`
}

// Annotation is a set of labels on a branch.
type Annotation struct {
	Object AnnotationObject  `json:"object"`
	Value  map[string]string `json:"value"`
}

// BranchResponse answers GET, PATCH and DELETE of one branch. GET carries the
// annotation, the others the operations.
type BranchResponse struct {
	Branch     Branch      `json:"branch"`
	Annotation *Annotation `json:"annotation,omitempty"`
	Operations []Operation `json:"operations,omitzero"`
}

// BranchList answers GET /projects/{p}/branches. Annotations must be an object:
// Neon's command line looks every branch up in it.
type BranchList struct {
	Branches    []Branch              `json:"branches"`
	Annotations map[string]Annotation `json:"annotations"`
	Pagination  Pagination            `json:"pagination"`
}

// CreateBranchRequest is the body of POST /projects/{p}/branches. Neon's
// clients leave out whatever they have nothing to say for, the whole body too.
type CreateBranchRequest struct {
	Branch    CreateBranch     `json:"branch"`
	Endpoints []CreateEndpoint `json:"endpoints,omitempty"`
	// Reuse asks for the branch of that name if there is one already.
	Reuse bool `json:"reuse,omitempty"`
	// MaxLagSeconds allows a state that is older than the request by so much.
	MaxLagSeconds float64 `json:"max_lag_seconds,omitempty"`
}

// CreateBranch describes the branch that is wanted.
type CreateBranch struct {
	Name            string     `json:"name,omitempty"`
	ParentID        string     `json:"parent_id,omitempty"` // an id, or a name
	ParentLSN       string     `json:"parent_lsn,omitempty"`
	ParentTimestamp *time.Time `json:"parent_timestamp,omitempty"`
	InitSource      string     `json:"init_source,omitempty"`
	Protected       bool       `json:"protected,omitempty"`
	ExpiresAt       *time.Time `json:"expires_at,omitempty"`
	// TTLSeconds is an expiry by the server's clock, so that it does not matter
	// what the client's says.
	TTLSeconds float64 `json:"ttl_interval_seconds,omitempty"`
}

// CreateEndpoint describes an endpoint that is wanted with a branch.
type CreateEndpoint struct {
	Type string `json:"type"`
	// SuspendTimeoutSeconds is how long its compute may be idle; 0 is the
	// server's default, -1 never.
	SuspendTimeoutSeconds *float64 `json:"suspend_timeout_seconds,omitempty"`
}

// CreatedBranch answers POST /projects/{p}/branches. While the branch is still
// being made it is in state init and ConnectionURIs is empty.
type CreatedBranch struct {
	Branch         Branch              `json:"branch"`
	Endpoints      []Endpoint          `json:"endpoints"`
	Operations     []Operation         `json:"operations"`
	Roles          []Role              `json:"roles"`
	Databases      []Database          `json:"databases"`
	ConnectionURIs []ConnectionDetails `json:"connection_uris"`
}

// UpdateBranchRequest is the body of PATCH on a branch. ExpiresAt is looked at
// as it was written: not there leaves the expiry, null takes it away.
type UpdateBranchRequest struct {
	Branch struct {
		Name       *string         `json:"name,omitempty"`
		Protected  *bool           `json:"protected,omitempty"`
		ExpiresAt  json.RawMessage `json:"expires_at,omitempty"`
		TTLSeconds float64         `json:"ttl_interval_seconds,omitempty"`
		// SuspendTimeoutSeconds is pgbough's own here: Neon has it on the endpoint.
		SuspendTimeoutSeconds *float64 `json:"suspend_timeout_seconds,omitempty"`
	} `json:"branch"`
}
