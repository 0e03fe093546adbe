package replication

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// messages reads what a server sends after one command. It takes the
// connection's own reader: a context is watched once for all messages, not
// once for each of the many thousands.
type messages struct {
	conn  *pgconn.PgConn
	log   *slog.Logger
	ctx   context.Context // of the one command
	stall time.Duration   // how long the server may be silent; 0 is for ever
}

// connectionError is a failure of the connection itself.
type connectionError struct{ err error }

func (e *connectionError) Error() string { return e.err.Error() }
func (e *connectionError) Unwrap() error { return e.err }

// watch makes every read fail once ctx ends, until stop is called.
func (m *messages) watch(ctx context.Context) (stop func()) {
	m.ctx = ctx
	end := context.AfterFunc(ctx, func() { _ = m.conn.Conn().SetDeadline(time.Unix(1, 0)) })
	return func() { end() }
}

func (m *messages) query(text string) error {
	m.conn.Frontend().Send(&pgproto3.Query{String: text})
	if err := m.conn.Frontend().Flush(); err != nil {
		return &connectionError{err}
	}
	return nil
}

// next is the next message, good until the one after it is asked for. An error
// of the server comes as *pgconn.PgError; its notices go to the log.
func (m *messages) next() (pgproto3.BackendMessage, error) {
	for {
		if m.stall > 0 {
			_ = m.conn.Conn().SetReadDeadline(time.Now().Add(m.stall)) // fails only with the connection
			if m.ctx.Err() != nil {
				return nil, context.Cause(m.ctx) // the deadline just replaced was watch's
			}
		}
		message, err := m.conn.Frontend().Receive()
		if err != nil {
			return nil, m.broken(err)
		}
		switch message := message.(type) {
		case *pgproto3.ErrorResponse:
			return nil, pgconn.ErrorResponseToPgError(message)
		case *pgproto3.NoticeResponse:
			m.log.WarnContext(m.ctx, "notice of the server", "severity", message.Severity, "code", message.Code, "notice", message.Message)
		case *pgproto3.ParameterStatus, *pgproto3.NotificationResponse:
		default:
			return message, nil
		}
	}
}

func (m *messages) broken(err error) error {
	var timeout interface{ Timeout() bool }
	if errors.As(err, &timeout) && timeout.Timeout() && m.ctx.Err() == nil {
		err = fmt.Errorf("nothing came for %s", m.stall)
	} else if errors.Is(err, io.ErrUnexpectedEOF) {
		err = errors.New("the server closed it")
	}
	return &connectionError{err}
}

// rows reads one result set, with its values copied.
func (m *messages) rows() ([][][]byte, error) {
	var rows [][][]byte
	for {
		message, err := m.next()
		if err != nil {
			return nil, err
		}
		switch message := message.(type) {
		case *pgproto3.RowDescription:
		case *pgproto3.DataRow:
			row := make([][]byte, len(message.Values))
			for i, v := range message.Values {
				row[i] = bytes.Clone(v)
			}
			rows = append(rows, row)
		case *pgproto3.CommandComplete:
			return rows, nil
		default:
			return nil, unexpected(message)
		}
	}
}

// ready reads to the end of the command.
func (m *messages) ready() error {
	for {
		message, err := m.next()
		if err != nil {
			return err
		}
		switch message.(type) {
		case *pgproto3.CommandComplete:
		case *pgproto3.ReadyForQuery:
			return nil
		default:
			return unexpected(message)
		}
	}
}

func unexpected(message pgproto3.BackendMessage) error {
	return fmt.Errorf("the server sent a %T where the protocol has none", message)
}

func parseInt(b []byte) (int64, error) { return strconv.ParseInt(string(b), 10, 64) }

// stream is the part of a base backup between its result sets: one archive,
// which it gives out as an io.Reader, and then the manifest. Servers before 15
// send each as a copy of its own. Later ones send one copy, in which the first
// byte of each message tells what it is.
type stream struct {
	in       *messages
	framed   bool        // 15 and later
	received func(n int) // counts bytes of the archive
	data     []byte      // of the archive, not read yet
	part     byte        // what has begun: 'n' an archive, 'm' the manifest
	over     bool        // the copy has ended
}

func newStream(in *messages, major int, received func(n int)) *stream {
	return &stream{in: in, framed: major >= 15, received: received}
}

