package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pgbough/pgbough/client"
)

func newOpsCommand(g *globals) *cobra.Command {
	var limit int
	cmd := &cobra.Command{
		Use:   "ops [ID]",
		Short: "Show operations with their steps, durations and errors",
		Long: `Shows what the server does and has done, the newest first; with an ID the steps of
that operation.`,
		Example: `  pgbough ops
  pgbough ops 0b9f6c1e-0d5e-4d0a-9a53-0c4f5a2b7d11
  pgbough ops --json | jq '.operations[] | select(.status == "failed")'`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				return showOperation(cmd.Context(), g, args[0])
			}
			return listOperations(cmd.Context(), g, limit)
		},
	}
	cmd.Flags().IntVar(&limit, "limit", 30, "show so many of the newest to people; 0 is all")
	g.addJSON(cmd)
	g.addProject(cmd)
	return cmd
}

func listOperations(ctx context.Context, g *globals, limit int) error {
	c, err := g.client()
	if err != nil {
		return err
	}
	answer, err := c.Operations(ctx, g.project)
	if err != nil {
		return err
	}
	return g.print(answer, func(w io.Writer) {
		ops := answer.Operations
		if limit > 0 && len(ops) > limit {
			ops = ops[:limit]
			g.talk("the newest %d of %d; --limit 0 shows all", limit, len(answer.Operations))
		}
		t := newTable(w, "ID", "ACTION", "STATUS", "BRANCH", "AGE", "TOOK", "ERROR")
		for _, op := range ops {
			t.row(op.ID, op.Action, op.Status, op.BranchID, age(op.CreatedAt), took(op), firstLine(op.Error))
		}
		t.flush()
	})
}

// took is how long an operation took, or takes until now.
func took(op client.Operation) string {
	d := time.Duration(op.TotalDurationMS) * time.Millisecond
	if !op.Done() {
		d = time.Since(op.CreatedAt).Truncate(time.Second)
	}
	return d.String()
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	return s
}

func showOperation(ctx context.Context, g *globals, id string) error {
	c, err := g.client()
	if err != nil {
		return err
	}
	answer, err := c.Operation(ctx, id)
	if err != nil {
		return err
	}
	return g.print(answer, func(w io.Writer) { printOperation(w, answer.Operation) })
}

func printOperation(w io.Writer, op client.Operation) {
	t := newTable(w)
	t.row("id", op.ID)
	t.row("action", op.Action)
	t.row("status", op.Status)
	t.row("project", op.ProjectID)
	t.row("branch", op.BranchID)
	t.row("created", moment(op.CreatedAt))
	t.row("took", took(op))
	if op.Error != "" {
		t.row("error", op.Error)
	}
	if p := op.Progress; p != nil {
		t.row("now", strings.TrimSpace(p.Message+amount(*p, 0, 0)))
	}
	t.flush()
	line(w, "")
	t = newTable(w, "", "STEP", "TOOK", "ATTEMPTS", "ERROR")
	for i, s := range op.Steps {
		mark := " "
		if i == op.Step && !op.Done() {
			mark = ">"
		}
		d := ""
		if !s.FinishedAt.IsZero() || s.DurationMS > 0 {
			d = (time.Duration(s.DurationMS*1000) * time.Microsecond).String()
		}
		t.row(mark, s.Name, d, fmt.Sprint(s.Attempts), firstLine(s.Error))
	}
	t.flush()
}
