package btrfs

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The ioctls below are those of linux/btrfs.h; x/sys/unix has none of them.
// They spare us a run of btrfs(8), which costs more than a snapshot.
const (
	iocSubvolCreate   = 0x5000940e // _IOW(0x94, 14, struct btrfs_ioctl_vol_args)
	iocSnapDestroy    = 0x5000940f // _IOW(0x94, 15, struct btrfs_ioctl_vol_args)
	iocSnapCreateV2   = 0x50009417 // _IOW(0x94, 23, struct btrfs_ioctl_vol_args_v2)
	iocSync           = 0x9408     // _IO(0x94, 8)
	iocSubvolGetflags = 0x80089419 // _IOR(0x94, 25, __u64)
	iocSubvolSetflags = 0x4008941a // _IOW(0x94, 26, __u64)

	subvolReadOnly = 1 << 1 // BTRFS_SUBVOL_RDONLY

	// firstFreeObjectID is the inode number of every subvolume's root directory
	// (BTRFS_FIRST_FREE_OBJECTID).
	firstFreeObjectID = 256

	flagNoCOW = 0x00800000 // FS_NOCOW_FL (linux/fs.h)
)

// volArgs is struct btrfs_ioctl_vol_args.
type volArgs struct {
	fd   int64
	name [4088]byte
}

// volArgsV2 is struct btrfs_ioctl_vol_args_v2.
type volArgsV2 struct {
	fd      int64
	transid uint64
	flags   uint64
	_       [4]uint64
	name    [4040]byte
}

// isSubvolume is false for what a snapshot has in place of a nested subvolume:
// an ordinary empty directory with inode number 2.
func isSubvolume(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFDIR && st.Ino == firstFreeObjectID
}

func createSubvolume(parent *os.File, name string) error {
	var args volArgs
	copy(args.name[:len(args.name)-1], name)
	return ioctl(parent, "create subvolume", iocSubvolCreate, unsafe.Pointer(&args))
}

func destroySubvolume(parent *os.File, name string) error {
	var args volArgs
	copy(args.name[:len(args.name)-1], name)
	return ioctl(parent, "destroy subvolume", iocSnapDestroy, unsafe.Pointer(&args))
}

func createSnapshot(parent *os.File, name string, src *os.File) error {
	args := volArgsV2{fd: int64(src.Fd())}
	copy(args.name[:len(args.name)-1], name)
	return ioctl(parent, "create snapshot", iocSnapCreateV2, unsafe.Pointer(&args))
}

// wakeCleaner makes the kernel free what destroyed subvolumes took, which it
// otherwise begins up to 30 seconds later. It writes out everything that is
// dirty on the file system. (BTRFS_IOC_START_SYNC would not, but loses a
// wake-up at times and then takes those 30 seconds itself.)
func wakeCleaner(f *os.File) error {
	return ioctl(f, "sync", iocSync, nil)
}

// setWritable takes the read-only flag from a subvolume, if it has it.
func setWritable(subvolume *os.File) error {
	var flags uint64
	if err := ioctl(subvolume, "get flags", iocSubvolGetflags, unsafe.Pointer(&flags)); err != nil {
		return err
	}
	if flags&subvolReadOnly == 0 {
		return nil
	}
	flags &^= subvolReadOnly
	return ioctl(subvolume, "set flags", iocSubvolSetflags, unsafe.Pointer(&flags))
}

// setNoCOW makes new files of dir nodatacow (chattr +C).
func setNoCOW(dir *os.File) error {
	flags, err := unix.IoctlGetInt(int(dir.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil {
		return &os.PathError{Op: "get flags", Path: dir.Name(), Err: err}
	}
	if err := unix.IoctlSetPointerInt(int(dir.Fd()), unix.FS_IOC_SETFLAGS, flags|flagNoCOW); err != nil {
		return &os.PathError{Op: "set nodatacow", Path: dir.Name(), Err: err}
	}
	return nil
}

func ioctl(f *os.File, op string, request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(arg)); errno != 0 {
		return &os.PathError{Op: op, Path: f.Name(), Err: errno}
	}
	return nil
}
