package pgproxy

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbough/pgbough/internal/pgtest"
)

func sessionTests() []proxyTest {
	return []proxyTest{
		{"COPY both ways", testCopy},
		{"notifications", testNotify},
		{"pipelines", testPipeline},
		{"cancel", testCancel},
		{"large messages", testLarge},
		{"a slow reader", testSlow},
		{"physical replication", testPhysical},
		{"logical replication", testLogical},
		{"half-closed", testHalfClosed},
		{"early", testEarly},
		{"the Postgres ends a session", testTerminated},
		{"a client that is killed", testKilled},
		{"many at once", testMany},
	}
}

// both runs a test with and without TLS.
func both(t *testing.T, run func(t *testing.T, mode string)) {
	for _, mode := range []string{"sslmode=disable", "sslmode=require"} {
		t.Run(mode, func(t *testing.T) { run(t, mode) })
	}
}

func testCopy(t *testing.T, server *pgtest.Server) {
	r := newRig(t, server, nil)
	both(t, func(t *testing.T, mode string) {
		conn := r.connect(t, mode)
		_, err := conn.Exec(t.Context(), "CREATE TEMP TABLE c (a text)")
		must(t, err)
		var in, out bytes.Buffer
		for i := range 200_000 {
			fmt.Fprintf(&in, "row %d\n", i)
		}
		want := in.String()
		tag, err := conn.PgConn().CopyFrom(t.Context(), &in, "COPY c FROM STDIN")
		if err != nil || tag.RowsAffected() != 200_000 {
			t.Errorf("in: %v, %v", tag, err)
		}
		_, err = conn.PgConn().CopyTo(t.Context(), &out, "COPY c TO STDOUT")
		if err != nil || out.String() != want {
			t.Errorf("out: %d bytes of %d, %v", out.Len(), len(want), err)
		}
	})
}

func testNotify(t *testing.T, server *pgtest.Server) {
	r := newRig(t, server, nil)
	listener, sender := r.connect(t, ""), r.connect(t, "sslmode=require")
	_, err := listener.Exec(t.Context(), "LISTEN x")
	must(t, err)
	_, err = sender.Exec(t.Context(), "NOTIFY x, 'hello'")
	must(t, err)
	n, err := listener.WaitForNotification(t.Context())
	must(t, err)
	if n.Payload != "hello" || n.PID != sender.PgConn().PID() {
		t.Errorf("got %+v, want it from %d", n, sender.PgConn().PID())
	}
}

func testPipeline(t *testing.T, server *pgtest.Server) {
	r := newRig(t, server, nil)
	both(t, func(t *testing.T, mode string) {
		conn := r.connect(t, mode)
		var batch pgx.Batch
		for i := range 2000 {
			batch.Queue("SELECT $1::int, repeat('x', 500)", i)
		}
		results := conn.SendBatch(t.Context(), &batch)
		for want := range 2000 {
			var got int
			must(t, results.QueryRow().Scan(&got, nil))
			if got != want {
				t.Fatalf("got %d, want %d", got, want)
			}
		}
		must(t, results.Close())
	})
}

func testCancel(t *testing.T, server *pgtest.Server) {
	r := newRig(t, server, nil)
	both(t, func(t *testing.T, mode string) {
		conn := r.connect(t, mode)
		done := make(chan error, 1)
		go func() {
			_, err := conn.Exec(t.Context(), "SELECT pg_sleep(60)")
			done <- err
		}()
		pid := conn.PgConn().PID()
		eventually(t, "it runs", func() bool {
			return server.Value(t, "postgres", fmt.Sprintf("SELECT count(*) FROM pg_stat_activity WHERE pid = %d AND wait_event = 'PgSleep'", pid)) == "1"
		})
		before := r.Stats().Cancels
		must(t, conn.PgConn().CancelRequest(t.Context()))
		wants(t, <-done, "57014", "canceling statement due to user request")
		if r.Stats().Cancels != before+1 {
			t.Error("it was not counted")
		}
	})
	// A wrong key, one of a session that is over, and nonsense do nothing.
	conn := r.connect(t, "")
	key := append(be32(conn.PgConn().PID()), conn.PgConn().SecretKey()...)
	before := r.world.connects.Load()
	wrong := bytes.Clone(key)
	wrong[len(wrong)-1]++
	w := dial(t, r.addr.String())
	w.code(t, codeCancel, wrong...)
	w.end(t)
	must(t, conn.Close(t.Context()))
	eventually(t, "it is over", func() bool { return r.Clients(branchID) == 0 })
	w = dial(t, r.addr.String())
	w.code(t, codeCancel, key...)
	w.end(t)
	if r.world.connects.Load() != before {
		t.Error("a Postgres was connected to")
	}
	w = dial(t, r.addr.String())
	w.code(t, codeCancel, 1, 2)
	if said := string(w.message(t)); !strings.Contains(said, "C08P01") {
		t.Errorf("got %q", said)
	}
}

