package pgproxy

import (
	"bytes"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// joined is a relay on a loop that nobody runs, with the far ends of its two
// connections.
func joined(t *testing.T) (r *relay, front, back net.Conn) {
	t.Helper()
	l, err := newLoop()
	must(t, err)
	t.Cleanup(l.close)
	r = &relay{}
	near, front := pair(t)
	server, back := pair(t)
	r.init(newClient(near))
	r.connected(server)
	must(t, r.begin(l))
	t.Cleanup(func() {
		_ = unix.Close(r.front.fd)
		_ = unix.Close(r.back.fd)
	})
	return r, front, back
}

// pair are both ends of a connection, with much room in between.
func pair(t *testing.T) (one, other net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	must(t, err)
	var all [2]net.Conn
	for i, fd := range fds {
		must(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 4<<20))
		all[i], err = attach(fd)
		must(t, err)
		t.Cleanup(func() { _ = all[i].Close() })
	}
	return all[0], all[1]
}

// TestTurn holds a session that has much to move to its share of the loop.
func TestTurn(t *testing.T) {
	r, front, back := joined(t)
	buf := make([]byte, bufferSize)
	_, err := back.Write(bytes.Repeat([]byte{'D', 0, 0, 0, 11, 0, 0, 0}, turnLength*bufferSize/8+1))
	must(t, err)
	if !r.turn(buf) {
		t.Error("it does not want another turn")
	}
	if got := unread(t, front); got != turnLength*bufferSize {
		t.Errorf("%d bytes were moved in one turn, want %d", got, turnLength*bufferSize)
	}
	if r.turn(buf) {
		t.Error("it wants another turn for nothing")
	}
	if r.front.out != nil || r.back.out != nil {
		t.Error("an idle session has buffers")
	}
}

// TestDeaf has a client not take what TLS itself has to answer: it is not
// listened to either, until it does.
func TestDeaf(t *testing.T) {
	r, front, back := joined(t)
	buf := make([]byte, bufferSize)
	r.turn(buf)
	must(t, unix.SetsockoptInt(r.front.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 4096))
	r.front.keep(make([]byte, 2*maxPending))
	_, err := front.Write([]byte("more"))
	must(t, err)
	r.happened(false, unix.EPOLLIN, buf)
	if got := unread(t, back); got != 0 {
		t.Errorf("%d bytes were taken from it", got)
	}
	for r.front.pending() > 0 {
		_, err := front.Read(make([]byte, bufferSize))
		must(t, err)
		r.happened(false, unix.EPOLLOUT, buf)
	}
	if got := unread(t, back); got != 4 {
		t.Errorf("%d bytes came through at last, want 4", got)
	}
}

// unread is how much has come that has not been read.
func unread(t *testing.T, conn net.Conn) (n int) {
	t.Helper()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	must(t, err)
	var ierr error
	must(t, raw.Control(func(fd uintptr) { n, ierr = unix.IoctlGetInt(int(fd), unix.TIOCINQ) }))
	must(t, os.NewSyscallError("ioctl", ierr))
	return n
}
