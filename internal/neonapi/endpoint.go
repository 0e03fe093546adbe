package neonapi

import "time"

// Endpoint is the stable address of a branch. Host contains ID and a dot,
// because clients build other host names from it by replacing ID.
type Endpoint struct {
	ID                    string    `json:"id"`
	Host                  string    `json:"host"`
	ProjectID             string    `json:"project_id"`
	BranchID              string    `json:"branch_id"`
	RegionID              string    `json:"region_id"`
	Type                  string    `json:"type"`
	CurrentState          string    `json:"current_state"`
	AutoscalingLimitMinCU float64   `json:"autoscaling_limit_min_cu"`
	AutoscalingLimitMaxCU float64   `json:"autoscaling_limit_max_cu"`
	PoolerEnabled         bool      `json:"pooler_enabled"`
	PoolerMode            string    `json:"pooler_mode"`
	Disabled              bool      `json:"disabled"`
	PasswordlessAccess    bool      `json:"passwordless_access"`
	CreationSource        string    `json:"creation_source"`
	CreatedAt             time.Time `json:"created_at"`
	UpdatedAt             time.Time `json:"updated_at"`
	Settings              struct{}  `json:"settings"`
	ProxyHost             string    `json:"proxy_host"`
	// SuspendTimeoutSeconds is how long its compute may be idle; 0 is the
	// server's default, -1 never.
	SuspendTimeoutSeconds float64   `json:"suspend_timeout_seconds"`
	LastActive            time.Time `json:"last_active,omitzero"`
	Provisioner           string    `json:"provisioner"`
}

// EndpointResponse answers GET and PATCH of one endpoint, and start and suspend.
type EndpointResponse struct {
	Endpoint   Endpoint    `json:"endpoint"`
	Operations []Operation `json:"operations,omitzero"`
}

// UpdateEndpointRequest is the body of PATCH on an endpoint.
type UpdateEndpointRequest struct {
	Endpoint struct {
		SuspendTimeoutSeconds *float64 `json:"suspend_timeout_seconds,omitempty"`
	} `json:"endpoint"`
}

// EndpointList answers GET .../endpoints.
type EndpointList struct {
	Endpoints []Endpoint `json:"endpoints"`
}

// Role is a login role of a branch. Password, a secret, is there only where a
// branch was just made.
type Role struct {
	BranchID  string    `json:"branch_id"`
	Name      string    `json:"name"`
	Password  string    `json:"password,omitempty"`
	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`
}

// RoleList answers GET .../roles.
type RoleList struct {
	Roles []Role `json:"roles"`
}

// RoleResponse answers GET .../roles/{role}.
type RoleResponse struct {
	Role Role `json:"role"`
}

// Password answers GET .../roles/{role}/reveal_password.
type Password struct {
	Password string `json:"password"`
}

// Database is a database of a branch.
type Database struct {
	ID        int64     `json:"id"`
	BranchID  string    `json:"branch_id"`
	Name      string    `json:"name"`
	OwnerName string    `json:"owner_name"`
	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`
}

// ConnectionDetails is one way to connect to a branch.
type ConnectionDetails struct {
	ConnectionURI        string               `json:"connection_uri"`
	ConnectionParameters ConnectionParameters `json:"connection_parameters"`
	Libpq                Libpq                `json:"libpq"` // pgbough's own
}

// ConnectionParameters are the parts of a connection URI, with the endpoint's
// host name.
type ConnectionParameters struct {
	Database   string `json:"database"`
	Password   string `json:"password"`
	Role       string `json:"role"`
	Host       string `json:"host"`
	PoolerHost string `json:"pooler_host"`
}

// Libpq holds the same connection as libpq's connection parameters, by libpq's
// names, for programs that are told by PGHOST and its like. What is empty need
// not be given.
type Libpq struct {
	Host     string `json:"host"` // a name, or the directory of a Unix socket
	Port     string `json:"port,omitempty"`
	User     string `json:"user"`
	Password string `json:"password"`
	DBName   string `json:"dbname"`
	Options  string `json:"options,omitempty"`
	SSLMode  string `json:"sslmode,omitempty"`
}

// ConnectionURI answers GET /projects/{p}/connection_uri.
type ConnectionURI struct {
	URI   string `json:"uri"`
	Libpq Libpq  `json:"libpq"` // pgbough's own
}