func be32(n uint32) []byte { return []byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)} }

func testLarge(t *testing.T, server *pgtest.Server) {
	r := newRig(t, server, nil)
	conn := r.connect(t, "")
	// Nearly the longest message that Postgres makes; the client throws it away,
	// so that the test does not need the memory.
	n := 0
	for m, err := range messages(t, conn.PgConn(), "SELECT repeat('x', 1000000000)") {
		must(t, err)
		n += m
	}
	if n < 1_000_000_000 {
		t.Errorf("%d bytes came", n)
	}
	// Up: the parameter of a statement.
	conn = r.connect(t, "")
	big := strings.Repeat("y", 100<<20)
	if got := value[int](t, conn, "SELECT length($1::text)", big); got != len(big) {
		t.Errorf("%d bytes arrived", got)
	}
}

// messages yields the length of what the server sends for a query, piece by
// piece and without keeping it.
func messages(t *testing.T, conn *pgconn.PgConn, sql string) func(func(int, error) bool) {
	h, err := conn.Hijack()
	must(t, err)
	t.Cleanup(func() { _ = h.Conn.Close() })
	w := &wire{Conn: h.Conn}
	w.send(t, 'Q', sql+"\x00")
	return func(yield func(int, error) bool) {
		buf := make([]byte, 1<<20)
		var f framing
		for f.kind != 'Z' || !f.whole() {
			n, err := h.Conn.Read(buf)
			f.advance(buf[:n])
			if !yield(n, err) || err != nil {
				return
			}
		}
	}
}

func testSlow(t *testing.T, server *pgtest.Server) {
	r := newRig(t, server, nil)
	both(t, func(t *testing.T, mode string) {
		h, err := r.connect(t, mode).PgConn().Hijack()
		must(t, err)
		defer func() { _ = h.Conn.Close() }()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		w := &wire{Conn: h.Conn}
		w.send(t, 'Q', "SELECT repeat('x', 1000) FROM generate_series(1, 200000)\x00")
		eventually(t, "the Postgres waits for the client", func() bool {
			return server.Value(t, "postgres", fmt.Sprintf("SELECT wait_event FROM pg_stat_activity WHERE pid = %d", h.PID)) == "ClientWrite"
		})
		runtime.ReadMemStats(&after)
		if grown := int64(after.HeapInuse) - int64(before.HeapInuse); grown > 8<<20 {
			t.Errorf("the proxy has %d MB for a client that does not read", grown>>20)
		}
		var f framing
		buf, total := make([]byte, 1<<20), 0
		for f.kind != 'Z' || !f.whole() {
			n, err := h.Conn.Read(buf)
			must(t, err)
			f.advance(buf[:n])
			total += n
		}
		if total < 200_000_000 {
			t.Errorf("%d bytes came", total)
		}
	})
}

func testPhysical(t *testing.T, server *pgtest.Server) {
	r := newRig(t, server, nil)
	for _, mode := range []string{"sslmode=disable", "sslmode=require"} {
		cmd := exec.CommandContext(t.Context(), "pg_basebackup", "-d", r.uri("dbname=replication "+mode), "-D", t.TempDir()+"/b", "-X", "stream", "-c", "fast")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("pg_basebackup with %s: %v: %s", mode, err, out)
		}
	}
}

