package main

import (
	"encoding/json"
	"io"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestSample(t *testing.T) {
	s := sample{5, 1, 4, 2, 3}
	for _, c := range []struct {
		name      string
		got, want float64
	}{
		{"median of five", s.median(), 3},
		{"median of four", s[1:].median(), 2.5},
		{"p95 of five", s.quantile(0.95), 5},
		{"p50 of five", s.quantile(0.5), 3},
		{"smallest", s.quantile(0), 1},
		{"largest", s.quantile(1), 5},
	} {
		if c.got != c.want {
			t.Errorf("%s: got %v, want %v", c.name, c.got, c.want)
		}
	}
	twenty := make(sample, 20)
	for i := range twenty {
		twenty[i] = float64(i + 1)
	}
	if got := twenty.quantile(0.95); got != 19 {
		t.Errorf("p95 of twenty: got %v, want 19", got)
	}
	if !math.IsNaN(sample{}.median()) || !math.IsNaN(sample{}.quantile(0.5)) {
		t.Error("no values have a median")
	}
	s.add(1500 * time.Microsecond)
	if s[5] != 1.5 {
		t.Errorf("add: got %v, want 1.5 ms", s[5])
	}
}

// The lines are of pg_waldump 15.
func TestBlocks(t *testing.T) {
	const dump = `rmgr: Heap        len (rec/tot):     72/    72, tx:        747, lsn: 0/01BF1468, prev 0/01BF1430, desc: HOT_UPDATE off 57 xmax 747 flags 0x60 ; new off 112 xmax 0, blkref #0: rel 1663/16384/16392 blk 0
rmgr: Heap        len (rec/tot):     65/  7281, tx:        747, lsn: 0/01BF14B0, prev 0/01BF1468, desc: UPDATE off 3 xmax 747 flags 0x00 ; new off 60 xmax 0, blkref #0: rel 1663/16384/16397 blk 1639 FPW, blkref #1: rel 1663/16384/16397 blk 2 FPW
rmgr: Heap2       len (rec/tot):     59/    59, tx:          0, lsn: 0/01BF3138, prev 0/01BF14B0, desc: VISIBLE cutoff xid 0 flags 0x03, blkref #0: rel 1663/16384/16397 fork vm blk 2, blkref #1: rel 1663/16384/16397 blk 2
rmgr: Transaction len (rec/tot):     34/    34, tx:        747, lsn: 0/01BF3178, prev 0/01BF3138, desc: COMMIT 2026-11-22 22:00:00.000000 UTC
`
	n, err := blocks(strings.NewReader(dump))
	if err != nil || n != 4 {
		t.Errorf("got %d, %v, want 4", n, err)
	}
}

func TestRow(t *testing.T) {
	r := newRow("k", "m", 0.1, unitMS, sample{10, 20, 30}).against("bare", 10).barred(bar{Text: "<= 2", Limit: 2, Of: "ratio"})
	if r.Ratio != 2 || r.Met == nil || !*r.Met {
		t.Errorf("20 against 10: ratio %v, met %v", r.Ratio, r.Met)
	}
	if r = r.barred(bar{Text: "p95", Limit: 29, Of: "p95"}); *r.Met {
		t.Error("a p95 of 30 meets a bar of 29")
	}
	if r = r.barred(bar{Text: ">= 2.5", Limit: 2.5, Least: true, Of: "ratio"}); *r.Met {
		t.Error("a ratio of 2 meets a lower bar of 2.5")
	}
	b, err := json.Marshal(newRow("k", "m", 1, unitMS, nil))
	if err != nil || !strings.Contains(string(b), `"p50":null`) {
		t.Errorf("a row without values: %s, %v", b, err)
	}
}

// A bar names the sizes that were measured, whatever they are.
func TestScaling(t *testing.T) {
	var r report
	for size, ms := range map[float64]float64{0.1: 1000, 1: 1200, 10: 1400} {
		r.Rows = append(r.Rows, newRow("create", "create now", size, unitMS, sample{ms}))
	}
	r.scaling([]float64{0.1, 1, 10})
	got := map[string]bool{}
	for _, x := range r.Rows[3:] {
		got[x.Bar.Text] = *x.Met
	}
	if diff := cmp.Diff(map[string]bool{"1 GB <= 1.3 x 0.1 GB": true, "10 GB <= 1.3 x 0.1 GB": false}, got); diff != "" {
		t.Error(diff)
	}
}

func TestShow(t *testing.T) {
	got := []string{show(1.25, unitMS), show(123.4, unitMS), show(1234, unitMS), show(12345, unitMS), show(3<<20, unitBytes), show(math.NaN(), unitMS)}
	want := []string{"1.2 ms", "123 ms", "1.23 s", "12.3 s", "3.0 MB", ""}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestParse(t *testing.T) {
	o, err := parse([]string{"-sizes", "0.1,10", "-rows", "create,lag", "-debt", "2"})
	if err != nil {
		t.Fatal(err)
	}
	if o.mainSize != 10 || !o.measures("lag", 10) || o.measures("lag", 0.1) || !o.measures("create", 0.1) || o.measures("bytes", 10) || o.debt != 2<<20 {
		t.Errorf("got %+v", o)
	}
	for _, args := range [][]string{{"-rows", "nothing"}, {"-sizes", "-1"}, {"-samples", "0"}, {"-repeats", "2"}} {
		if _, err := parse(args); err == nil {
			t.Errorf("%q is taken", args)
		}
	}
}

func TestTable(t *testing.T) {
	r := report{Rows: []row{newRow("k", "a measure", 1, unitMS, sample{1000, 2000}).against("bare", 30000).noted("a note")}}
	var b strings.Builder
	r.markdown(&b)
	if want := "| a measure | 1 GB | 2 | 1.50 s | 2.00 s | bare | 30.0 s | 1/20.0 |  |  | a note |"; !strings.Contains(b.String(), want) {
		t.Errorf("got\n%s\nwant a line\n%s", b.String(), want)
	}
	r.table(io.Discard)
}

func TestOwnSettings(t *testing.T) {
	const conf = "shared_buffers = '128MB'\nprimary_conninfo = 'host=/x'\nprimary_slot_name = ''\nwork_mem = '4MB'\n"
	if got, want := ownSettings.ReplaceAllString(conf, ""), "shared_buffers = '128MB'\nwork_mem = '4MB'\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestInsert(t *testing.T) {
	got, err := insert("a\n"+docBegin+"\nold\n"+docEnd+"\nb\n", "new\n")
	if want := "a\n" + docBegin + "\n\nnew\n\n" + docEnd + "\nb\n"; err != nil || got != want {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	if _, err := insert("nothing", "new"); err == nil {
		t.Error("a document without a place for the table is taken")
	}
}
