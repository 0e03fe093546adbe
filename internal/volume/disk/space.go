package disk

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Space of a file system. Free is what a process may still use.
type Space struct {
	Size, Used, Free Bytes
}

// SpaceOf measures the file system that holds path.
func SpaceOf(path string) (Space, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return Space{}, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	block := Bytes(st.Bsize)
	return Space{
		Size: Bytes(st.Blocks) * block,
		Used: Bytes(st.Blocks-st.Bfree) * block,
		Free: Bytes(st.Bavail) * block,
	}, nil
}

// Type is the magic number of a kind of file system (statfs(2), f_type).
type Type uint32

// The kinds of file system that matter here (linux/magic.h).
const (
	TypeBtrfs Type = unix.BTRFS_SUPER_MAGIC
	TypeXFS   Type = unix.XFS_SUPER_MAGIC
	TypeExt4  Type = unix.EXT4_SUPER_MAGIC
	TypeTmpfs Type = unix.TMPFS_MAGIC
)

// TypeOf tells the kind of the file system that holds path.
func TypeOf(path string) (Type, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	return Type(st.Type), nil
}

// String is the name that mount(8) uses, or the number of a kind not named here.
func (t Type) String() string {
	switch t {
	case TypeBtrfs:
		return "btrfs"
	case TypeXFS:
		return "xfs"
	case TypeExt4:
		return "ext4"
	case TypeTmpfs:
		return "tmpfs"
	default:
		return fmt.Sprintf("file system %#x", uint32(t))
	}
}

// Bytes is a size that prints for people.
type Bytes int64

// Multiples of a byte.
const (
	MiB Bytes = 1 << 20
	GiB Bytes = 1 << 30
)

// String prints sizes as people say them, in powers of 1024: "812 MB".
func (b Bytes) String() string {
	const units = "kMGTPE"
	if b < 0 {
		return "-" + (-b).String()
	}
	if b < 1024 {
		return fmt.Sprintf("%d bytes", int64(b))
	}
	v, unit := float64(b)/1024, 0
	for v >= 1000 && unit < len(units)-1 {
		v, unit = v/1024, unit+1
	}
	if v < 10 {
		return fmt.Sprintf("%.1f %cB", v, units[unit])
	}
	return fmt.Sprintf("%.0f %cB", v, units[unit])
}
