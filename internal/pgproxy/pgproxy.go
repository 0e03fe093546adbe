// Package pgproxy is the one port in front of all branches. It finds out which
// branch a client wants, lets the client prove who it is, has the branch's
// Postgres woken, and from then on only copies bytes.
//
//   - A client is one connection that was accepted, until it is known what it wants.
//   - A stranger is a client that has not proved who it is.
//   - A session joins a client that has logged in to a connection with the
//     branch's Postgres. It begins with the login, before anything is woken.
//   - A relay copies the bytes of a session, and a loop those of many relays.
//   - A port is the socket of one side of a relay.
//   - A farewell is the last message to a client, a FATAL error.
package pgproxy

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/credential"
)

// Service is what the proxy asks of the rest of the server.
type Service interface {
	// Login finds the branch that a client names (an endpoint id, a branch id, a
	// branch name, or project/branch) and what it must prove to be role there. It
	// starts nothing. A branch that is still being made makes it wait until the
	// branch is ready or ctx ends. Unknown branch: ENotFound. An unknown role is a
	// Login without verifier.
	Login(ctx context.Context, branch, role string) (pgbough.Login, error)
	// Connect wakes the branch's Postgres when it sleeps and connects to its
	// private socket, where it is trusted. Errors are *pgbough.Error.
	Connect(ctx context.Context, branchID string) (net.Conn, error)
}

// Plain says from where clients may connect without TLS.
type Plain int

// The values of Plain.
const (
	PlainLoopback Plain = iota // from this machine only
	PlainAlways
	PlainNever
)

// Options of a Proxy. Service, Decoys and Log must be set.
type Options struct {
	Service Service
	Decoys  *credential.Decoys
	Log     *slog.Logger
	TLS     *credential.Certificates // nil: no TLS
	Plain   Plain
	Domain  string // endpoints are reached as <endpoint id>.Domain; empty: under any name

	MaxClients   int           // that have logged in; 0: no limit
	MaxStrangers int           // connections of clients that have not logged in; 1000 when 0
	Startup      time.Duration // for a client to say what it wants; 10 s when 0
	Login        time.Duration // for a client to prove who it is; 60 s when 0
	Wait         time.Duration // for a branch that is being made or woken; 10 min when 0
}

// Proxy serves clients of all branches. It is safe for concurrent use.
type Proxy struct {
	Options
	cancels   cancels
	counts    counts
	shown     shown
	strangers strangers

	mu       sync.Mutex
	branches map[string]*branch // that have sessions, or are held
}

type counts struct {
	open, users, accepted, failures, cancels atomic.Int64
}

// Stats counts since the proxy was made, but for Open and Goroutines.
type Stats struct {
	Open         int64 // connections of clients, in whatever state
	Goroutines   int64 // of its process
	Accepted     int64
	AuthFailures int64 // wrong passwords, unknown roles and branches
	Cancels      int64 // cancel requests that were forwarded
}

// New makes a proxy.
func New(o Options) *Proxy {
	set := func(d *time.Duration, to time.Duration) {
		if *d == 0 {
			*d = to
		}
	}
	set(&o.Startup, 10*time.Second)
	set(&o.Login, time.Minute)
	set(&o.Wait, 10*time.Minute)
	if o.MaxStrangers == 0 {
		o.MaxStrangers = 1000
	}
	return &Proxy{Options: o, branches: map[string]*branch{}, cancels: cancels{sessions: map[string]*session{}}}
}

// Stats are the present counts.
func (p *Proxy) Stats() Stats {
	c := &p.counts
	return Stats{
		Open: c.open.Load(), Goroutines: int64(runtime.NumGoroutine()),
		Accepted: c.accepted.Load(), AuthFailures: c.failures.Load(), Cancels: c.cancels.Load(),
	}
}

// acceptPause is between two tries to accept while there are no descriptors.
const acceptPause = 50 * time.Millisecond

// Serve takes connections from l until ctx ends, which closes l. It then tells
// its clients that the server shuts down, and returns when the last is gone; no
// client can delay that for more than some seconds. It returns an error only
// if l fails.
func (p *Proxy) Serve(ctx context.Context, l net.Listener) error {
	loops, err := startLoops()
	if err != nil {
		_ = l.Close() // nothing has come from it
		return err
	}
	defer loops.stop()
	ctx, end := context.WithCancel(ctx)
	var clients sync.WaitGroup
	defer clients.Wait()
	defer end()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() }) // wakes Accept
	defer stop()
	for {
		conn, err := l.Accept()
		switch {
		case err == nil:
			clients.Go(func() { p.serve(ctx, conn, loops.pick()) })
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		default:
			p.Log.WarnContext(ctx, "a connection could not be accepted", "error", err)
			select {
			case <-time.After(acceptPause):
			case <-ctx.Done():
			}
		}
	}
}

// serve serves one connection and closes it. Should it become a session, the
// loop copies for it.
func (p *Proxy) serve(ctx context.Context, conn net.Conn, by *loop) {
	p.counts.accepted.Add(1)
	p.counts.open.Add(1)
	defer p.counts.open.Add(-1)
	keepAlive(conn)
	c := newClient(conn)
	c.loop = by
	defer func() { _ = c.raw.Close() }() // there is nobody left to tell
	began := time.Now()
	log := p.Log.With("peer", c.peer)
	log.DebugContext(ctx, "connection opened")
	err := p.talk(ctx, c)
	if f := p.farewell(ctx, err); f != nil && c.say(f) && !errors.Is(err, errCrowded) {
		c.drain()
	}
	log.DebugContext(ctx, "connection closed", "seconds", time.Since(began).Seconds(), "error", err)
}

// keepAlive has the kernel notice clients that are gone without a word.
func keepAlive(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: time.Minute, Interval: 15 * time.Second, Count: 4}) // it works without
	}
}

// talk is a connection from its first byte to its last, without the farewell
// that its error stands for.
func (p *Proxy) talk(ctx context.Context, c *client) error {
	start, login, err := p.meet(ctx, c)
	if err != nil {
		return err
	}
	if start.cancel != nil {
		return p.cancel(ctx, start.cancel)
	}
	leave, err := p.seat()
	defer leave()
	if err != nil {
		return err
	}
	return p.join(ctx, c, start, login)
}
