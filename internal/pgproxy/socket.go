package pgproxy

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// detach takes the descriptor of a connection out of the hands of package net,
// whose own poller would be woken by every byte as well. conn is closed, unless
// there is an error.
func detach(conn net.Conn) (fd int, err error) {
	s, ok := conn.(syscall.Conn)
	if !ok {
		return -1, fmt.Errorf("a %T has no descriptor", conn)
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return -1, err
	}
	var derr error
	err = raw.Control(func(of uintptr) { fd, derr = unix.FcntlInt(of, unix.F_DUPFD_CLOEXEC, 0) })
	if err = errors.Join(err, derr); err != nil {
		return -1, err
	}
	_ = conn.Close() // the connection lives on in fd
	return fd, nil
}

// attach undoes detach. fd is closed in any case.
func attach(fd int) (net.Conn, error) {
	f := os.NewFile(uintptr(fd), "connection")
	defer func() { _ = f.Close() }() // the connection has a descriptor of its own
	return net.FileConn(f)
}
