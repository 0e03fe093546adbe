package pgproxy

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbough/pgbough/internal/pgtest"
)

func holdTests() []proxyTest {
	return []proxyTest{
		{"clients are counted", testClients},
		{"hold and release", testHold},
		{"hold in the middle of a message", testHoldMiddle},
		{"who comes while held", testHeldOut},
		{"answers flow while held", testHoldAnswers},
		{"end", testEnd},
		{"end in the middle of an answer", testEndMiddle},
		{"end of a client that does not read", testEndStuck},
		{"a goodbye while held", testHeldGoodbye},
		{"shutdown", testShutdown},
		{"the Postgres is killed", testCrash},
		{"hold, end and release under load", testChurn},
	}
}

func testClients(t *testing.T, server *pgtest.Server) {
	r := newRig(t, server, nil)
	first := r.connect(t, "")
	r.connect(t, "sslmode=require")
	unproved := dial(t, r.addr.String())
	unproved.startup(t, protocol3, "user", "app", "database", "postgres", "options", "endpoint="+endpoint)
	unproved.message(t)
	if got := r.Clients(branchID); got != 2 {
		t.Errorf("%d clients", got)
	}
	if got := r.Clients("br-other"); got != 0 {
		t.Errorf("%d clients of another branch", got)
	}
	must(t, first.Close(t.Context()))
	eventually(t, "one has gone", func() bool { return r.Clients(branchID) == 1 })
}

// activity is what the Postgres knows of the sessions of app.
func activity(t *testing.T, server *pgtest.Server, where string) string {
	return server.Value(t, "postgres", "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND "+where)
}

func testHold(t *testing.T, server *pgtest.Server) {
	r := newRig(t, server, nil)
	both(t, func(t *testing.T, mode string) {
		conn := r.connect(t, mode)
		for range 20 {
			_ = value[int](t, conn, "SELECT 1")
			r.Hold(branchID)
			r.Hold(branchID) // twice is once
			done := make(chan error, 1)
			go func() {
				_, err := conn.Exec(t.Context(), "SELECT 'after' || pg_sleep(0)", pgx.QueryExecModeSimpleProtocol)
				done <- err
			}()
			// What the Postgres last heard is the statement before.
			if got := activity(t, server, "query LIKE '%after%' AND state_change > now() - interval '1 ms'"); got != "0" {
				t.Error("a statement came through")
			}
			select {
			case err := <-done:
				t.Fatalf("it was answered while held: %v", err)
			default:
			}
			r.Release(branchID)
			must(t, <-done)
		}
		r.Release(branchID) // of what is not held
		r.Release("br-other")
	})
}

// testHoldMiddle holds while a large message is on its way up.
func testHoldMiddle(t *testing.T, server *pgtest.Server) {
	r := newRig(t, server, nil)
	both(t, func(t *testing.T, mode string) {
		conn := r.connect(t, mode)
		big := strings.Repeat("z", 64<<20)
		type answer struct {
			n   int
			err error
		}
		done := make(chan answer, 1)
		go func() {
			var a answer
			a.err = conn.QueryRow(t.Context(), "SELECT length($1::text)", big).Scan(&a.n)
			done <- a
		}()
		var got answer
		for holds := 0; got == (answer{}); holds++ {
			r.Hold(branchID)
			r.Release(branchID)
			select {
			case got = <-done:
				if holds < 2 {
					t.Errorf("it was held only %d times", holds)
				}
			default:
			}
		}
		if got.err != nil || got.n != len(big) {
			t.Errorf("%d of %d bytes arrived: %v", got.n, len(big), got.err)
		}
	})
}

