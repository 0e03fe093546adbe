package pgbough

import "time"

// Point is a clean point of a project: a volume that was a spare, promoted,
// quarantined and shut down cleanly, which nobody writes to any more. A clone of
// it starts without replaying anything.
type Point struct {
	VolumeID  string
	ProjectID string
	LSN       LSN       // where it leaves production's timeline
	Time      time.Time // commit stamp of the last transaction before that
	Timeline  uint32    // production's, that it leaves
	// AskedAt is when production was asked where it is: the point has all that
	// was acknowledged before.
	AskedAt     time.Time
	Settings    []Setting // production's at the cut
	Differences []Difference
	CreatedAt   time.Time
}
