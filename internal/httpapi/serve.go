package httpapi

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	headerTimeout = 10 * time.Second // for a client to say what it wants, TLS included
	idleTimeout   = 2 * time.Minute
	acceptPause   = 50 * time.Millisecond
	grace         = 5 * time.Second // for requests that run when the server ends

	tlsHandshake = 22 // the first byte of TLS, and of no HTTP
)

// Certificate is what the server shows to the next client that wants TLS.
type Certificate func(context.Context) *tls.Certificate

// Serve serves h on l until ctx ends, with TLS to clients that begin with it and
// plain to the others: both are on one port, so that a client of the same machine
// needs no certificate wherever l listens. It returns when all that it began has
// ended, and with an error only if l fails. Requests that run then have a moment to
// come to their end; whoever answers them should have them do so.
func Serve(ctx context.Context, l net.Listener, h http.Handler, cert Certificate, log *slog.Logger) error {
	ctx, end := context.WithCancel(ctx)
	defer end()
	requests, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	server := &http.Server{
		Handler: h, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout,
		BaseContext: func(net.Listener) context.Context { return requests },
		ErrorLog:    slog.NewLogLogger(log.Handler(), slog.LevelDebug), // clients that break off or do not trust us
		TLSConfig: &tls.Config{
			MinVersion: tls.VersionTLS12,
			// Without h2 here, it would depend on which side is served first whether
			// the server speaks what it offers.
			NextProtos:     []string{"h2", "http/1.1"},
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return cert(ctx), nil },
		},
	}
	s := &splitter{Listener: l, log: log, plain: newSide(l), secure: newSide(l)}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(s.plain) })             // ends with Shutdown
	serving.Go(func() { _ = server.ServeTLS(s.secure, "", "") }) // so does this
	err := s.split(ctx)
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	if server.Shutdown(last) != nil {
		cut()
		_ = server.Close() // long requests are not waited for
	}
	serving.Wait()
	return err
}

// splitter accepts connections and hands each to the side that speaks as it does.
type splitter struct {
	net.Listener
	log           *slog.Logger
	plain, secure *side
}

// split runs until ctx ends, which closes the listener, or the listener fails.
func (s *splitter) split(ctx context.Context) error {
	ctx, end := context.WithCancel(ctx)
	var looking sync.WaitGroup
	defer looking.Wait()
	defer end()
	stop := context.AfterFunc(ctx, func() { _ = s.Close() }) // wakes Accept
	defer stop()
	for {
		conn, err := s.Accept()
		switch {
		case err == nil:
			looking.Go(func() { s.look(ctx, conn) })
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		default: // too many open files, most likely
			s.log.WarnContext(ctx, "a connection could not be accepted", "error", err)
			select {
			case <-time.After(acceptPause):
			case <-ctx.Done():
			}
		}
	}
}

// look waits for the first byte of a connection and hands it on.
func (s *splitter) look(ctx context.Context, conn net.Conn) {
	p := &peeked{Conn: conn, r: bufio.NewReader(conn)}
	_ = conn.SetReadDeadline(time.Now().Add(headerTimeout)) // an error shows at the read
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	first, err := p.r.Peek(1)
	if !stop() || err != nil {
		_ = conn.Close() // it has said nothing
		return
	}
	_ = conn.SetReadDeadline(time.Time{}) // http.Server sets its own
	to := s.plain
	if first[0] == tlsHandshake {
		to = s.secure
	}
	to.give(ctx, p)
}

// peeked is a connection of which something was read ahead.
type peeked struct {
	net.Conn
	r *bufio.Reader
}

func (p *peeked) Read(b []byte) (int, error) { return p.r.Read(b) }

// side is a listener for some of the connections of another.
type side struct {
	addr   net.Addr
	conns  chan net.Conn
	closed chan struct{}
	close  func()
}

func newSide(l net.Listener) *side {
	s := &side{addr: l.Addr(), conns: make(chan net.Conn), closed: make(chan struct{})}
	s.close = sync.OnceFunc(func() { close(s.closed) })
	return s
}

func (s *side) give(ctx context.Context, conn net.Conn) {
	select {
	case s.conns <- conn:
		return
	case <-s.closed:
	case <-ctx.Done():
	}
	_ = conn.Close() // nobody has heard it
}

// Accept implements net.Listener.
func (s *side) Accept() (net.Conn, error) {
	select {
	case conn := <-s.conns:
		return conn, nil
	case <-s.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (s *side) Close() error { s.close(); return nil }

// Addr implements net.Listener.
func (s *side) Addr() net.Addr { return s.addr }
