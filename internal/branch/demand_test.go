package branch

import (
	"testing"
	"time"
)

// Creates that come before the spares are ready again want more of them, never
// more than allowed; quiet time takes them back one by one.
func TestDemand(t *testing.T) {
	const most = 3
	now := time.Unix(1000, 0)
	var d demand
	want := func(what string, n int) {
		t.Helper()
		if got := d.at(now); got != n {
			t.Errorf("%s: %d more, want %d", what, got, n)
		}
	}
	want("at first", 0)
	for range 5 { // each long after the last
		d.taking(most, now)
		d.missing = false
		now = now.Add(time.Minute)
	}
	want("after creates one by one", 0)
	d.taking(most, now)
	d.taking(most, now)
	want("after two soon after one another", 1)
	now = now.Add(calm - time.Second)
	want("before it was quiet for long", 1)
	for range 9 {
		d.taking(most, now)
	}
	want("after many", most)
	now = now.Add(calm)
	want("after a quiet time", most-1)
	now = now.Add(calm / 2)
	d.taking(most, now)
	want("when they come again", most)
	now = now.Add(10 * calm)
	want("after a long time", 0)
	d.missing = false
	d.taking(most, now)
	want("and then one alone", 0)
}
