package main

import (
	"context"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pgbough/pgbough/client"
)

func newAttachCommand(g *globals) *cobra.Command {
	var source sourceFlags
	var role, database, history string
	cmd := &cobra.Command{
		Use:   "attach NAME --source CONNSTR",
		Short: "Make a project that follows a production Postgres",
		Long: `Makes a project: copies production once with a base backup, follows it from then
on by streaming replication, and keeps spares ready. Returns when it streams and
a spare is ready. Production needs nothing installed; see "pgbough check".

If the command is interrupted, the server goes on; "pgbough ops" shows how far.`,
		Example: `  pgbough attach shop --source 'host=db1 user=pgbough password=... dbname=shop' --max-rate 100M
  PGBOUGH_SOURCE=postgresql://pgbough:...@db1/shop pgbough attach shop --role app`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			following, err := source.request(g)
			if err != nil {
				return err
			}
			var req client.CreateProjectRequest
			req.Project.Name, req.Project.Source = args[0], &following
			if req.Project.HistoryRetentionSeconds, err = parseHistory(history); err != nil {
				return err
			}
			req.Project.Branch.RoleName, req.Project.Branch.DatabaseName = role, database
			return attach(cmd.Context(), g, req)
		},
	}
	source.add(cmd)
	source.addFollowing(cmd)
	cmd.Flags().StringVar(&source.maxRate, "max-rate", "", "copy no more than so much a second, such as 100M")
	cmd.Flags().StringVar(&role, "role", "", "role that branches are used as by default (default: the owner of the database)")
	cmd.Flags().StringVar(&database, "database", "", "database that is used of branches by default (default: that of --source)")
	cmd.Flags().StringVar(&history, "history", "", historyHelp+" (default: 24h)")
	g.addJSON(cmd)
	return cmd
}

func attach(ctx context.Context, g *globals, req client.CreateProjectRequest) error {
	c, err := g.client()
	if err != nil {
		return err
	}
	created, err := c.Attach(ctx, req)
	if err != nil {
		return err
	}
	if err := g.follow(ctx, c.WaitOperation, "attach "+created.Project.Name, created.Operations); err != nil {
		return err
	}
	answer, err := c.Project(ctx, created.Project.ID)
	if err != nil {
		return err
	}
	return g.print(answer, func(w io.Writer) {
		p := answer.Project
		line(w, "%s (%s) follows %s, Postgres %s", p.Name, p.ID, strings.Join(p.Source.Hosts, ", "), p.Source.PostgresVersion)
		g.talk("next: pgbough branch create NAME")
	})
}

// waiter is one of the client's ways to wait for an operation.
type waiter func(context.Context, client.Operation, func(client.Operation)) (client.Operation, error)

// follow waits for operations and shows how they go.
func (g *globals) follow(ctx context.Context, wait waiter, title string, ops []client.Operation) error {
	p := g.progress(title)
	defer p.close()
	for i, op := range ops {
		var err error
		ops[i], err = wait(ctx, op, p.watch)
		for _, step := range ops[i].Steps {
			if step.Note != "" {
				p.close()
				g.talk("%s", step.Note)
			}
		}
		if err == nil {
			continue
		}
		if ctx.Err() != nil {
			p.close()
			g.talk("the server goes on; see how far with: pgbough ops %s", op.ID)
		}
		return err
	}
	return nil
}
