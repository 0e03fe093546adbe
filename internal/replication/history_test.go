package replication

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseHistory(t *testing.T) {
	got, err := ParseHistory([]byte("1\t0/3000148\tno recovery target specified\n\n# a comment\n2\t1/A0\tbefore 2026-01-01 00:00:00+00\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := []HistoryEntry{
		{Timeline: 1, SwitchLSN: 0x3000148, Reason: "no recovery target specified"},
		{Timeline: 2, SwitchLSN: 0x1000000a0, Reason: "before 2026-01-01 00:00:00+00"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if got, err := ParseHistory(nil); err != nil || got != nil {
		t.Errorf("empty file: got %v, %v", got, err)
	}
}

func TestParseHistoryRefuses(t *testing.T) {
	for name, file := range map[string]string{
		"no position":          "1\n",
		"no timeline":          "x\t0/1\tr\n",
		"timeline 0":           "0\t0/1\tr\n",
		"bad position":         "1\t0-1\tr\n",
		"not increasing":       "2\t0/1\tr\n2\t0/2\tr\n",
		"decreasing":           "3\t0/1\tr\n2\t0/2\tr\n",
		"switch goes back":     "1\t0/5\tr\n2\t0/4\tr\n",
		"timeline of 33 bits":  "4294967296\t0/1\tr\n",
		"position of 33 bits":  "1\t100000000/1\tr\n",
		"a signed timeline":    "-1\t0/1\tr\n",
		"position with a tail": "1\t0/1x\tr\n",
	} {
		if got, err := ParseHistory([]byte(file)); err == nil {
			t.Errorf("%s: got %v, want an error", name, got)
		}
	}
}

func FuzzParseHistory(f *testing.F) {
	f.Add([]byte("1\t0/3000148\tno recovery target specified\n2\t0/4000000\tx\n"))
	f.Add([]byte("# comment\n\n 1 0/1"))
	f.Fuzz(func(t *testing.T, file []byte) {
		entries, err := ParseHistory(file)
		if err != nil && entries != nil {
			t.Errorf("entries beside the error %v", err)
		}
		for i := 1; i < len(entries); i++ {
			if entries[i].Timeline <= entries[i-1].Timeline || entries[i].SwitchLSN < entries[i-1].SwitchLSN {
				t.Errorf("entries out of order: %v", entries)
			}
		}
	})
}
