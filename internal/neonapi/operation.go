package neonapi

import (
	"time"

	"github.com/pgbough/pgbough"
)

// Operation is a durable, stepwise job.
type Operation struct {
	ID              string    `json:"id"`
	ProjectID       string    `json:"project_id"`
	BranchID        string    `json:"branch_id,omitempty"`
	Action          string    `json:"action"`
	Status          string    `json:"status"`
	Error           string    `json:"error,omitempty"`
	FailuresCount   int       `json:"failures_count"`
	CreatedAt       time.Time `json:"created_at"`
	UpdatedAt       time.Time `json:"updated_at"`
	TotalDurationMS int64     `json:"total_duration_ms"`

	// pgbough's own.
	ErrorCode string            `json:"error_code,omitempty"` // of a failed one, where it is known
	Hint      string            `json:"hint,omitempty"`
	Step      int               `json:"step"` // index of the step that runs or is next
	Steps     []Step            `json:"steps,omitempty"`
	Progress  *pgbough.Progress `json:"progress,omitempty"`
}

// Done tells whether the operation will change nothing any more.
func (o Operation) Done() bool { return pgbough.OperationStatus(o.Status).Done() }

// Step is what is known of one step of an operation.
type Step struct {
	Name       string    `json:"name"`
	StartedAt  time.Time `json:"started_at,omitzero"`
	FinishedAt time.Time `json:"finished_at,omitzero"`
	DurationMS float64   `json:"duration_ms"`
	Attempts   int       `json:"attempts"`
	Error      string    `json:"error,omitempty"`
	Note       string    `json:"note,omitempty"` // what a person has to do that the step could not
}

// OperationResponse answers GET of one operation.
type OperationResponse struct {
	Operation Operation `json:"operation"`
}

// OperationList answers GET /projects/{p}/operations and GET /operations,
// newest first.
type OperationList struct {
	Operations []Operation `json:"operations"`
	Pagination Pagination  `json:"pagination"`
}
