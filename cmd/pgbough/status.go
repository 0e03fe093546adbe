package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pgbough/pgbough/client"
)

func newStatusCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the followers with their lag, the spares, the pool",
		Example: `  pgbough status
  pgbough status --json | jq '.projects[].follower.lag_seconds'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := g.client()
			if err != nil {
				return err
			}
			answer, err := c.Status(cmd.Context())
			if err != nil {
				return err
			}
			return g.print(answer, func(w io.Writer) { printStatus(w, answer) })
		},
	}
	g.addJSON(cmd)
	return cmd
}

func printStatus(w io.Writer, s client.Status) {
	t := newTable(w, "PROJECT", "STATE", "SOURCE", "FOLLOWER", "REPLAYED", "LAG", "SPARES", "BRANCHES")
	for _, p := range s.Projects {
		f := p.Follower
		t.row(p.Name, string(p.State), strings.Join(p.Source.Hosts, ","), string(f.State), f.ReplayLSN.String(),
			fmt.Sprintf("%s, %s", size(f.LagBytes), lagTime(f.LagSeconds)),
			fmt.Sprintf("%d of %d ready", p.Spares.Ready, p.Spares.Wanted), fmt.Sprint(p.Branches))
	}
	if len(s.Projects) == 0 {
		line(w, "no project yet: pgbough attach NAME --source CONNSTR")
	} else {
		t.flush()
	}
	for _, p := range s.Projects {
		if p.Follower.Reason != "" {
			line(w, "%s: %s", p.Name, p.Follower.Reason)
		}
	}
	line(w, "")
	printPool(w, s.Pool)
	line(w, "server %s", s.Version)
	for _, note := range s.Notes {
		line(w, "note: %s", note)
	}
}

func lagTime(seconds float64) string {
	if seconds < 60 {
		return fmt.Sprintf("%.1fs", seconds)
	}
	return span(time.Duration(seconds * float64(time.Second)))
}

func printPool(w io.Writer, p client.Pool) {
	line(w, "pool %s at %s: %s used of %s, %s free, %s kept for the followers",
		p.Kind, p.Path, size(p.UsedBytes), size(p.SizeBytes), size(p.FreeBytes), size(p.ReserveBytes))
}
