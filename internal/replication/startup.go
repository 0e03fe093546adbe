package replication

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgbough/pgbough"
)

// startup is what a standby says first.
type startup struct {
	parameters map[string]string
	newer      bool     // it would speak a newer minor version of the protocol than 3.0
	unknown    []string // options of newer versions that it asks for
}

// The codes that stand in the place of a protocol version (pqcomm.h).
const (
	codeCancel = 1234<<16 | 5678
	codeSSL    = 1234<<16 | 5679
	codeGSS    = 1234<<16 | 5680
	maxStartup = 10000 // MAX_STARTUP_PACKET_LENGTH
)

// readStartup reads to the end of the startup packet, and declines encryption
// on the way, which nobody needs on a socket between two processes.
func readStartup(conn io.ReadWriter) (*startup, error) {
	for range 3 { // each kind of encryption may be asked for once
		var head [8]byte
		if _, err := io.ReadFull(conn, head[:]); err != nil {
			return nil, io.EOF
		}
		length, code := binary.BigEndian.Uint32(head[:4]), binary.BigEndian.Uint32(head[4:])
		if length < 8 || length > maxStartup {
			return nil, errors.New("the startup packet has a bad length")
		}
		body := make([]byte, length-8)
		if _, err := io.ReadFull(conn, body); err != nil {
			return nil, io.EOF
		}
		switch code {
		case codeSSL, codeGSS:
			if _, err := conn.Write([]byte{'N'}); err != nil {
				return nil, io.EOF
			}
		case codeCancel:
			return nil, io.EOF // nothing can be cancelled here, and no answer is due
		default:
			return parseStartup(code, body)
		}
	}
	return nil, errors.New("there is no startup packet")
}

func parseStartup(version uint32, body []byte) (*startup, error) {
	if version>>16 != 3 {
		return nil, fmt.Errorf("protocol version %d.%d is not known", version>>16, version&0xffff)
	}
	s := &startup{parameters: map[string]string{}, newer: version&0xffff > 0}
	for {
		name, rest, ok := bytes.Cut(body, []byte{0})
		if !ok {
			return nil, errors.New("the startup packet has no end")
		}
		if len(name) == 0 {
			if len(rest) > 0 {
				return nil, errors.New("the startup packet goes on behind its end")
			}
			return s, nil
		}
		value, rest, ok := bytes.Cut(rest, []byte{0})
		if !ok {
			return nil, errors.New("the startup packet has a parameter without a value")
		}
		if strings.HasPrefix(string(name), "_pq_.") {
			s.unknown = append(s.unknown, string(name))
		}
		s.parameters[string(name)] = string(value)
		body = rest
	}
}

// check lets only physical replication through. (The upstream would not run
// SQL on a connection that we opened for physical replication; this tells it in
// clear words.)
func (s *startup) check() error {
	switch strings.ToLower(s.parameters["replication"]) { // parse_bool
	case "true", "on", "yes", "1":
		return nil
	}
	return errors.New("only a standby can use it (replication=true)")
}

// standbyMessage is the next whole message of a standby, still in the buffer
// of in. One that streaming does not need fails with an *Error.
func standbyMessage(in *bufio.Reader) ([]byte, error) {
	head, err := in.Peek(5)
	if err != nil {
		return nil, err
	}
	kind, length := head[0], binary.BigEndian.Uint32(head[1:])
	if length < 4 || length > uint32(in.Size()-1) { // its status messages have some 40 bytes
		return nil, pgbough.Errorf(pgbough.EConflict, "the standby sent a message of %d bytes", length)
	}
	message, err := in.Peek(1 + int(length))
	if err != nil {
		return nil, err
	}
	switch kind {
	case 'd', 'c', 'X': // status of a standby, end of a copy, farewell
		return message, nil
	case 'Q':
		word, _, _ := strings.Cut(strings.Trim(string(message[5:]), "\x00 "), " ")
		switch strings.ToUpper(word) {
		case "IDENTIFY_SYSTEM", "START_REPLICATION", "TIMELINE_HISTORY", "SHOW":
			return message, nil
		}
		return nil, pgbough.Errorf(pgbough.EConflict, "the standby sent the command %.40q, which streaming does not need", word)
	}
	return nil, pgbough.Errorf(pgbough.EConflict, "the standby sent a message of type %q, which streaming does not need", kind)
}

// maxErrorBody bounds what is kept of an error that passes.
const maxErrorBody = 4 << 10

// errorWatch follows the framing of what an upstream sends and picks out the
// errors, and how far the WAL goes.
type errorWatch struct {
	head      [5]byte
	headLen   int
	length    int // of the body of the present message
	remaining int // of it
	body      []byte
	wal       pgbough.LSN // behind the last byte of WAL in messages that have ended; 0 before the first
	fatal     bool        // the last error was one that ends the connection
	lost      bool        // the framing makes no sense; nothing is looked at any more
}

// scan looks at the next piece of the stream and returns the error whose
// message ends in it (the last, if several do).
func (w *errorWatch) scan(b []byte) (found *pgconn.PgError) {
	for len(b) > 0 && !w.lost {
		if w.headLen < len(w.head) {
			n := copy(w.head[w.headLen:], b)
			w.headLen += n
			b = b[n:]
			if w.headLen < len(w.head) {
				return found
			}
			length := binary.BigEndian.Uint32(w.head[1:])
			if length < 4 || length > 1<<30 {
				w.lost = true
				return found
			}
			w.length, w.body = int(length-4), w.body[:0]
			w.remaining = w.length
		}
		n := min(w.remaining, len(b))
		if kept := w.kept(); len(w.body) < kept {
			w.body = append(w.body, b[:min(n, kept-len(w.body))]...)
		}
		w.remaining -= n
		b = b[n:]
		if w.remaining > 0 {
			return found
		}
		w.headLen = 0
		switch {
		case w.head[0] == 'E':
			if e := w.decode(); e != nil {
				found = e
			}
		case w.head[0] == 'd' && len(w.body) == walHeadBody && w.body[0] == 'w':
			w.wal = pgbough.LSN(binary.BigEndian.Uint64(w.body[1:])) + pgbough.LSN(w.length-walHead)
		}
	}
	return found
}

const (
	walHead     = 1 + 3*8 // of XLogData: its kind, where it begins, and two of the server's positions and times
	walHeadBody = 1 + 8
)

// kept is how much of the body of the present message is looked at.
func (w *errorWatch) kept() int {
	switch w.head[0] {
	case 'E':
		return maxErrorBody
	case 'd':
		return walHeadBody
	}
	return 0
}

func (w *errorWatch) decode() *pgconn.PgError {
	var response pgproto3.ErrorResponse
	if response.Decode(w.body) != nil {
		return nil // cut short at maxErrorBody, or not an error at all
	}
	e := pgconn.ErrorResponseToPgError(&response)
	w.fatal = e.Severity == "FATAL" || e.SeverityUnlocalized == "FATAL"
	return e
}
