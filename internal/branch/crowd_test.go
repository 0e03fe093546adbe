package branch

import (
	"testing"
	"time"

	"github.com/pgbough/pgbough"
)

// A create gives its spare away only where more need one than are ready, and
// whoever comes until the party is closed belongs to it.
func TestCrowd(t *testing.T) {
	r := newRig(t)
	p := r.project()
	invite := func(branch string, alone bool) *party {
		t.Helper()
		got, err := r.invite(t.Context(), p.ID, branch, alone)
		must(t, err)
		return got
	}
	if invite("a", false) != nil {
		t.Error("one alone shares with nobody")
	}
	v := pgbough.NewVolumeID()
	must(t, r.catalog.PutSpare(t.Context(), pgbough.Spare{VolumeID: v, ProjectID: p.ID, State: pgbough.SpareReady}))
	r.comes(p.ID, "b")
	if invite("a", false) != nil {
		t.Error("two share although two spares are ready")
	}
	r.comes(p.ID, "c")
	r.waits(p.ID, "b")
	first := invite("a", false)
	if first == nil || r.partyOf(p.ID, "a") != first || r.partyOf(p.ID, "b") != first {
		t.Fatal("three do not share although one more spare is ready")
	}
	if invite("x", true) != nil {
		t.Error("a second party is open")
	}
	closed := make(chan struct{})
	began := time.Now()
	go func() { defer close(closed); r.closeParty(t.Context(), p.ID) }()
	r.comes(p.ID, "d")
	r.waits(p.ID, "d")
	r.waits(p.ID, "c")
	<-closed
	if r.partyOf(p.ID, "c") != first || r.partyOf(p.ID, "d") != first {
		t.Error("who came before the party was closed does not belong to it")
	}
	if took := time.Since(began); took < crowdPause || took > crowdPatience {
		t.Errorf("it was closed after %s", took)
	}
	r.comes(p.ID, "e")
	r.waits(p.ID, "e")
	if r.partyOf(p.ID, "e") != nil {
		t.Error("who came later belongs to it")
	}
	must(t, r.catalog.DeleteSpare(t.Context(), v))
	second := invite("f", false)
	if second == nil || second == first || r.partyOf(p.ID, "e") != second || r.partyOf(p.ID, "c") != first {
		t.Error("who waits after the first party is in no second one")
	}
	r.over(p.ID, first, nil)
	r.over(p.ID, second, nil)
	for _, b := range []string{"a", "b", "c", "d", "e", "f"} {
		r.dismiss(p.ID, b)
		r.leaves(p.ID, b)
	}
	if third := invite("g", true); third == nil {
		t.Error("one that accepts an older state makes no point for the next")
	} else {
		began = time.Now()
		r.closeParty(t.Context(), p.ID)
		if took := time.Since(began); took > crowdPause/2 {
			t.Errorf("one alone waited %s for others", took)
		}
	}
}
