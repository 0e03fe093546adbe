package pgproxy

import (
	"time"

	"golang.org/x/sys/unix"
)

// hold returns when nothing goes up, nor a cancel request.
func (r *relay) hold() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held = true
	for r.cancelling > 0 {
		r.changed.Wait()
	}
}

// release undoes hold.
func (r *relay) release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held = false
	if r.loop != nil && !r.over {
		// That there is room is an event, after which the loop goes on.
		_ = r.back.watch(r.loop, unix.EPOLL_CTL_MOD, always|unix.EPOLLOUT, r.id|backBit) // fails only when it was not added
	}
}

// end makes run return f when the server's present message ends.
func (r *relay) end(f *fatal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.server == nil || r.ending != nil || r.over {
		return
	}
	r.ending = f
	if r.loop != nil {
		r.graceful()
	}
}

// graceful gives the server's present message time to end, and the client to
// take it.
func (r *relay) graceful() {
	r.grace = time.AfterFunc(endGrace, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.finish(errGone)
	})
	r.settle()
}

// lost is what a client is told when its server has gone without a word.
func (r *relay) lost() error {
	switch {
	case !r.framing.whole(), r.framing.kind == 'E', r.bye:
		return errGone
	case r.ending != nil:
		return r.ending
	}
	return fatalf("57P02", "the branch's Postgres ended").hinted("Connect again: it is started again.")
}

// cancelBegins lets a cancel request be sent to the server, unless the relay is
// held or ends; cancelEnds must follow.
func (r *relay) cancelBegins() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.held || r.ending != nil || r.over {
		return false
	}
	r.cancelling++
	return true
}

func (r *relay) cancelEnds() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cancelling--
	r.changed.Broadcast()
}
