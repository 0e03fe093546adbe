package pgbough

import "time"

// OperationStatus is where an operation is in its life, in Neon's words.
type OperationStatus string

// The states of an operation.
const (
	OperationRunning   OperationStatus = "running"
	OperationUndoing   OperationStatus = "cancelling"
	OperationFinished  OperationStatus = "finished"
	OperationFailed    OperationStatus = "failed" // undone; Error says why
	OperationCancelled OperationStatus = "cancelled"
)

// Done tells whether an operation in this state will change nothing any more.
func (s OperationStatus) Done() bool {
	return s == OperationFinished || s == OperationFailed || s == OperationCancelled
}

// Operation is a durable, stepwise job. Each step may run more than once.
type Operation struct {
	ID        string
	ProjectID string
	BranchID  string
	Kind      string // "create_branch", "delete_branch", "attach_project", ...
	Status    OperationStatus
	Step      int // index of the step that runs or is next
	Steps     []StepRecord
	State     []byte // the operation's own JSON; may hold no secret
	Progress  Progress
	Error     string
	CreatedAt time.Time
	UpdatedAt time.Time
}

// StepRecord is what is known of one step of an operation.
type StepRecord struct {
	Name       string        `json:"name"`
	StartedAt  time.Time     `json:"started_at,omitzero"`
	Duration   time.Duration `json:"duration_ns,omitempty"`
	Attempts   int           `json:"attempts,omitempty"`
	Error      string        `json:"error,omitempty"`
	Note       string        `json:"note,omitempty"` // what a person has to do that the step could not
	FinishedAt time.Time     `json:"finished_at,omitzero"`
}

// Progress of the running step, for people: Done of Total in Unit ("bytes"),
// and a sentence. Total is zero while it is unknown.
type Progress struct {
	Message string `json:"message,omitempty"`
	Done    int64  `json:"done,omitempty"`
	Total   int64  `json:"total,omitempty"`
	Unit    string `json:"unit,omitempty"`
}
