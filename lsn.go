package pgbough

import (
	"fmt"
	"strconv"
	"strings"
)

// LSN is a position in the write-ahead log, in bytes from its beginning
// (Postgres: XLogRecPtr, type pg_lsn). Zero is no position.
type LSN uint64

// ParseLSN reads Postgres's text form, two hexadecimal halves such as
// "16/B374D848".
func ParseLSN(s string) (LSN, error) {
	high, low, ok := strings.Cut(s, "/")
	if !ok || len(high) == 0 || len(high) > 8 || len(low) == 0 || len(low) > 8 {
		return 0, fmt.Errorf("%q is not an LSN (want two hexadecimal halves, like 16/B374D848)", s)
	}
	h, errHigh := strconv.ParseUint(high, 16, 32)
	l, errLow := strconv.ParseUint(low, 16, 32)
	if errHigh != nil || errLow != nil {
		return 0, fmt.Errorf("%q is not an LSN (want two hexadecimal halves, like 16/B374D848)", s)
	}
	return LSN(h<<32 | l), nil
}

// String is the text form that Postgres prints.
func (l LSN) String() string { return fmt.Sprintf("%X/%X", uint32(l>>32), uint32(l)) }

// Sub is the distance in bytes from o to l, negative when l is before o.
func (l LSN) Sub(o LSN) int64 { return int64(l) - int64(o) }

// MarshalText writes the text form, so that JSON shows LSNs as Postgres does.
func (l LSN) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText reads the text form; an empty text is zero.
func (l *LSN) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*l = 0
		return nil
	}
	v, err := ParseLSN(string(b))
	if err != nil {
		return err
	}
	*l = v
	return nil
}
