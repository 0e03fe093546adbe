package pgproxy

import (
	"context"
	"sync"
)

// branch is what the proxy knows of a branch that has sessions or is held.
type branch struct {
	sessions map[*session]struct{}
	held     bool
	released chan struct{} // closed by Release
}

// at is the branch with an id. p.mu must be held.
func (p *Proxy) at(id string) *branch {
	b := p.branches[id]
	if b == nil {
		b = &branch{sessions: map[*session]struct{}{}}
		p.branches[id] = b
	}
	return b
}

// forget drops a branch that nothing is known of. p.mu must be held.
func (p *Proxy) forget(id string) {
	if b := p.branches[id]; b != nil && len(b.sessions) == 0 && !b.held {
		delete(p.branches, id)
	}
}

func (p *Proxy) enter(s *session) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.at(s.branch).sessions[s] = struct{}{}
}

func (p *Proxy) leave(s *session) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.at(s.branch).sessions, s)
	p.forget(s.branch)
}

// open waits until a branch is not held.
func (p *Proxy) open(ctx context.Context, id string) error {
	p.mu.Lock()
	b := p.branches[id]
	var released chan struct{}
	if b != nil && b.held {
		released = b.released
	}
	p.mu.Unlock()
	if released == nil {
		return nil
	}
	select {
	case <-released:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// admitted marks that s is going to speak to its Postgres, unless its branch is held.
func (p *Proxy) admitted(s *session) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	s.speaks = !p.at(s.branch).held
	return s.speaks
}

// Clients counts the clients of a branch that have logged in, also those that
// wait for its Postgres.
func (p *Proxy) Clients(branchID string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if b := p.branches[branchID]; b != nil {
		return len(b.sessions)
	}
	return 0
}

// speaking are the sessions of a branch whose Postgres knows of them. p.mu must
// be held.
func (b *branch) speaking() []*session {
	var all []*session
	for s := range b.sessions {
		if s.speaks {
			all = append(all, s)
		}
	}
	return all
}

// Hold returns when nothing that a client of the branch sends reaches its
// Postgres any more, until Release. Answers still flow. New clients log in and
// wait before the Postgres hears of them. Each Hold must be followed by a
// Release, also after End, and the two must not be called at once for one branch.
func (p *Proxy) Hold(branchID string) {
	p.mu.Lock()
	b := p.at(branchID)
	if !b.held {
		b.held, b.released = true, make(chan struct{})
	}
	all := b.speaking()
	p.mu.Unlock()
	each(all, (*session).hold)
}

// Release undoes Hold.
func (p *Proxy) Release(branchID string) {
	p.mu.Lock()
	var all []*session
	if b := p.branches[branchID]; b != nil && b.held {
		b.held = false
		close(b.released)
		all = b.speaking()
		p.forget(branchID)
	}
	p.mu.Unlock()
	each(all, func(s *session) { s.relay.release() })
}

// End sends each client of the branch that its Postgres knows of a FATAL error
// and closes the connection. Where the Postgres is in the middle of a message,
// the rest of that is waited for a moment. It returns when the Postgres has no
// connection of the proxy left.
func (p *Proxy) End(branchID, code, message string) {
	p.mu.Lock()
	var all []*session
	if b := p.branches[branchID]; b != nil {
		all = b.speaking()
	}
	p.mu.Unlock()
	each(all, func(s *session) { s.end(fatalf(code, "%s", message)) })
}

func each(all []*session, do func(*session)) {
	var wg sync.WaitGroup
	for _, s := range all {
		wg.Go(func() { do(s) })
	}
	wg.Wait()
}
