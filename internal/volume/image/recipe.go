package image

import "github.com/pgbough/pgbough/internal/volume/disk"

// FS is a file system that an image can hold, by the name that mount(8) and
// blkid(8) use.
type FS string

// The file systems of images.
const (
	XFS   FS = "xfs"
	Btrfs FS = "btrfs"
)

// recipe is everything that differs between file systems.
type recipe struct {
	least  disk.Bytes // size that the program accepts
	format []string   // command; the file follows
	resize []string   // command that makes it as large as the device; the mount point follows
	shrink []string   // command that makes it smaller; size and mount point follow; nil where it cannot
	// mount has the options for a preallocated file; sparse those added (and
	// winning) for a sparse one.
	mount, sparse string
}

// recipes is the one place for the options of file systems.
//
//   - nodiscard, for a preallocated image, is not a nicety: a discard punches a
//     hole in the file, so it would become sparse, and btrfs discards on its own
//     where the device can (since Linux 6.2). A sparse one gives space back.
//   - nosuid, nodev: what is inside belongs to the users of branches.
//   - -K: no discard while formatting, for the same reason.
//   - reflink=1 is mkfs.xfs's default since 5.1; older ones need it said.
func recipes(kind FS) (recipe, bool) {
	switch kind {
	case XFS:
		return recipe{
			least:  300 * disk.MiB,
			format: []string{"mkfs.xfs", "-q", "-K", "-m", "reflink=1", "-L", "pgbough"},
			resize: []string{"xfs_growfs"},
			mount:  "noatime,nosuid,nodev",
			sparse: "discard",
		}, true
	case Btrfs:
		return recipe{
			least:  256 * disk.MiB,
			format: []string{"mkfs.btrfs", "-q", "-K", "-L", "pgbough"},
			resize: []string{"btrfs", "filesystem", "resize", "max"},
			shrink: []string{"btrfs", "filesystem", "resize"},
			mount:  "noatime,nosuid,nodev,nodiscard",
			sparse: "discard=async",
		}, true
	default:
		return recipe{}, false
	}
}

// Programs are those that an image with kind needs.
func Programs(kind FS) []string {
	programs := []string{"losetup", "mount", "umount", "blkid"}
	if recipe, ok := recipes(kind); ok {
		programs = append(programs, recipe.format[0], recipe.resize[0])
	}
	return programs
}
