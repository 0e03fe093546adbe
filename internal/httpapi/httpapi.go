// Package httpapi serves pgbough's HTTP API: Neon's API v2 for what pgbough
// has, and pgbough's own routes, all under /api/v2. It turns requests into
// calls of a Service and its answers into the wire types of neonapi, and is the
// one place where a pgbough.Code becomes an HTTP status.
//
// Every request shows an API key (see access.go for what it opens), and from
// another machine it comes over TLS.
//
// A request that starts an operation waits for it, but no longer than the query
// parameter wait says (a duration such as 30s, at most a minute): Neon's
// clients expect a branch that can be used, and the shortest timeout among them
// is 10 s. An operation that needs longer goes on, and the answer says so.
package httpapi

import (
	"context"
	"crypto/rand"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/neonapi"
)

const (
	// defaultWait is how long a request waits for its operation. The GitHub
	// action of Neon gives up after 10 s.
	defaultWait = 8 * time.Second
	maxWait     = time.Minute
	// maxBody is far above any request that means something, in bytes.
	maxBody = 1 << 20
)

// Options of the API. Service, Keys and Log must be set.
type Options struct {
	Service Service
	Keys    Keys
	Metrics http.Handler // answers GET /metrics; nil: there are none
	Log     *slog.Logger
}

// New makes the handler of everything under /api/v2, and of /healthz and
// /metrics beside it.
func New(o Options) http.Handler {
	a := &api{service: o.Service, healthy: o.Service.Healthy, keys: o.Keys, metrics: o.Metrics, log: o.Log}
	mux := http.NewServeMux()
	for pattern, handle := range a.handlers() {
		method, path, _ := strings.Cut(pattern, " ")
		if pattern != metricsPattern {
			path = neonapi.Prefix + path
		}
		mux.Handle(method+" "+path, a.endpoint(a.permitted(accessTo(pattern), handle)))
	}
	mux.Handle("/", a.endpoint(nothing))
	return a.outermost(mux)
}

// handlers are all that the API can be asked with a key.
func (a *api) handlers() map[string]handler {
	all := a.routes()
	all[metricsPattern] = a.getMetrics
	return all
}

// nothing answers a request for what the API does not have.
func nothing(_ http.ResponseWriter, r *http.Request) error {
	return pgbough.Errorf(pgbough.ENotFound, "there is no %s %s in this API", r.Method, r.URL.Path)
}

type api struct {
	service Service
	healthy func(context.Context) error
	keys    Keys
	metrics http.Handler
	log     *slog.Logger
}

// handler answers a request, or returns why it cannot; then nothing may have
// been written.
type handler func(w http.ResponseWriter, r *http.Request) error

func (a *api) routes() map[string]handler {
	const (
		project  = "/projects/{project}"
		branch   = project + "/branches/{branch}"
		endpoint = project + "/endpoints/{endpoint}"
	)
	return map[string]handler{
		"GET /auth":                   a.getAuth,
		"GET /users/me":               a.getUser,
		"GET /users/me/organizations": a.listOrganizations,
		"GET /regions":                a.listRegions,

		"GET /projects":                a.listProjects,
		"GET /projects/shared":         a.listSharedProjects,
		"POST /projects":               a.createProject,
		"GET " + project:               a.getProject,
		"DELETE " + project:            a.deleteProject,
		"PATCH " + project:             a.updateProject,
		"PATCH " + project + "/source": a.setSource,
		"GET " + project + "/history":  a.getHistory,

		"GET " + project + "/branches":                    a.listBranches,
		"POST " + project + "/branches":                   a.createBranch,
		"GET " + branch:                                   a.getBranch,
		"PATCH " + branch:                                 a.updateBranch,
		"DELETE " + branch:                                a.deleteBranch,
		"GET " + branch + "/endpoints":                    a.listBranchEndpoints,
		"GET " + branch + "/roles":                        a.listRoles,
		"GET " + branch + "/roles/{role}":                 a.getRole,
		"GET " + branch + "/roles/{role}/reveal_password": a.revealPassword,
		"GET " + branch + "/logs":                         a.streamLog,
		"GET " + branch + "/schema":                       a.getSchema,
		"GET " + branch + "/compare_schema":               a.compareSchema,
		"GET " + project + "/endpoints":                   a.listEndpoints,
		"GET " + endpoint:                                 a.getEndpoint,
		"PATCH " + endpoint:                               a.updateEndpoint,
		"POST " + endpoint + "/start":                     a.startEndpoint,
		"POST " + endpoint + "/suspend":                   a.suspendEndpoint,
		"GET " + project + "/connection_uri":              a.getConnectionURI,

		"GET " + project + "/operations":             a.listOperations,
		"GET " + project + "/operations/{operation}": a.getOperation,
		"GET /operations":                            a.listOperations,
		"GET /operations/{operation}":                a.getOperation,

		"GET /api_keys":          a.listKeys,
		"POST /api_keys":         a.createKey,
		"DELETE /api_keys/{key}": a.revokeKey,

		"POST /check":       a.check,
		"GET /status":       a.getStatus,
		"GET /pool":         a.getPool,
		"POST /pool/prune":  a.prunePool,
		"POST /pool/resize": a.resizePool,
	}
}

// outermost is what happens to every request before it is routed: it gets an
// id, a panic becomes an answer, and who has no key gets no further than /healthz.
func (a *api) outermost(next http.Handler) http.Handler {
	guard := http.NewCrossOriginProtection()
	guard.SetDenyHandler(a.endpoint(func(http.ResponseWriter, *http.Request) error {
		return pgbough.Errorf(pgbough.EInvalid, "the API cannot be used from another site's page")
	}))
	next = a.authenticated(next)
	next = guard.Handler(next)
	next = a.withHealth(next)
	next = a.recovered(next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		head(w.Header())
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		next.ServeHTTP(w, r)
	})
}

// head is what all answers have.
func head(h http.Header) {
	h.Set(requestIDHeader, rand.Text())
	h.Set("Cache-Control", "no-store") // answers hold passwords
	h.Set("X-Content-Type-Options", "nosniff")
}
