package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/pgbough/pgbough/client"
)

func newPoolCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "pool",
		Short: "Show where the bytes are",
		Long: `Shows every volume of the pool with the bytes that it alone holds (own) and those
it would have as a full copy (logical).`,
		Example: "  pgbough pool\n  pgbough pool prune --dry-run",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return showPool(cmd.Context(), g) },
	}
	var dryRun, yes bool
	prune := &cobra.Command{
		Use: "prune", Short: "Delete the volumes that the server's catalog does not know",
		Long: `Deletes the volumes that the server's catalog does not know, after confirmation.
pgbough never deletes such volumes by itself: they may be all that is left after
the catalog was lost or restored.`,
		Example: "  pgbough pool prune --dry-run\n  pgbough pool prune --yes",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return prunePool(cmd.Context(), g, dryRun, yes) },
	}
	prune.Flags().BoolVar(&dryRun, "dry-run", false, "only tell which")
	prune.Flags().BoolVar(&yes, "yes", false, "do not ask")
	resize := &cobra.Command{
		Use: "resize SIZE", Short: "Make the pool's image larger, or smaller",
		Long: `Makes the pool's image file SIZE large, while everything goes on. One with btrfs can
become smaller too, one with XFS only larger. A pool that is a directory of another
file system has no size of its own. After a crash, the same command finishes it.`,
		Example: "  pgbough pool resize 200GB",
		Args:    cobra.ExactArgs(1),
		RunE:    func(cmd *cobra.Command, args []string) error { return resizePool(cmd.Context(), g, args[0]) },
	}
	g.addJSON(cmd, prune, resize)
	cmd.AddCommand(prune, resize)
	return cmd
}

func showPool(ctx context.Context, g *globals) error {
	c, err := g.client()
	if err != nil {
		return err
	}
	answer, err := c.Pool(ctx)
	if err != nil {
		return err
	}
	return g.print(answer, func(w io.Writer) {
		printPool(w, answer.Pool)
		if answer.Pool.Image != "" {
			line(w, "in the image %s", answer.Pool.Image)
		}
		line(w, "")
		printVolumes(w, answer.Pool.Volumes)
	})
}

func resizePool(ctx context.Context, g *globals, text string) error {
	bytes, err := parseSize(text)
	if err != nil {
		return err
	}
	c, err := g.client()
	if err != nil {
		return err
	}
	answer, err := c.ResizePool(ctx, bytes)
	if err != nil {
		return err
	}
	return g.print(answer, func(w io.Writer) { printPool(w, answer.Pool) })
}

func printVolumes(w io.Writer, volumes []client.Volume) {
	t := newTable(w, "VOLUME", "IS", "PROJECT", "BRANCH", "OWN", "LOGICAL")
	for _, v := range volumes {
		is := v.Role
		if !v.Known {
			is = "unknown"
		}
		t.row(v.ID, is, v.Project, v.Branch, size(v.OwnBytes), size(v.LogicalBytes))
	}
	t.flush()
}

func prunePool(ctx context.Context, g *globals, dryRun, yes bool) error {
	c, err := g.client()
	if err != nil {
		return err
	}
	answer, err := c.Prune(ctx, true)
	if err != nil {
		return err
	}
	found := len(answer.Volumes)
	if !dryRun && found > 0 {
		if !yes {
			printVolumes(g.io.Err, answer.Volumes)
			if err := g.confirm("Type how many volumes to delete", fmt.Sprint(found)); err != nil {
				return err
			}
		}
		if answer, err = c.Prune(ctx, false); err != nil {
			return err
		}
	}
	return g.print(answer, func(w io.Writer) {
		switch {
		case len(answer.Volumes) == 0:
			g.talk("the catalog knows all volumes")
			return
		case dryRun:
			g.talk("these would be deleted:")
		default:
			g.talk("deleted:")
		}
		printVolumes(w, answer.Volumes)
	})
}
