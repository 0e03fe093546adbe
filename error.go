package pgbough

import (
	"errors"
	"fmt"
)

// Code says what kind of failure an Error is. Edges map it once: httpapi to an
// HTTP status, the command line to an exit code.
type Code string

// The codes of an Error.
const (
	EInternal    Code = "INTERNAL"    // a fault of pgbough or its machine
	EInvalid     Code = "INVALID"     // the request cannot be understood
	ENotFound    Code = "NOT_FOUND"   // no such project, branch, operation
	EConflict    Code = "CONFLICT"    // a rule or the present state refuses it
	ELocked      Code = "LOCKED"      // another operation holds it; the same request may succeed later
	EUnreachable Code = "UNREACHABLE" // production cannot be asked
	ENoSpace     Code = "NO_SPACE"    // the pool's reserve would be touched
	EDenied      Code = "DENIED"      // no or wrong API key
	EForbidden   Code = "FORBIDDEN"   // the API key is good, but not for this
)

// Error is a failure that is told to a person: what happened and why in
// Message, what to do next in Hint. Err is the private cause; it is logged and
// never shown.
type Error struct {
	Code    Code
	Message string
	Hint    string
	Err     error
}

// Errorf makes an Error without a hint. A %w verb keeps the cause.
func Errorf(code Code, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: code, Message: err.Error(), Err: errors.Unwrap(err)}
}

// WithHint returns a copy of e that says what to do next.
func (e *Error) WithHint(format string, args ...any) *Error {
	c := *e
	c.Hint = fmt.Sprintf(format, args...)
	return &c
}

// Error is the message, followed by the hint where there is one.
func (e *Error) Error() string {
	if e.Hint == "" {
		return e.Message
	}
	return e.Message + "; " + e.Hint
}

// Unwrap is the private cause.
func (e *Error) Unwrap() error { return e.Err }

// ErrorCode is the code of the first Error in err's chain, EInternal when there
// is none, and empty for nil.
func ErrorCode(err error) Code {
	if err == nil {
		return ""
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return EInternal
}
