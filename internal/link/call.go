package link

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pgbough/pgbough"
)

const (
	// maxPacket is the longest question or answer. The kernel takes no longer ones
	// than some 200 kB.
	maxPacket = 128 << 10
	// maxIdle is how many streams wait for the next call.
	maxIdle = 64
)

// past is a deadline that ends what waits.
var past = time.Unix(1, 0)

// packets are buffers to read into.
var packets = sync.Pool{New: func() any { return new([maxPacket]byte) }}

type question struct {
	Verb string          `json:"verb"`
	In   json.RawMessage `json:"in,omitempty"`
}

type answer struct {
	Out   json.RawMessage `json:"out,omitempty"`
	Error *failure        `json:"error,omitempty"`
}

// failure is an error on its way. One that is no *pgbough.Error has no code.
type failure struct {
	Code    pgbough.Code `json:"code,omitempty"`
	Message string       `json:"message"`
	Hint    string       `json:"hint,omitempty"`
}

func failureOf(err error) *failure {
	var told *pgbough.Error
	if errors.As(err, &told) {
		return &failure{told.Code, told.Message, told.Hint}
	}
	return &failure{Message: err.Error()}
}

func (f *failure) err() error {
	if f.Code == "" {
		return errors.New(f.Message)
	}
	return &pgbough.Error{Code: f.Code, Message: f.Message, Hint: f.Hint}
}

// Caller asks the other side of a link. It is safe for concurrent use.
type Caller struct {
	link *Link

	mu     sync.Mutex
	idle   []*net.UnixConn
	closed bool
}

// NewCaller makes a Caller. Close frees what it keeps.
func NewCaller(l *Link) *Caller { return &Caller{link: l} }

// Close ends the streams that wait for a call.
func (c *Caller) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for _, conn := range c.idle {
		_ = conn.Close() // nothing is under way on it
	}
	c.idle = nil
}

// Call asks for verb, with in, and puts the answer into out, each of which may be
// nil. The end of ctx cancels it on the other side too. A *pgbough.Error arrives
// with its code, message and hint.
func (c *Caller) Call(ctx context.Context, verb string, in, out any) error {
	conn, err := c.Fetch(ctx, verb, in, out)
	if conn != nil {
		_ = conn.Close() // not asked for
	}
	return err
}

// Fetch is Call for an answer that carries a connection.
func (c *Caller) Fetch(ctx context.Context, verb string, in, out any) (*net.UnixConn, error) {
	q, err := packet(question{Verb: verb}, in)
	if err != nil {
		return nil, fmt.Errorf("ask for %s: %w", verb, err)
	}
	stream, err := c.stream()
	if err != nil {
		return nil, fmt.Errorf("ask for %s: %w", verb, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = stream.SetDeadline(past) }) // fails only when closed
	a, conn, err := exchange(stream, q)
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = stream.Close() // which cancels the call
		if conn != nil {
			_ = conn.Close() // nobody takes it
		}
		return nil, fmt.Errorf("ask for %s: %w", verb, err)
	}
	c.keep(stream)
	if a.Error != nil {
		return nil, a.Error.err()
	}
	if out != nil {
		if err := json.Unmarshal(a.Out, out); err != nil {
			return conn, fmt.Errorf("ask for %s: %w", verb, err)
		}
	}
	return conn, nil
}

func packet(q question, in any) ([]byte, error) {
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		q.In = b
	}
	b, err := json.Marshal(q)
	if err == nil && len(b) > maxPacket {
		err = errors.New("it is too long")
	}
	return b, err
}

func exchange(stream *net.UnixConn, q []byte) (a answer, conn *net.UnixConn, err error) {
	if _, err := stream.Write(q); err != nil {
		return a, nil, err
	}
	oob := make([]byte, unix.CmsgSpace(4))
	b, oobn, err := receive(stream, oob)
	if err != nil {
		return a, nil, err
	}
	if conn, err = passed(oob[:oobn]); err == nil {
		err = json.Unmarshal(b, &a)
	}
	return a, conn, err
}

