package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/client"
)

func newBranchCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "branch",
		Short: "Create, list, show, change and delete branches",
		Long:  "A branch is a private, writable Postgres that starts as its parent was at one exact moment.",
	}
	list := &cobra.Command{
		Use: "list", Short: "List the branches of a project", Args: cobra.NoArgs,
		Long: `Lists the branches of a project. STATE is active or idle for one that can be used:
idle means asleep, and connecting wakes it. BEHIND is the WAL that production has
written since the branch began.`,
		Example: "  pgbough branch list\n  pgbough branch list --json | jq -r '.branches[].name'",
		RunE:    func(cmd *cobra.Command, _ []string) error { return listBranches(cmd.Context(), g) },
	}
	get := &cobra.Command{
		Use: "get BRANCH", Short: "Show a branch, and what in it is not as in production", Args: cobra.ExactArgs(1),
		Long: `Shows a branch: when production was as it began (as it was), how much WAL production
has written since (behind), the bytes that it alone holds (own) and those it would
have as a full copy (logical), and what in it is not as in production.`,
		Example: "  pgbough branch get fix-login", ValidArgsFunction: g.completeParentArg,
		RunE: func(cmd *cobra.Command, args []string) error { return getBranch(cmd.Context(), g, args[0]) },
	}
	var cascade bool
	remove := &cobra.Command{
		Use: "delete BRANCH", Short: "Delete a branch with everything in it", Args: cobra.ExactArgs(1),
		Example: "  pgbough branch delete fix-login", ValidArgsFunction: g.completeBranch,
		RunE: func(cmd *cobra.Command, args []string) error { return deleteBranch(cmd.Context(), g, args[0], cascade) },
	}
	remove.Flags().BoolVar(&cascade, "cascade", false, "delete its children too")
	create := newBranchCreateCommand(g)
	all := []*cobra.Command{create, list, get, newSetCommand(g), newRenameCommand(g), newProtectCommand(g, true), newProtectCommand(g, false), newSuspendCommand(g), newWakeCommand(g), remove}
	g.addJSON(all...)
	g.addProject(all...)
	cmd.AddCommand(all...)
	return cmd
}

