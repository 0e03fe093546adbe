package reflink

import (
	"errors"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/pgbough/pgbough/internal/volume/tree"
)

// cowExtent is how much XFS sets aside for the first write to a shared block,
// in bytes: one block of Postgres. By itself it sets aside 128 kB and keeps what
// it does not need for half an hour, out of sight of FIEMAP: 19,200 random
// writes of 8 kB to a clone took 925 MB of the pool so, and take 140 MB with the
// hint, at the same speed and with 7 % more extents.
const cowExtent = 8192

// From linux/fs.h; x/sys/unix has none of it.
const (
	fsIocGetXattr  = 0x801c581f // _IOR('X', 31, struct fsxattr)
	fsIocSetXattr  = 0x401c5820 // _IOW('X', 32, struct fsxattr)
	xflagCOWExtent = 0x00010000 // FS_XFLAG_COWEXTSIZE
)

// fsxattr is struct fsxattr.
type fsxattr struct {
	xflags, extsize, nextents, projid, cowextsize uint32
	_                                             [8]byte
}

// hintSmallCOW makes XFS set aside cowExtent for the files that will be made in
// dir and below; what is cloned keeps it (xfsctl(3), FS_XFLAG_COWEXTSIZE).
func hintSmallCOW(dir string) error {
	f, err := tree.OpenDir(nil, dir)
	if err != nil {
		return err
	}
	return errors.Join(setCOWExtent(f), f.Close())
}

func setCOWExtent(f *os.File) error {
	var attr fsxattr
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fsIocGetXattr, uintptr(unsafe.Pointer(&attr))); errno != 0 {
		return &os.PathError{Op: "get extent hint", Path: f.Name(), Err: errno}
	}
	attr.xflags |= xflagCOWExtent
	attr.cowextsize = cowExtent
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fsIocSetXattr, uintptr(unsafe.Pointer(&attr)))
	// Without reflink=1 there is nothing to hint at; cloning will say so.
	if errno != 0 && errno != unix.EOPNOTSUPP && errno != unix.EINVAL {
		return &os.PathError{Op: "set extent hint", Path: f.Name(), Err: errno}
	}
	return nil
}