// receive waits for a packet. While it waits it holds no buffer: many wait.
func receive(stream *net.UnixConn, oob []byte) (b []byte, oobn int, err error) {
	raw, err := stream.SyscallConn()
	if err != nil {
		return nil, 0, err
	}
	ended := raw.Read(func(fd uintptr) bool {
		buf := packets.Get().(*[maxPacket]byte)
		defer packets.Put(buf)
		var n, flags int
		for err = unix.EINTR; errors.Is(err, unix.EINTR); {
			n, oobn, flags, _, err = unix.Recvmsg(int(fd), buf[:], oob, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
		}
		switch {
		case errors.Is(err, unix.EAGAIN):
			return false
		case err == nil && n == 0:
			err = io.EOF
		case err == nil && flags&unix.MSG_TRUNC != 0:
			err = errors.New("a packet is too long")
		case err == nil:
			b = bytes.Clone(buf[:n])
		}
		return true
	})
	if ended != nil {
		err = ended
	}
	return b, oobn, err
}

func (c *Caller) stream() (*net.UnixConn, error) {
	c.mu.Lock()
	if n := len(c.idle); n > 0 {
		stream := c.idle[n-1]
		c.idle = c.idle[:n-1]
		c.mu.Unlock()
		return stream, nil
	}
	c.mu.Unlock()
	return c.link.Dial(Calls)
}

func (c *Caller) keep(stream *net.UnixConn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || len(c.idle) == maxIdle {
		_ = stream.Close() // nothing is under way on it
		return
	}
	c.idle = append(c.idle, stream)
}

// Answerer answers calls. Its context ends when whoever asked has gone, too.
type Answerer interface {
	// Answer carries out a verb. in reads what came with it. Of a connection that it
	// returns, which must be a *net.UnixConn, the other side gets a duplicate; it is
	// closed then.
	Answer(ctx context.Context, verb string, in func(any) error) (out any, conn net.Conn, err error)
}

// Serve answers the calls of a stream until that or ctx ends, and closes it.
func Serve(ctx context.Context, stream *net.UnixConn, by Answerer) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = stream.Close() }) // which ends the reading
	defer stop()
	questions := make(chan question)
	var reading sync.WaitGroup
	defer reading.Wait()
	defer func() { _ = stream.Close() }() // it may be closed already
	reading.Go(func() {
		defer cancel() // nothing comes before an answer but the end
		read(ctx, stream, questions)
	})
	for {
		select {
		case q := <-questions:
			if err := respond(ctx, stream, q, by); err != nil {
				return // the other side is gone
			}
		case <-ctx.Done():
			return
		}
	}
}

func read(ctx context.Context, stream *net.UnixConn, to chan<- question) {
	for {
		q, err := next(stream)
		if err != nil {
			return
		}
		select {
		case to <- q:
		case <-ctx.Done():
			return
		}
	}
}

func next(stream *net.UnixConn) (q question, err error) {
	b, _, err := receive(stream, nil) // a descriptor that comes with it is dropped
	if err == nil {
		err = json.Unmarshal(b, &q)
	}
	return q, err
}

func respond(ctx context.Context, stream *net.UnixConn, q question, by Answerer) error {
	out, conn, err := by.Answer(ctx, q.Verb, func(into any) error {
		if err := json.Unmarshal(q.In, into); err != nil {
			return fmt.Errorf("read what came with %s: %w", q.Verb, err)
		}
		return nil
	})
	if conn != nil {
		defer func() { _ = conn.Close() }() // the other side has its own
	}
	var a answer
	if err == nil && out != nil {
		a.Out, err = json.Marshal(out)
	}
	if err != nil {
		a.Out, a.Error = nil, failureOf(err)
	}
	b, err := json.Marshal(a)
	if err != nil {
		return err
	}
	if conn == nil || a.Error != nil {
		_, err = stream.Write(b)
		return err
	}
	return pass(stream, b, conn)
}

// pass sends b with a duplicate of conn.
func pass(stream *net.UnixConn, b []byte, conn net.Conn) error {
	c, ok := conn.(syscall.Conn)
	if !ok {
		return fmt.Errorf("a %T has no descriptor", conn)
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	err = raw.Control(func(fd uintptr) { _, _, sent = stream.WriteMsgUnix(b, unix.UnixRights(int(fd)), nil) })
	return errors.Join(err, sent)
}
