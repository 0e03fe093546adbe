package pgproxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgbough/pgbough"
)

// fatal is an error that a client is told of as its last message.
type fatal struct {
	code, message, hint string
	err                 error // private
}

func fatalf(code, format string, args ...any) *fatal {
	return &fatal{code: code, message: fmt.Sprintf(format, args...)}
}

func (f *fatal) hinted(format string, args ...any) *fatal {
	f.hint = fmt.Sprintf(format, args...)
	return f
}

func (f *fatal) because(err error) *fatal {
	f.err = err
	return f
}

// Error is for logs.
func (f *fatal) Error() string {
	if f.err != nil {
		return fmt.Sprintf("%s: %s: %v", f.code, f.message, f.err)
	}
	return f.code + ": " + f.message
}

// Unwrap is the private cause.
func (f *fatal) Unwrap() error { return f.err }

// encode is the message of the protocol.
func (f *fatal) encode() []byte {
	m := pgproto3.ErrorResponse{Severity: "FATAL", SeverityUnlocalized: "FATAL", Code: f.code, Message: f.message, Hint: f.hint}
	b, err := m.Encode(nil)
	if err != nil {
		return nil // only what is larger than a message can be cannot be encoded
	}
	return b
}

// errGone ends a connection that nobody listens on any more, or where the
// farewell has been said already.
var errGone = errors.New("the client is gone")

// errDown ends what waits when the server shuts down.
func errDown() *fatal { return fatalf("57P03", "the server is shutting down") }

// farewell is what a client is told when err has ended its connection; nil is nothing.
func (p *Proxy) farewell(ctx context.Context, err error) *fatal {
	var f *fatal
	var ours *pgbough.Error
	switch {
	case err == nil || errors.Is(err, errGone):
		return nil
	case errors.As(err, &f):
		return f
	case ctx.Err() != nil:
		return errDown()
	case errors.As(err, &ours):
		return &fatal{sqlState(ours.Code), ours.Message, ours.Hint, ours}
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed), isReset(err):
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fatalf("08P01", "the client took too long")
	}
	p.Log.ErrorContext(ctx, "a connection failed", "error", err)
	return fatalf("58000", "the server could not serve this connection").hinted("Its log says why.")
}

// sqlState maps what went wrong between the proxy and the branch.
func sqlState(c pgbough.Code) string {
	switch c {
	case pgbough.ENotFound:
		return "3D000" // invalid_catalog_name
	case pgbough.ENoSpace:
		return "53100" // disk_full
	case pgbough.EDenied, pgbough.EForbidden:
		return "28000" // invalid_authorization_specification
	case pgbough.EConflict, pgbough.ELocked, pgbough.EUnreachable:
		return "57P03" // cannot_connect_now
	case pgbough.EInvalid:
		return "08P01" // protocol_violation
	case pgbough.EInternal:
	}
	return "58000" // system_error
}
