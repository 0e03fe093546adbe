package main

import "testing"

func TestSpareRange(t *testing.T) {
	for text, want := range map[string]spareRange{"1": {1, 1}, "1..4": {1, 4}, "2..2": {2, 2}} {
		var r spareRange
		if err := r.Set(text); err != nil || r != want {
			t.Errorf("%s is %+v, %v", text, r, err)
		}
		var again spareRange
		if err := again.Set(r.String()); err != nil || again != r {
			t.Errorf("%s is told as %s", text, r.String())
		}
	}
	for _, text := range []string{"", "0", "0..3", "4..1", "1..", "..4", "many", "1...4", "-1", "1..2..3"} {
		r := spareRange{7, 8}
		if err := r.Set(text); err == nil || r != (spareRange{7, 8}) {
			t.Errorf("%q was taken as %+v", text, r)
		}
	}
}