// archive goes to the beginning of the archive.
func (s *stream) archive() error {
	if err := s.copyOut(); err != nil {
		return err
	}
	if !s.framed {
		s.part = 'n'
		return nil
	}
	return s.begin('n')
}

func (s *stream) copyOut() error {
	message, err := s.in.next()
	if err != nil {
		return err
	}
	if _, ok := message.(*pgproto3.CopyOutResponse); !ok {
		return unexpected(message)
	}
	s.over = false
	return nil
}

// begin expects that part begins.
func (s *stream) begin(part byte) error {
	before := s.part
	data, err := s.chunk()
	if err != nil {
		return err
	}
	if data != nil || s.over || s.part != part || s.part == before {
		return fmt.Errorf("the base backup has no part %q where it must begin", part)
	}
	return nil
}

// chunk is the next piece of data of the present part. It is nil when another
// part begins (s.part has changed) or the copy is over.
func (s *stream) chunk() ([]byte, error) {
	for {
		message, err := s.in.next()
		if err != nil {
			return nil, err
		}
		switch message := message.(type) {
		case *pgproto3.CopyData:
			data, more, err := s.frame(message.Data)
			if err != nil || !more {
				return data, err
			}
		case *pgproto3.CopyDone:
			s.over = true
			return nil, nil
		default:
			return nil, unexpected(message)
		}
	}
}

// frame reads one message of the copy. With more there was nothing in it for
// the reader.
func (s *stream) frame(b []byte) (data []byte, more bool, err error) {
	if !s.framed {
		return b, len(b) == 0, nil
	}
	if len(b) == 0 {
		return nil, false, errors.New("the base backup has an empty message")
	}
	kind, b := b[0], b[1:]
	switch kind {
	case 'd':
		return b, len(b) == 0, nil
	case 'p': // progress, which we count ourselves
		if len(b) != 8 || int64(binary.BigEndian.Uint64(b)) < 0 {
			return nil, false, errors.New("the base backup has a bad progress message")
		}
		return nil, true, nil
	case 'n':
		if err := checkArchiveName(b); err != nil {
			return nil, false, err
		}
		if s.part != 0 {
			return nil, false, errors.New("the base backup has more than one archive")
		}
	case 'm':
		if s.part != 'n' {
			return nil, false, errors.New("the base backup has its manifest in the wrong place")
		}
	default:
		return nil, false, fmt.Errorf("the base backup has a message of unknown type %q", kind)
	}
	s.part = kind
	return nil, false, nil
}

// checkArchiveName reads the head of an archive: its name, and the location of
// the tablespace it holds, which is empty for the data directory itself.
func checkArchiveName(b []byte) error {
	_, rest, ok := bytes.Cut(b, []byte{0})
	location, tail, ok2 := bytes.Cut(rest, []byte{0})
	if !ok || !ok2 || len(tail) > 0 {
		return errors.New("the base backup has an archive with a bad head")
	}
	if len(location) > 0 {
		return tablespaceError(string(location))
	}
	return nil
}

// Read reads the archive; its end is io.EOF.
func (s *stream) Read(p []byte) (int, error) {
	if len(s.data) == 0 {
		if s.over || s.part != 'n' {
			return 0, io.EOF
		}
		data, err := s.chunk()
		if err != nil {
			return 0, err
		}
		if data == nil {
			return 0, io.EOF
		}
		s.data = data
		s.received(len(data))
	}
	n := copy(p, s.data)
	s.data = s.data[n:]
	return n, nil
}

// maxManifest bounds the manifest: some 150 bytes a file, for millions of files.
const maxManifest = 1 << 30

// manifest reads the manifest, to the end of the copy.
func (s *stream) manifest() ([]byte, error) {
	switch {
	case s.framed && s.part != 'm':
		return nil, errors.New("it is missing")
	case !s.framed:
		if err := s.copyOut(); err != nil {
			return nil, err
		}
		s.part = 'm'
	}
	var manifest []byte
	for {
		data, err := s.chunk()
		if err != nil {
			return nil, err
		}
		if data == nil {
			return manifest, nil
		}
		if len(manifest)+len(data) > maxManifest {
			return nil, errors.New("it is too large")
		}
		manifest = append(manifest, data...)
	}
}
