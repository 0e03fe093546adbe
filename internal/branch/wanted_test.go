package branch

import (
	"testing"
	"time"

	"github.com/pgbough/pgbough"
)

// Clones are wanted while somebody has lately accepted a state as old as the point's.
func TestClonesWanted(t *testing.T) {
	r := newRig(t)
	p := r.project()
	pt := pgbough.Point{VolumeID: "vpoint", AskedAt: time.Now()}
	want := func(what string, after time.Duration, n int) {
		t.Helper()
		if got := r.aheadOf(p.ID).wanted(pt, time.Now().Add(after)); got != n {
			t.Errorf("%s: %d clones, want %d", what, got, n)
		}
	}
	fits := func(pgbough.Point) bool { return true }
	want("while nobody accepts an older state", 0, 0)
	r.takeClone(p.ID, time.Minute, fits)
	want("after one that does", 0, 1)
	want("when the point is too old for it", time.Minute, 0)
	r.takeClone(p.ID, time.Hour, fits)
	want("after a second one that found none", 0, 2)
	for range 9 {
		r.takeClone(p.ID, time.Hour, fits)
	}
	want("after many", 0, mostClones)
	want("when it was quiet for long", calm, 0)
}
