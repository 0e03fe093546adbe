package main

import (
	"io"

	"github.com/spf13/cobra"
)

// version is set by the linker: -X main.version=v1.2.3.
var version = "dev"

func newVersionCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version of this binary",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			answer := map[string]string{"version": version}
			return g.print(answer, func(w io.Writer) { line(w, "pgbough %s", version) })
		},
	}
	g.addJSON(cmd)
	return cmd
}
