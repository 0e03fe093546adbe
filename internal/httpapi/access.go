package httpapi

import (
	"context"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/pgbough/pgbough"
)

// Keys tells which API keys are good.
type Keys interface {
	// Authenticate finds whose key was shown, and is false if it is nobody's. How
	// long it takes tells nothing from which a key follows.
	Authenticate(ctx context.Context, shown string) (pgbough.APIKey, bool, error)
}

// lookAgain is between two looks at the key of a request that goes on.
const lookAgain = 2 * time.Second

// access is what a key must open for a route.
type access int

const (
	toServer  access = iota // everything
	toProject               // the project in the path; what is another's does not exist
	toAny                   // any project; the answer holds what the key opens
	toMetrics               // the metrics, or everything
)

// accessTo is the access that a route needs. A route that is not about one
// project is the server's unless it is named here.
func accessTo(pattern string) access {
	switch pattern {
	case "GET /auth", "GET /users/me", "GET /users/me/organizations", "GET /regions",
		"GET /projects", "GET /projects/shared", "GET /operations", "GET /operations/{operation}", "GET /status":
		return toAny
	case "DELETE /projects/{project}", "PATCH /projects/{project}", "PATCH /projects/{project}/source":
		return toServer // as making a project is: they decide about production
	case metricsPattern:
		return toMetrics
	}
	if _, path, _ := strings.Cut(pattern, " "); strings.HasPrefix(path, "/projects/{project}") {
		return toProject
	}
	return toServer
}

// authenticated lets nobody in who has no good key, or whose key would have gone
// over a network in clear.
func (a *api) authenticated(next http.Handler) http.Handler {
	return a.endpoint(func(w http.ResponseWriter, r *http.Request) error {
		if r.TLS == nil && !local(r.RemoteAddr) {
			return pgbough.Errorf(pgbough.EInvalid, "the API can be used from other machines with TLS only").
				WithHint("let the address in PGBOUGH_API begin with https://, and set PGBOUGH_CA to a copy of ca.crt in the server's data directory; who listens on the network may have seen the API key: revoke it")
		}
		key, ok, err := a.keys.Authenticate(r.Context(), shownKey(r))
		if err != nil {
			return err
		}
		if !ok {
			w.Header().Set("WWW-Authenticate", "Bearer")
			return pgbough.Errorf(pgbough.EDenied, "the API key is missing, wrong or revoked").
				WithHint("send a key as \"Authorization: Bearer KEY\": one that `pgbough key create` has made, or the content of admin.key in the server's data directory; the pgbough command takes it from PGBOUGH_API_KEY, or from that file in PGBOUGH_DATA")
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), keyOf{}, key)))
		return nil
	})
}

// shownKey is the key that a request shows; empty if none.
func shownKey(r *http.Request) string {
	scheme, key, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimSpace(key)
}

// whileGood is the context of a request until its key is revoked, for an answer
// that has no end of its own. The function ends it and must be called.
func (a *api) whileGood(r *http.Request) (context.Context, func()) {
	ctx, cancel := context.WithCancel(r.Context())
	var watch sync.WaitGroup
	watch.Go(func() {
		tick := time.NewTicker(lookAgain)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if _, ok, err := a.keys.Authenticate(ctx, shownKey(r)); err == nil && !ok {
				cancel()
			}
		}
	})
	return ctx, func() { cancel(); watch.Wait() }
}

// local tells whether an address is of this machine alone.
func local(address string) bool {
	a, err := netip.ParseAddrPort(address)
	return err == nil && a.Addr().Unmap().IsLoopback()
}

type keyOf struct{}

// keyIn is the key that a request was let in with.
func keyIn(ctx context.Context) pgbough.APIKey {
	key, _ := ctx.Value(keyOf{}).(pgbough.APIKey)
	return key
}

// opens tells whether a key opens what belongs to a project.
func opens(key pgbough.APIKey, projectID string) bool {
	return key.ProjectID == "" || key.ProjectID == projectID
}

// permitted hands a request on if its key opens the route. A key of one project
// never makes the Service look for another: what is not its own and what does not
// exist are the same to it.
func (a *api) permitted(need access, handle handler) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		key := keyIn(r.Context())
		switch {
		case key.MetricsOnly && need != toMetrics:
			return forbidden("API key %s opens only the metrics", key.Name)
		case key.ProjectID == "" || need == toAny:
			return handle(w, r)
		case need != toProject:
			return forbidden("API key %s opens only project %s, and this is about the whole server", key.Name, key.ProjectName)
		}
		own, err := a.service.Project(r.Context(), key.ProjectID)
		if err != nil {
			return err
		}
		if ref := r.PathValue("project"); ref != own.ID && ref != own.Name {
			return pgbough.Errorf(pgbough.ENotFound, "there is no project %q", ref).
				WithHint("the API key opens only project %s", own.Name)
		}
		r.SetPathValue("project", own.ID)
		return handle(w, r)
	}
}

func forbidden(format string, args ...any) error {
	return pgbough.Errorf(pgbough.EForbidden, format, args...).
		WithHint("use the key in admin.key of the server's data directory, or one that was made without a project")
}
