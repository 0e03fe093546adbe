package pgbough

import "time"

// APIKey is somebody who may use the API, and for what. The key that is shown
// for it is kept nowhere, only its hash.
type APIKey struct {
	ID   int64 // 0 is the server's own key, admin.key, which opens everything
	Name string
	// ProjectID is the one project that the key opens; empty: all of them, and
	// what is the server's.
	ProjectID   string
	ProjectName string
	MetricsOnly bool // it opens nothing but the server's metrics
	CreatedAt   time.Time
	LastUsedAt  time.Time // to the minute; zero: never
}

// KeyRequest describes the API key that is wanted.
type KeyRequest struct {
	Name        string
	Project     string // by id or name; empty: the key opens everything
	MetricsOnly bool
}
