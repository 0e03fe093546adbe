package main

import (
	"context"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/pgbough/pgbough/client"
)

func newBranchCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "branch",
		Short: "Create, list, show and delete branches",
		Long:  "A branch is a private, writable Postgres that starts as its parent was at one exact moment.",
	}
	list := &cobra.Command{
		Use: "list", Short: "List the branches of a project", Args: cobra.NoArgs,
		Example: "  pgbough branch list\n  pgbough branch list --json | jq -r '.branches[].name'",
		RunE:    func(cmd *cobra.Command, _ []string) error { return listBranches(cmd.Context(), g) },
	}
	get := &cobra.Command{
		Use: "get BRANCH", Short: "Show a branch, and what in it is not as in production", Args: cobra.ExactArgs(1),
		Example: "  pgbough branch get fix-login",
		RunE:    func(cmd *cobra.Command, args []string) error { return getBranch(cmd.Context(), g, args[0]) },
	}
	var cascade bool
	remove := &cobra.Command{
		Use: "delete BRANCH", Short: "Delete a branch with everything in it", Args: cobra.ExactArgs(1),
		Example: "  pgbough branch delete fix-login",
		RunE:    func(cmd *cobra.Command, args []string) error { return deleteBranch(cmd.Context(), g, args[0], cascade) },
	}
	remove.Flags().BoolVar(&cascade, "cascade", false, "delete its children too")
	create := newBranchCreateCommand(g)
	g.addJSON(create, list, get, remove)
	g.addProject(create, list, get, remove)
	cmd.AddCommand(create, list, get, remove)
	return cmd
}

func newBranchCreateCommand(g *globals) *cobra.Command {
	var parent, expires, maxLag string
	var reuse bool
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Make a branch of production as it is now; print its connection URI",
		Long: `Makes a branch and prints its connection URI. It holds every transaction that
production had acknowledged when the command started. If production cannot be
asked, the command fails, unless --max-lag allows a state that is older.`,
		Example: `  pgbough branch create fix-login
  psql "$(pgbough branch create fix-login --expires 2h)"
  pgbough branch create fix-login --reuse --json | jq -r '.connection_uris[0].connection_uri'`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ttl, err := parseDuration("expires", expires)
			if err != nil {
				return err
			}
			lag, err := parseDuration("max-lag", maxLag)
			if err != nil {
				return err
			}
			return createBranch(cmd.Context(), g, client.CreateBranchRequest{
				Branch:        client.CreateBranch{Name: args[0], ParentID: parent, TTLSeconds: ttl.Seconds()},
				MaxLagSeconds: lag.Seconds(),
				Reuse:         reuse,
			})
		},
	}
	cmd.Flags().StringVar(&parent, "parent", "", "the branch to branch from; this version branches only from main, which follows production")
	cmd.Flags().StringVar(&expires, "expires", "", "delete it by itself after this time, such as 2h or 7d")
	cmd.Flags().StringVar(&maxLag, "max-lag", "", "allow a state that is so much older than now, such as 30s")
	cmd.Flags().BoolVar(&reuse, "reuse", false, "take the branch of this name if there is one")
	return cmd
}

func createBranch(ctx context.Context, g *globals, req client.CreateBranchRequest) error {
	started := time.Now()
	c, project, err := g.inProject(ctx)
	if err != nil {
		return err
	}
	p := g.progress("branch " + req.Branch.Name)
	defer p.close()
	created, err := c.CreateBranch(ctx, project, req, p.watch)
	p.close()
	if err != nil {
		if ctx.Err() != nil {
			g.talk("the server may go on; see with: pgbough branch get %s", req.Branch.Name)
		}
		return err
	}
	return g.print(created, func(w io.Writer) {
		b := created.Branch
		g.talk("%s (%s) is as its parent was at %s, %s; took %s", b.Name, b.ID, b.ParentLSN,
			moment(b.ParentTimestamp), time.Since(started).Round(time.Millisecond))
		for _, uri := range created.ConnectionURIs {
			line(w, "%s", uri.ConnectionURI)
		}
	})
}

func listBranches(ctx context.Context, g *globals) error {
	c, project, err := g.inProject(ctx)
	if err != nil {
		return err
	}
	answer, err := c.Branches(ctx, project)
	if err != nil {
		return err
	}
	return g.print(answer, func(w io.Writer) {
		names := map[string]string{}
		for _, b := range answer.Branches {
			names[b.ID] = b.Name
		}
		t := newTable(w, "NAME", "STATE", "COMPUTE", "PARENT", "AT", "OWN", "LOGICAL", "AGE", "EXPIRES", "ID")
		for _, b := range answer.Branches {
			t.row(b.Name, b.CurrentState, b.ComputeState, names[b.ParentID], b.ParentLSN,
				size(b.OwnBytes), size(b.LogicalBytes), age(b.CreatedAt), expiry(b.ExpiresAt), b.ID)
		}
		t.flush()
	})
}

func getBranch(ctx context.Context, g *globals, name string) error {
	c, project, err := g.inProject(ctx)
	if err != nil {
		return err
	}
	answer, err := c.Branch(ctx, project, name)
	if err != nil {
		return err
	}
	return g.print(answer, func(w io.Writer) { printBranch(w, answer.Branch) })
}

func printBranch(w io.Writer, b client.Branch) {
	t := newTable(w)
	t.row("name", b.Name)
	t.row("id", b.ID)
	t.row("state", b.CurrentState)
	if b.ComputeState != "" {
		t.row("compute", b.ComputeState)
	}
	if b.ParentID != "" {
		t.row("parent", b.ParentID)
		t.row("as it was", b.ParentLSN+", "+moment(b.ParentTimestamp))
	}
	own := size(b.OwnBytes)
	if b.LimitBytes > 0 {
		own += " of " + size(b.LimitBytes)
	}
	t.row("own", own)
	t.row("logical", size(b.LogicalBytes))
	t.row("created", moment(b.CreatedAt))
	t.row("expires", expiry(b.ExpiresAt))
	if b.Path != "" {
		t.row("path", b.Path)
	}
	for _, note := range b.Notes {
		t.row("note", note)
	}
	t.flush()
	if len(b.Differences) == 0 {
		return
	}
	line(w, "\nnot as in production:")
	t = newTable(w)
	for _, d := range b.Differences {
		object := d.Object
		if d.DB != "" {
			object += " in " + d.DB
		}
		t.row("  "+d.Kind, object, d.Action, d.Reason)
	}
	t.flush()
}

func deleteBranch(ctx context.Context, g *globals, name string, cascade bool) error {
	c, project, err := g.inProject(ctx)
	if err != nil {
		return err
	}
	p := g.progress("delete " + name)
	defer p.close()
	answer, err := c.DeleteBranch(ctx, project, name, cascade, p.watch)
	if err != nil {
		return err
	}
	p.close()
	return g.print(answer, func(io.Writer) { g.talk("branch %s is deleted", answer.Branch.Name) })
}
