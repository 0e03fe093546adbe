package pgproxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

const (
	// readSize is for what a client says before its session: little.
	readSize = 2048
	// maxLogin is the longest message of a login (PG_MAX_AUTH_TOKEN_LENGTH).
	maxLogin = 65535
	// linger is how long a client has to read its farewell. To close before it has
	// sent its last bytes would reset the connection and lose the farewell.
	linger = 500 * time.Millisecond
	// watchAfter is how long a client waits before it is watched.
	watchAfter = 20 * time.Millisecond
	// sayTimeout is for a client that does not read.
	sayTimeout = 2 * time.Second
)

// past is a deadline that ends what waits.
var past = time.Unix(1, 0)

// client is one connection that was accepted.
type client struct {
	raw     net.Conn  // as accepted
	conn    net.Conn  // raw, or TLS over it
	below   *buffered // what TLS is over
	r       *bufio.Reader
	peer    string
	sni     string
	binding []byte // credential.EndPoint; nil without TLS
	pending []byte // what it is sent with the next message
	loop    *loop  // for its session

	mu          sync.Mutex
	interrupted bool
}

func newClient(conn net.Conn) *client {
	c := &client{raw: conn, conn: conn, r: bufio.NewReaderSize(conn, readSize), peer: conn.RemoteAddr().String()}
	if conn.RemoteAddr().Network() == "unix" {
		c.peer = "local socket"
	}
	return c
}

func (c *client) secure() bool { return c.conn != c.raw }

// local tells whether the client is on this machine.
func (c *client) local() bool {
	switch a := c.raw.RemoteAddr().(type) {
	case *net.TCPAddr:
		return a.IP.IsLoopback()
	case *net.UnixAddr:
		return true
	}
	return false
}

// limit gives the client until d from now for what it has to say and hear; 0 is for ever.
func (c *client) limit(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.interrupted {
		return
	}
	var at time.Time
	if d > 0 {
		at = time.Now().Add(d)
	}
	_ = c.raw.SetDeadline(at) // fails only when closed, which whoever reads is told
}

// interrupt ends whatever waits for the client to speak, now and later.
func (c *client) interrupt() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.interrupted = true
	_ = c.raw.SetReadDeadline(past) // as limit
}

// nudge ends a read that waits, until the next limit.
func (c *client) nudge() {
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.raw.SetReadDeadline(past) // as limit
}

// watch cancels the context that it returns when the client goes away; stop
// ends the watching. Nothing else may read meanwhile. What the client sends
// stays in its buffer. A client that does not wait for long is not watched, since
// to start and stop that takes longer than many a login.
func (c *client) watch(ctx context.Context) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	c.limit(0)
	begin := time.AfterFunc(watchAfter, func() {
		defer close(done)
		if n := c.r.Buffered() + 1; n <= readSize {
			if _, err := c.r.Peek(n); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				cancel(fmt.Errorf("%w: %w", errGone, err))
			}
		}
	})
	return ctx, func() {
		if !begin.Stop() {
			c.nudge()
			<-done
			c.limit(0)
		}
		cancel(nil)
	}
}

// message reads one message of a login. Its body is valid until the next one.
func (c *client) message() (byte, []byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(c.r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n < 4 || n > maxLogin {
		return 0, nil, fatalf("08P01", "invalid message length")
	}
	body := make([]byte, n-4)
	_, err := io.ReadFull(c.r, body)
	return head[0], body, err
}

// say sends a farewell, and tells whether it could.
func (c *client) say(f *fatal) bool {
	_ = c.raw.SetDeadline(time.Now().Add(sayTimeout)) // as limit
	_, err := c.conn.Write(f.encode())
	return err == nil
}

// drain ends our side of the connection and waits a little for the client to
// end its own.
func (c *client) drain() {
	_ = c.raw.SetDeadline(time.Now().Add(linger)) // as limit
	if t, ok := c.conn.(*tls.Conn); ok {
		_ = t.CloseWrite() // a client that is gone needs no close_notify
	}
	if h, ok := c.raw.(halfCloser); ok && h.CloseWrite() == nil {
		_, _ = io.Copy(io.Discard, c.raw) // until its end or the deadline
	}
}

// halfCloser is a connection of which one direction can be ended.
type halfCloser interface{ CloseWrite() error }

// isReset tells that the other side closed its end without waiting for ours.
func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ETIMEDOUT)
}

// lend gives a client's connection to a relay, which has it alone.
func (c *client) lend(p *port) (err error) {
	if p.fd, err = detach(c.raw); err != nil {
		return err
	}
	if t, ok := c.conn.(*tls.Conn); ok {
		p.tls, c.below.lent = t, p
	}
	return nil
}

// regain undoes lend. Where it fails, the connection is closed.
func (c *client) regain(p *port) error {
	raw, err := attach(p.fd)
	if err != nil {
		return err
	}
	if c.secure() {
		c.below.Conn, c.below.lent = raw, nil
	} else {
		c.conn = raw
	}
	c.raw = raw
	return nil
}

// buffered is a connection whose first bytes have been read already.
type buffered struct {
	net.Conn
	r    *bufio.Reader
	lent *port // what has the connection meanwhile
}

// Read reads what is left in the buffer first.
func (b *buffered) Read(p []byte) (int, error) {
	switch {
	case b.r.Buffered() > 0:
		return b.r.Read(p[:min(len(p), b.r.Buffered())])
	case b.lent != nil:
		return b.lent.Read(p)
	}
	return b.Conn.Read(p)
}

// Write writes to whoever has the connection.
func (b *buffered) Write(p []byte) (int, error) {
	if b.lent != nil {
		return b.lent.Write(p)
	}
	return b.Conn.Write(p)
}
