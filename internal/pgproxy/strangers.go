package pgproxy

import (
	"container/list"
	"context"
	"errors"
	"sync"

	"github.com/pgbough/pgbough"
)

// errCrowded ends a stranger that has to make room for the next.
var errCrowded = errors.New("there are too many strangers")

// strangers are the clients that have not proved who they are, the one that came
// first in front.
type strangers struct {
	mu  sync.Mutex
	all list.List // of context.CancelCauseFunc
}

// enter lets another one in. If there are more than limit then, the first has to
// go: it had the most time, and whoever only waits in order to keep others out
// must not succeed. leave must follow.
func (s *strangers) enter(limit int, expel context.CancelCauseFunc) (leave func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.all.PushBack(expel)
	if s.all.Len() > limit {
		first := s.all.Front()
		s.all.Remove(first)
		first.Value.(context.CancelCauseFunc)(fatalf("53300", "too many clients that have not logged in").hinted("Connect again.").because(errCrowded))
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.all.Remove(e) // which may have been done already
	}
}

// meet is a connection until the client has said what it wants and, if that is a
// session, has proved who it is.
func (p *Proxy) meet(ctx context.Context, c *client) (start *startup, login pgbough.Login, err error) {
	ctx, expel := context.WithCancelCause(ctx)
	defer expel(nil)
	defer p.strangers.enter(p.MaxStrangers, expel)()
	unblock := context.AfterFunc(ctx, c.interrupt)
	if start, err = p.hear(ctx, c); err == nil && start.cancel == nil {
		login, err = p.login(ctx, c, start)
	}
	if !unblock() && !errors.Is(err, errGone) {
		err = context.Cause(ctx) // which is why nothing that it said was heard
	}
	return start, login, err
}

// seat gives a client one of the places of those that have logged in; leave must
// follow.
func (p *Proxy) seat() (leave func(), err error) {
	if n := p.counts.users.Add(1); p.MaxClients > 0 && n > int64(p.MaxClients) {
		err = fatalf("53300", "sorry, too many clients already").hinted("The server has a limit of %d connections.", p.MaxClients)
	}
	return func() { p.counts.users.Add(-1) }, err
}
