// Package neonapi holds the wire types of pgbough's HTTP API: the shapes of
// Neon's public API v2 for what pgbough has, with pgbough's own additions as
// extra fields and extra types. The server (httpapi) writes them and the Go
// client reads them; nothing else knows JSON.
//
// Three rules of Neon's clients shape every type here:
//
//   - null is never written. What is not known is left out, so optional fields
//     carry omitempty or omitzero.
//   - lists that a client indexes or iterates are always there, empty or not.
//     Their fields have no omitempty and the server fills them with [].
//   - times are RFC 3339 in UTC, log positions have Postgres's text form.
//
// A field that Neon's clients want and pgbough has nothing to say for (cpu
// seconds, transferred bytes) is zero.
package neonapi

// Prefix is where the API is mounted. Neon's clients are pointed at a host with
// this prefix (NEON_API_HOST=http://127.0.0.1:7420/api/v2).
const Prefix = "/api/v2"

// Error is the body of every answer that is not 2xx. Clients of Neon show
// Message; Hint, which says what to do next, is pgbough's.
type Error struct {
	RequestID string `json:"request_id"`
	Code      string `json:"code"`
	Message   string `json:"message"`
	Hint      string `json:"hint,omitempty"`
}

// Pagination goes with lists. Next (branches) and Cursor (projects,
// operations) are there only if there is more than was asked for.
type Pagination struct {
	Next      string `json:"next,omitempty"`
	Cursor    string `json:"cursor,omitempty"`
	SortBy    string `json:"sort_by,omitempty"`
	SortOrder string `json:"sort_order,omitempty"`
}

// Values for fields that Neon's schema requires and that have one meaning here.
const (
	RegionID       = "pgbough-local" // the server's own machine
	PlatformID     = "pgbough"
	Provisioner    = "pgbough"
	CreationSource = "pgbough"
	OwnerID        = "pgbough" // the one account that an API key stands for
)
