package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/pgbough/pgbough"
)

// print writes an answer: the API's own JSON, or what people writes.
func (g *globals) print(answer any, people func(w io.Writer)) error {
	if !g.json {
		var text strings.Builder
		people(&text)
		_, err := io.WriteString(g.io.Out, text.String())
		return err
	}
	enc := json.NewEncoder(g.io.Out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(answer)
}

// table aligns rows of cells. Cells that hold nothing show as "-".
type table struct{ w *tabwriter.Writer }

func newTable(w io.Writer, head ...string) table {
	t := table{tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)}
	if len(head) > 0 {
		t.row(head...)
	}
	return t
}

func (t table) row(cells ...string) {
	for i, c := range cells {
		if c == "" {
			c = "-"
		}
		if i > 0 {
			c = "\t" + c
		}
		_, _ = io.WriteString(t.w, c) // into a strings.Builder, which never fails
	}
	_, _ = io.WriteString(t.w, "\n")
}

func (t table) flush() { _ = t.w.Flush() }

// line writes one line into a strings.Builder, which never fails.
func line(w io.Writer, format string, args ...any) { _, _ = fmt.Fprintf(w, format+"\n", args...) }

// size shows bytes for people, in powers of 1000: "1.2 GB".
func size(bytes int64) string {
	if bytes < 0 {
		return "-" + size(-bytes)
	}
	if bytes < 1000 {
		return fmt.Sprintf("%d B", bytes)
	}
	v, unit := float64(bytes), ""
	for _, unit = range []string{"kB", "MB", "GB", "TB", "PB"} {
		v /= 1000
		if v < 999.5 {
			break
		}
	}
	if v < 9.95 {
		return fmt.Sprintf("%.1f %s", v, unit)
	}
	return fmt.Sprintf("%.0f %s", v, unit)
}

// span shows a duration for people, in its largest unit: "3m".
func span(d time.Duration) string {
	switch {
	case d < 0:
		return "-" + span(-d)
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	default:
		return fmt.Sprintf("%dd", int(d.Hours()/24))
	}
}

func age(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return span(max(0, time.Since(t)))
}

// expiry shows how long something still lives.
func expiry(t time.Time) string {
	switch left := time.Until(t); {
	case t.IsZero():
		return "never"
	case left <= 0:
		return "now"
	default:
		return "in " + span(left)
	}
}

func moment(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02 15:04:05 UTC")
}

// parseDuration reads a duration as Go does ("90s", "2h30m"), and days ("7d").
func parseDuration(flag, text string) (time.Duration, error) {
	if text == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(text)
	if days, isDays := strings.CutSuffix(text, "d"); isDays {
		var n float64
		n, err = strconv.ParseFloat(days, 64)
		d = time.Duration(n * 24 * float64(time.Hour))
	}
	if err != nil || d <= 0 {
		return 0, pgbough.Errorf(pgbough.EInvalid, "--%s %s is not a duration such as 30s, 2h or 7d", flag, text)
	}
	return d, nil
}

// parseSize reads a number of bytes with a unit as Postgres writes them, in
// powers of 1024: "100M".
func parseSize(text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	number := strings.TrimSuffix(strings.TrimSuffix(strings.ToUpper(text), "B"), "I")
	unit := int64(1)
	for i, letter := range []string{"K", "M", "G", "T"} {
		if n, ok := strings.CutSuffix(number, letter); ok {
			number, unit = n, int64(1)<<(10*(i+1))
		}
	}
	n, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if err != nil || !(n > 0) || n*float64(unit) > 1<<62 {
		return 0, pgbough.Errorf(pgbough.EInvalid, "%q is not a size such as 500k, 100M or 1GB", text)
	}
	return int64(n * float64(unit)), nil
}
