package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"
)

// number is a float64 whose NaN, a value that was not measured, is null in JSON.
type number float64

func (n number) MarshalJSON() ([]byte, error) {
	if math.IsNaN(float64(n)) {
		return []byte("null"), nil
	}
	return json.Marshal(float64(n))
}

// row is one line of the table.
type row struct {
	Key     string   `json:"key"`
	Measure string   `json:"measure"`
	Size    string   `json:"size"`
	Unit    string   `json:"unit"`
	N       int      `json:"n"`
	P50     number   `json:"p50"`
	P95     number   `json:"p95"`
	P99     number   `json:"p99"`
	Control string   `json:"control,omitempty"`
	Against number   `json:"against"` // the control's p50
	Ratio   number   `json:"ratio"`   // of P50 to Against, if the bar is not on another
	Bar     *bar     `json:"bar,omitempty"`
	Met     *bool    `json:"met,omitempty"`
	Note    string   `json:"note,omitempty"`
	Values  []number `json:"values,omitempty"`
}

// newRow is a row without a control.
func newRow(key, measure string, size float64, unit string, s sample) row {
	r := row{
		Key: key, Measure: measure, Size: gigabytes(size), Unit: unit, N: len(s),
		P50: number(s.median()), P95: number(s.quantile(0.95)), P99: number(s.quantile(0.99)),
		Against: number(math.NaN()), Ratio: number(math.NaN()),
	}
	for _, v := range s {
		r.Values = append(r.Values, number(v))
	}
	return r
}

// against compares the row's median with a control.
func (r row) against(control string, value float64) row {
	r.Control, r.Against, r.Ratio = control, number(value), r.P50/number(value)
	return r
}

// barred holds the row to a bar.
func (r row) barred(b bar) row {
	v := r.Ratio
	switch b.Of {
	case "p50":
		v = r.P50
	case "p95":
		v = r.P95
	case "p99":
		v = r.P99
	}
	r.Bar = &b
	if !math.IsNaN(float64(v)) {
		met := b.met(float64(v))
		r.Met = &met
	}
	return r
}

func (r row) noted(format string, args ...any) row {
	r.Note = fmt.Sprintf(format, args...)
	return r
}

// step is where the time of an operation goes.
type step struct {
	Operation string `json:"operation"`
	Size      string `json:"size"`
	Name      string `json:"name"`
	N         int    `json:"n"`
	P50       number `json:"p50_ms"`
	P95       number `json:"p95_ms"`
}

// report is all that a run has found.
type report struct {
	Started  time.Time `json:"started"`
	Seconds  float64   `json:"seconds"`
	Options  string    `json:"options"`
	Machine  machine   `json:"machine"`
	Rows     []row     `json:"rows"`
	Steps    []step    `json:"steps"`
	Notes    []string  `json:"notes"`
	Failures []string  `json:"failures"`
}

func (r *report) add(rows ...row) {
	for _, x := range rows {
		r.Rows = append(r.Rows, x)
		say("  %s, %s: p50 %s, p95 %s%s", x.Measure, x.Size, show(float64(x.P50), x.Unit), show(float64(x.P95), x.Unit), x.verdict())
	}
}

func (r *report) note(format string, args ...any) {
	r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
	say("  %s", r.Notes[len(r.Notes)-1])
}

func (r row) verdict() string {
	if r.Bar == nil {
		return ""
	}
	if r.Met == nil {
		return " (bar: " + r.Bar.Text + ")"
	}
	if *r.Met {
		return " (within the bar: " + r.Bar.Text + ")"
	}
	return " (MISSES the bar: " + r.Bar.Text + ")"
}

func (r *report) find(key string, size float64) (row, bool) {
	for _, x := range r.Rows {
		if x.Key == key && x.Size == gigabytes(size) {
			return x, true
		}
	}
	return row{}, false
}

// scaling compares creating at each size with the smallest one.
func (r *report) scaling(sizes []float64) {
	small, ok := r.find("create", sizes[0])
	if !ok {
		return
	}
	for _, size := range sizes[1:] {
		large, ok := r.find("create", size)
		if !ok {
			continue
		}
		large.Key, large.Measure, large.Note, large.Values = "create_scaling", "create now, against the smallest size", "", nil
		large = large.against("create at "+small.Size, float64(small.P50))
		r.add(large.barred(bar{Text: fmt.Sprintf("%s <= 1.3 x %s", large.Size, small.Size), Limit: 1.3, Of: "ratio"}))
	}
}

func (r *report) finish() {
	r.Seconds = time.Since(r.Started).Round(time.Second).Seconds()
	r.Machine.LoadEnd = load()
}

