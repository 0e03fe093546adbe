package neonapi

import (
	"time"

	"github.com/pgbough/pgbough"
)

// Project is one production and all branches of it.
type Project struct {
	ID             string    `json:"id"`
	PlatformID     string    `json:"platform_id"`
	RegionID       string    `json:"region_id"`
	Name           string    `json:"name"`
	Provisioner    string    `json:"provisioner"`
	PgVersion      int       `json:"pg_version"`
	ProxyHost      string    `json:"proxy_host"`
	CreationSource string    `json:"creation_source"`
	OwnerID        string    `json:"owner_id"`
	StorePasswords bool      `json:"store_passwords"`
	CreatedAt      time.Time `json:"created_at"`
	UpdatedAt      time.Time `json:"updated_at"`

	BranchLogicalSizeLimit      int64 `json:"branch_logical_size_limit"`
	BranchLogicalSizeLimitBytes int64 `json:"branch_logical_size_limit_bytes"`
	HistoryRetentionSeconds     int64 `json:"history_retention_seconds"`
	ActiveTime                  int64 `json:"active_time"`
	ActiveTimeSeconds           int64 `json:"active_time_seconds"`
	CPUUsedSec                  int64 `json:"cpu_used_sec"`
	ComputeTimeSeconds          int64 `json:"compute_time_seconds"`
	WrittenDataBytes            int64 `json:"written_data_bytes"`
	DataTransferBytes           int64 `json:"data_transfer_bytes"`
	DataStorageBytesHour        int64 `json:"data_storage_bytes_hour"`
	// The consumption period is what Neon bills; here it is the project's life.
	ConsumptionPeriodStart time.Time `json:"consumption_period_start"`
	ConsumptionPeriodEnd   time.Time `json:"consumption_period_end"`

	// pgbough's own.
	State           pgbough.ProjectState `json:"state"`
	RootBranchID    string               `json:"root_branch_id"`
	DefaultRole     string               `json:"default_role,omitempty"`
	DefaultDatabase string               `json:"default_database,omitempty"`
	Source          Source               `json:"source"`
}

// Source is the production server of a project, without any secret.
type Source struct {
	Hosts               []string `json:"hosts"` // host:port, or a socket's path
	Role                string   `json:"role,omitempty"`
	Database            string   `json:"database,omitempty"`
	SystemID            string   `json:"system_id,omitempty"` // 64 bits do not fit a JavaScript number
	PostgresVersion     string   `json:"postgres_version,omitempty"`
	Timeline            uint32   `json:"timeline,omitempty"`
	Slot                string   `json:"slot,omitempty"`
	RestoreCommand      string   `json:"restore_command,omitempty"`
	MaxRateBytes        int64    `json:"max_rate_bytes,omitempty"` // a second
	AcceptUnlimitedSlot bool     `json:"accept_unlimited_slot,omitempty"`
}

// SourceRequest says how to reach production and how to follow it.
type SourceRequest struct {
	ConnectionString    string `json:"connection_string"`
	RestoreCommand      string `json:"restore_command,omitempty"`
	MaxRateBytes        int64  `json:"max_rate_bytes,omitempty"` // a second; 0 is unlimited
	AcceptUnlimitedSlot bool   `json:"accept_unlimited_slot,omitempty"`
}

// CreateProjectRequest is the body of POST /projects. Neon makes an empty
// database; pgbough attaches to Source, which must therefore be there.
type CreateProjectRequest struct {
	Project struct {
		Name   string         `json:"name"`
		Source *SourceRequest `json:"source,omitempty"`
		// HistoryRetentionSeconds is how far back it can be branched; 0 is not at all.
		HistoryRetentionSeconds *float64 `json:"history_retention_seconds,omitempty"`
		Branch                  struct {
			RoleName     string `json:"role_name,omitempty"`
			DatabaseName string `json:"database_name,omitempty"`
		} `json:"branch"`
	} `json:"project"`
}

// CreatedProject answers POST /projects. All keys are required.
type CreatedProject struct {
	Project        Project             `json:"project"`
	ConnectionURIs []ConnectionDetails `json:"connection_uris"`
	Roles          []Role              `json:"roles"`
	Databases      []Database          `json:"databases"`
	Operations     []Operation         `json:"operations"`
	Branch         Branch              `json:"branch"`
	Endpoints      []Endpoint          `json:"endpoints"`
}

// ProjectResponse answers GET, PATCH and DELETE of one project.
type ProjectResponse struct {
	Project    Project     `json:"project"`
	Operations []Operation `json:"operations,omitzero"`
}

// ProjectList answers GET /projects.
type ProjectList struct {
	Projects     []Project  `json:"projects"`
	Pagination   Pagination `json:"pagination"`
	Applications struct{}   `json:"applications"`
	Integrations struct{}   `json:"integrations"`
}

// UpdateProjectRequest is the body of PATCH /projects/{p}.
type UpdateProjectRequest struct {
	Project struct {
		HistoryRetentionSeconds *float64 `json:"history_retention_seconds,omitempty"`
	} `json:"project"`
}

// SetSourceRequest is the body of PATCH /projects/{p}/source.
type SetSourceRequest struct {
	Source SourceRequest `json:"source"`
}

// CheckRequest is the body of POST /check.
type CheckRequest struct {
	Source   SourceRequest `json:"source"`
	Role     string        `json:"role,omitempty"`
	Database string        `json:"database,omitempty"`
}

// CheckReport answers POST /check: everything that attach would need.
type CheckReport struct {
	OK       bool              `json:"ok"` // attach would not be refused
	Findings []pgbough.Finding `json:"findings"`
	Facts    *CheckFacts       `json:"facts,omitempty"` // not there when production could not be asked
}

// CheckFacts is what production said about itself.
type CheckFacts struct {
	SystemID        string   `json:"system_id,omitempty"`
	PostgresVersion string   `json:"postgres_version,omitempty"`
	Timeline        uint32   `json:"timeline,omitempty"`
	DataBytes       int64    `json:"data_bytes,omitempty"`
	Databases       []string `json:"databases,omitempty"`
}
