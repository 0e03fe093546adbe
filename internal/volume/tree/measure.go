package tree

import (
	"context"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Size of a tree in bytes on disk. Own is what no other file shares with it.
type Size struct {
	Own, Allocated int64
}

// Measure tells how much the regular files below dir take. With shared false
// the file system can share nothing, and Own is Allocated; with shared true
// every file is asked for its extents. Data that the kernel has not written yet
// counts as its own. Metadata, and small files that btrfs keeps inside its
// metadata, count as nothing in Own.
func Measure(ctx context.Context, dir string, shared bool) (Size, error) {
	root, err := OpenDir(nil, dir)
	if err != nil {
		return Size{}, fmt.Errorf("measure tree: %w", err)
	}
	var size Size
	var extents fiemap
	err = walkFiles(ctx, root, 0, func(f *os.File, st *unix.Stat_t) error {
		allocated := st.Blocks * 512 // stat(2): always in units of 512 bytes
		size.Allocated += allocated
		if !shared {
			size.Own += allocated
			return nil
		}
		own, err := extents.own(f)
		size.Own += own
		return err
	})
	if err = errors.Join(err, root.Close()); err != nil {
		return Size{}, fmt.Errorf("measure tree: %w", err)
	}
	return size, nil
}

// From linux/fiemap.h and linux/fs.h; x/sys/unix has none of it.
const (
	fsIocFiemap      = 0xc020660b // _IOWR('f', 11, struct fiemap)
	fiemapMaxOffset  = ^uint64(0)
	fiemapLast       = 0x0001
	fiemapDataInline = 0x0200
	fiemapShared     = 0x2000
)

// fiemap is struct fiemap with room for a batch of extents.
type fiemap struct {
	start, length               uint64
	flags, mapped, count, spare uint32
	extents                     [512]fiemapExtent
}

// fiemapExtent is struct fiemap_extent.
type fiemapExtent struct {
	logical, physical, length uint64
	_                         [2]uint64
	flags                     uint32
	_                         [3]uint32
}

// own sums the extents of f that nothing shares. FIEMAP_FLAG_SYNC is not
// asked for, because it would write out what a running Postgres has dirty.
func (m *fiemap) own(f *os.File) (int64, error) {
	var own int64
	m.start = 0
	for {
		m.length = fiemapMaxOffset - m.start
		m.flags, m.mapped, m.count = 0, 0, uint32(len(m.extents))
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fsIocFiemap, uintptr(unsafe.Pointer(m)))
		if errno != 0 {
			return own, &os.PathError{Op: "list extents", Path: f.Name(), Err: errno}
		}
		if m.mapped == 0 {
			return own, nil
		}
		for _, e := range m.extents[:m.mapped] {
			if e.flags&(fiemapShared|fiemapDataInline) == 0 {
				own += int64(e.length)
			}
		}
		last := m.extents[m.mapped-1]
		if last.flags&fiemapLast != 0 {
			return own, nil
		}
		m.start = last.logical + last.length
	}
}
