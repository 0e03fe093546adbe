package pgproxy

import "time"

// hold returns when the up goroutine waits, or is not there.
func (r *relay) hold() {
	hinders := time.AfterFunc(startLimit, func() { _ = r.client.raw.Close() }) // which ends up
	defer hinders.Stop()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held = true
	if r.server == nil {
		return
	}
	_ = r.client.raw.SetReadDeadline(past) // these fail only when closed
	_ = r.server.SetWriteDeadline(past)
	for r.running && !r.parked || r.cancelling > 0 {
		r.changed.Wait()
	}
}

// release undoes hold.
func (r *relay) release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held = false
	if r.server == nil || r.ending != nil {
		return
	}
	_ = r.client.raw.SetReadDeadline(time.Time{}) // these fail only when closed
	_ = r.server.SetWriteDeadline(time.Time{})
	r.changed.Broadcast()
}

// end makes run return f when the server's present message ends.
func (r *relay) end(f *fatal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.server == nil || r.ending != nil {
		return
	}
	r.ending = f
	_ = r.client.raw.SetReadDeadline(past) // these fail only when closed
	_ = r.client.raw.SetWriteDeadline(time.Now().Add(endGrace))
	_ = r.server.SetDeadline(past)
	r.changed.Broadcast()
}

// last is the farewell, if the relay is ending and it may be said now.
func (r *relay) last() *fatal {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.framing.whole() {
		return r.ending
	}
	return nil
}

// more lets the server's present message end, once.
func (r *relay) more() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.graced {
		return false
	}
	r.graced = true
	_ = r.server.SetReadDeadline(time.Now().Add(endGrace)) // fails only when closed
	return true
}

// lost is what a client is told when its server has gone without a word.
func (r *relay) lost() error {
	r.mu.Lock()
	ending := r.ending
	r.mu.Unlock()
	switch {
	case !r.framing.whole(), r.framing.kind == 'E', r.bye.Load():
		return errGone
	case ending != nil:
		return ending
	}
	return fatalf("57P02", "the branch's Postgres ended").hinted("Connect again: it is started again.")
}

// cancelBegins lets a cancel request be sent to the server, unless the relay is
// held or ends; cancelEnds must follow.
func (r *relay) cancelBegins() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.held || r.ending != nil {
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
