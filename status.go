package pgbough

// Status is the whole server at one moment.
type Status struct {
	Version  string
	Projects []ProjectStatus
	Pool     PoolStatus
	Notes    []string // what a person should know: no resource limits, unknown volumes, ...
}

// ProjectStatus is one project at one moment.
type ProjectStatus struct {
	Project  Project // without secrets
	Follower FollowerStatus
	Spares   []Spare
	Wanted   int // how many spares there should be ready
	Branches int
}

// PoolStatus tells where the bytes are. All sizes are in bytes.
type PoolStatus struct {
	Kind    string // the driver: btrfs, reflink, copy
	Path    string
	Image   string // the image file behind it, if it is on a loop device
	Size    int64
	Used    int64
	Free    int64 // before the reserve is touched
	Reserve int64 // kept for the followers
	Volumes []VolumeStatus
}

// VolumeStatus is one volume of the pool. Known is false for a volume that the
// catalog does not name; only `pgbough pool prune` removes such.
type VolumeStatus struct {
	ID           string
	Role         string // root, spare, branch, point
	Project      string
	Branch       string
	OwnBytes     int64
	LogicalBytes int64
	Known        bool
}
