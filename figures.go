package pgbough

// Figures are the server at one moment, in numbers for monitoring. None of them
// takes long to find.
type Figures struct {
	Projects []ProjectFigures
	Pool     PoolStatus // without its volumes
	Wakes    int64      // computes that were woken since the server started
}

// ProjectFigures are the numbers of one project.
type ProjectFigures struct {
	Name     string
	Follower FollowerStatus
	Ready    int // spares
	Wanted   int // spares
	Awake    int // branches that should have a Postgres running
	Asleep   int // branches
}

// BranchCount is how many branches of a project can be used.
type BranchCount struct{ Awake, Asleep int }
