package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
)

func newLogsCommand(g *globals) *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use:   "logs BRANCH",
		Short: "Print the log of a branch's Postgres",
		Long: `Prints the log of a branch's Postgres; that of main is the follower's. With --json
every line is one JSON object {"line": "..."}.`,
		Example: "  pgbough logs fix-login\n  pgbough logs fix-login -f",
		Args:    cobra.ExactArgs(1),

		ValidArgsFunction: g.completeParentArg,

		RunE: func(cmd *cobra.Command, args []string) error { return printLog(cmd.Context(), g, args[0], follow) },
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on as the log grows, until interrupted")
	g.addJSON(cmd)
	g.addProject(cmd)
	return cmd
}

func printLog(ctx context.Context, g *globals, branch string, follow bool) error {
	c, project, err := g.inProject(ctx)
	if err != nil {
		return err
	}
	log, err := c.Log(ctx, project, branch, follow)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }() // it was only read
	if g.json {
		err = copyLines(g.io.Out, log)
	} else {
		_, err = io.Copy(g.io.Out, log)
	}
	switch {
	case follow && ctx.Err() != nil: // interrupting is how following ends
		return nil
	case err != nil:
		return fmt.Errorf("read log of %s: %w", branch, err)
	}
	return nil
}

func copyLines(w io.Writer, r io.Reader) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	lines := bufio.NewReader(r)
	for {
		text, err := lines.ReadString('\n')
		if text != "" {
			if err := enc.Encode(map[string]string{"line": strings.TrimSuffix(text, "\n")}); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
