package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/client"
)

// globals is what all commands share.
type globals struct {
	io      stdio
	getenv  func(string) string
	started bool // the command line was right and the command runs

	project string
	json    bool
}

// commands are all that the binary can do, in the order of its help.
func commands(g *globals) []*cobra.Command {
	return []*cobra.Command{
		newServerCommand(),
		newFrontCommand(),
		newCheckCommand(g),
		newAttachCommand(g),
		newProjectCommand(g),
		newSourceCommand(g),
		newStatusCommand(g),
		newHistoryCommand(g),
		newBranchCommand(g),
		newURLCommand(g),
		newPsqlCommand(g),
		newLogsCommand(g),
		newDiffCommand(g),
		newSchemaCommand(g),
		newRunCommand(g),
		newOpsCommand(g),
		newPoolCommand(g),
		newKeyCommand(g),
		newUninstallCommand(g),
		newVersionCommand(g),
	}
}

func newRootCommand(g *globals) *cobra.Command {
	root := &cobra.Command{
		Use:   "pgbough",
		Short: "Instant, private, writable branches of a production Postgres",
		Long: `pgbough follows a production Postgres and hands out branches of it: whole,
private, writable Postgres servers that start as production is at that moment.

  1. pgbough server --data DIR         as root, on a Linux machine next to production
  2. pgbough check --source CONNSTR    what production must allow, and how
  3. pgbough attach NAME --source CONNSTR
  4. pgbough branch create BRANCH      prints the connection URI
  5. pgbough psql BRANCH               or any other client, with that URI

All commands but server and uninstall are clients. They ask the server at PGBOUGH_API
(` + client.DefaultAPI + `) with the key PGBOUGH_API_KEY, by default the one in the file
` + client.KeyFile + ` of the data directory PGBOUGH_DATA (` + client.DefaultData + `): on the
server's machine whoever may read that file needs to set nothing. On other machines
PGBOUGH_API begins with https://, and PGBOUGH_CA names a copy of ` + client.CAFile + `, with which
the server is verified, from the same directory. PGBOUGH_PROJECT is the default of
--project, which is needed only where there are several projects. With --json a
command prints the API's own JSON. Answers go to stdout, all else to stderr.
pgbough completion bash prints what a shell needs to complete names.`,
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetVersionTemplate("pgbough {{.Version}}\n")
	root.SetHelpTemplate(root.HelpTemplate() + "\n" + exitCodesHelp)
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetIn(g.io.In)
	root.SetOut(g.io.Out)
	root.SetErr(g.io.Err)
	cobra.EnableCommandSorting = false
	root.AddCommand(commands(g)...)
	root.InitDefaultCompletionCmd()
	g.prepare(root)
	return root
}

// prepare makes every command tell when it runs, and every noun refuse to be
// used without a verb.
func (g *globals) prepare(cmd *cobra.Command) {
	if runs := cmd.RunE; runs != nil {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			g.started = true
			return runs(cmd, args)
		}
	} else if cmd.HasParent() {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			var verbs []string
			for _, sub := range cmd.Commands() {
				verbs = append(verbs, sub.Name())
			}
			if len(args) == 0 {
				return fmt.Errorf("%s needs a verb: %s", cmd.CommandPath(), strings.Join(verbs, ", "))
			}
			return fmt.Errorf("unknown command %q for %q: there is %s", args[0], cmd.CommandPath(), strings.Join(verbs, ", "))
		}
	}
	for _, sub := range cmd.Commands() {
		g.prepare(sub)
	}
}

func (g *globals) addJSON(cmds ...*cobra.Command) {
	for _, cmd := range cmds {
		cmd.Flags().BoolVar(&g.json, "json", false, "print the API's own JSON")
	}
}

func (g *globals) addProject(cmds ...*cobra.Command) {
	for _, cmd := range cmds {
		cmd.Flags().StringVar(&g.project, "project", g.getenv("PGBOUGH_PROJECT"), "the project, by name or id; needed only where there are several")
		_ = cmd.RegisterFlagCompletionFunc("project", g.completeProject) // fails only for a flag that is not there
	}
}

func (g *globals) client() (*client.Client, error) { return client.FromEnvironment(g.getenv) }

// inProject makes a client and finds the project that the command is about.
func (g *globals) inProject(ctx context.Context) (*client.Client, string, error) {
	c, err := g.client()
	if err != nil || g.project != "" {
		return c, g.project, err
	}
	list, err := c.Projects(ctx)
	if err != nil {
		return nil, "", err
	}
	switch len(list.Projects) {
	case 0:
		return nil, "", pgbough.Errorf(pgbough.ENotFound, "there is no project yet").
			WithHint("`pgbough attach NAME --source CONNSTR` makes one that follows a production Postgres")
	case 1:
		return c, list.Projects[0].ID, nil
	}
	var names []string
	for _, p := range list.Projects {
		names = append(names, p.Name)
	}
	return nil, "", pgbough.Errorf(pgbough.EInvalid, "there are several projects: %s", strings.Join(names, ", ")).
		WithHint("say which with --project NAME, or set PGBOUGH_PROJECT")
}

// talk says something to the person who watches, not to a script.
func (g *globals) talk(format string, args ...any) {
	_, _ = fmt.Fprintf(g.io.Err, format+"\n", args...) // a closed stderr must not stop the work
}
