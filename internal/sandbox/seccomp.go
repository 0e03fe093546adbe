package sandbox

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/pgbough/pgbough"
)

// Offsets in struct seccomp_data (linux/seccomp.h), little endian.
const (
	dataNr   = 0
	dataArch = 4
	dataArg0 = 16 // the low half of the first argument
	dataArg1 = 24
)

// x32Bit marks system calls of the x32 ABI (asm/unistd.h), whose numbers differ.
const x32Bit = 0x40000000

// refused are system calls that no Postgres needs and that reach, or have been
// a way to reach, beyond the sandbox. (io_uring: Postgres 18 needs it only for
// io_method=io_uring.)
func refused() []uint32 {
	return []uint32{
		unix.SYS_UNSHARE, unix.SYS_SETNS,
		unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT, unix.SYS_OPEN_TREE, unix.SYS_MOVE_MOUNT,
		unix.SYS_FSOPEN, unix.SYS_FSCONFIG, unix.SYS_FSMOUNT, unix.SYS_FSPICK, unix.SYS_MOUNT_SETATTR, unix.SYS_OPEN_BY_HANDLE_AT,
		// Keyrings of a uid are shared by all its sandboxes.
		unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_KEYCTL,
		unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD,
		unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER,
		unix.SYS_KEXEC_LOAD, unix.SYS_KEXEC_FILE_LOAD, unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE,
	}
}

const newNamespaces = unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET |
	unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP

// filter is the seccomp program, as bwrap reads it: an array of struct
// sock_filter. Other than the calls of refused it denies clone with new
// namespaces, clone3 (whose flags a filter cannot see; libc falls back to
// clone on ENOSYS), unlocking with flock (the volume's lock is inherited; a
// program's own locks end when it closes the file), and every family of sockets but unix, IP and netlink:
// vsock and others do not know network namespaces.
func filter() ([]byte, error) {
	var arch uint32
	switch runtime.GOARCH {
	case "amd64":
		arch = unix.AUDIT_ARCH_X86_64
	case "arm64":
		arch = unix.AUDIT_ARCH_AARCH64
	default:
		return nil, pgbough.Errorf(pgbough.EInternal, "no sandbox on %s: the system call filter knows amd64 and arm64", runtime.GOARCH)
	}
	const (
		load   = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		atMost = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
		anyBit = unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K
		ret    = unix.BPF_RET | unix.BPF_K
	)
	fail := func(errno uint32) unix.SockFilter {
		return unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ERRNO | errno}
	}
	allow := unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ALLOW}
	p := []unix.SockFilter{
		{Code: load, K: dataArch},
		{Code: equal, K: arch, Jt: 1},
		fail(uint32(unix.ENOSYS)), // 32-bit programs
		{Code: load, K: dataNr},
		{Code: atMost, K: x32Bit, Jf: 1},
		fail(uint32(unix.ENOSYS)),
		{Code: equal, K: unix.SYS_CLONE3, Jf: 1},
		fail(uint32(unix.ENOSYS)),
	}
	for _, nr := range refused() {
		p = append(p, unix.SockFilter{Code: equal, K: nr, Jf: 1}, fail(uint32(unix.EPERM)))
	}
	p = append(p,
		unix.SockFilter{Code: equal, K: unix.SYS_CLONE, Jf: 4},
		unix.SockFilter{Code: load, K: dataArg0},
		unix.SockFilter{Code: anyBit, K: newNamespaces, Jf: 1},
		fail(uint32(unix.EPERM)),
		allow,
		unix.SockFilter{Code: equal, K: unix.SYS_FLOCK, Jf: 4},
		unix.SockFilter{Code: load, K: dataArg1},
		unix.SockFilter{Code: anyBit, K: unix.LOCK_UN, Jf: 1},
		fail(uint32(unix.EPERM)),
		allow,
		unix.SockFilter{Code: equal, K: unix.SYS_SOCKET, Jt: 1},
		allow,
		unix.SockFilter{Code: load, K: dataArg0},
		unix.SockFilter{Code: equal, K: unix.AF_UNIX, Jt: 4},
		unix.SockFilter{Code: equal, K: unix.AF_INET, Jt: 3},
		unix.SockFilter{Code: equal, K: unix.AF_INET6, Jt: 2},
		unix.SockFilter{Code: equal, K: unix.AF_NETLINK, Jt: 1},
		fail(uint32(unix.EAFNOSUPPORT)),
		allow,
	)
	var b bytes.Buffer
	if err := binary.Write(&b, binary.LittleEndian, p); err != nil {
		return nil, fmt.Errorf("encode the system call filter: %w", err)
	}
	return b.Bytes(), nil
}
