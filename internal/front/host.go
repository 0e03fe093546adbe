// Package front is the part of the server that meets strangers, and how the rest
// runs it. The server is two processes of one binary:
//
//   - The engine is root. It has the catalog, the keys, the pool and the Postgres
//     of all branches, and speaks with nobody outside.
//   - The front is a user of its own, without any right, in an empty root directory
//     and a network of its own in which there is nothing. It was given the two ports,
//     which it serves: it reads what clients send, TLS, HTTP and Postgres's protocol,
//     and asks the engine for what it needs.
//
// A Host is the engine's side: it starts the front, answers it, and starts another
// when it ends. Run is the front's. Between the two is a link: the front asks who
// may log in, for a connection with a branch's Postgres, of which it gets the
// descriptor, and hands on requests to the API whose key the engine knows; the
// engine asks the front for numbers and to hold or end clients of a branch. What a
// front can do that strangers have taken over is in docs/security.md: the engine
// believes nothing of it that it can find out itself.
package front

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/pgbough/pgbough/internal/credential"
	"github.com/pgbough/pgbough/internal/httpapi"
	"github.com/pgbough/pgbough/internal/link"
	"github.com/pgbough/pgbough/internal/pgproxy"
)

const (
	beginLimit = 30 * time.Second // for a front to begin; it takes 50 ms on an idle machine
	stopLimit  = 20 * time.Second // for all clients to be told that the server ends
	// headerLimit is for a front to hand on the beginning of a request.
	headerLimit = 30 * time.Second

	firstPause = 100 * time.Millisecond // between a front that ended soon and the next
	maxPause   = 5 * time.Second
	steadyTime = 10 * time.Second // a front that lived so long is followed by another at once
)

// Service is what a front may ask of the server.
type Service interface {
	pgproxy.Service
	httpapi.Keys
	// Healthy is nil while the server can serve.
	Healthy(ctx context.Context) error
}

// Options of a Host. All but Domain, MaxClients, Answer and Debug must be set.
type Options struct {
	Service Service
	API     http.Handler // answers requests to the API

	APIListener, ProxyListener *net.TCPListener // which the Host closes

	User         User
	Certificates *credential.Certificates
	Decoys       *credential.Decoys
	Plain        pgproxy.Plain
	Domain       string
	MaxClients   int

	// Answer is for a front to answer; 30 s when 0. Hold and End are the longest: they
	// wait for clients, up to some 10 s. A front that takes longer is ended.
	Answer time.Duration

	Debug  bool
	Stderr io.Writer // where the front logs
	Log    *slog.Logger
	// Command is what has this binary Run a front. The uid and the gid follow it.
	Command []string
}

// Host runs the front. It is safe for concurrent use.
type Host struct {
	o     Options
	http  *http.Server
	feed  *feed
	cut   context.CancelFunc // of the requests that http serves
	room  chan struct{}      // has a place for each stream that may still be opened
	serve sync.WaitGroup

	mu      sync.Mutex
	current *child // nil while there is none that can be asked
	held    map[string]bool
	past    pgproxy.Stats // of those that have ended, and what the current one said last
	last    pgproxy.Stats
}

// maxStreams is how many streams a front may have open: more than it needs, and
// fewer than the engine has descriptors.
const maxStreams = 20000

// New makes a Host without a front.
func New(o Options) *Host {
	if o.Answer == 0 {
		o.Answer = 30 * time.Second
	}
	requests, cut := context.WithCancel(context.Background())
	h := &Host{o: o, cut: cut, room: make(chan struct{}, maxStreams), held: map[string]bool{}}
	h.feed = newFeed(o.APIListener.Addr())
	h.http = &http.Server{
		Handler: httpapi.Behind(o.API), ReadHeaderTimeout: headerLimit,
		BaseContext: func(net.Listener) context.Context { return requests },
		ErrorLog:    slog.NewLogLogger(o.Log.Handler(), slog.LevelDebug), // of a front that ended
	}
	h.serve.Go(func() { _ = h.http.Serve(h.feed) }) // ends with Close
	return h
}

// Run starts a front, tells ready when it serves, and keeps one running until ctx
// ends. Then requests to the API come to their end, clients of branches are told
// that the server shuts down, and it returns when nothing of the front is left. It
// returns an error only if the first front does not begin.
func (h *Host) Run(ctx context.Context, ready func()) error {
	defer h.close()
	c, err := h.begin(ctx)
	if err != nil {
		return err
	}
	ready()
	for pause := time.Duration(0); ; {
		select {
		case <-ctx.Done():
			h.stop(ctx, c)
			return nil
		case <-c.gone:
		}
		if pause = next(pause, time.Since(c.began)); ctx.Err() == nil {
			h.o.Log.WarnContext(ctx, "the process that serves clients has ended; starting another", "error", c.err, "in", pause)
		}
		if c = h.another(ctx, pause); c == nil {
			return nil
		}
	}
}

// next is how long to wait after a front that lived for some time.
func next(pause, lived time.Duration) time.Duration {
	if lived > steadyTime {
		return 0
	}
	return min(max(2*pause, firstPause), maxPause)
}

// another starts fronts until one serves; it is nil when ctx ended before.
func (h *Host) another(ctx context.Context, pause time.Duration) *child {
	for {
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil
		}
		c, err := h.begin(ctx)
		if err == nil {
			return c
		}
		if ctx.Err() != nil {
			return nil
		}
		pause = next(pause, 0)
		h.o.Log.ErrorContext(ctx, "no process that serves clients can be started; trying again", "error", err, "in", pause)
	}
}

// begin starts a front and waits until it serves.
func (h *Host) begin(ctx context.Context) (*child, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, beginLimit, errors.New("it has not begun in time"))
	defer cancel()
	c, err := h.spawn(ctx)
	if err != nil {
		return nil, fmt.Errorf("start the process that serves clients: %w", err)
	}
	select {
	case <-c.begun:
		if err = c.caller.Call(ctx, verbStats, nil, nil); err == nil {
			return c, nil
		}
	case <-c.gone:
		err = c.err
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	c.kill()
	return nil, fmt.Errorf("start the process that serves clients: %w", err)
}

// stop ends everything in order: first the API's answers, then the front.
func (h *Host) stop(ctx context.Context, c *child) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopLimit)
	defer cancel()
	h.cut()
	err := c.caller.Call(ctx, verbStop, nil, nil)
	if err == nil {
		select {
		case <-c.gone:
			return
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	if !c.ended() {
		h.o.Log.WarnContext(ctx, "the process that serves clients does not end; killing it", "error", err)
	}
	c.kill()
}

func (h *Host) close() {
	h.cut()
	_ = h.o.APIListener.Close() // clients are gone, and no others are wanted
	_ = h.o.ProxyListener.Close()
	_ = h.http.Close() // it has no connection left
	_ = h.feed.Close() // as is what comes from it
	h.serve.Wait()
}

// attend serves the streams that a front opens, until it ends.
func (h *Host) attend(ctx context.Context, c *child) {
	for {
		kind, stream, err := c.link.Accept()
		if err != nil {
			return
		}
		select {
		case h.room <- struct{}{}:
		default:
			_ = stream.Close() // a front needs no more
			continue
		}
		leave := sync.OnceFunc(func() { <-h.room })
		switch kind {
		case link.Calls:
			h.serve.Go(func() {
				defer leave()
				link.Serve(ctx, stream, &answers{h, c})
			})
		case link.Bytes:
			h.feed.give(&counted{stream, leave})
		}
	}
}
