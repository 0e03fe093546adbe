package pgbough

// SchemaDiff tells how the schema of one database differs from another's.
type SchemaDiff struct {
	Changes []SchemaChange // empty if there are none
	Unified string         // the same as lines; empty if there are none
}

// SchemaChange is one object that is not the same in both.
type SchemaChange struct {
	Kind   string // as in "table" or "materialized view"
	Name   string // qualified, and quoted as SQL wants it; of what is said of another object, that one's kind and name
	Change Change
	From   string // its SQL before; empty if it was added
	To     string // and now; empty if it was removed
}

// Change says how an object differs.
type Change string

// The changes of an object.
const (
	Added   Change = "added"
	Removed Change = "removed"
	Changed Change = "changed"
)

// Comparison names two branches whose schemas are compared, and the database.
type Comparison struct {
	Branch   string
	Base     string // empty: the parent of Branch
	Database string // empty: the project's default
}

// SchemaComparison is how the schema of a branch differs from that of its base.
type SchemaComparison struct {
	SchemaDiff
	Branch, Base string // names
	Database     string
	Notes        []string // what of it is not as it was asked for
}
