package neonapi

import "time"

// APIKey is somebody who may use the API. Neon's keys of one project have its
// ProjectID; one without opens everything.
type APIKey struct {
	ID         int64      `json:"id"`
	Name       string     `json:"name"`
	CreatedAt  time.Time  `json:"created_at"`
	CreatedBy  KeyCreator `json:"created_by"`
	LastUsedAt time.Time  `json:"last_used_at,omitzero"` // to the minute
	ProjectID  string     `json:"project_id,omitempty"`

	// pgbough's own.
	ProjectName string `json:"project_name,omitempty"`
	MetricsOnly bool   `json:"metrics_only,omitempty"`
}

// KeyCreator is who made a key: the one account that there is.
type KeyCreator struct {
	ID    string `json:"id"`
	Name  string `json:"name"`
	Image string `json:"image"`
}

// CreateKeyRequest is the body of POST /api_keys. MetricsOnly is pgbough's; a
// project is named by its id or its name.
type CreateKeyRequest struct {
	KeyName     string `json:"key_name"`
	ProjectID   string `json:"project_id,omitempty"`
	MetricsOnly bool   `json:"metrics_only,omitempty"`
}

// CreatedKey answers POST /api_keys. Key is shown only here.
type CreatedKey struct {
	Key string `json:"key"`
	APIKey
}

// RevokedKey answers DELETE /api_keys/{key}.
type RevokedKey struct {
	APIKey
	Revoked bool `json:"revoked"`
}
