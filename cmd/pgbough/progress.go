package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/client"
)

// plainEvery is how often progress becomes a line where nothing can be drawn.
const plainEvery = 5 * time.Second

// progress shows how an operation goes: as a bar on a terminal, as a line every
// few seconds elsewhere. It is used by one goroutine.
type progress struct {
	title string
	out   io.Writer
	draw  bool
	now   func() time.Time

	phase   string // what is being counted
	since   time.Time
	from    int64
	printed time.Time

	bars *mpb.Progress
	bar  *mpb.Bar
	text chan string // holds the newest text of the bar
}

func (g *globals) progress(title string) *progress {
	return &progress{title: title, out: g.io.Err, draw: g.io.ErrTerminal, now: time.Now, text: make(chan string, 1)}
}

// watch takes the operation as it is now.
func (p *progress) watch(op client.Operation) {
	now := p.now()
	var at pgbough.Progress
	if op.Progress != nil {
		at = *op.Progress
	}
	phase := at.Message
	if phase == "" && op.Step < len(op.Steps) {
		phase = strings.ReplaceAll(op.Steps[op.Step].Name, "_", " ")
	}
	changed := phase != p.phase
	if changed || at.Done < p.from {
		p.phase, p.since, p.from = phase, now, at.Done
	}
	text := p.title
	if phase != "" {
		text += ": " + phase
	}
	text += amount(at, at.Done-p.from, now.Sub(p.since))
	switch {
	case p.draw:
		p.show(at, text)
	case changed || now.Sub(p.printed) >= plainEvery:
		p.printed = now
		_, _ = fmt.Fprintln(p.out, text) // a closed stderr must not stop the work
	}
}

// amount tells how much is done, how fast it went, and how long the rest takes.
func amount(at pgbough.Progress, gained int64, took time.Duration) string {
	count := size
	if at.Unit != "bytes" {
		count = func(n int64) string { return strings.TrimSpace(fmt.Sprintf("%d %s", n, at.Unit)) }
	}
	var b strings.Builder
	switch {
	case at.Total > 0:
		fmt.Fprintf(&b, " %s of %s (%d%%)", count(at.Done), count(at.Total), 100*min(at.Done, at.Total)/at.Total)
	case at.Done > 0:
		fmt.Fprintf(&b, " %s", count(at.Done))
	default:
		return ""
	}
	if rate := float64(gained) / took.Seconds(); took >= time.Second && rate > 0 {
		fmt.Fprintf(&b, ", %s/s", count(int64(rate)))
		if left := at.Total - at.Done; left > 0 {
			fmt.Fprintf(&b, ", %s left", span(time.Duration(float64(left)/rate*float64(time.Second))))
		}
	}
	return b.String()
}

func (p *progress) show(at pgbough.Progress, text string) {
	if p.bars == nil {
		p.bars = mpb.New(mpb.WithOutput(p.out), mpb.WithAutoRefresh())
		shown := ""
		bar, spinner := mpb.BarStyle().Build(), mpb.SpinnerStyle().Build()
		p.bar = p.bars.MustAdd(0, mpb.BarFillerFunc(func(w io.Writer, s decor.Statistics) error {
			if s.Total > 0 {
				return bar.Fill(w, s)
			}
			return spinner.Fill(w, s)
		}), mpb.BarWidth(24), mpb.BarRemoveOnComplete(), mpb.AppendDecorators(decor.Any(func(decor.Statistics) string {
			select {
			case shown = <-p.text:
			default:
			}
			return shown
		})))
	}
	select { // replace a text that was not drawn yet
	case <-p.text:
	default:
	}
	p.text <- text
	p.bar.SetTotal(at.Total, false)
	p.bar.SetCurrent(min(at.Done, max(0, at.Total-1))) // a full bar would end
}

// close takes the bar away.
func (p *progress) close() {
	if p.bars != nil {
		p.bar.Abort(true)
		p.bars.Wait()
		p.bars = nil
	}
}