func testHeldOut(t *testing.T, server *pgtest.Server) {
	r := newRig(t, server, nil)
	r.connect(t, "")
	r.Hold(branchID)
	connects := r.world.connects.Load()
	done := r.later(t, "")
	eventually(t, "it has logged in", func() bool { return r.Clients(branchID) == 2 })
	r.End(branchID, "57P01", "the branch sleeps")
	if got := r.Clients(branchID); got != 1 {
		t.Errorf("%d clients are left, want the one that came while held", got)
	}
	if r.world.connects.Load() != connects {
		t.Error("the Postgres was connected to while held")
	}
	r.Release(branchID)
	must(t, <-done)
	// A cancel request does not get through either.
	conn := r.connect(t, "")
	r.Hold(branchID)
	connects = r.world.connects.Load()
	must(t, conn.PgConn().CancelRequest(t.Context()))
	if r.world.connects.Load() != connects {
		t.Error("a cancel request got through while held")
	}
	r.Release(branchID)
}

func testHoldAnswers(t *testing.T, server *pgtest.Server) {
	r := newRig(t, server, nil)
	conn := r.connect(t, "")
	done := make(chan error, 1)
	go func() {
		_, err := conn.Exec(t.Context(), "SELECT pg_sleep(0.2)")
		done <- err
	}()
	eventually(t, "it runs", func() bool { return activity(t, server, "wait_event = 'PgSleep'") == "1" })
	r.Hold(branchID)
	defer r.Release(branchID)
	must(t, <-done)
}

func testEnd(t *testing.T, server *pgtest.Server) {
	r := newRig(t, server, nil)
	both(t, func(t *testing.T, mode string) {
		conn, other := r.connect(t, mode), r.connect(t, mode)
		r.Hold(branchID)
		// One has something to say already; it must hear why all the same.
		h, err := other.PgConn().Hijack()
		must(t, err)
		w := over(t, h.Conn)
		w.send(t, 'Q', "SELECT 1\x00")
		r.End(branchID, "57P01", "the branch sleeps; connect again to wake it")
		if got := activity(t, server, "true"); got != "0" {
			eventually(t, "the Postgres has no sessions left", func() bool { return activity(t, server, "true") == "0" })
		}
		if got := r.Clients(branchID); got != 0 {
			t.Errorf("%d clients are left", got)
		}
		r.Release(branchID)
		_, err = conn.Exec(t.Context(), "SELECT 1")
		wants(t, err, "57P01", "the branch sleeps; connect again to wake it")
		if said := string(w.message(t)); !strings.Contains(said, "C57P01\x00Mthe branch sleeps") {
			t.Errorf("got %q", said)
		}
	})
}

func testEndMiddle(t *testing.T, server *pgtest.Server) {
	r := newRig(t, server, nil)
	both(t, func(t *testing.T, mode string) {
		h, err := r.connect(t, mode).PgConn().Hijack()
		must(t, err)
		w := over(t, h.Conn)
		w.send(t, 'Q', "SELECT repeat('x', 5000) FROM generate_series(1, 10000000)\x00")
		w.message(t)
		ended := make(chan struct{})
		go func() {
			r.End(branchID, "57P01", "enough")
			close(ended)
		}()
		var m []byte
		for m = w.message(t); m[0] == 'D'; m = w.message(t) {
		}
		if !bytes.Contains(m, []byte("C57P01\x00Menough")) {
			t.Errorf("got %q", m)
		}
		<-ended
	})
}

func testEndStuck(t *testing.T, server *pgtest.Server) {
	r := newRig(t, server, nil)
	both(t, func(t *testing.T, mode string) {
		h, err := r.connect(t, mode).PgConn().Hijack()
		must(t, err)
		w := over(t, h.Conn)
		w.send(t, 'Q', "SELECT repeat('x', 5000) FROM generate_series(1, 10000000)\x00")
		eventually(t, "the Postgres waits for it", func() bool { return activity(t, server, "wait_event = 'ClientWrite'") == "1" })
		began := time.Now()
		r.End(branchID, "57P01", "enough")
		if took := time.Since(began); took > 3*endGrace {
			t.Errorf("it took %v", took)
		}
		eventually(t, "the Postgres has no sessions left", func() bool { return activity(t, server, "true") == "0" })
	})
}

