package replication

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgbough/pgbough"
)

// session is one connection of a standby through a Relay.
type session struct {
	relay   *Relay
	standby *net.UnixConn
	dial    Dial
	cancel  context.CancelFunc
	ended   chan struct{}

	mu       sync.Mutex
	upstream net.Conn // the plain connection, below TLS; nil before there is one
	closed   bool
	hushed   bool // the standby's connection outlives the session
}

// close ends the session at once, without a word to either side: a farewell on
// a TLS connection could block for seconds. It may be called at any time.
func (s *session) close() {
	s.cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if !s.hushed {
		_ = s.standby.Close() // it only tells that it is closed already
	}
	if s.upstream != nil {
		_ = s.upstream.Close()
	}
}

// hush ends the session like close, but leaves the standby's connection open
// and returns it. Nobody reads it or writes to it any more.
func (s *session) hush() net.Conn {
	s.mu.Lock()
	s.hushed = true
	_ = s.standby.SetDeadline(time.Unix(1, 0)) // ends a read or write of ours
	s.mu.Unlock()
	s.close()
	return s.standby
}

// within gives the standby's side a deadline; 0 is none.
func (s *session) within(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hushed {
		return
	}
	var at time.Time
	if d > 0 {
		at = time.Now().Add(d)
	}
	_ = s.standby.SetDeadline(at) // fails only with the connection
}

// adopt makes conn the upstream, unless the session was closed meanwhile.
func (s *session) adopt(conn net.Conn) bool {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		_ = conn.Close() // nothing was sent on it
		return false
	}
	s.upstream = conn
	return true
}

// startupTimeout is how long the standby may take to say what it wants.
const startupTimeout = 10 * time.Second

// serve does everything from the standby's first byte to the last. The error
// is about the upstream; that the standby goes away is none.
func (s *session) serve(ctx context.Context) error {
	s.within(startupTimeout)
	start, err := readStartup(s.standby)
	if err == nil {
		err = start.check()
	}
	if err != nil {
		if !errors.Is(err, io.EOF) && ctx.Err() == nil {
			s.refuse("08P01", "the relay cannot serve this connection: "+err.Error()) // protocol_violation
		}
		return nil
	}
	upstream, err := s.connect(ctx)
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		s.refuse(fatalCode(err), fatalText(err))
		return err
	}
	if !s.adopt(upstream.Conn) {
		return nil
	}
	s.within(startupTimeout)
	if err := greet(s.standby, start, upstream); err != nil {
		return nil // the standby went away
	}
	s.within(0)
	s.relay.delivered.Store(0)
	s.relay.connected(s)
	return s.splice(ctx, upstream.Conn)
}

func (s *session) connect(ctx context.Context) (*pgconn.HijackedConn, error) {
	ctx, cancel := context.WithTimeout(ctx, s.relay.o.DialTimeout)
	defer cancel()
	return s.dial(ctx)
}

// refuse tells the standby why there is no connection; its log shows it.
func (s *session) refuse(code, text string) {
	message := &pgproto3.ErrorResponse{Severity: "FATAL", SeverityUnlocalized: "FATAL", Code: code, Message: text}
	b, err := message.Encode(nil)
	if err != nil {
		return
	}
	_ = s.standby.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = s.standby.Write(b) // it may be gone
}

// fatalCode is the upstream's own SQLSTATE where it gave one.
func fatalCode(err error) string {
	if code := sqlState(err); code != "" {
		return code
	}
	return "08001" // sqlclient_unable_to_establish_sqlconnection
}

// fatalText is what may be told about err: an *Error has no secrets.
func fatalText(err error) string {
	var told *pgbough.Error
	switch {
	case errors.As(err, &told):
		return told.Error()
	case errors.Is(err, context.DeadlineExceeded):
		return "the upstream server does not answer"
	}
	return "the upstream server cannot be reached"
}

// splice copies both ways until one side ends. What a standby waits for comes
// from the upstream, so its silence is bounded, and its errors are noted.
func (s *session) splice(ctx context.Context, upstream net.Conn) error {
	var back sync.WaitGroup
	back.Go(func() {
		defer s.close() // the standby went away: so does the upstream connection
		s.toUpstream(upstream)
	})
	err := s.toStandby(ctx, upstream)
	s.close()
	back.Wait()
	return err
}

