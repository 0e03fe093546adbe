package pgproxy

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// endGrace is how long a message that has begun has to end, before a
	// connection is closed without a farewell.
	endGrace = time.Second
	// turnLength is how many buffers are moved before it is another relay's turn.
	turnLength = 8
	// maxPending is what may wait for a client before it is not listened to either.
	// Only what TLS itself answers comes to that.
	maxPending = 4 * bufferSize
)

// relay copies the bytes of one session: up, from the client to the server, and
// down. Its loop does that, and whoever holds or ends it says so in its fields.
// All of them are guarded by mu, and nothing that is done under it waits.
type relay struct {
	client *client
	first  []byte // what the server sent before the relay ran
	loop   *loop  // nil: it does not run yet
	id     uint64 // the loop's name for it
	busy   bool   // the loop is going to give it another turn; the loop's own

	mu         sync.Mutex
	server     net.Conn // until it runs
	front      port     // the client's
	back       port     // the server's
	framing    framing  // of what went down
	bye        bool     // the client has said that it goes
	leaving    bool     // it has ended its side
	silent     bool     // nothing goes up any more
	held       bool     // nothing goes up until it is released
	ending     *fatal   // what is said as soon as a message ends
	last       error    // what it ends with when the client has taken what is pending
	grace      *time.Timer
	over       bool
	result     error         // once it is over
	done       chan struct{} // closed then
	changed    *sync.Cond    // cancelling
	cancelling int           // cancel requests under way
}

func (r *relay) init(c *client) {
	r.client, r.changed, r.done = c, sync.NewCond(&r.mu), make(chan struct{})
}

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
func (r *relay) run(l *loop) error {
	if err := r.begin(l); err != nil {
		return err
	}
	<-r.done
	_ = unix.Close(r.back.fd)
	r.back.drop()
	r.front.drop()
	if errors.Is(r.result, errGone) {
		_ = unix.Close(r.front.fd)
		return errGone
	}
	if err := r.client.regain(&r.front); err != nil {
		return errGone
	}
	return r.result
}

// begin hands both connections to a loop.
func (r *relay) begin(l *loop) (err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.back.fd, err = detach(r.server); err != nil {
		return err
	}
	if err := r.client.lend(&r.front); err != nil {
		_ = unix.Close(r.back.fd)
		return err
	}
	r.loop, r.front.readable, r.back.readable = l, true, true
	if n := r.client.r.Buffered(); n > 0 {
		b, _ := r.client.r.Peek(n) // cannot fail
		r.bye = bytes.HasSuffix(b, terminate)
		r.back.keep(b)
	}
	if err := l.add(r); err != nil {
		r.finish(err)
		return nil
	}
	r.deliver(r.first)
	r.first = nil
	if r.ending != nil {
		r.graceful()
	}
	return nil
}

// finish has run return err.
func (r *relay) finish(err error) {
	if r.over {
		return
	}
	r.over, r.result = true, err
	if r.grace != nil {
		r.grace.Stop()
	}
	r.loop.remove(r)
	close(r.done)
}

// close closes the connection with the server when no cancel request is on its
// way to it.
func (r *relay) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.over = true
	_ = r.server.Close() // it may be closed already
	for r.cancelling > 0 {
		r.changed.Wait()
	}
}

// happened takes what epoll says of a port, and copies. It tells whether there
// may be more to do at once, and so does turn.
func (r *relay) happened(back bool, events uint32, buf []byte) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := &r.front
	if back {
		p = &r.back
	}
	if events&^unix.EPOLLOUT != 0 {
		p.readable = true
	}
	if events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		p.hangup = true
	}
	return r.copy(buf)
}

func (r *relay) turn(buf []byte) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.copy(buf)
}

// copy copies as long as there is something that need not be waited for.
func (r *relay) copy(buf []byte) bool {
	for range turnLength {
		up := r.up(buf)
		down := r.down(buf)
		if r.over {
			return false
		}
		if !up && !down {
			r.watch()
			return false
		}
	}
	return true
}

// watch has epoll say when there is room for what is pending.
func (r *relay) watch() {
	for _, p := range []*port{&r.front, &r.back} {
		events, tag := uint32(always), r.id
		if p == &r.back {
			tag |= backBit
		}
		if p.pending() > 0 {
			events |= unix.EPOLLOUT
		}
		if events != p.watched {
			_ = p.watch(r.loop, unix.EPOLL_CTL_MOD, events, tag) // fails only when it was not added
		}
	}
}

// terminate is a client's last message.
var terminate = []byte{'X', 0, 0, 0, 4}

// up copies once from the client to the server, and tells whether it may be
// called again at once. That the server is gone, down finds out, with what the
// server has said before.
func (r *relay) up(buf []byte) bool {
	if r.over || r.silent || r.held || r.ending != nil {
		return false
	}
	if err := r.back.flush(); err != nil {
		r.silent = true
		return false
	}
	if r.back.pending() > 0 || r.front.pending() > maxPending {
		return false
	}
	if r.leaving {
		// It may still listen.
		r.silent = true
		if err := unix.Shutdown(r.back.fd, unix.SHUT_WR); err != nil {
			r.finish(errGone)
		}
		return false
	}
	n, err := r.front.read(buf)
	if n > 0 {
		r.bye = bytes.HasSuffix(buf[:n], terminate)
		if r.back.write(buf[:n]) != nil {
			r.silent = true
			return false
		}
	}
	switch {
	case err == nil:
		return true
	case errors.Is(err, os.ErrDeadlineExceeded):
		return false
	case errors.Is(err, io.EOF):
		r.bye, r.leaving = true, true
		return true
	}
	_ = r.front.flush() // TLS may have said what is wrong
	r.finish(errGone)
	return false
}

// down copies once from the server to the client, and tells whether it may be
// called again at once.
func (r *relay) down(buf []byte) bool {
	if r.over {
		return false
	}
	if err := r.front.flush(); err != nil {
		r.finish(errGone)
		return false
	}
	if r.settle(); r.over || r.front.pending() > 0 {
		return false
	}
	n, err := r.back.read(buf)
	switch {
	case err == nil:
		r.deliver(buf[:n])
		return true
	case errors.Is(err, os.ErrDeadlineExceeded):
		return false
	}
	r.last = r.lost()
	return true
}

// deliver writes what the server has sent. While the relay is ending, it stops
// at the end of a message.
func (r *relay) deliver(b []byte) {
	boundary := r.framing.advance(b)
	if boundary >= 0 && r.ending != nil {
		b, r.last = b[:boundary], r.ending
	}
	if err := r.front.write(b); err != nil {
		r.finish(errGone)
	}
}

// settle ends the relay if the client has taken all that it is to have.
func (r *relay) settle() {
	switch {
	case r.front.pending() > 0:
	case r.last != nil:
		r.finish(r.last)
	case r.ending != nil && r.framing.whole():
		r.finish(r.ending)
	}
}