// testHeldGoodbye has a client ask something and end its side while it is held:
// it is answered after the release.
func testHeldGoodbye(t *testing.T, server *pgtest.Server) {
	r := newRig(t, server, nil)
	both(t, func(t *testing.T, mode string) {
		h, err := r.connect(t, mode).PgConn().Hijack()
		must(t, err)
		w := over(t, h.Conn)
		r.Hold(branchID)
		w.send(t, 'Q', "SELECT 'all' || pg_sleep(0.05)\x00")
		must(t, h.Conn.(halfCloser).CloseWrite())
		r.Release(branchID)
		said, err := io.ReadAll(w.r)
		if err != nil || !bytes.Contains(said, []byte("all")) || bytes.Contains(said, []byte("FATAL")) {
			t.Errorf("got %q, %v", said, err)
		}
		eventually(t, "the session is over", func() bool { return r.Clients(branchID) == 0 })
	})
}

func testShutdown(t *testing.T, server *pgtest.Server) {
	r := newRig(t, server, nil)
	idle, busy := r.connect(t, ""), r.connect(t, "sslmode=require")
	done := make(chan error, 1)
	go func() {
		_, err := busy.Exec(t.Context(), "SELECT pg_sleep(60)")
		done <- err
	}()
	eventually(t, "it runs", func() bool { return activity(t, server, "wait_event = 'PgSleep'") == "1" })
	unproved := dial(t, r.addr.String())
	unproved.startup(t, protocol3, "user", "app", "database", "postgres", "options", "endpoint="+endpoint)
	unproved.message(t)
	r.world.set(func() { r.world.starting = make(chan struct{}) })
	waiting := r.later(t, "")
	eventually(t, "one waits", func() bool { return r.Clients(branchID) == 3 })
	r.stop()
	_, err := idle.Exec(t.Context(), "SELECT 1")
	wants(t, err, "57P01", "the server is shutting down")
	wants(t, <-done, "57P01", "the server is shutting down")
	wants(t, <-waiting, "57P03", "the server is shutting down")
	if said := string(unproved.message(t)); !strings.Contains(said, "C57P03") {
		t.Errorf("got %q", said)
	}
	server.Exec(t, "postgres", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
}

// testCrash ends the Postgres at once, which is not how it says goodbye.
func testCrash(t *testing.T, _ *pgtest.Server) {
	server := pgtest.Start(t, pgtest.Options{})
	r := newRig(t, server, nil)
	conn := r.connect(t, "")
	h, err := r.connect(t, "sslmode=require").PgConn().Hijack()
	must(t, err)
	w := over(t, h.Conn)
	server.Kill(t)
	_, err = conn.Exec(t.Context(), "SELECT 1")
	wants(t, err, "57P02", "the branch's Postgres ended")
	said, err := io.ReadAll(w.r) // after the Postgres's own warning, if it had time for one
	if err != nil || !bytes.Contains(said, []byte("C57P02")) {
		t.Errorf("got %q, %v", said, err)
	}
}

// testChurn has clients come and go while their branch is held, ended and
// released over and over. Each is answered or told why not.
func testChurn(t *testing.T, server *pgtest.Server) {
	r := newRig(t, server, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	var answered, ended int
	var mu sync.Mutex
	for i := range 12 {
		wg.Go(func() {
			mode := []string{"sslmode=disable", "sslmode=require"}[i%2]
			for ctx.Err() == nil {
				conn, err := r.try(t, mode)
				for n := 0; err == nil && n < 20; n++ {
					_, err = conn.Exec(t.Context(), fmt.Sprintf("SELECT %d", n))
				}
				mu.Lock()
				switch {
				case err == nil:
					answered++
				case strings.Contains(err.Error(), "57P01"):
					ended++
				default:
					t.Errorf("got %v", err)
				}
				mu.Unlock()
				if conn != nil {
					_ = conn.Close(t.Context())
				}
			}
		})
	}
	for ctx.Err() == nil {
		r.Hold(branchID)
		r.End(branchID, "57P01", "the branch sleeps")
		r.Release(branchID)
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
	wg.Wait()
	if answered == 0 || ended == 0 {
		t.Errorf("%d were answered, %d ended", answered, ended)
	}
}
