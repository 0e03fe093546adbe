package pgproxy

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// wire is a client that says exactly what a test wants.
type wire struct {
	net.Conn
	r *bufio.Reader
}

func dial(t testing.TB, addr string) *wire {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	must(t, err)
	return over(t, conn)
}

func over(t testing.TB, conn net.Conn) *wire {
	t.Helper()
	must(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	t.Cleanup(func() { _ = conn.Close() })
	return &wire{conn, bufio.NewReader(conn)}
}

func (w *wire) write(t testing.TB, b []byte) {
	t.Helper()
	_, err := w.Write(b)
	must(t, err)
}

func (w *wire) startup(t testing.TB, version uint32, pairs ...string) {
	t.Helper()
	s := startup{version: version}
	for i := 0; i < len(pairs); i += 2 {
		s.parameters = append(s.parameters, parameter{pairs[i], pairs[i+1]})
	}
	w.write(t, s.encode())
}

func (w *wire) code(t testing.TB, code uint32, body ...byte) {
	t.Helper()
	b := binary.BigEndian.AppendUint32(nil, uint32(8+len(body)))
	w.write(t, append(binary.BigEndian.AppendUint32(b, code), body...))
}

func (w *wire) send(t testing.TB, kind byte, body string) {
	t.Helper()
	b := binary.BigEndian.AppendUint32([]byte{kind}, uint32(4+len(body)))
	w.write(t, append(b, body...))
}

// message is the next message, whole.
func (w *wire) message(t testing.TB) []byte {
	t.Helper()
	_, b, err := readMessage(w.r)
	must(t, err)
	return b
}

func (w *wire) byte(t testing.TB) byte {
	t.Helper()
	b, err := w.r.ReadByte()
	must(t, err)
	return b
}

// end waits until the other side closes, in good order and without a word.
func (w *wire) end(t testing.TB) {
	t.Helper()
	if b, err := io.ReadAll(w.r); len(b) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("instead of the end came %q, %v", b, err)
	}
}

func (w *wire) close(t testing.TB) {
	t.Helper()
	must(t, w.Close())
}
