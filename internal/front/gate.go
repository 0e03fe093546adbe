package front

import (
	"context"

	"github.com/pgbough/pgbough/internal/pgproxy"
)

// A branch that is held stays so in the next front, until Release.

// Clients counts the clients of a branch that have logged in.
func (h *Host) Clients(branchID string) (n int) {
	h.ask(verbClients, branchID, &n, h.now())
	return n
}

func (h *Host) now() *child {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.current
}

// Hold is the proxy's Hold.
func (h *Host) Hold(branchID string) {
	h.mu.Lock()
	h.held[branchID] = true
	c := h.current
	h.mu.Unlock()
	h.ask(verbHold, branchID, nil, c)
}

// Release is the proxy's Release.
func (h *Host) Release(branchID string) {
	h.mu.Lock()
	delete(h.held, branchID)
	c := h.current
	h.mu.Unlock()
	h.ask(verbRelease, branchID, nil, c)
}

// End is the proxy's End.
func (h *Host) End(branchID, code, message string) {
	h.ask(verbEnd, endRequest{branchID, code, message}, nil, h.now())
}

// Stats counts over all fronts. What one counted after it was asked last ends with it.
func (h *Host) Stats() pgproxy.Stats {
	c := h.now()
	var s pgproxy.Stats
	asked := h.ask(verbStats, nil, &s, c)
	h.mu.Lock()
	defer h.mu.Unlock()
	if asked && c == h.current {
		h.last = s
	}
	return sum(h.past, h.last)
}

func sum(a, b pgproxy.Stats) pgproxy.Stats {
	return pgproxy.Stats{
		Open: b.Open, Goroutines: b.Goroutines, Accepted: a.Accepted + b.Accepted,
		AuthFailures: a.AuthFailures + b.AuthFailures, Cancels: a.Cancels + b.Cancels,
	}
}

// ask asks a front and tells whether it has answered. Without an answer the front
// is gone when ask returns, and with it all of its connections: it is as good
// as whatever was asked.
func (h *Host) ask(verb string, in, out any, c *child) bool {
	if c == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), h.o.Answer)
	defer cancel()
	err := c.caller.Call(ctx, verb, in, out)
	if err == nil {
		return true
	}
	if !c.ended() {
		h.o.Log.WarnContext(ctx, "the process that serves clients does not answer; it is ended", "verb", verb, "error", err)
	}
	c.kill()
	return false
}

// took marks c as the front to ask, and returns what it has to know of the gate.
func (h *Host) took(c *child) (held []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.current = c
	for id := range h.held {
		held = append(held, id)
	}
	return held
}

// lost marks that c has ended.
func (h *Host) lost(c *child) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.current == c {
		h.current = nil
		h.past = sum(h.past, h.last)
		h.last = pgproxy.Stats{}
	}
}
