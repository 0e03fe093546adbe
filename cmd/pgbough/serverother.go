//go:build !linux

package main

import (
	"runtime"

	"github.com/spf13/cobra"

	"github.com/pgbough/pgbough"
)

// newServerCommand stands for the server where it cannot run: sandboxes, mounts
// and cgroups are Linux's. All other commands but uninstall are clients and work.
func newServerCommand() *cobra.Command { return linuxOnly("server", "Run the server, on Linux only") }

// newUninstallCommand stands for the end of what the server has made.
func newUninstallCommand(*globals) *cobra.Command {
	return linuxOnly("uninstall", "Remove what a server has made, on Linux only")
}

// newFrontCommand stands for a part of the server.
func newFrontCommand() *cobra.Command {
	cmd := linuxOnly("front", "The part of the server that clients speak with")
	cmd.Hidden = true
	return cmd
}

func linuxOnly(name, short string) *cobra.Command {
	return &cobra.Command{
		Use:                name,
		Short:              short,
		Long:               "The server runs on Linux only. On this machine pgbough is a client of one elsewhere.",
		DisableFlagParsing: true, // whatever flags it is given
		RunE: func(*cobra.Command, []string) error {
			return pgbough.Errorf(pgbough.EInvalid, "the server runs on Linux only, and this is %s", runtime.GOOS).
				WithHint("start it on a Linux machine next to production, and set PGBOUGH_API, PGBOUGH_API_KEY and PGBOUGH_CA here")
		},
	}
}
