package httpapi

import (
	"context"
	"io"
	"net/http"
	"time"
)

const (
	healthPath     = "/healthz"
	metricsPattern = "GET /metrics"
	// healthTimeout is below what those who ask wait.
	healthTimeout = 2 * time.Second
)

// withHealth answers also whether the server can serve. That needs no key and no
// TLS: it says nothing else.
func (a *api) withHealth(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == healthPath && (r.Method == http.MethodGet || r.Method == http.MethodHead) {
			a.health(w, r)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (a *api) health(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), healthTimeout)
	defer cancel()
	status, text := http.StatusOK, "ok\n"
	if err := a.healthy(ctx); err != nil {
		status, text = http.StatusServiceUnavailable, "the catalog does not answer; the log of the server says why\n"
		a.log.ErrorContext(ctx, "the server cannot serve", "error", err)
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = io.WriteString(w, text) // the client is gone; there is nobody to tell
	}
}

func (a *api) getMetrics(w http.ResponseWriter, r *http.Request) error {
	if a.metrics == nil {
		return nothing(w, r)
	}
	a.metrics.ServeHTTP(w, r)
	return nil
}
