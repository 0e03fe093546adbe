package httpapi

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"

	"github.com/pgbough/pgbough"
)

// What the edge tells of a client. Whatever clients say there is dropped.
const (
	peerHeader   = "Pgbough-Peer"   // its address
	secureHeader = "Pgbough-Secure" // it uses TLS, if set
)

// idleStreams is how many connections with who answers are kept for the next request.
const idleStreams = 32

// EdgeOptions of the edge; all must be set.
type EdgeOptions struct {
	Keys    Keys
	Healthy func(context.Context) error
	Dial    func() (net.Conn, error) // connects to a server of Behind
	Log     *slog.Logger
}

// NewEdge makes the handler of a process that meets clients, but does not answer
// them: requests without a good key end here, and all others are passed on to a
// handler behind it, which looks at the key itself.
func NewEdge(o EdgeOptions) http.Handler {
	a := &api{healthy: o.Healthy, keys: o.Keys, log: o.Log}
	proxy := &httputil.ReverseProxy{
		Rewrite:       tellOfClient,
		FlushInterval: -1, // who follows a log sees each line at once
		Transport: &http.Transport{
			DialContext:         func(context.Context, string, string) (net.Conn, error) { return o.Dial() },
			DisableCompression:  true,
			MaxIdleConnsPerHost: idleStreams,
		},
		ErrorHandler: a.notAnswered,
		ErrorLog:     slog.NewLogLogger(o.Log.Handler(), slog.LevelDebug), // of answers that were cut, as their clients see
	}
	return a.outermost(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		clear(w.Header()) // who answers sets the same
		proxy.ServeHTTP(w, r)
	}))
}

func tellOfClient(r *httputil.ProxyRequest) {
	r.Out.URL.Scheme, r.Out.URL.Host = "http", "pgbough"
	r.Out.Header.Set(peerHeader, r.In.RemoteAddr)
	r.Out.Header.Del(secureHeader)
	if r.In.TLS != nil {
		r.Out.Header.Set(secureHeader, "1")
	}
}

// notAnswered tells a client whose request could not be passed on.
func (a *api) notAnswered(w http.ResponseWriter, r *http.Request, err error) {
	var tooLarge *http.MaxBytesError
	switch {
	case r.Context().Err() != nil: // nobody is there to read it
		panic(http.ErrAbortHandler)
	case errors.As(err, &tooLarge):
		err = bodyTooLarge(tooLarge)
	}
	head(w.Header())
	a.writeError(w, r, err)
}

func bodyTooLarge(e *http.MaxBytesError) error {
	return pgbough.Errorf(pgbough.EInvalid, "the request's body is larger than %d bytes", e.Limit)
}

// Behind makes h answer what an edge passes on, as if the clients had come to h.
// It believes what it is told of them.
func Behind(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.RemoteAddr = r.Header.Get(peerHeader)
		if r.Header.Get(secureHeader) != "" {
			r.TLS = &tls.ConnectionState{}
		}
		r.Header.Del(peerHeader)
		r.Header.Del(secureHeader)
		h.ServeHTTP(w, r)
	})
}
