package pgproxy

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/pgbough/pgbough"
)

const (
	// startLimit is how long Hold waits for a Postgres that takes a session.
	startLimit = 5 * time.Second
	// maxMessage is the longest message of a Postgres that begins a session.
	maxMessage = 1 << 20
)

// session is a client that has logged in, and its connection with a Postgres.
type session struct {
	proxy   *Proxy
	client  *client
	branch  string
	speaks  bool // its Postgres knows of it; guarded by proxy.mu
	life    context.Context
	cancel  context.CancelCauseFunc // of life
	started chan struct{}           // closed when the Postgres has taken or refused it
	done    chan struct{}           // closed when it has no connection with the Postgres any more
	key     []byte                  // of the Postgres, to cancel
	shown   string                  // the key that the client has; guarded by proxy.cancels
	relay   relay
}

// join is a session from the login to its end. The farewell that its error
// stands for has not been said.
func (p *Proxy) join(ctx context.Context, c *client, start *startup, login pgbough.Login) error {
	s := &session{proxy: p, client: c, branch: login.BranchID, started: make(chan struct{}), done: make(chan struct{})}
	life, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s.life, s.cancel = life, cancel
	s.relay.init(c)
	p.enter(s)
	defer close(s.done)
	defer p.leave(s)
	err := s.begin(life, start)
	close(s.started)
	if s.relay.server == nil {
		return err
	}
	defer s.leaveServer()
	if err != nil {
		return err
	}
	// The server's end is told in the same way as that of a branch.
	stop := context.AfterFunc(ctx, func() { s.relay.end(shutdown()) })
	defer stop()
	return s.relay.run(c.loop)
}

// leaveServer closes the connection with the Postgres, and lets no cancel
// request find its way there any more.
func (s *session) leaveServer() {
	s.proxy.cancels.remove(s)
	s.cancel(nil)
	s.relay.close()
}

// shutdown ends sessions when the server shuts down.
func shutdown() *fatal {
	return fatalf("57P01", "terminating connection: the server is shutting down")
}

// begin connects to the Postgres and brings the session to the point where the
// client may ask something.
func (s *session) begin(ctx context.Context, start *startup) error {
	waiting, stop := s.client.watch(ctx)
	defer stop()
	within, cancel := context.WithTimeout(waiting, s.proxy.Wait)
	defer cancel()
	server, err := s.connect(within)
	if err == nil {
		s.relay.connected(server)
		unblock := context.AfterFunc(within, func() { _ = server.SetDeadline(past) }) // fails only when closed
		err = s.introduce(server, start)
		if !unblock() && err == nil {
			err = context.Cause(within)
		}
	}
	if err == nil {
		return nil
	}
	// What ended the waiting says more than what that did to the connection.
	if cause := context.Cause(waiting); cause != nil {
		return cause
	}
	if errors.Is(context.Cause(within), context.DeadlineExceeded) {
		return fatalf("57P03", "the branch's Postgres is not ready yet").hinted("Connect again later.")
	}
	return err
}

// connect waits until the branch may be spoken to, and connects to its Postgres.
func (s *session) connect(ctx context.Context) (net.Conn, error) {
	for {
		if err := s.proxy.open(ctx, s.branch); err != nil {
			return nil, err
		}
		server, err := s.proxy.Service.Connect(ctx, s.branch)
		if err != nil {
			return nil, err
		}
		if s.proxy.admitted(s) {
			return server, nil
		}
		_ = server.Close() // it has not been used
	}
}

// introduce sends the startup packet and passes on the Postgres's answers until
// it is ready, or has refused.
func (s *session) introduce(server net.Conn, start *startup) error {
	if _, err := server.Write(start.encode()); err != nil {
		return ended(err)
	}
	r := bufio.NewReaderSize(server, 4096)
	out := s.client.pending
	for {
		kind, message, err := readMessage(r)
		if err != nil {
			return ended(err)
		}
		switch kind {
		case 'R':
			if len(message) != 9 || binary.BigEndian.Uint32(message[5:]) != 0 {
				return errors.New("the Postgres of a branch wants to know who we are")
			}
		case 'v':
			return errors.New("the Postgres of a branch does not speak what it ought to")
		case 'K':
			s.key = append([]byte(nil), message[5:]...)
			copy(message[5:], s.proxy.cancels.add(s))
		}
		out = append(out, message...)
		if kind != 'Z' && kind != 'E' && r.Buffered() > 0 {
			continue
		}
		if _, err := s.client.conn.Write(out); err != nil {
			return fmt.Errorf("%w: %w", errGone, err)
		}
		out = out[:0]
		switch kind {
		case 'E':
			s.client.drain()
			return errGone
		case 'Z':
			rest, _ := r.Peek(r.Buffered()) // cannot fail
			s.relay.early(rest)
			return nil
		}
	}
}

// ended is what a client is told when its Postgres goes away before it is ready.
func ended(err error) error {
	return fatalf("57P03", "the branch's Postgres ended while it took the connection").hinted("Connect again.").because(err)
}

// readMessage reads a whole message, its head included.
func readMessage(r io.Reader) (byte, []byte, error) {
	message := make([]byte, 5, 64)
	if _, err := io.ReadFull(r, message); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(message[1:])
	if n < 4 || n > maxMessage {
		return 0, nil, errors.New("a message of invalid length")
	}
	message = append(message, make([]byte, n-4)...)
	_, err := io.ReadFull(r, message[5:])
	return message[0], message, err
}

// hold returns when nothing of the client reaches the Postgres.
func (s *session) hold() {
	timer := time.NewTimer(startLimit)
	defer timer.Stop()
	select {
	case <-s.started:
	case <-timer.C: // whatever it does, it does not run a query of the client yet
	}
	s.relay.hold()
}

// end ends the session with a farewell, and waits until the Postgres has no
// connection with it.
func (s *session) end(f *fatal) {
	s.cancel(f)
	s.relay.end(f)
	<-s.done
}
