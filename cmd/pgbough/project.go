package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/client"
)

func newProjectCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "project",
		Short: "List, show, change and delete projects",
		Long:  "A project is one production Postgres and all branches of it. `pgbough attach` makes one.",
	}
	list := &cobra.Command{
		Use: "list", Short: "List all projects", Args: cobra.NoArgs,
		Example: "  pgbough project list --json | jq -r '.projects[].name'",
		RunE:    func(cmd *cobra.Command, _ []string) error { return listProjects(cmd.Context(), g) },
	}
	get := &cobra.Command{
		Use: "get NAME", Short: "Show a project", Args: cobra.ExactArgs(1),
		Example: "  pgbough project get shop", ValidArgsFunction: g.completeProjectArg,
		RunE: func(cmd *cobra.Command, args []string) error { return getProject(cmd.Context(), g, args[0]) },
	}
	var yes bool
	remove := &cobra.Command{
		Use: "delete NAME", Short: "Stop following production and delete the project with all its branches",
		Long: `Stops following, drops pgbough's slot on production, and deletes the project with
all its branches after confirmation. Production keeps everything else.`,
		Example: "  pgbough project delete shop\n  pgbough project delete shop --yes",
		Args:    cobra.ExactArgs(1), ValidArgsFunction: g.completeProjectArg,
		RunE: func(cmd *cobra.Command, args []string) error { return deleteProject(cmd.Context(), g, args[0], yes) },
	}
	remove.Flags().BoolVar(&yes, "yes", false, "do not ask")
	set := newProjectSetCommand(g)
	g.addJSON(list, get, set, remove)
	cmd.AddCommand(list, get, set, remove)
	return cmd
}

func listProjects(ctx context.Context, g *globals) error {
	c, err := g.client()
	if err != nil {
		return err
	}
	answer, err := c.Projects(ctx)
	if err != nil {
		return err
	}
	return g.print(answer, func(w io.Writer) {
		if len(answer.Projects) == 0 {
			g.talk("there is no project yet; `pgbough attach NAME --source CONNSTR` makes one")
			return
		}
		t := newTable(w, "NAME", "STATE", "POSTGRES", "SOURCE", "AGE", "ID")
		for _, p := range answer.Projects {
			t.row(p.Name, string(p.State), p.Source.PostgresVersion, strings.Join(p.Source.Hosts, ","), age(p.CreatedAt), p.ID)
		}
		t.flush()
	})
}

func getProject(ctx context.Context, g *globals, name string) error {
	c, err := g.client()
	if err != nil {
		return err
	}
	answer, err := c.Project(ctx, name)
	if err != nil {
		return err
	}
	return g.print(answer, func(w io.Writer) {
		p, t := answer.Project, newTable(w)
		t.row("name", p.Name)
		t.row("id", p.ID)
		t.row("state", string(p.State))
		t.row("source", strings.Join(p.Source.Hosts, ", "))
		t.row("as", p.Source.Role+" in "+p.Source.Database)
		t.row("postgres", p.Source.PostgresVersion)
		t.row("system", fmt.Sprintf("%s, timeline %d", p.Source.SystemID, p.Source.Timeline))
		if p.Source.RestoreCommand != "" {
			t.row("archive", p.Source.RestoreCommand)
		} else {
			t.row("slot", p.Source.Slot)
		}
		t.row("branches use", p.DefaultRole+" in "+p.DefaultDatabase)
		t.row("created", moment(p.CreatedAt))
		t.flush()
	})
}

func deleteProject(ctx context.Context, g *globals, name string, yes bool) error {
	c, err := g.client()
	if err != nil {
		return err
	}
	found, err := c.Project(ctx, name)
	if err != nil {
		return err
	}
	name = found.Project.Name
	if !yes {
		branches, err := c.Branches(ctx, found.Project.ID)
		if err != nil {
			return err
		}
		g.talk("This deletes project %s with its %s and stops following %s.", name,
			count(len(branches.Branches)-1, "branch", "branches"), strings.Join(found.Project.Source.Hosts, ", "))
		if err := g.confirm("Type the name of the project to go on", name); err != nil {
			return err
		}
	}
	answer, err := c.DeleteProject(ctx, found.Project.ID)
	if err != nil {
		return err
	}
	if err := g.follow(ctx, c.WaitGone, "delete "+name, answer.Operations); err != nil {
		return err
	}
	return g.print(answer, func(io.Writer) { g.talk("project %s is deleted", name) })
}

// confirm asks a person to type a word.
func (g *globals) confirm(question, word string) error {
	if !g.io.InTerminal {
		return pgbough.Errorf(pgbough.EInvalid, "this needs a confirmation, and there is no terminal to ask on").WithHint("give --yes")
	}
	_, _ = fmt.Fprintf(g.io.Err, "%s (%s): ", question, word) // a closed stderr has no reader
	typed, err := bufio.NewReader(g.io.In).ReadString('\n')
	if err != nil && typed == "" {
		return fmt.Errorf("read confirmation: %w", err)
	}
	if strings.TrimSpace(typed) != word {
		return pgbough.Errorf(pgbough.EConflict, "not confirmed; nothing was changed")
	}
	return nil
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

func newSourceCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use: "source", Short: "Change how production is reached",
		Long: "The source of a project is the production Postgres that it follows.",
	}
	var source sourceFlags
	set := &cobra.Command{
		Use: "set NAME --source CONNSTR", Short: "Follow production at another address or with another password",
		Long: `Gives a project a new connection string, after production got a new password or
another host took over. It must be the same system: an identifier that differs is
refused. Branches stay as they are. "pgbough status" shows when the follower streams
again.`,
		Example: "  pgbough source set shop --source 'host=db2 user=pgbough password=... dbname=shop'",
		Args:    cobra.ExactArgs(1), ValidArgsFunction: g.completeProjectArg,
		RunE: func(cmd *cobra.Command, args []string) error {
			req, err := source.request(g)
			if err != nil {
				return err
			}
			return setSource(cmd.Context(), g, args[0], req)
		},
	}
	source.add(set)
	g.addJSON(set)
	cmd.AddCommand(set)
	return cmd
}

func setSource(ctx context.Context, g *globals, name string, req client.SourceRequest) error {
	c, err := g.client()
	if err != nil {
		return err
	}
	answer, err := c.SetSource(ctx, name, client.SetSourceRequest{Source: req})
	if err != nil {
		return err
	}
	if err := g.follow(ctx, c.WaitOperation, "source set "+name, answer.Operations); err != nil {
		return err
	}
	return g.print(answer, func(w io.Writer) {
		line(w, "%s follows %s", answer.Project.Name, strings.Join(answer.Project.Source.Hosts, ", "))
	})
}