// relayBuffer is the size of the buffer of each direction.
const relayBuffer = 64 << 10

// toUpstream passes the standby's messages on, of which those that a standby
// has no need for end the session: our role at the upstream can do more.
func (s *session) toUpstream(upstream net.Conn) {
	in := bufio.NewReaderSize(s.standby, relayBuffer)
	for {
		message, err := standbyMessage(in)
		var refused *pgbough.Error
		if errors.As(err, &refused) {
			s.relay.failed(refused)
		}
		if err != nil {
			return
		}
		n, err := upstream.Write(message)
		s.relay.sent.Add(int64(n))
		s.relay.lastSent.Store(time.Now().UnixNano())
		if err != nil {
			return
		}
		_, _ = in.Discard(n) // it is all in the buffer
	}
}

// toStandby copies what the upstream sends. It returns nil when the standby is
// the one that ended. A standby that waits for the answer to its first command
// has no timeout of its own, so that answer must come soon.
func (s *session) toStandby(ctx context.Context, upstream net.Conn) error {
	buffer := make([]byte, relayBuffer)
	var watch errorWatch
	patience := min(s.relay.o.DialTimeout, s.relay.o.IdleTimeout)
	for {
		_ = upstream.SetReadDeadline(time.Now().Add(patience)) // fails only with the connection
		n, err := upstream.Read(buffer)
		if n > 0 {
			patience = s.relay.o.IdleTimeout
			s.relay.received.Add(int64(n))
			s.relay.lastByte.Store(time.Now().UnixNano())
			if told := watch.scan(buffer[:n]); told != nil {
				s.relay.failed(upstreamError(told))
			}
			if _, err := s.standby.Write(buffer[:n]); err != nil {
				s.relay.delivered.Store(0) // it may have got a part of that
				return nil
			}
			s.relay.delivered.Store(uint64(watch.wal))
		}
		if err != nil {
			return s.upstreamEnd(ctx, err, watch.fatal, patience)
		}
	}
}

// upstreamEnd says why the upstream connection is over; nil when we closed it
// or when the upstream has said why itself.
func (s *session) upstreamEnd(ctx context.Context, err error, told bool, patience time.Duration) error {
	switch {
	case ctx.Err() != nil || told:
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return pgbough.Errorf(pgbough.EUnreachable, "the upstream server sent nothing for %s", patience).
			WithHint("check whether it hangs, and the network on the way")
	case errors.Is(err, io.EOF):
		return pgbough.Errorf(pgbough.EUnreachable, "the upstream server closed the connection")
	}
	return pgbough.Errorf(pgbough.EUnreachable, "the connection to the upstream server broke: %s", innermost(err))
}

func upstreamError(e *pgconn.PgError) *pgbough.Error {
	told := pgbough.Errorf(pgbough.EUnreachable, "the upstream server says: %s", e.Message)
	told.Err = e
	return told
}

// greet answers the standby's startup packet as a server does that wants no
// password. The cancel key is made up: nobody may cancel through a relay.
func greet(standby io.Writer, start *startup, upstream *pgconn.HijackedConn) error {
	var messages []pgproto3.BackendMessage
	if start.newer || len(start.unknown) > 0 {
		messages = append(messages, &pgproto3.NegotiateProtocolVersion{NewestMinorProtocol: 0, UnrecognizedOptions: start.unknown})
	}
	messages = append(messages, &pgproto3.AuthenticationOk{})
	for name, value := range upstream.ParameterStatuses {
		messages = append(messages, &pgproto3.ParameterStatus{Name: name, Value: value})
	}
	var key [4]byte
	_, _ = rand.Read(key[:]) // never fails (crypto/rand)
	messages = append(messages,
		&pgproto3.BackendKeyData{ProcessID: upstream.PID, SecretKey: key[:]},
		&pgproto3.ReadyForQuery{TxStatus: 'I'})
	var b []byte
	for _, m := range messages {
		var err error
		if b, err = m.Encode(b); err != nil {
			return fmt.Errorf("greet the standby: %w", err)
		}
	}
	_, err := standby.Write(b)
	return err
}
