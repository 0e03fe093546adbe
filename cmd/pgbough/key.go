package main

import (
	"context"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/pgbough/pgbough/client"
)

func newKeyCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "key",
		Short: "Make, list and revoke API keys",
		Long: `API keys let others use the server without ` + client.KeyFile + `, which opens everything and
stays on the server's machine. Give each user and each program one of its own.`,
	}
	var req client.CreateKeyRequest
	create := &cobra.Command{
		Use: "create NAME", Short: "Make an API key and print it",
		Long: `Makes an API key and prints it. It is shown only now: the server keeps no more than
its hash. PGBOUGH_API_KEY is where the commands take it from.

With --project (or PGBOUGH_PROJECT) the key opens that project: its branches, roles,
passwords and operations. Other projects do not exist for it, and it cannot delete
the project or change the production that it follows. Without a project it opens
everything, as ` + client.KeyFile + ` does. With --metrics-only it opens /metrics and nothing else.`,
		Example: `  pgbough key create ci --project shop
  pgbough key create prometheus --metrics-only
  pgbough key create ci --project shop --json | jq -r .key`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.KeyName = args[0]
			return createKey(cmd.Context(), g, req)
		},
	}
	create.Flags().StringVar(&req.ProjectID, "project", g.getenv("PGBOUGH_PROJECT"), "the only project that the key opens, by name or id (default: everything)")
	_ = create.RegisterFlagCompletionFunc("project", g.completeProject) // fails only for a flag that is not there
	create.Flags().BoolVar(&req.MetricsOnly, "metrics-only", false, "let the key read the metrics and nothing else")
	list := &cobra.Command{
		Use: "list", Short: "List the API keys, what they open and when they were used", Args: cobra.NoArgs,
		Example: "  pgbough key list\n  pgbough key list --json | jq '.[] | select(.last_used_at == null)'",
		RunE:    func(cmd *cobra.Command, _ []string) error { return listKeys(cmd.Context(), g) },
	}
	revoke := &cobra.Command{
		Use: "revoke ID|NAME", Short: "Make an API key useless, at once",
		Example: "  pgbough key revoke ci",
		Args:    cobra.ExactArgs(1),
		RunE:    func(cmd *cobra.Command, args []string) error { return revokeKey(cmd.Context(), g, args[0]) },
	}
	g.addJSON(create, list, revoke)
	cmd.AddCommand(create, list, revoke)
	return cmd
}

func createKey(ctx context.Context, g *globals, req client.CreateKeyRequest) error {
	if req.MetricsOnly && g.getenv("PGBOUGH_PROJECT") == req.ProjectID {
		req.ProjectID = "" // nobody has asked for it here
	}
	c, err := g.client()
	if err != nil {
		return err
	}
	answer, err := c.CreateKey(ctx, req)
	if err != nil {
		return err
	}
	return g.print(answer, func(w io.Writer) {
		g.talk("key %s opens %s; it is shown only now", answer.Name, opened(answer.APIKey))
		line(w, "%s", answer.Key)
	})
}

// opened is what a key opens, for people.
func opened(k client.APIKey) string {
	switch {
	case k.MetricsOnly:
		return "the metrics"
	case k.ProjectID != "":
		return "project " + k.ProjectName
	default:
		return "everything"
	}
}

func listKeys(ctx context.Context, g *globals) error {
	c, err := g.client()
	if err != nil {
		return err
	}
	answer, err := c.Keys(ctx)
	if err != nil {
		return err
	}
	return g.print(answer, func(w io.Writer) {
		if len(answer) == 0 {
			g.talk("there is no key but that in %s; `pgbough key create NAME` makes one", client.KeyFile)
			return
		}
		t := newTable(w, "NAME", "OPENS", "AGE", "LAST USED", "ID")
		for _, k := range answer {
			used := "never"
			if !k.LastUsedAt.IsZero() {
				used = age(k.LastUsedAt) + " ago"
			}
			t.row(k.Name, opened(k), age(k.CreatedAt), used, strconv.FormatInt(k.ID, 10))
		}
		t.flush()
	})
}

func revokeKey(ctx context.Context, g *globals, key string) error {
	c, err := g.client()
	if err != nil {
		return err
	}
	answer, err := c.RevokeKey(ctx, key)
	if err != nil {
		return err
	}
	return g.print(answer, func(io.Writer) { g.talk("key %s is revoked", answer.Name) })
}
