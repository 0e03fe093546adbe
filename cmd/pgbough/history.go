package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/client"
)

const historyHelp = "how far back it can be branched, such as 24h or 7d; 0 for not at all"

// parseHistory reads how far back a project can be branched; nil for an empty text.
func parseHistory(text string) (*float64, error) {
	if text == "" {
		return nil, nil
	}
	if text == "0" {
		return new(float64), nil
	}
	d, err := parseDuration("history", text)
	s := d.Seconds()
	return &s, err
}

// past is a moment as the API takes it: neither of them is now.
type past struct {
	lsn  string
	time *time.Time
}

// localTimes are times without a zone: of this machine's.
var localTimes = []string{"2006-01-02 15:04:05.999999", "2006-01-02 15:04", "2006-01-02T15:04:05.999999", "2006-01-02T15:04", "2006-01-02"}

// parseAt reads an LSN or a time, and says which time it takes a local one for.
func (g *globals) parseAt(text string) (past, error) {
	if text == "" {
		return past{}, nil
	}
	if lsn, err := pgbough.ParseLSN(text); err == nil {
		return past{lsn: lsn.String()}, nil
	}
	if ago, ok := strings.CutPrefix(text, "-"); ok {
		d, err := parseDuration("at", ago)
		if err != nil {
			return past{}, err
		}
		t := time.Now().Add(-d)
		return past{time: &t}, nil
	}
	if t, err := time.Parse(time.RFC3339Nano, text); err == nil {
		return past{time: &t}, nil
	}
	for _, layout := range localTimes {
		if t, err := time.ParseInLocation(layout, text, time.Local); err == nil {
			g.talk("%s here is %s", text, t.Format(time.RFC3339))
			return past{time: &t}, nil
		}
	}
	return past{}, pgbough.Errorf(pgbough.EInvalid, "--at %q is neither an LSN nor a time", text).
		WithHint("an LSN is such as 16/B374D848; a time 2026-11-22T10:30:00Z, '2026-11-22 10:30', or -15m for a quarter of an hour ago")
}

func newHistoryCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use: "history [PROJECT]", Short: "Show how far back a project can be branched",
		Long: `Shows the window of time and WAL in which branches can be made with
"pgbough branch create --at", the points that they are made of, what the WAL takes
on the disk, and gaps: WAL that was lost before it could be kept.`,
		Example: "  pgbough history\n  pgbough history shop --json | jq -r .from_timestamp",
		Args:    cobra.MaximumNArgs(1), ValidArgsFunction: g.completeProjectArg,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				g.project = args[0]
			}
			return showHistory(cmd.Context(), g)
		},
	}
	g.addJSON(cmd)
	g.addProject(cmd)
	return cmd
}

func showHistory(ctx context.Context, g *globals) error {
	c, project, err := g.inProject(ctx)
	if err != nil {
		return err
	}
	h, err := c.History(ctx, project)
	if err != nil {
		return err
	}
	return g.print(h, func(w io.Writer) { printHistory(w, h) })
}

func printHistory(w io.Writer, h client.History) {
	t := newTable(w)
	t.row("project", h.Project)
	t.row("wanted", window(h.RetentionSeconds))
	if h.FromLSN != 0 {
		t.row("from", fmt.Sprintf("%s, %s", h.FromLSN, moment(h.FromTimestamp)))
		t.row("to", fmt.Sprintf("%s, %s", h.ToLSN, moment(h.ToTimestamp)))
	} else {
		t.row("from", "")
	}
	t.row("WAL", fmt.Sprintf("%s, %s before it was compressed", size(h.WALBytes), size(h.WALRawBytes)))
	for _, g := range h.Gaps {
		t.row("gap", fmt.Sprintf("from %s to %s", g.FromLSN, g.ToLSN))
	}
	for _, note := range h.Notes {
		t.row("note", note)
	}
	t.flush()
	if len(h.Points) == 0 {
		return
	}
	line(w, "")
	t = newTable(w, "POINT", "LSN", "TIME", "AGE")
	for _, p := range h.Points {
		t.row(p.VolumeID, p.LSN.String(), moment(p.Timestamp), age(p.CreatedAt))
	}
	t.flush()
}

func window(seconds int64) string {
	if seconds == 0 {
		return "none"
	}
	return span(time.Duration(seconds) * time.Second)
}

func newProjectSetCommand(g *globals) *cobra.Command {
	var history string
	cmd := &cobra.Command{
		Use: "set NAME --history WINDOW", Short: "Change how far back a project can be branched",
		Long: `Changes how far back a project can be branched. A longer window begins to fill from
now on; what a shorter one does not need is removed within seconds.`,
		Example: "  pgbough project set shop --history 7d\n  pgbough project set shop --history 0",
		Args:    cobra.ExactArgs(1), ValidArgsFunction: g.completeProjectArg,
		RunE: func(cmd *cobra.Command, args []string) error {
			var req client.UpdateProjectRequest
			var err error
			if req.Project.HistoryRetentionSeconds, err = parseHistory(history); err != nil {
				return err
			}
			if req.Project.HistoryRetentionSeconds == nil {
				return pgbough.Errorf(pgbough.EInvalid, "nothing to change").WithHint("give --history, such as 24h or 7d")
			}
			return setProject(cmd.Context(), g, args[0], req)
		},
	}
	cmd.Flags().StringVar(&history, "history", "", historyHelp)
	return cmd
}

func setProject(ctx context.Context, g *globals, name string, req client.UpdateProjectRequest) error {
	c, err := g.client()
	if err != nil {
		return err
	}
	answer, err := c.UpdateProject(ctx, name, req)
	if err != nil {
		return err
	}
	return g.print(answer, func(w io.Writer) {
		line(w, "%s keeps a history of %s", answer.Project.Name, window(answer.Project.HistoryRetentionSeconds))
	})
}
