package front

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/oklog/run"
	"golang.org/x/sys/unix"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/credential"
	"github.com/pgbough/pgbough/internal/httpapi"
	"github.com/pgbough/pgbough/internal/link"
	"github.com/pgbough/pgbough/internal/pgproxy"
)

// spareFiles is how many descriptors a front may have beside those of its clients.
const spareFiles = 4096

var errEngineGone = errors.New("the engine has ended")

// Run is a front, from its begin in a process that a Host has started to its end.
// It returns at once when the engine has ended, with all connections still open:
// the end of the process closes them.
func Run(ctx context.Context, user User, stderr io.Writer) error {
	// Only the engine ends it.
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	f, err := inherit(user)
	if err != nil {
		return err
	}
	return f.run(context.WithoutCancel(ctx), stderr)
}

// front is the front's side.
type front struct {
	link         *link.Link
	engine       *link.Caller
	api, clients net.Listener

	log   *slog.Logger
	proxy *pgproxy.Proxy
	stop  context.CancelFunc // of what serves clients
}

// inherit takes what the Host has given, and gives up the rest.
func inherit(user User) (*front, error) {
	l, err := link.Inherited(os.NewFile(fdLink, "link"))
	if err != nil {
		return nil, pgbough.Errorf(pgbough.EInvalid, "this is a part of the server: %w", err).WithHint("pgbough server starts it")
	}
	f := &front{link: l, engine: link.NewCaller(l)}
	for fd, to := range map[uintptr]*net.Listener{fdAPI: &f.api, fdProxy: &f.clients} {
		file := os.NewFile(fd, "listener")
		if *to, err = net.FileListener(file); err == nil {
			err = file.Close()
		}
		if err != nil {
			return nil, fmt.Errorf("take over a port: %w", err)
		}
	}
	return f, confine(user)
}

func (f *front) run(ctx context.Context, stderr io.Writer) error {
	var with settings
	if err := f.engine.Call(ctx, verbBegin, nil, &with); err != nil {
		return err
	}
	level := slog.LevelInfo
	if with.Debug {
		level = slog.LevelDebug
	}
	f.log = slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))
	if err := limitFiles(with.MaxClients); err != nil {
		return err
	}
	certificates, err := credential.AskedCertificates(f.log, f.certificates(ctx))
	if err != nil {
		return err
	}
	f.proxy = pgproxy.New(pgproxy.Options{
		Service: f, Decoys: credential.DecoysOf(with.Decoys), Log: f.log, TLS: certificates,
		Plain: with.Plain, Domain: with.Domain, MaxClients: with.MaxClients,
	})
	for _, id := range with.Held {
		f.proxy.Hold(id)
	}
	serving, stop := context.WithCancel(ctx)
	defer stop()
	f.stop = stop
	// These end with the process at the latest.
	gone, served := make(chan struct{}), make(chan error, 1)
	go func() { defer close(gone); f.attend(ctx) }()
	go func() { served <- f.serve(serving, certificates) }()
	select {
	case <-gone:
		return errEngineGone
	case err := <-served:
		return err
	}
}

// limitFiles has a front that is flooded run out of descriptors before it uses up
// the machine's. Each client needs two.
func limitFiles(clients int) error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("look at the limit of files: %w", err)
	}
	if most := uint64(2*clients + spareFiles); clients > 0 && most < limit.Max {
		limit.Cur, limit.Max = most, most
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("limit files: %w", err)
	}
	return nil
}

// serve serves clients of both ports until ctx ends, and then says farewell.
func (f *front) serve(ctx context.Context, certificates *credential.Certificates) error {
	proxied, farewell := context.WithCancel(ctx)
	asked, enough := context.WithCancel(ctx)
	edge := httpapi.NewEdge(httpapi.EdgeOptions{
		Keys: f, Healthy: f.healthy, Log: f.log,
		Dial: func() (net.Conn, error) { return f.link.Dial(link.Bytes) },
	})
	current := func(ctx context.Context) *tls.Certificate { return certificates.Current(ctx).TLS }
	var g run.Group
	g.Add(func() error { return f.proxy.Serve(proxied, f.clients) }, func(error) { farewell() })
	g.Add(func() error { return httpapi.Serve(asked, f.api, edge, current, f.log) }, func(error) { enough() })
	return g.Run()
}

// attend answers the engine until it has ended.
func (f *front) attend(ctx context.Context) {
	for {
		kind, stream, err := f.link.Accept()
		if err != nil {
			return
		}
		if kind != link.Calls {
			_ = stream.Close() // the engine opens no others
			continue
		}
		go link.Serve(ctx, stream, f) // ends with the process at the latest
	}
}

// Answer implements link.Answerer.
func (f *front) Answer(_ context.Context, verb string, in func(any) error) (any, net.Conn, error) {
	var id string
	var end endRequest
	switch verb {
	case verbStats:
		return f.proxy.Stats(), nil, nil
	case verbStop:
		f.stop()
		return nil, nil, nil
	case verbEnd:
		if err := in(&end); err != nil {
			return nil, nil, err
		}
		f.proxy.End(end.Branch, end.Code, end.Message)
		return nil, nil, nil
	}
	if err := in(&id); err != nil {
		return nil, nil, err
	}
	switch verb {
	case verbClients:
		return f.proxy.Clients(id), nil, nil
	case verbHold:
		f.proxy.Hold(id)
	case verbRelease:
		f.proxy.Release(id)
	default:
		return nil, nil, pgbough.Errorf(pgbough.EInvalid, "there is no %q to ask for", verb)
	}
	return nil, nil, nil
}
