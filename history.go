package pgbough

import "time"

// DefaultHistory is how far back a project can be branched that was not told otherwise.
const DefaultHistory = 24 * time.Hour

// PastPoint is a clone of a follower as it once was. A branch of a moment since
// then is a clone of it that has replayed WAL up to that moment.
type PastPoint struct {
	VolumeID  string
	ProjectID string
	Lineage   string // whose history it is in: the id of the volume that it is a clone of
	Redo      LSN    // where a replay from it begins
	LSN       LSN    // at or after all that its files hold: the first position that it can be used for
	Timeline  uint32
	Time      time.Time // production's clock when production was at LSN or later
	Settings  []Setting // production's then
	CreatedAt time.Time
}

// Gap is WAL that was lost before it could be kept. What is between cannot be branched.
type Gap struct{ From, To LSN }

// History is how far back a project can be branched.
type History struct {
	Project Project
	Window  time.Duration // what is wanted; 0 is none
	// From and To are the first and the last moment that there are; zero while there is none.
	From, To         LSN
	FromTime, ToTime time.Time
	Points           []PastPoint
	WALBytes         int64 // on the disk
	RawBytes         int64 // what that was before it was compressed
	Gaps             []Gap
	Notes            []string // what keeps it from being as it is wanted
}

// Past is a moment of the past that is wanted: one of LSN and Time.
type Past struct {
	LSN  LSN
	Time time.Time
}

// IsZero tells whether no moment is wanted but now.
func (p Past) IsZero() bool { return p.LSN == 0 && p.Time.IsZero() }

// ProjectChange is what can be changed of a project; nil leaves it.
type ProjectChange struct {
	History *time.Duration
}
