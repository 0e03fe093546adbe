package replication

import (
	"context"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgbough/pgbough/internal/pgtest"
)

// slowWriter is a connection whose first write takes until somebody reads for the
// second time meanwhile, as on a busy machine.
type slowWriter struct {
	net.Conn
	slowed atomic.Bool
	reads  atomic.Int32
}

func (c *slowWriter) Read(b []byte) (int, error) {
	c.reads.Add(1)
	return c.Conn.Read(b)
}

func (c *slowWriter) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if !c.slowed.Swap(true) {
		for began := time.Now(); c.reads.Load() < 2 && time.Since(began) < 5*time.Second; {
			time.Sleep(time.Millisecond)
		}
	}
	return n, err
}

// What a server sends on a connection that was slow to make comes to who has taken
// it over, and not to pgconn's reading in the background.
func TestHijackReadsNothingAhead(t *testing.T) {
	s := pgtest.Start(t, pgtest.Options{})
	config, err := parseConfig(s.ConnString("postgres", "postgres"), "pgbough test")
	must(t, err)
	slow := &slowWriter{}
	config.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		slow.Conn, err = new(net.Dialer).DialContext(ctx, network, address)
		return slow, err
	}
	conn, err := connect(testContext(t), config)
	must(t, err)
	if slow.reads.Load() < 2 {
		t.Fatal("pgconn does not read in the background any more, and this test tries nothing")
	}
	plain, err := Hijack(testContext(t), conn)
	must(t, err)
	defer func() { _ = plain.Conn.Close() }()
	must(t, plain.Conn.SetDeadline(time.Now().Add(10*time.Second)))
	_, err = io.WriteString(plain.Conn, query("IDENTIFY_SYSTEM"))
	must(t, err)
	message, err := pgproto3.NewFrontend(plain.Conn, plain.Conn).Receive()
	if _, ok := message.(*pgproto3.RowDescription); !ok || err != nil {
		t.Errorf("the answer begins with %T, %v", message, err)
	}
}

// An upstream that does not answer a standby's first command is given up soon;
// one that has answered may be silent for longer.
func TestRelayFirstAnswer(t *testing.T) {
	const soon = 300 * time.Millisecond
	for _, answers := range []bool{false, true} {
		var up upstreamPipe
		r := startRelay(t, RelayOptions{Dial: up.dial(t), DialTimeout: soon, IdleTimeout: 10 * soon})
		standby := dialRelay(t, r)
		_, err := standby.Write(append(startupPacket(t, 3<<16, "replication", "true"), query("IDENTIFY_SYSTEM")...))
		must(t, err)
		upstream := up.conn(t, 0)
		began, want := time.Now(), soon
		if answers {
			want = 10 * soon
			_, err = upstream.Write([]byte("Z\x00\x00\x00\x05I"))
			must(t, err)
		}
		_, _ = io.Copy(io.Discard, standby)
		if took := time.Since(began); took < want*9/10 || took > want+5*soon {
			t.Errorf("with an answer %t: it was given up after %s, want %s", answers, took, want)
		}
	}
}

// A relay that is renewed lets the standby come again.
func TestRelayRenew(t *testing.T) {
	var up upstreamPipe
	r := startRelay(t, RelayOptions{Dial: up.dial(t)})
	r.Renew() // nobody is there
	for i := range 2 {
		standby := dialRelay(t, r)
		_, err := standby.Write(startupPacket(t, 3<<16, "replication", "true"))
		must(t, err)
		up.conn(t, i)
		eventually(t, 5*time.Second, "it is connected", func() bool { return r.Status().Connected })
		r.Renew()
		if _, err := io.Copy(io.Discard, standby); err != nil {
			t.Errorf("connection %d: %v", i, err)
		}
	}
	if err := r.Status().LastError; err != nil {
		t.Errorf("it is noted as an error: %v", err)
	}
}
