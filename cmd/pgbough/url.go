package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/client"
)

// target chooses how to connect to a branch.
type target struct{ role, database string }

func (t *target) add(cmd *cobra.Command, g *globals) {
	cmd.Flags().StringVar(&t.role, "role", "", "connect as this role of production's (default: what attach was told)")
	cmd.Flags().StringVar(&t.database, "database", "", "connect to this database (default: what attach was told)")
	_ = cmd.RegisterFlagCompletionFunc("role", g.completeRole)              // fails only for a flag that is not there
	_ = cmd.RegisterFlagCompletionFunc("database", cobra.NoFileCompletions) // as above
}

func (t *target) find(ctx context.Context, g *globals, branch string) (client.ConnectionURI, error) {
	c, project, err := g.inProject(ctx)
	if err != nil {
		return client.ConnectionURI{}, err
	}
	return c.Connection(ctx, project, branch, t.role, t.database)
}

func newURLCommand(g *globals) *cobra.Command {
	var to target
	cmd := &cobra.Command{
		Use:     "url BRANCH",
		Short:   "Print the connection URI of a branch",
		Long:    "Prints the connection URI of a branch, with the password of the role. It works with\nevery driver and stays the same while the branch sleeps, wakes and is renamed. A\nrole that was made, or got its password, inside the branch is not known here.",
		Example: "  psql \"$(pgbough url fix-login)\"\n  pgbough url fix-login --role report --database stats",
		Args:    cobra.ExactArgs(1),

		ValidArgsFunction: g.completeBranch,
		RunE: func(cmd *cobra.Command, args []string) error {
			answer, err := to.find(cmd.Context(), g, args[0])
			if err != nil {
				return err
			}
			return g.print(answer, func(w io.Writer) { line(w, "%s", answer.URI) })
		},
	}
	to.add(cmd, g)
	g.addJSON(cmd)
	g.addProject(cmd)
	return cmd
}

func newPsqlCommand(g *globals) *cobra.Command {
	var to target
	cmd := &cobra.Command{
		Use:     "psql BRANCH [flags] [-- ARGS]",
		Short:   "Run psql on a branch",
		Long:    "Runs psql, which has to be installed here, on a branch; one that sleeps is woken.\nWhat stands after -- is given to psql.",
		Example: "  pgbough psql fix-login\n  pgbough psql fix-login -- -c 'select count(*) from orders'",
		Args: func(cmd *cobra.Command, args []string) error {
			before := len(args)
			if dash := cmd.ArgsLenAtDash(); dash >= 0 {
				before = dash
			}
			if before != 1 {
				return fmt.Errorf("name one branch, and give psql's own arguments after --: pgbough psql BRANCH -- ARGS")
			}
			return nil
		},
		ValidArgsFunction: g.completeBranch,
		RunE: func(cmd *cobra.Command, args []string) error {
			psql, err := exec.LookPath("psql")
			if err != nil {
				return pgbough.Errorf(pgbough.ENotFound, "psql is not installed: %w", err).
					WithHint("install it (Debian, Ubuntu: apt install postgresql-client), or use the URI of `pgbough url %s` elsewhere", args[0])
			}
			answer, err := to.find(cmd.Context(), g, args[0])
			if err != nil {
				return err
			}
			// The password goes through the environment: ps shows arguments to all.
			err = syscall.Exec(psql, append([]string{"psql"}, args[1:]...), environment(os.Environ(), answer.Libpq))
			return fmt.Errorf("execute %s: %w", psql, err)
		},
	}
	to.add(cmd, g)
	g.addProject(cmd)
	return cmd
}

// environment is env with the PG variables of a connection, and without those
// that would lead it elsewhere.
func environment(env []string, c client.Libpq) []string {
	ours := []struct{ name, value string }{
		{"PGHOST", c.Host},
		{"PGPORT", c.Port},
		{"PGUSER", c.User},
		{"PGPASSWORD", c.Password},
		{"PGDATABASE", c.DBName},
		{"PGOPTIONS", c.Options},
		{"PGSSLMODE", c.SSLMode},
		// Empty always: they would win over the above, or ask for what is not there.
		{"PGHOSTADDR", ""},
		{"PGSERVICE", ""},
		{"PGSERVICEFILE", ""},
		{"PGPASSFILE", ""},
		{"PGCHANNELBINDING", ""},
		{"PGREQUIREAUTH", ""},
		{"PGREQUIREPEER", ""},
		{"PGREQUIRESSL", ""},
		{"PGSSLROOTCERT", ""},
		{"PGSSLNEGOTIATION", ""},
		{"PGTARGETSESSIONATTRS", ""},
	}
	var out []string
	for _, v := range env {
		name, _, _ := strings.Cut(v, "=")
		keep := true
		for _, o := range ours {
			keep = keep && name != o.name
		}
		if keep {
			out = append(out, v)
		}
	}
	for _, o := range ours {
		if o.value != "" {
			out = append(out, o.name+"="+o.value)
		}
	}
	return out
}
