package pgproxy

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	bufferSize = 32 << 10
	// endGrace is how long a message that has begun has to end, before a
	// connection is closed without a farewell.
	endGrace = time.Second
)

var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// relay copies the bytes of one session. One goroutine copies up, from the
// client, and one down, from the server. Each owns the direction that it writes
// to; others stop them by deadlines, after which no byte is lost.
type relay struct {
	client *client
	server net.Conn
	first  []byte // what the server sent before the relay ran

	framing framing     // of what went down; the down goroutine's
	bye     atomic.Bool // the client has said that it goes

	mu         sync.Mutex
	changed    *sync.Cond
	held       bool
	ending     *fatal
	running    bool // the up goroutine
	parked     bool // it waits for release
	graced     bool // a message that has begun is given time to end
	cancelling int  // cancel requests under way
}

func (r *relay) init(c *client) { r.client, r.changed = c, sync.NewCond(&r.mu) }

// connected gives the relay its server. Until run nothing is copied.
func (r *relay) connected(server net.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.server = server
}

// early is what the server has sent already.
func (r *relay) early(b []byte) { r.first = append([]byte(nil), b...) }

// run copies until one side ends. Its error is the farewell that may still be
// said to the client, or errGone.
func (r *relay) run() error {
	var up sync.WaitGroup
	r.mu.Lock()
	r.running = true
	r.mu.Unlock()
	up.Go(func() {
		r.up()
		r.mu.Lock()
		r.running = false
		r.changed.Broadcast()
		r.mu.Unlock()
	})
	err := r.down()
	r.mu.Lock()
	if r.ending == nil {
		r.ending = &fatal{}
	}
	_ = r.client.raw.SetReadDeadline(past) // fails only when closed
	_ = r.server.Close()                   // nothing is written to it any more
	r.changed.Broadcast()
	r.mu.Unlock()
	up.Wait()
	return err
}

// close closes the connection with the server when no cancel request is on its
// way to it.
func (r *relay) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ending == nil {
		r.ending = &fatal{}
	}
	_ = r.server.Close() // it may be closed already
	for r.cancelling > 0 {
		r.changed.Wait()
	}
}

// up copies from the client to the server.
func (r *relay) up() {
	buf := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(buf)
	early := r.client.r.Buffered() > 0
	for {
		var n int
		var err error
		if early {
			n, err = r.client.r.Read(buf[:])
			early = r.client.r.Buffered() > 0
		} else {
			n, err = r.client.conn.Read(buf[:])
		}
		if n > 0 && !r.forward(buf[:n]) {
			return
		}
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded):
			if !r.pause() {
				return
			}
		case errors.Is(err, io.EOF):
			// It may still listen.
			r.bye.Store(true)
			if h, ok := r.server.(halfCloser); ok && h.CloseWrite() == nil {
				return
			}
			_ = r.server.Close() // which ends down
			return
		default:
			r.bye.Store(true)
			_ = r.server.Close() // which ends down
			return
		}
	}
}

// terminate is a client's last message.
var terminate = []byte{'X', 0, 0, 0, 4}

// forward tells whether the client may go on. That the server is gone, down
// finds out, with what the server has said before.
func (r *relay) forward(b []byte) bool {
	r.bye.Store(bytes.HasSuffix(b, terminate))
	for {
		n, err := r.server.Write(b)
		if b = b[n:]; err == nil {
			return true
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) || !r.pause() {
			return false
		}
	}
}

// pause waits while the relay is held, and tells whether it goes on.
func (r *relay) pause() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.held && r.ending == nil {
		r.parked = true
		r.changed.Broadcast()
		r.changed.Wait()
	}
	r.parked = false
	return r.ending == nil
}

// down copies from the server to the client.
func (r *relay) down() error {
	buf := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(buf)
	for {
		n := copy(buf[:], r.first)
		var err error
		if r.first = nil; n == 0 {
			n, err = r.server.Read(buf[:])
		}
		if n > 0 {
			done, werr := r.deliver(buf[:n])
			if done || werr != nil {
				return werr
			}
		}
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded):
			if f := r.last(); f != nil {
				return f
			}
			if !r.more() {
				return errGone
			}
		default:
			return r.lost()
		}
	}
}

// deliver writes what the server has sent. While the relay is ending, it stops
// at the end of a message.
func (r *relay) deliver(b []byte) (done bool, err error) {
	boundary := r.framing.advance(b)
	var f *fatal
	if boundary >= 0 {
		r.mu.Lock()
		if f = r.ending; f != nil {
			b = b[:boundary]
		}
		r.mu.Unlock()
	}
	if _, err := r.client.conn.Write(b); err != nil {
		return true, errGone
	}
	if f != nil {
		return true, f
	}
	return false, nil
}