func testLogical(t *testing.T, server *pgtest.Server) {
	r := newRig(t, server, nil)
	server.Exec(t, "postgres", "CREATE TABLE l (a int)")
	server.Exec(t, "postgres", "SELECT pg_create_logical_replication_slot('s', 'test_decoding')")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "pg_recvlogical", "-d", r.uri(""), "-S", "s", "--start", "-f", "-", "-o", "skip-empty-xacts=1")
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	server.Exec(t, "postgres", "INSERT INTO l SELECT generate_series(1, 1000)")
	got := make([]byte, 1<<20)
	n, want := 0, "a[integer]:1000"
	for !bytes.Contains(got[:n], []byte(want)) {
		m, err := out.Read(got[n:])
		if n += m; err != nil {
			t.Fatalf("%v after %q", err, got[:n])
		}
	}
	cancel()
	_ = cmd.Wait() // it was killed
	eventually(t, "the slot is free", func() bool {
		return server.Value(t, "postgres", "SELECT active FROM pg_replication_slots") == "false"
	})
	server.Exec(t, "postgres", "SELECT pg_drop_replication_slot('s')")
}

// testHalfClosed sends a query and ends its side at once: the answer comes all
// the same.
func testHalfClosed(t *testing.T, server *pgtest.Server) {
	r := newRig(t, server, nil)
	both(t, func(t *testing.T, mode string) {
		h, err := r.connect(t, mode).PgConn().Hijack()
		must(t, err)
		w := over(t, h.Conn)
		w.send(t, 'Q', "SELECT 'all' || pg_sleep(0.05)\x00")
		must(t, h.Conn.(halfCloser).CloseWrite())
		said, err := io.ReadAll(w.r)
		if err != nil || !bytes.Contains(said, []byte("all")) || bytes.Contains(said, []byte("FATAL")) {
			t.Errorf("got %q, %v", said, err)
		}
	})
}

// testEarly sends a query before the server has said that it is ready.
func testEarly(t *testing.T, server *pgtest.Server) {
	r := newRig(t, server, nil)
	w := dial(t, r.addr.String())
	w.startup(t, protocol3, "user", "five", "database", "postgres", "options", "endpoint="+endpoint)
	salt := w.message(t)[9:]
	w.send(t, 'p', md5Answer("five", "five", salt)+"\x00")
	w.send(t, 'Q', "SELECT 'early'\x00")
	for kind := byte(0); kind != 'D'; {
		m := w.message(t)
		if kind = m[0]; kind == 'E' {
			t.Fatalf("got %q", m)
		}
	}
}

func testTerminated(t *testing.T, server *pgtest.Server) {
	r := newRig(t, server, nil)
	h, err := r.connect(t, "").PgConn().Hijack()
	must(t, err)
	w := over(t, h.Conn)
	server.Exec(t, "postgres", fmt.Sprintf("SELECT pg_terminate_backend(%d)", h.PID))
	said := string(w.message(t))
	if !strings.Contains(said, "C57P01\x00Mterminating connection due to administrator command") {
		t.Errorf("got %q", said)
	}
	w.end(t) // the proxy says nothing of its own after that, nor when a client leaves
	h, err = r.connect(t, "").PgConn().Hijack()
	must(t, err)
	w = over(t, h.Conn)
	w.send(t, 'X', "")
	w.end(t)
}

func testKilled(t *testing.T, server *pgtest.Server) {
	r := newRig(t, server, nil)
	both(t, func(t *testing.T, mode string) {
		conn := r.connect(t, mode)
		_, err := conn.Exec(t.Context(), "BEGIN; SELECT pg_advisory_lock(1)")
		must(t, err)
		pid := conn.PgConn().PID()
		h, err := conn.PgConn().Hijack()
		must(t, err)
		must(t, h.Conn.Close())
		eventually(t, "its transaction has ended", func() bool {
			return server.Value(t, "postgres", fmt.Sprintf("SELECT count(*) FROM pg_stat_activity WHERE pid = %d", pid)) == "0"
		})
	})
}

func testMany(t *testing.T, server *pgtest.Server) {
	r := newRig(t, server, nil)
	errs := make(chan error)
	const clients = 24
	for i := range clients {
		go func() {
			for n := range 10 {
				mode := []string{"sslmode=disable", "sslmode=require"}[(i+n)%2]
				conn, err := r.try(t, mode)
				if err != nil {
					errs <- err
					return
				}
				want := rand.Int32()
				var got int32
				err = conn.QueryRow(t.Context(), "SELECT $1::int", want).Scan(&got)
				if err == nil && got != want {
					err = fmt.Errorf("got %d, want %d", got, want)
				}
				if err != nil {
					errs <- err
					return
				}
				_ = conn.Close(t.Context())
			}
			errs <- nil
		}()
	}
	for range clients {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}
