package pgproxy

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	"sync"
	"time"
)

// cancelTimeout is for a Postgres to take a cancel request.
const cancelTimeout = 10 * time.Second

// cancels finds the session that a cancel request is for. The key is the
// Postgres's own, process id and secret, so that what a client sees of it (the
// process that sent a notification, say) is true. Processes of two branches may
// have the same id, since each branch counts its own; should the secrets be the
// same too, the second client is given another.
type cancels struct {
	mu       sync.Mutex
	sessions map[string]*session // by the key that the client has
}

// add makes s known, and returns the key that its client is to have.
func (c *cancels) add(s *session) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := append([]byte(nil), s.key...)
	// A branch's Postgres may be hostile, and make secrets too short to find another.
	for try := 0; try < 8 && c.sessions[string(key)] != nil && len(key) > 4; try++ {
		_, _ = rand.Read(key[4:]) // never fails (crypto/rand)
	}
	if c.sessions[string(key)] == nil {
		c.sessions[string(key)] = s
		s.shown = string(key)
	}
	return key
}

func (c *cancels) remove(s *session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sessions[s.shown] == s {
		delete(c.sessions, s.shown)
	}
}

func (c *cancels) find(key []byte) *session {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sessions[string(key)]
}

// cancel forwards a cancel request to the Postgres of the session that it is
// for, which runs because the session is there. As with Postgres itself, who
// sends one is never told what became of it.
func (p *Proxy) cancel(ctx context.Context, key []byte) error {
	s := p.cancels.find(key)
	if s == nil || !s.relay.cancelBegins() {
		return errGone
	}
	defer s.relay.cancelEnds()
	within, stop := context.WithTimeout(ctx, cancelTimeout)
	defer stop()
	defer context.AfterFunc(s.life, stop)() //nolint:contextcheck // it ends with the session that it is for, too
	if err := s.forwardCancel(within); err != nil {
		p.Log.WarnContext(ctx, "a cancel request could not be forwarded", "branch", s.branch, "error", err)
		return errGone
	}
	p.counts.cancels.Add(1)
	return errGone
}

func (s *session) forwardCancel(ctx context.Context) error {
	server, err := s.proxy.Service.Connect(ctx, s.branch)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer func() { _ = server.Close() }()                                   // it has been read to its end
	defer context.AfterFunc(ctx, func() { _ = server.SetDeadline(past) })() // fails only when closed
	b := binary.BigEndian.AppendUint32(nil, uint32(8+len(s.key)))
	b = append(binary.BigEndian.AppendUint32(b, codeCancel), s.key...)
	if _, err := server.Write(b); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	_, err = io.Copy(io.Discard, server) // it closes when it has signalled
	return err
}
