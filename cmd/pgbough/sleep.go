package main

import (
	"context"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/client"
)

// never is what --suspend-after and --expires take for no end.
const never = "never"

func newSuspendCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "suspend BRANCH", Short: "Stop the Postgres of a branch until somebody connects", Args: cobra.ExactArgs(1),
		Long: `Stops the Postgres of a branch. Whoever is connected is told so; the next client
that connects wakes it. Nothing is lost but what belongs to a session: temporary
tables, prepared statements, LISTEN. A branch that nobody uses falls asleep by
itself (--suspend-after).`,
		Example:           "  pgbough branch suspend fix-login",
		ValidArgsFunction: g.completeBranch,
		RunE: func(cmd *cobra.Command, args []string) error {
			return turn(cmd.Context(), g, args[0], "suspend", (*client.Client).Suspend, "branch %s sleeps; connecting wakes it")
		},
	}
}

func newWakeCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "wake BRANCH", Short: "Start the Postgres of a branch that sleeps", Args: cobra.ExactArgs(1),
		Long:              "Starts the Postgres of a branch that sleeps. Connecting does so too: this is to\nsave the first client the wait.",
		Example:           "  pgbough branch wake fix-login",
		ValidArgsFunction: g.completeBranch,
		RunE: func(cmd *cobra.Command, args []string) error {
			return turn(cmd.Context(), g, args[0], "wake", (*client.Client).Wake, "branch %s is awake")
		},
	}
}

type turning func(c *client.Client, ctx context.Context, project, branch string, watch func(client.Operation)) (client.EndpointResponse, error)

func turn(ctx context.Context, g *globals, name, verb string, do turning, done string) error {
	c, project, err := g.inProject(ctx)
	if err != nil {
		return err
	}
	p := g.progress(verb + " " + name)
	defer p.close()
	answer, err := do(c, ctx, project, name, p.watch)
	p.close()
	if err != nil {
		return err
	}
	return g.print(answer, func(io.Writer) { g.talk(done, name) })
}

func newRenameCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "rename BRANCH NEW", Short: "Give a branch another name", Args: cobra.ExactArgs(2),
		Long:              "Gives a branch another name. Its address stays, so clients notice nothing.",
		Example:           "  pgbough branch rename fix-login fix-login-2",
		ValidArgsFunction: g.completeBranch,
		RunE: func(cmd *cobra.Command, args []string) error {
			var req client.UpdateBranchRequest
			req.Branch.Name = &args[1]
			return updateBranch(cmd.Context(), g, args[0], req)
		},
	}
}

// newProtectCommand is `branch protect`, or `branch unprotect`.
func newProtectCommand(g *globals, protect bool) *cobra.Command {
	cmd := &cobra.Command{
		Use: "protect BRANCH", Short: "Keep a branch from being deleted", Args: cobra.ExactArgs(1),
		Long: `Keeps a branch from being deleted and from expiring, and with it its project,
until "pgbough branch unprotect".`,
		Example:           "  pgbough branch protect incident-42",
		ValidArgsFunction: g.completeBranch,
		RunE: func(cmd *cobra.Command, args []string) error {
			var req client.UpdateBranchRequest
			req.Branch.Protected = &protect
			return updateBranch(cmd.Context(), g, args[0], req)
		},
	}
	if !protect {
		cmd.Use, cmd.Short, cmd.Long = "unprotect BRANCH", "Let a protected branch be deleted again", ""
		cmd.Example = "  pgbough branch unprotect incident-42"
	}
	return cmd
}

func newSetCommand(g *globals) *cobra.Command {
	var after, expires string
	cmd := &cobra.Command{
		Use: "set BRANCH", Short: "Change when a branch sleeps and when it expires", Args: cobra.ExactArgs(1),
		Example: `  pgbough branch set fix-login --suspend-after 30m
  pgbough branch set fix-login --suspend-after never --expires 7d
  pgbough branch set fix-login --suspend-after default --expires never`,
		ValidArgsFunction: g.completeBranch,
		RunE: func(cmd *cobra.Command, args []string) error {
			if after == "" && expires == "" {
				return pgbough.Errorf(pgbough.EInvalid, "there is nothing to change").WithHint("give --suspend-after, --expires or both")
			}
			var req client.UpdateBranchRequest
			var err error
			if req.Branch.SuspendTimeoutSeconds, err = parseSuspendAfter(after); err != nil {
				return err
			}
			at, ttl, err := parseExpires(expires)
			if err != nil {
				return err
			}
			switch {
			case expires == never:
				req.Branch.ExpiresAt = []byte("null")
			case at != nil:
				req.Branch.ExpiresAt = []byte(at.Format(`"` + time.RFC3339Nano + `"`))
			default:
				req.Branch.TTLSeconds = ttl.Seconds()
			}
			return updateBranch(cmd.Context(), g, args[0], req)
		},
	}
	cmd.Flags().StringVar(&after, "suspend-after", "", suspendAfterHelp+"; default: as the server is told")
	cmd.Flags().StringVar(&expires, "expires", "", "delete it by itself after this time, counted from now, such as 2h or 7d, or at one, such as 2027-01-31T12:00:00Z; never: keep it")
	return cmd
}

const suspendAfterHelp = "stop its Postgres after so long without work, such as 10m; 0 or never: not at all"

func updateBranch(ctx context.Context, g *globals, name string, req client.UpdateBranchRequest) error {
	c, project, err := g.inProject(ctx)
	if err != nil {
		return err
	}
	answer, err := c.UpdateBranch(ctx, project, name, req)
	if err != nil {
		return err
	}
	return g.print(answer, func(io.Writer) {
		b := answer.Branch
		g.talk("branch %s: sleeps %s, expires %s", b.Name, sleeps(b), expires(b))
	})
}

// expires tells when a branch goes by itself.
func expires(b client.Branch) string {
	if b.Protected {
		return "never (protected)"
	}
	return expiry(b.ExpiresAt)
}

// sleeps tells when a branch falls asleep.
func sleeps(b client.Branch) string {
	if b.SuspendTimeoutSeconds <= 0 {
		return never
	}
	return "after " + time.Duration(b.SuspendTimeoutSeconds*float64(time.Second)).String() + " without work"
}

// parseSuspendAfter reads --suspend-after as the API wants it.
func parseSuspendAfter(text string) (*float64, error) {
	var s float64
	switch text {
	case "":
		return nil, nil
	case "0", never:
		s = -1
	case "default":
	default:
		d, err := parseDuration("suspend-after", text)
		if err != nil {
			return nil, err
		}
		s = d.Seconds()
	}
	return &s, nil
}

// parseExpires reads --expires: a time, or how long from now on.
func parseExpires(text string) (*time.Time, time.Duration, error) {
	if text == "" || text == never {
		return nil, 0, nil
	}
	if strings.ContainsAny(text, "T:") {
		at, err := time.Parse(time.RFC3339, text)
		if err != nil {
			return nil, 0, pgbough.Errorf(pgbough.EInvalid, "--expires %s is not a time such as 2027-01-31T12:00:00Z", text)
		}
		return &at, 0, nil
	}
	ttl, err := parseDuration("expires", text)
	return nil, ttl, err
}
