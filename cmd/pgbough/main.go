// Command pgbough gives a team instant, private, writable branches of the
// Postgres they run in production. One binary is the server and every client
// command; the client commands use the server's HTTP API and nothing else.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/term"

	"github.com/pgbough/pgbough"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(exit(os.Stderr, execute(ctx, os.Args[1:], processIO())))
}

// stdio is where a command reads and writes: answers go to Out, talk and
// progress to Err.
type stdio struct {
	In       io.Reader
	Out, Err io.Writer
	// InTerminal: a person can be asked. ErrTerminal: progress can be drawn.
	InTerminal, ErrTerminal bool
}

func processIO() stdio {
	return stdio{
		In: os.Stdin, Out: os.Stdout, Err: os.Stderr,
		InTerminal:  term.IsTerminal(int(os.Stdin.Fd())),
		ErrTerminal: term.IsTerminal(int(os.Stderr.Fd())) && os.Getenv("TERM") != "dumb",
	}
}

// execute runs one command line.
func execute(ctx context.Context, args []string, io stdio) error {
	g := &globals{io: io, getenv: os.Getenv}
	root := newRootCommand(g)
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	switch {
	case err == nil:
		return nil
	case !g.started: // cobra refused the command line
		err = pgbough.Errorf(pgbough.EInvalid, "%w", err).WithHint("see `%s --help`", cmd.CommandPath())
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		err = errors.New("interrupted")
	}
	if cmd.Name() == runName {
		return ownFailure(err)
	}
	return err
}

// The exit codes of every command but run.
const (
	exitFailed      = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitRefused     = 4
	exitUnreachable = 5
	exitDiffers     = 6 // of diff --exit-code
)

const exitCodesHelp = `Exit status: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 conflict or refused
by a rule, 5 production or the server cannot be reached, 6 differences were found
(diff --exit-code).
`

// exitError ends the process with a code of its own. Err may be nil: then there
// is nothing to say.
type exitError struct {
	Code int
	Err  error
}

func (e *exitError) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("exit status %d", e.Code)
	}
	return e.Err.Error()
}

func (e *exitError) Unwrap() error { return e.Err }

// exit tells a person why a command failed and returns the exit code for it.
func exit(w io.Writer, err error) int {
	code, say := exitCode(err), err
	var own *exitError
	if errors.As(err, &own) {
		say = own.Err
	}
	if say == nil {
		return code
	}
	var told *pgbough.Error
	if !errors.As(say, &told) {
		told = &pgbough.Error{Message: say.Error()}
	}
	_, _ = fmt.Fprintf(w, "pgbough: %s\n", told.Message) // there is nowhere else to say it
	if told.Hint != "" {
		_, _ = fmt.Fprintf(w, "  hint: %s\n", told.Hint)
	}
	return code
}

func exitCode(err error) int {
	var own *exitError
	if errors.As(err, &own) {
		return own.Code
	}
	switch pgbough.ErrorCode(err) {
	case "":
		return 0
	case pgbough.EInvalid:
		return exitUsage
	case pgbough.ENotFound:
		return exitNotFound
	case pgbough.EConflict, pgbough.ELocked, pgbough.ENoSpace, pgbough.EForbidden:
		return exitRefused
	case pgbough.EUnreachable:
		return exitUnreachable
	default:
		return exitFailed
	}
}
