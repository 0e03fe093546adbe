// Package link joins two processes of one program that trust each other to
// different degrees: a pair of sockets that one inherits from the other.
//
//   - A Link is one end. Either side opens streams to the other: a stream is a
//     pair of sockets of its own, one end of which goes over the link. So many are
//     used at a time, closing one cancels what it is for, and the end of a process
//     ends all of its streams. Nothing of it has a name that others could reach.
//   - A call is a question and its answer on a stream: two packets of JSON. An
//     answer may carry a descriptor.
//
// Both ends are the same binary: there are no versions.
package link

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Kind is what a stream is for.
type Kind byte

// The values of Kind.
const (
	Calls Kind = 'c' // packets
	Bytes Kind = 'b' // no packets
)

func (k Kind) socket() int {
	if k == Calls {
		return unix.SOCK_SEQPACKET
	}
	return unix.SOCK_STREAM
}

// Link is one end of the connection between two processes. It is safe for
// concurrent use.
type Link struct {
	conn *net.UnixConn
	mu   sync.Mutex // one packet after the other
}

// New makes a link. The file is the other end, for a process to inherit; the
// caller closes it when that has begun.
func New() (*Link, *os.File, error) {
	ours, theirs, err := pair(unix.SOCK_SEQPACKET)
	if err != nil {
		return nil, nil, err
	}
	return &Link{conn: ours}, theirs, nil
}

// Inherited is the end that this process was given as f, which it closes.
func Inherited(f *os.File) (*Link, error) {
	conn, err := unixConn(f)
	if err != nil {
		return nil, err
	}
	return &Link{conn: conn}, nil
}

// Close ends the link, which the other side sees. Streams stay.
func (l *Link) Close() error { return l.conn.Close() }

// Dial opens a stream.
func (l *Link) Dial(kind Kind) (*net.UnixConn, error) {
	ours, theirs, err := pair(kind.socket())
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	_, _, err = l.conn.WriteMsgUnix([]byte{byte(kind)}, unix.UnixRights(int(theirs.Fd())), nil)
	l.mu.Unlock()
	if err = errors.Join(err, theirs.Close()); err != nil {
		return nil, errors.Join(fmt.Errorf("open a stream: %w", err), ours.Close())
	}
	return ours, nil
}

// Accept waits for a stream that the other side opens. An error means that the
// link is at its end.
func (l *Link) Accept() (Kind, *net.UnixConn, error) {
	b, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := l.conn.ReadMsgUnix(b, oob)
	if err != nil {
		return 0, nil, fmt.Errorf("wait for a stream: %w", err)
	}
	conn, err := passed(oob[:oobn])
	switch kind := Kind(b[0]); {
	case err != nil:
		return 0, nil, err
	case n != 1 || conn == nil:
		return 0, nil, errors.New("the link has ended")
	case kind != Calls && kind != Bytes:
		return 0, nil, errors.Join(fmt.Errorf("a stream of unknown kind %d", kind), conn.Close())
	default:
		return kind, conn, nil
	}
}

// pair makes a connection with ourselves: one end to use, and one to give away.
func pair(socket int) (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, socket|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a pair of sockets: %w", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "link")
	ours, err := unixConn(os.NewFile(uintptr(fds[0]), "link"))
	if err != nil {
		return nil, nil, errors.Join(err, theirs.Close())
	}
	return ours, theirs, nil
}

// unixConn is f as a connection; f is closed.
func unixConn(f *os.File) (*net.UnixConn, error) {
	conn, err := net.FileConn(f) // a duplicate
	_ = f.Close()                // so nothing is lost
	if err != nil {
		return nil, fmt.Errorf("use a socket: %w", err)
	}
	u, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(errors.New("it is no Unix socket"), conn.Close())
	}
	return u, nil
}

// passed is the socket in a control message, nil if there is none.
func passed(oob []byte) (*net.UnixConn, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("take a descriptor: %w", err)
	}
	var fds []int
	for i := range messages {
		if more, err := unix.ParseUnixRights(&messages[i]); err == nil {
			fds = append(fds, more...)
		}
	}
	if len(fds) != 1 {
		for _, fd := range fds {
			_ = unix.Close(fd) // nobody has asked for it
		}
		return nil, fmt.Errorf("take a descriptor: there are %d", len(fds))
	}
	return unixConn(os.NewFile(uintptr(fds[0]), "passed"))
}