// write prints the table, keeps it in dir, and puts it into doc, if one is given.
func (r *report) write(w io.Writer, dir, doc string) error {
	r.table(w)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make %s: %w", dir, err)
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("write JSON: %w", err)
	}
	var md strings.Builder
	r.markdown(&md)
	err = errors.Join(
		os.WriteFile(filepath.Join(dir, "benchmarks.json"), append(text, '\n'), 0o644),
		os.WriteFile(filepath.Join(dir, "benchmarks.md"), []byte(md.String()), 0o644),
	)
	if err != nil || doc == "" {
		return err
	}
	old, err := os.ReadFile(doc)
	if err != nil {
		return fmt.Errorf("read the document: %w", err)
	}
	changed, err := insert(string(old), md.String())
	if err != nil {
		return fmt.Errorf("put the table into %s: %w", doc, err)
	}
	return os.WriteFile(doc, []byte(changed), 0o644)
}

// The lines of a document that the table stands between.
const (
	docBegin = "<!-- bench: begin -->"
	docEnd   = "<!-- bench: end -->"
)

// insert puts a table into a document in the place of the one that is there.
func insert(doc, table string) (string, error) {
	before, rest, ok := strings.Cut(doc, docBegin+"\n")
	_, after, ok2 := strings.Cut(rest, docEnd+"\n")
	if !ok || !ok2 {
		return "", fmt.Errorf("it has no lines %s and %s", docBegin, docEnd)
	}
	return before + docBegin + "\n\n" + table + "\n" + docEnd + "\n" + after, nil
}

func (r *report) heads() []string {
	return []string{"measure", "data", "n", "p50", "p95", "control", "its p50", "ratio", "bar", "met", "note"}
}

func (r row) cells() []string {
	ratio, met, limit := "", "", ""
	if !math.IsNaN(float64(r.Ratio)) {
		ratio = fmt.Sprintf("%.2f", float64(r.Ratio))
		if r.Ratio < 0.1 {
			ratio = fmt.Sprintf("1/%.1f", 1/float64(r.Ratio))
		}
	}
	if r.Bar != nil {
		limit = r.Bar.Text
	}
	if r.Met != nil {
		met = "no"
		if *r.Met {
			met = "yes"
		}
	}
	p95 := show(float64(r.P95), r.Unit)
	if r.N < 2 {
		p95 = ""
	}
	return []string{
		r.Measure, r.Size, fmt.Sprint(r.N), show(float64(r.P50), r.Unit), p95, r.Control,
		show(float64(r.Against), r.Unit), ratio, limit, met, r.Note,
	}
}

func (r *report) table(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	line := func(cells []string) { _, _ = fmt.Fprintln(t, strings.Join(cells, "\t")) } // Flush tells
	line(r.heads())
	for _, x := range r.Rows {
		line(x.cells())
	}
	line([]string{""})
	for _, s := range r.Steps {
		line([]string{s.Operation + ": " + s.Name, s.Size, fmt.Sprint(s.N), show(float64(s.P50), unitMS), show(float64(s.P95), unitMS)})
	}
	if err := t.Flush(); err != nil {
		say("the table cannot be printed: %v", err)
	}
	for _, l := range append(r.Machine.lines(), append(r.Notes, r.Failures...)...) {
		_, _ = fmt.Fprintln(w, l) // to a terminal or a pipe
	}
}

// markdown writes what docs/benchmarks.md keeps.
func (r *report) markdown(b *strings.Builder) {
	fmt.Fprintf(b, "Run of %s, %.0f minutes, `go run ./bench %s`.\n\n", r.Started.Format("2006-01-02 15:04 MST"), r.Seconds/60, r.Options)
	for _, l := range r.Machine.lines() {
		fmt.Fprintf(b, "- %s\n", l)
	}
	b.WriteString("\n")
	bars := strings.NewReplacer("|", `\|`, "\x00", " | ")
	line := func(cells []string) { fmt.Fprintf(b, "| %s |\n", bars.Replace(strings.Join(cells, "\x00"))) }
	rule := func(n int) { b.WriteString(strings.Repeat("|---", n) + "|\n") }
	line(r.heads())
	rule(len(r.heads()))
	for _, x := range r.Rows {
		line(x.cells())
	}
	if len(r.Steps) > 0 {
		b.WriteString("\nWhere the time goes (steps of the operations):\n\n")
		heads := []string{"operation", "step", "data", "n", "p50", "p95"}
		line(heads)
		rule(len(heads))
		for _, s := range r.Steps {
			line([]string{s.Operation, s.Name, s.Size, fmt.Sprint(s.N), show(float64(s.P50), unitMS), show(float64(s.P95), unitMS)})
		}
	}
	for i, l := range append(r.Notes, r.Failures...) {
		if i == 0 {
			b.WriteString("\n")
		}
		fmt.Fprintf(b, "- %s\n", l)
	}
}
