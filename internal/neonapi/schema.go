package neonapi

// Schema answers GET .../branches/{b}/schema: DDL.
type Schema struct {
	SQL string `json:"sql"`
}

// SchemaComparison answers GET .../branches/{b}/compare_schema. All but the diff
// is pgbough's own.
type SchemaComparison struct {
	Diff       string         `json:"diff"` // unified; empty if there is no difference
	Branch     string         `json:"branch"`
	BaseBranch string         `json:"base_branch"`
	Database   string         `json:"database"`
	Changes    []SchemaChange `json:"changes"`
	Notes      []string       `json:"notes"` // what is not as it was asked for
}

// SchemaChange is one object that is not the same in both.
type SchemaChange struct {
	Kind   string `json:"kind"`
	Name   string `json:"name"`
	Change string `json:"change"` // added, removed or changed
	From   string `json:"from,omitempty"`
	To     string `json:"to,omitempty"`
}
