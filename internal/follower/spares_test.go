package follower

import (
	"testing"
	"time"
)

// A ready spare that has lost its stream is given some time to get it back, but
// only the time in which the follower could serve it counts.
func TestUsableWithoutAStream(t *testing.T) {
	s := &Standby{}
	at := time.Now()
	for i, step := range []struct {
		p        Position
		upstream bool
		after    time.Duration
		want     bool
	}{
		{Position{Receiving: true}, true, 0, true},
		{Position{}, true, time.Second, true},
		{Position{}, true, upstreamGrace - time.Second, true},
		{Position{}, true, time.Second, false},
		{Position{Receiving: true}, true, time.Second, true},
		{Position{}, false, 10 * upstreamGrace, true},
		{Position{}, true, time.Second, true},
		{Position{}, true, upstreamGrace, false},
		{Position{Receiving: true, Paused: true}, true, 0, false},
	} {
		at = at.Add(step.after)
		if got := s.usable(step.p, step.upstream, at); got != step.want {
			t.Errorf("step %d: usable is %t", i, got)
		}
	}
}
