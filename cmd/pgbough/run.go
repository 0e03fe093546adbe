package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/client"
)

// The exit codes of run that are not the command's, as shells and their like
// have them.
const (
	exitOwn           = 125 // pgbough itself failed
	exitCannotExecute = 126
	exitNoCommand     = 127
	exitSignalled     = 128 // plus the signal that ended the command
)

const (
	runName = "run"
	// lease is how long the branch outlives a run that was killed. It is
	// renewed often enough that three renewals may fail.
	lease        = 2 * time.Minute
	leaseRenewal = 30 * time.Second
	// deleteWithin is how long run waits for its branch to be deleted.
	deleteWithin = time.Minute
)

func newRunCommand(g *globals) *cobra.Command {
	r := &runCommand{globals: g}
	cmd := &cobra.Command{
		Use:   runName + " [flags] -- COMMAND [ARGS]",
		Short: "Run a command on a branch of its own, and throw the branch away",
		Long: `Makes a branch of production as it is now, runs a command on it, and deletes the
branch afterwards. The command finds the branch in DATABASE_URL, and libpq and
drivers like it in PGHOST, PGPORT, PGUSER, PGPASSWORD, PGDATABASE and PGOPTIONS,
which says which branch. Signals are passed on to the command. If run itself is
killed, the server deletes the branch ` + fmt.Sprintf("%.0f", lease.Minutes()) + ` minutes later.`,
		Example: `  pgbough run -- make test
  pgbough run -- sh -c 'psql -f migration.sql && ./verify'
  pgbough run --project shop -- npm test`,
		Args: func(cmd *cobra.Command, args []string) error {
			if cmd.ArgsLenAtDash() != 0 || len(args) == 0 {
				return errors.New("give the command after --: pgbough run -- COMMAND ARGS")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return r.run(cmd.Context(), args) },
	}
	cmd.SetHelpTemplate(helpWithout(cmd, exitCodesHelp) + `Exit status: that of the command, 128 plus its number if a signal ended it,
125 if pgbough failed, 126 if the command cannot be executed, 127 if it is not
found.
`)
	cmd.Flags().StringVar(&r.parent, "parent", "", "the branch to branch from; this version branches only from main, which follows production")
	_ = cmd.RegisterFlagCompletionFunc("parent", g.completeParent) // fails only for a flag that is not there
	g.addProject(cmd)
	return cmd
}

// helpWithout is cobra's help template of a command, less what root adds to it.
func helpWithout(cmd *cobra.Command, tail string) string {
	return strings.TrimSuffix(cmd.HelpTemplate(), tail) + "\n"
}

// ownFailure is a failure of pgbough in the exit codes of run.
func ownFailure(err error) error {
	var chosen *exitError
	if errors.As(err, &chosen) {
		return err
	}
	return &exitError{Code: exitOwn, Err: err}
}

// runCommand runs a command on a branch of its own.
type runCommand struct {
	*globals
	parent string
}

func (r *runCommand) run(ctx context.Context, args []string) error {
	executable, err := exec.LookPath(args[0])
	if err != nil {
		return cannotStart(args[0], err)
	}
	// From here on signals are the command's: without this one that comes
	// between would end run and leave the branch to its lease.
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2)
	defer signal.Stop(signals)

	c, project, err := r.inProject(ctx)
	if err != nil {
		return err
	}
	name := "run-" + strings.ToLower(rand.Text()[:10])
	afterwards := context.WithoutCancel(ctx) // the branch goes also when ctx has ended
	defer r.deleteBranch(afterwards, c, project, name)
	created, err := r.create(ctx, c, project, name)
	if err != nil {
		return err
	}
	child := exec.Command(executable, args[1:]...) // ends by the signals that are passed on, not with ctx
	child.Args[0] = args[0]
	child.Stdin, child.Stdout, child.Stderr = r.io.In, r.io.Out, r.io.Err
	child.Env = append(environment(os.Environ(), created.Libpq), "DATABASE_URL="+created.ConnectionURI)
	if err := child.Start(); err != nil {
		return cannotStart(args[0], err)
	}
	done := make(chan error, 1)
	go func() { done <- child.Wait() }()
	return r.attend(afterwards, c, project, name, child.Process, signals, done)
}

func (r *runCommand) create(ctx context.Context, c *client.Client, project, name string) (client.ConnectionDetails, error) {
	p := r.progress("branch " + name)
	defer p.close()
	created, err := c.CreateBranch(ctx, project, client.CreateBranchRequest{
		Branch: client.CreateBranch{Name: name, ParentID: r.parent, TTLSeconds: lease.Seconds()},
	}, p.watch)
	if err != nil {
		return client.ConnectionDetails{}, err
	}
	if len(created.ConnectionURIs) == 0 {
		return client.ConnectionDetails{}, pgbough.Errorf(pgbough.EInternal, "branch %s has no way to connect to it", name)
	}
	return created.ConnectionURIs[0], nil
}

// attend passes signals on and renews the lease until the command ends.
func (r *runCommand) attend(ctx context.Context, c *client.Client, project, name string, child *os.Process, signals <-chan os.Signal, done <-chan error) error {
	ctx, stop := context.WithCancel(ctx)
	renewed := make(chan struct{})
	go func() {
		defer close(renewed)
		r.renew(ctx, c, project, name)
	}()
	defer func() {
		stop()
		<-renewed
	}()
	for {
		select {
		case s := <-signals:
			if !fromTerminal(s) {
				_ = child.Signal(s) // it may have ended just now
			}
		case err := <-done:
			return exitOf(err)
		}
	}
}

// fromTerminal tells whether a signal came from the keyboard: then the terminal
// has sent it to every process of our group, the command among them.
func fromTerminal(s os.Signal) bool {
	if s != syscall.SIGINT && s != syscall.SIGQUIT {
		return false
	}
	tty, err := os.Open("/dev/tty")
	if err != nil {
		return false
	}
	defer func() { _ = tty.Close() }() // it was only asked
	group, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

func (r *runCommand) renew(ctx context.Context, c *client.Client, project, name string) {
	tick := time.NewTicker(leaseRenewal)
	defer tick.Stop()
	for { // at once: the lease began with the request, and the create may have taken most of it
		if _, err := c.RenewBranch(ctx, project, name, lease); err != nil && ctx.Err() == nil {
			r.talk("pgbough: branch %s could not be kept for longer: %v", name, err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// deleteBranch deletes the branch also if it is not known whether it was made.
func (r *runCommand) deleteBranch(ctx context.Context, c *client.Client, project, name string) {
	ctx, cancel := context.WithTimeout(ctx, deleteWithin)
	defer cancel()
	_, err := c.DeleteBranch(ctx, project, name, true, nil)
	if err != nil && pgbough.ErrorCode(err) != pgbough.ENotFound {
		r.talk("pgbough: branch %s could not be deleted now, the server does it within %s: %v", name, lease, err)
	}
}

// exitOf is how a command ended, for our own exit.
func exitOf(err error) error {
	var ended *exec.ExitError
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &ended):
		return fmt.Errorf("wait for command: %w", err)
	}
	if status, ok := ended.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return &exitError{Code: exitSignalled + int(status.Signal())}
	}
	return &exitError{Code: ended.ExitCode()}
}

func cannotStart(command string, err error) error {
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
		return &exitError{Code: exitNoCommand, Err: pgbough.Errorf(pgbough.ENotFound, "there is no command %s", command)}
	}
	return &exitError{Code: exitCannotExecute, Err: pgbough.Errorf(pgbough.EInvalid, "%s cannot be executed: %w", command, err)}
}
