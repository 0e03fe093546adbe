package operation

import (
	"errors"
	"fmt"
	"strings"

	"github.com/pgbough/pgbough"
)

var (
	// ErrClosing is the cause of a context that ends because the Engine closes,
	// and the error of what cannot be done any more because of that.
	ErrClosing = errors.New("the server is stopping; the operation goes on when it runs again")
	// ErrCancelled is the cause of a context that ends because the operation was
	// cancelled.
	ErrCancelled = errors.New("the operation was cancelled")
	// ErrStuck is in the error of Resume when all but some operations go on.
	ErrStuck = errors.New("an unfinished operation cannot go on")
)

// hintMark parts the message from the hint in the text of a stored failure.
const hintMark = "\nhint: "

// failureText is err as Operation.Error holds it: "CODE: message", and the hint
// on a line of its own. Only the private cause is lost; it is in the log.
func failureText(step string, err error) string {
	var e *pgbough.Error
	if !errors.As(err, &e) {
		e = pgbough.Errorf(pgbough.EInternal, "step %s: %v", step, err)
	}
	text := string(e.Code) + ": " + e.Message
	if e.Hint != "" {
		text += hintMark + e.Hint
	}
	return text
}

// Failure is why op failed or was cancelled: a *pgbough.Error with the code,
// message and hint of the step's error. It is nil for an operation that is
// finished or still runs.
func Failure(op pgbough.Operation) error {
	switch op.Status {
	case pgbough.OperationFailed:
		return parseFailure(op.Error)
	case pgbough.OperationCancelled:
		return pgbough.Errorf(pgbough.EConflict, "operation %s (%s) was cancelled", op.Kind, op.ID)
	case pgbough.OperationRunning, pgbough.OperationUndoing, pgbough.OperationFinished:
	}
	return nil
}

func parseFailure(text string) error {
	code, message, ok := strings.Cut(text, ": ")
	if !ok || code == "" || strings.ToUpper(code) != code {
		return pgbough.Errorf(pgbough.EInternal, "%s", text)
	}
	message, hint, _ := strings.Cut(message, hintMark)
	return &pgbough.Error{Code: pgbough.Code(code), Message: message, Hint: hint}
}

// panicError is what a step panicked with. Its text has no stack: that is logged.
type panicError struct{ value any }

func (p panicError) Error() string { return fmt.Sprintf("panic: %v", p.value) }
