package link_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/link"
)

// both makes a link whose other side answers with by, and has the test fail if
// goroutines or descriptors are left.
func both(t *testing.T, by link.Answerer) *link.Caller {
	t.Helper()
	goroutines, fds := runtime.NumGoroutine(), openFiles(t)
	ours, f, err := link.New()
	must(t, err)
	theirs, err := link.Inherited(f)
	must(t, err)
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			kind, stream, err := theirs.Accept()
			if err != nil {
				return
			}
			if kind != link.Calls {
				t.Errorf("a stream of kind %c", kind)
			}
			serving.Go(func() { link.Serve(context.Background(), stream, by) })
		}
	})
	caller := link.NewCaller(ours)
	t.Cleanup(func() {
		caller.Close()
		_ = ours.Close()
		serving.Wait()
		_ = theirs.Close()
		eventually(t, "all is given back", func() bool { return runtime.NumGoroutine() <= goroutines && openFiles(t) <= fds })
	})
	return caller
}

// answerer is a function that answers.
type answerer func(ctx context.Context, verb string, in func(any) error) (any, net.Conn, error)

func (f answerer) Answer(ctx context.Context, verb string, in func(any) error) (any, net.Conn, error) {
	return f(ctx, verb, in)
}

func TestCalls(t *testing.T) {
	caller := both(t, answerer(func(_ context.Context, verb string, in func(any) error) (any, net.Conn, error) {
		var word string
		if err := in(&word); err != nil {
			return nil, nil, err
		}
		return verb + " " + word, nil, nil
	}))
	var all sync.WaitGroup
	for i := range 300 { // more than streams are kept
		all.Go(func() {
			word := fmt.Sprint(i)
			var got string
			if err := caller.Call(t.Context(), "say", word, &got); err != nil || got != "say "+word {
				t.Errorf("call %d: %q, %v", i, got, err)
			}
		})
	}
	all.Wait()
	long := strings.Repeat("x", 100<<10)
	var got string
	if err := caller.Call(t.Context(), "say", long, &got); err != nil || got != "say "+long {
		t.Errorf("a long call: %d bytes, %v", len(got), err)
	}
	if err := caller.Call(t.Context(), "say", long+long, nil); err == nil {
		t.Error("what is too long was sent")
	}
	if err := caller.Call(t.Context(), "say", 5, nil); err == nil || !strings.Contains(err.Error(), "say") {
		t.Errorf("what cannot be read: %v", err)
	}
}

// An error arrives as it was, but for its private cause.
func TestErrors(t *testing.T) {
	told := pgbough.Errorf(pgbough.ELocked, "it is in use: %w", os.ErrPermission).WithHint("wait")
	caller := both(t, answerer(func(_ context.Context, verb string, _ func(any) error) (any, net.Conn, error) {
		if verb == "told" {
			return "dropped", nil, fmt.Errorf("somewhere: %w", told)
		}
		return nil, nil, errors.New("a fault")
	}))
	var got *pgbough.Error
	if err := caller.Call(t.Context(), "told", nil, nil); !errors.As(err, &got) {
		t.Fatalf("got %v", err)
	}
	if diff := cmp.Diff(pgbough.Error{Code: told.Code, Message: told.Message, Hint: told.Hint}, *got); diff != "" {
		t.Error(diff)
	}
	err := caller.Call(t.Context(), "fault", nil, nil)
	if errors.As(err, &got) || err == nil || err.Error() != "a fault" {
		t.Errorf("a fault: %v", err)
	}
}

// Who asks and gives up is told why, and the other side stops working for it.
func TestCancelledCalls(t *testing.T) {
	began, ended := make(chan struct{}), make(chan struct{})
	caller := both(t, answerer(func(ctx context.Context, verb string, _ func(any) error) (any, net.Conn, error) {
		if verb == "wait" {
			close(began)
			<-ctx.Done()
			close(ended)
		}
		return nil, nil, ctx.Err()
	}))
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() { <-began; cancel(why) }()
	if err := caller.Call(ctx, "wait", nil, nil); !errors.Is(err, why) {
		t.Errorf("got %v, want %v", err, why)
	}
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("the other side goes on")
	}
	must(t, caller.Call(t.Context(), "next", nil, nil))
	done, end := context.WithCancel(t.Context())
	end()
	if err := caller.Call(done, "next", nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("asked too late: %v", err)
	}
}

// A connection goes over as it is, to be used while the other side has closed its own.
func TestPassedConnections(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	must(t, err)
	defer func() { _ = l.Close() }()
	caller := both(t, answerer(func(ctx context.Context, verb string, _ func(any) error) (any, net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", l.Addr().String())
		must(t, err)
		if verb == "fails" {
			return nil, conn, errors.New("no")
		}
		return nil, conn, nil
	}))
	for _, verb := range []string{"fails", "fetch", "drop", "fetch"} {
		var conn net.Conn
		if verb == "drop" {
			err = caller.Call(t.Context(), verb, nil, nil)
		} else {
			conn, err = caller.Fetch(t.Context(), verb, nil, nil)
		}
		far, aerr := l.Accept()
		must(t, aerr)
		if (err != nil) != (verb == "fails") {
			t.Errorf("%s: %v", verb, err)
		}
		if verb == "fetch" {
			_, err := conn.Write([]byte("hello"))
			must(t, err)
			must(t, conn.Close())
		}
		b, err := io.ReadAll(far) // which ends only when nobody has the other end
		if want := map[string]string{"fetch": "hello"}[verb]; err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", verb, b, err)
		}
		must(t, far.Close())
	}
}

func TestStreamsOfBytes(t *testing.T) {
	ours, f, err := link.New()
	must(t, err)
	theirs, err := link.Inherited(f)
	must(t, err)
	a, err := ours.Dial(link.Bytes)
	must(t, err)
	kind, b, err := theirs.Accept()
	must(t, err)
	if kind != link.Bytes {
		t.Errorf("kind %c", kind)
	}
	must(t, ours.Close()) // streams stay
	_, err = a.Write([]byte("one"))
	must(t, err)
	must(t, a.CloseWrite())
	if got, err := io.ReadAll(b); err != nil || string(got) != "one" {
		t.Errorf("%q, %v", got, err)
	}
	if _, _, err := theirs.Accept(); err == nil {
		t.Error("a link that has ended has another stream")
	}
	if _, err := theirs.Dial(link.Bytes); err == nil {
		t.Error("a stream to nobody")
	}
	must(t, errors.Join(a.Close(), b.Close(), theirs.Close()))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func openFiles(t testing.TB) int {
	all, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(all)
}

func eventually(t testing.TB, what string, so func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(10 * time.Second)
	for !so() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("not in 10 s: %s", what)
		}
	}
}
