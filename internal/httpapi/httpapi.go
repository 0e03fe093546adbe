// Package httpapi serves pgbough's HTTP API: Neon's API v2 for what pgbough
// has, and pgbough's own routes, all under /api/v2. It turns requests into
// calls of a Service and its answers into the wire types of neonapi, and is the
// one place where a pgbough.Code becomes an HTTP status.
//
// A request that starts an operation waits for it, but no longer than the query
// parameter wait says (a duration such as 30s, at most a minute): Neon's
// clients expect a branch that can be used, and the shortest timeout among them
// is 10 s. An operation that needs longer goes on, and the answer says so.
package httpapi

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
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

// New makes the handler of everything under /api/v2.
func New(service Service, keys Keys, log *slog.Logger) http.Handler {
	a := &api{service: service, keys: keys, log: log}
	mux := http.NewServeMux()
	for pattern, handle := range a.routes() {
		method, path, _ := strings.Cut(pattern, " ")
		mux.Handle(method+" "+neonapi.Prefix+path, a.endpoint(handle))
	}
	mux.Handle("/", a.endpoint(func(_ http.ResponseWriter, r *http.Request) error {
		return pgbough.Errorf(pgbough.ENotFound, "there is no %s %s in this API", r.Method, r.URL.Path)
	}))
	return a.outermost(mux)
}

// OneKey is Keys of which one is good.
func OneKey(key string) Keys { return oneKey(sha256.Sum256([]byte(key))) }

type oneKey [sha256.Size]byte

func (k oneKey) Matches(shown string) bool {
	sum := sha256.Sum256([]byte(shown))
	return subtle.ConstantTimeCompare(k[:], sum[:]) == 1
}

type api struct {
	service Service
	keys    Keys
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
		"PATCH " + project + "/source": a.setSource,

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

		"POST /check":       a.check,
		"GET /status":       a.getStatus,
		"GET /pool":         a.getPool,
		"POST /pool/prune":  a.prunePool,
		"POST /pool/resize": a.resizePool,
	}
}

// outermost is what happens to every request before it is routed: it gets an
// id, a panic becomes an answer, and who has no key gets no further.
func (a *api) outermost(next http.Handler) http.Handler {
	guard := http.NewCrossOriginProtection()
	guard.SetDenyHandler(a.endpoint(func(http.ResponseWriter, *http.Request) error {
		return pgbough.Errorf(pgbough.EInvalid, "the API cannot be used from another site's page")
	}))
	next = a.authenticated(next)
	next = guard.Handler(next)
	next = a.recovered(next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(requestIDHeader, rand.Text())
		w.Header().Set("Cache-Control", "no-store") // answers hold passwords
		w.Header().Set("X-Content-Type-Options", "nosniff")
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		next.ServeHTTP(w, r)
	})
}

func (a *api) authenticated(next http.Handler) http.Handler {
	refuse := a.endpoint(func(w http.ResponseWriter, _ *http.Request) error {
		w.Header().Set("WWW-Authenticate", "Bearer")
		return pgbough.Errorf(pgbough.EDenied, "the API key is missing or wrong").
			WithHint("send the content of admin.key in the server's data directory as \"Authorization: Bearer KEY\"; the pgbough command takes it from PGBOUGH_API_KEY, or from the file itself in PGBOUGH_DATA")
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		scheme, key, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		if !strings.EqualFold(scheme, "Bearer") || !a.keys.Matches(strings.TrimSpace(key)) {
			refuse.ServeHTTP(w, r)
			return
		}
		next.ServeHTTP(w, r)
	})
}
