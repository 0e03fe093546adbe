package pgproxy

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// errLater is what a port says when it could only wait: TLS takes it for a
// deadline, after which it can go on.
var errLater error = os.ErrDeadlineExceeded

// outs are the buffers of ports that have something to write later.
var outs = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// port is one of the two sockets of a relay. Nothing that is done with it waits.
// A port with nothing to write has no buffer.
type port struct {
	fd       int
	tls      *tls.Conn     // what is said inside of it; nil without TLS
	readable bool          // there may be something to read
	hangup   bool          // the other side has ended, which is read after all else
	out      *bytes.Buffer // what is to be written when there is room
	watched  uint32        // the events that epoll looks for
}

// read reads what is there, or returns errLater.
func (p *port) read(b []byte) (int, error) {
	if p.tls != nil {
		return p.tls.Read(b)
	}
	return p.Read(b)
}

// write takes all of b.
func (p *port) write(b []byte) error {
	if p.tls != nil {
		if _, err := p.tls.Write(b); err != nil {
			return err
		}
		return p.flush()
	}
	if p.pending() == 0 {
		n, err := p.send(b)
		if err != nil {
			return err
		}
		b = b[n:]
	}
	if len(b) > 0 {
		p.keep(b)
	}
	return nil
}

// pending is how much is to be written.
func (p *port) pending() int {
	if p.out == nil {
		return 0
	}
	return p.out.Len()
}

// keep keeps a copy of b to be written.
func (p *port) keep(b []byte) {
	if p.out == nil {
		p.out = outs.Get().(*bytes.Buffer)
	}
	p.out.Write(b)
}

// flush writes what there is room for.
func (p *port) flush() error {
	if p.out == nil {
		return nil
	}
	n, err := p.send(p.out.Bytes())
	if p.out.Next(n); p.out.Len() == 0 {
		p.drop()
	}
	return err
}

// drop gives the buffer back.
func (p *port) drop() {
	if p.out != nil {
		p.out.Reset()
		outs.Put(p.out)
		p.out = nil
	}
}

// send writes what there is room for, and tells how much that was.
func (p *port) send(b []byte) (n int, err error) {
	for n < len(b) {
		m, err := send(p.fd, b[n:])
		switch {
		case err == nil:
			n += m
		case errors.Is(err, unix.EAGAIN):
			return n, nil
		case !errors.Is(err, unix.EINTR):
			return n, err
		}
	}
	return n, nil
}

// Read is of the socket itself, below TLS. A read that does not fill b has read
// all that there was (epoll(7)); when more comes, epoll says so.
func (p *port) Read(b []byte) (int, error) {
	for p.readable {
		n, err := recv(p.fd, b)
		switch {
		case err == nil && n == 0:
			return 0, io.EOF
		case err == nil:
			p.readable = n == len(b) || p.hangup
			return n, nil
		case errors.Is(err, unix.EAGAIN):
			p.readable = false
		case !errors.Is(err, unix.EINTR):
			return 0, err
		}
	}
	return 0, errLater
}

// Write is what TLS writes with; flush must follow.
func (p *port) Write(b []byte) (int, error) {
	p.keep(b)
	return len(b), nil
}
