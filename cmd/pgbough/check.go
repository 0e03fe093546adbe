package main

import (
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/client"
)

// sourceFlags say how to reach production.
type sourceFlags struct {
	source              string
	restoreCommand      string
	maxRate             string
	acceptUnlimitedSlot bool
}

func (f *sourceFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.source, "source", "", "connection string of production (libpq's keywords or a URI; PGBOUGH_SOURCE keeps its password out of the process list)")
}

func (f *sourceFlags) addFollowing(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.restoreCommand, "restore-command", "", "read production's WAL archive instead of a slot (not in this version: attach refuses it)")
	cmd.Flags().BoolVar(&f.acceptUnlimitedSlot, "accept-unlimited-slot", false, "use a slot although max_slot_wal_keep_size is -1: production's disk may fill up while the server is down")
}

func (f *sourceFlags) request(g *globals) (client.SourceRequest, error) {
	req := client.SourceRequest{
		ConnectionString: f.source, RestoreCommand: f.restoreCommand, AcceptUnlimitedSlot: f.acceptUnlimitedSlot,
	}
	if req.ConnectionString == "" {
		req.ConnectionString = g.getenv("PGBOUGH_SOURCE")
	}
	if req.ConnectionString == "" {
		return req, pgbough.Errorf(pgbough.EInvalid, "production is not named").
			WithHint("give --source 'host=... port=5432 user=... password=... dbname=...', or set PGBOUGH_SOURCE")
	}
	var err error
	req.MaxRateBytes, err = parseSize(f.maxRate)
	return req, err
}

func newCheckCommand(g *globals) *cobra.Command {
	var source sourceFlags
	var role, database string
	cmd := &cobra.Command{
		Use:   "check --source CONNSTR",
		Short: "Tell everything that attach would need; change nothing",
		Long: `Has the server look at production and at its own machine, and tells everything that
attach would need. What is missing comes with the exact statement or line that
mends it. Nothing is changed. Exits with 4 if attach would be refused.

--source is how the server reaches production: localhost is the server's machine.`,
		Example: `  pgbough check --source 'host=db1 user=pgbough password=... dbname=shop'
  PGBOUGH_SOURCE=postgresql://pgbough:...@db1/shop pgbough check --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			req, err := source.request(g)
			if err != nil {
				return err
			}
			c, err := g.client()
			if err != nil {
				return err
			}
			report, err := c.Check(cmd.Context(), client.CheckRequest{Source: req, Role: role, Database: database})
			if err != nil {
				return err
			}
			if err := g.print(report, func(w io.Writer) { printFindings(w, report) }); err != nil {
				return err
			}
			return refused(report)
		},
	}
	source.add(cmd)
	source.addFollowing(cmd)
	cmd.Flags().StringVar(&role, "role", "", "the role that attach would be given")
	cmd.Flags().StringVar(&database, "database", "", "the database that attach would be given")
	g.addJSON(cmd)
	return cmd
}

func printFindings(w io.Writer, report client.CheckReport) {
	if f := report.Facts; f != nil {
		line(w, "Postgres %s, system %s, %s in %s", f.PostgresVersion, f.SystemID, size(f.DataBytes), strings.Join(f.Databases, ", "))
		line(w, "")
	}
	t := newTable(w)
	for _, f := range report.Findings {
		t.row(string(f.Status), f.Name, f.Detail)
	}
	t.flush()
	for _, f := range report.Findings {
		if f.Fix != "" && f.Status != pgbough.FindingOK {
			line(w, "\n%s: %s:\n  %s", f.Status, f.Name, strings.ReplaceAll(strings.TrimSpace(f.Fix), "\n", "\n  "))
		}
	}
}

func refused(report client.CheckReport) error {
	if report.OK {
		return nil
	}
	failed := 0
	for _, f := range report.Findings {
		if f.Status == pgbough.FindingFail {
			failed++
		}
	}
	return pgbough.Errorf(pgbough.EConflict, "attach would be refused: %d of %d checks failed", failed, len(report.Findings)).
		WithHint("do what stands under each, then check again")
}
