package main

import (
	"context"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pgbough/pgbough"
)

func newDiffCommand(g *globals) *cobra.Command {
	var database string
	var exitCode bool
	cmd := &cobra.Command{
		Use:   "diff BRANCH [OTHER]",
		Short: "Show how the schemas of two branches differ",
		Long: `Shows how the schema of a branch differs from its parent's, or with OTHER how that
of OTHER differs from the branch's: as with diff, what the first has is marked with
-, what the second has with +. Main is production as its follower has it now.

Everything that a schema is made of is compared: tables with their columns,
constraints and indexes, types, views, functions, triggers, policies, owners, grants,
settings and more, but no rows. A branch that sleeps is woken. With --json the answer
also has the changes by object. With --exit-code the exit status is 6 if there is a
difference.`,
		Example: `  pgbough diff fix-login                   # what fix-login has changed
  pgbough diff fix-login fix-login-2       # from one branch to the other
  pgbough diff fix-login --exit-code       # in CI: has a migration changed anything?
  pgbough diff fix-login --json | jq -r '.changes[] | "\(.change) \(.kind) \(.name)"'`,
		Args:              cobra.RangeArgs(1, 2),
		ValidArgsFunction: g.completeBranches,
		RunE: func(cmd *cobra.Command, args []string) error {
			return diff(cmd.Context(), g, args, database, exitCode)
		},
	}
	cmd.Flags().BoolVar(&exitCode, "exit-code", false, "end with exit status 6 if there is a difference")
	addDatabase(cmd, &database)
	g.addJSON(cmd)
	g.addProject(cmd)
	return cmd
}

func addDatabase(cmd *cobra.Command, database *string) {
	cmd.Flags().StringVar(database, "database", "", "the database (default: what attach was told)")
	_ = cmd.RegisterFlagCompletionFunc("database", cobra.NoFileCompletions) // fails only for a flag that is not there
}

func diff(ctx context.Context, g *globals, args []string, database string, exitCode bool) error {
	branch, err := present(args[len(args)-1])
	if err != nil {
		return err
	}
	base := ""
	if len(args) == 2 {
		if base, err = present(args[0]); err != nil {
			return err
		}
	}
	c, project, err := g.inProject(ctx)
	if err != nil {
		return err
	}
	answer, err := c.CompareSchema(ctx, project, branch, base, database)
	if err != nil {
		return err
	}
	for _, note := range answer.Notes {
		g.talk("note: %s", note)
	}
	if err := g.print(answer, func(w io.Writer) { _, _ = io.WriteString(w, answer.Diff) }); err != nil {
		return err
	}
	if exitCode && answer.Diff != "" {
		return &exitError{Code: exitDiffers}
	}
	return nil
}

func newSchemaCommand(g *globals) *cobra.Command {
	var database string
	cmd := &cobra.Command{
		Use:   "schema BRANCH",
		Short: "Print the schema of a branch as SQL",
		Long: `Prints SQL that makes the schema of a branch in an empty database: all that diff
compares, in an order in which it can run. It has no rows and no passwords.`,
		Example:           "  pgbough schema fix-login > schema.sql\n  pgbough schema main --database stats",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: g.completeParentArg,
		RunE: func(cmd *cobra.Command, args []string) error {
			branch, err := present(args[0])
			if err != nil {
				return err
			}
			c, project, err := g.inProject(cmd.Context())
			if err != nil {
				return err
			}
			answer, err := c.Schema(cmd.Context(), project, branch, database)
			if err != nil {
				return err
			}
			return g.print(answer, func(w io.Writer) { _, _ = io.WriteString(w, answer.SQL) })
		},
	}
	addDatabase(cmd, &database)
	g.addJSON(cmd)
	g.addProject(cmd)
	return cmd
}

// present reads BRANCH@MOMENT, and refuses a moment that is past.
func present(text string) (string, error) {
	branch, at, past := strings.Cut(text, "@") // no name has one
	if past {
		return "", pgbough.Errorf(pgbough.EInvalid, "%s names a past moment of %s (%s), which is not in this version of pgbough", text, branch, at).
			WithHint("name the branch alone to have it as it is now")
	}
	return branch, nil
}
