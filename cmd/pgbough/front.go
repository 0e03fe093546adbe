//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/front"
	"github.com/pgbough/pgbough/internal/sandbox"
)

const (
	frontName = "front"
	// frontUser is who the part of the server is that speaks with strangers, on
	// machines that have him.
	frontUser = "pgbough"
	nobody    = 65534
)

// newFrontCommand is the part of the server that speaks with strangers. The server
// starts it.
func newFrontCommand() *cobra.Command {
	return &cobra.Command{
		Use:    frontName + " DIR UID GID",
		Short:  "The part of the server that clients speak with; the server starts it",
		Hidden: true,
		Args:   cobra.ExactArgs(3),
		RunE: func(cmd *cobra.Command, args []string) error {
			uid, err := strconv.Atoi(args[1])
			gid, gerr := strconv.Atoi(args[2])
			if err := errors.Join(err, gerr); err != nil {
				return pgbough.Errorf(pgbough.EInvalid, "it is started by pgbough server: %w", err)
			}
			return front.Run(cmd.Context(), front.User{UID: uid, GID: gid}, cmd.ErrOrStderr())
		},
	}
}

// frontUserBeside is who the front is: a user of the machine for that, or the one
// after those that Postgres runs as.
func frontUserBeside(uid int) (front.User, error) {
	last := uid + sandbox.Spread
	u, err := user.Lookup(frontUser)
	if err != nil {
		own := last + 1
		if own == nobody {
			own += 2 // nor the one that follows, which is -1 in 16 bits
		}
		return front.User{UID: own, GID: own}, nil
	}
	is := front.User{}
	is.UID, err = strconv.Atoi(u.Uid)
	if err == nil {
		is.GID, err = strconv.Atoi(u.Gid)
	}
	if err != nil {
		return is, fmt.Errorf("look up user %s: %w", frontUser, err)
	}
	between := func(id int) bool { return uid <= id && id <= last }
	if is.UID == os.Geteuid() || is.GID == 0 || between(is.UID) || between(is.GID) {
		return is, pgbough.Errorf(pgbough.EInvalid, "user %s (uid %d, gid %d) cannot be the one that speaks with clients: it has rights on this machine, or is one that Postgres runs as (%d to %d)", frontUser, is.UID, is.GID, uid, last).
			WithHint("give it another uid and group, or choose another --uid")
	}
	return is, nil
}