func newBranchCreateCommand(g *globals) *cobra.Command {
	var parent, at, expires, maxLag, suspendAfter string
	var reuse, protected bool
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Make a branch of production as it is now, or was; print its connection URI",
		Long: `Makes a branch and prints its connection URI. It holds every transaction that
production had acknowledged when the command started. If production cannot be
asked, the command fails, unless --max-lag allows a state that is older. With
--max-lag the branch is a clone of the newest state that is kept and not older, which
is made quickly and holds a few MB; where none is kept, one is made and kept for the next.

With --at the branch is as production was at an LSN, with every commit whose record
ends at or before it and none after, or at a time: with the commits before the first
one that is stamped later. pgbough history shows how far back that goes.

The URI holds a password that is the branch's own; pgbough url prints it again.`,
		Example: `  pgbough branch create fix-login
  psql "$(pgbough branch create fix-login --expires 2h)"
  pgbough branch create before-the-accident --at -15m
  pgbough branch create before-the-accident --at '2026-11-22 10:30'
  pgbough branch create nightly --suspend-after never --expires 2027-01-31T12:00:00Z
  pgbough branch create fix-login --reuse --json | jq -r '.connection_uris[0].connection_uri'`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			gone, ttl, err := parseExpires(expires)
			if err != nil {
				return err
			}
			past, err := g.parseAt(at)
			if err != nil {
				return err
			}
			lag, err := parseDuration("max-lag", maxLag)
			if err != nil {
				return err
			}
			req := client.CreateBranchRequest{
				Branch:        client.CreateBranch{Name: args[0], ParentID: parent, ParentLSN: past.lsn, ParentTimestamp: past.time, ExpiresAt: gone, TTLSeconds: ttl.Seconds(), Protected: protected},
				MaxLagSeconds: lag.Seconds(),
				Reuse:         reuse,
			}
			timeout, err := parseSuspendAfter(suspendAfter)
			if err != nil {
				return err
			}
			if timeout != nil {
				req.Endpoints = []client.CreateEndpoint{{Type: "read_write", SuspendTimeoutSeconds: timeout}}
			}
			return createBranch(cmd.Context(), g, req)
		},
	}
	cmd.Flags().StringVar(&parent, "parent", "", "the branch to branch from; this version branches only from main, which follows production")
	cmd.Flags().StringVar(&at, "at", "", "as production was at this LSN, or at this time: 2026-11-22T10:30:00Z, '2026-11-22 10:30' by the clock of this machine, or -15m")
	cmd.Flags().StringVar(&expires, "expires", "", "delete it by itself after this time, such as 2h or 7d, or at one, such as 2027-01-31T12:00:00Z")
	cmd.Flags().BoolVar(&protected, "protected", false, "keep it from being deleted, until `pgbough branch unprotect`")
	cmd.Flags().StringVar(&suspendAfter, "suspend-after", "", suspendAfterHelp+" (default: as the server is told)")
	cmd.Flags().StringVar(&maxLag, "max-lag", "", "take a state up to so much older than now, such as 30s, if one is at hand")
	cmd.Flags().BoolVar(&reuse, "reuse", false, "if there is a branch of this name already, take it as it is")
	cmd.ValidArgsFunction = cobra.NoFileCompletions
	_ = cmd.RegisterFlagCompletionFunc("parent", g.completeParent) // fails only for a flag that is not there
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
		t := newTable(w, "NAME", "STATE", "AGE", "OWN", "BEHIND", "EXPIRES", "ID")
		for _, n := range tree(answer.Branches) {
			b := n.branch
			behind := ""
			if b.ParentLSN != "" {
				behind = size(b.BehindBytes)
			}
			t.row(n.lead+b.Name, shownState(b), age(b.CreatedAt), size(b.OwnBytes), behind, expires(b), b.ID)
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
	if b.ComputeState != "" && b.ParentID != "" {
		t.row("compute", b.ComputeState)
		t.row("sleeps", sleeps(b))
		t.row("last active", moment(b.LastActive))
	}
	if b.Restarts > 0 {
		t.row("restarts", fmt.Sprintf("%d; the last at %s: %s", b.Restarts, moment(b.LastFailureAt), b.LastFailure))
	}
	if b.ParentID != "" {
		t.row("parent", b.ParentID)
		t.row("as it was", b.ParentLSN+", "+moment(b.ParentTimestamp))
	}
	if b.ParentLSN != "" {
		t.row("behind", size(b.BehindBytes)+" of WAL")
	}
	own := size(b.OwnBytes)
	if b.LimitBytes > 0 {
		own += " of " + size(b.LimitBytes)
	}
	t.row("own", own)
	t.row("logical", size(b.LogicalBytes))
	t.row("created", moment(b.CreatedAt))
	t.row("expires", expires(b))
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

// shownState is the one word that says most of how a branch is.
func shownState(b client.Branch) string {
	if b.CurrentState == string(pgbough.BranchReady) && b.ParentID != "" && b.ComputeState != "" {
		return b.ComputeState
	}
	return b.CurrentState
}

// node is a branch in a tree as it is drawn.
type node struct {
	lead   string // what is drawn before its name
	branch client.Branch
}

// tree puts every branch below its parent, in the order in which they are given.
func tree(branches []client.Branch) []node {
	children, known := map[string][]client.Branch{}, map[string]bool{}
	for _, b := range branches {
		known[b.ID] = true
	}
	for _, b := range branches {
		parent := b.ParentID
		if !known[parent] {
			parent = ""
		}
		children[parent] = append(children[parent], b)
	}
	var out []node
	var walk func(parent, indent string)
	walk = func(parent, indent string) {
		for i, b := range children[parent] {
			switch last := i == len(children[parent])-1; {
			case parent == "":
				out = append(out, node{"", b})
				walk(b.ID, "")
			case last:
				out = append(out, node{indent + "└─ ", b})
				walk(b.ID, indent+"   ")
			default:
				out = append(out, node{indent + "├─ ", b})
				walk(b.ID, indent+"│  ")
			}
		}
	}
	walk("", "")
	return out
}
