package branch

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/pgbough/pgbough/internal/volume"
)

// What a volume was measured to be counts for as long as nothing can have changed it.
func TestSizes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := newSizes()
		want := func(id string, ok, exact bool) {
			t.Helper()
			if _, gotOK, gotExact := z.get(id); gotOK != ok || gotExact != exact {
				t.Errorf("%s is known %t, exactly %t; want %t, %t", id, gotOK, gotExact, ok, exact)
			}
		}
		measure := func(id string, asleep bool, meanwhile func()) {
			starts, removals := z.begin(id)
			at := time.Now()
			meanwhile()
			z.put(id, measured{usage: volume.Usage{OwnBytes: 1}, at: at, asleep: asleep, removals: removals}, starts)
		}
		nothing := func() {}
		want("a", false, false)
		measure("runs", false, nothing)
		measure("sleeps", true, nothing)
		measure("wakes", true, func() { z.started("wakes") })
		measure("shares", true, func() { z.removed("other") })
		for _, id := range []string{"runs", "sleeps", "wakes", "shares"} {
			want(id, true, true)
		}
		time.Sleep(usageAge)
		want("runs", false, false)
		want("wakes", false, false)
		want("shares", true, false)
		want("sleeps", true, false) // the other one may have shared with it
		measure("sleeps", true, nothing)
		time.Sleep(time.Hour)
		want("sleeps", true, true)
		z.started("sleeps")
		want("sleeps", false, false)
		measure("sleeps", true, nothing) // again
		want("sleeps", true, true)
		z.forget("sleeps")
		want("sleeps", false, false)
		z.removed("sleeps")
		if len(z.starts) > 1 {
			t.Errorf("what is gone is kept: %v", z.starts)
		}
	})
}
