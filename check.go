package pgbough

// FindingStatus is the outcome of one check.
type FindingStatus string

// The outcomes of a check. Only FindingFail keeps attach from going on.
const (
	FindingOK   FindingStatus = "ok"
	FindingWarn FindingStatus = "warn"
	FindingFail FindingStatus = "fail"
	FindingSkip FindingStatus = "skip" // could not be looked at; Detail says why
)

// Finding is what one check of a source, or of this machine for it, found.
type Finding struct {
	Name   string        `json:"name"` // stable, for scripts: "wal_level", "replication_role", ...
	Status FindingStatus `json:"status"`
	Detail string        `json:"detail"`        // what is there
	Fix    string        `json:"fix,omitempty"` // the exact statement or line that mends it
}
