package httpapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime/debug"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/neonapi"
)

const requestIDHeader = "X-Request-Id"

// statusOf maps the codes of pgbough to HTTP. Neon's clients retry 423 by
// themselves, and take 404 of a delete for done.
func statusOf(code pgbough.Code) int {
	switch code {
	case pgbough.EInvalid:
		return http.StatusBadRequest
	case pgbough.EDenied:
		return http.StatusUnauthorized
	case pgbough.EForbidden:
		return http.StatusForbidden
	case pgbough.ENotFound:
		return http.StatusNotFound
	case pgbough.EConflict:
		return http.StatusConflict
	case pgbough.ELocked:
		return http.StatusLocked
	case pgbough.EUnreachable:
		return http.StatusServiceUnavailable
	case pgbough.ENoSpace:
		return http.StatusInsufficientStorage
	default:
		return http.StatusInternalServerError
	}
}

// endpoint makes a http.Handler of a handler: its error becomes the answer.
func (a *api) endpoint(handle handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		err := handle(w, r)
		if err == nil || r.Context().Err() != nil { // nobody is there to read it
			return
		}
		a.writeError(w, r, err)
	})
}

func (a *api) writeError(w http.ResponseWriter, r *http.Request, err error) {
	id := w.Header().Get(requestIDHeader)
	code := pgbough.ErrorCode(err)
	body := neonapi.Error{RequestID: id, Code: string(code)}
	var told *pgbough.Error
	if errors.As(err, &told) {
		body.Message, body.Hint = told.Message, told.Hint
	} else {
		body.Message = "pgbough failed at this request"
	}
	status := statusOf(code)
	if status == http.StatusInternalServerError {
		if body.Hint == "" {
			body.Hint = "look for request_id " + id + " in the log of the server"
		}
		a.log.ErrorContext(r.Context(), "request failed", "request_id", id, "method", r.Method, "path", r.URL.Path, "error", causeOf(err))
	} else {
		a.log.DebugContext(r.Context(), "request refused", "request_id", id, "method", r.Method, "path", r.URL.Path, "code", code, "error", causeOf(err))
	}
	if status == http.StatusLocked || status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	_ = writeJSON(w, status, body) // the client is gone; there is nobody to tell
}

// causeOf is err with its private cause, for the log.
func causeOf(err error) string {
	var told *pgbough.Error
	if errors.As(err, &told) && told.Err != nil {
		return fmt.Sprintf("%v (%v)", err, told.Err)
	}
	return err.Error()
}

// recovered answers a request whose handler panicked.
func (a *api) recovered(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			if p := recover(); p != nil {
				a.panicked(w, r, p)
			}
		}()
		next.ServeHTTP(w, r)
	})
}

func (a *api) panicked(w http.ResponseWriter, r *http.Request, p any) {
	if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		panic(p) // net/http's own way to cut a connection
	}
	a.log.ErrorContext(r.Context(), "request handler panicked", "request_id", w.Header().Get(requestIDHeader),
		"method", r.Method, "path", r.URL.Path, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
	a.writeError(w, r, fmt.Errorf("handler panicked: %v", p))
}

// writeJSON never returns an error that the caller could tell the client:
// the status line is out by then.
func writeJSON(w http.ResponseWriter, status int, body any) error {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false) // connection URIs hold &
	_ = enc.Encode(body)     // the client is gone; there is nobody to tell
	return nil
}

// readJSON reads the request's body; none is an empty object. Fields that
// pgbough does not know are left alone: Neon's clients send many.
func readJSON(r *http.Request, into any) error {
	err := json.NewDecoder(r.Body).Decode(into)
	var tooLarge *http.MaxBytesError
	switch {
	case err == nil || errors.Is(err, io.EOF):
		return nil
	case errors.As(err, &tooLarge):
		return bodyTooLarge(tooLarge)
	default:
		return pgbough.Errorf(pgbough.EInvalid, "the request's body cannot be read: %w", err)
	}
}
