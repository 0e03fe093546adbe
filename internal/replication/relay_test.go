package replication

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/pgtest"
)

// One production and one standby live through everything that happens to a
// connection.
func TestRelayThroughTroubles(t *testing.T) {
	production := pgtest.Start(t, pgtest.Options{
		Conf: map[string]string{"password_encryption": "scram-sha-256"},
		HBA:  []string{"host replication follower 127.0.0.1/32 scram-sha-256"},
	})
	production.Exec(t, "postgres", "CREATE ROLE follower LOGIN REPLICATION PASSWORD 'first'")
	must(t, CreateSlot(testContext(t), replicationConn(t, production), "pgb"))
	stopWriting := write(t, production)
	dir, _ := backupOf(t, production, BackupOptions{})
	relayDir := shortDir(t)
	with := func(password string) string {
		return production.ConnString("follower", "postgres") + " connect_timeout=2 password=" + password
	}
	r := relayTo(t, relayDir, with("first"))
	s := startStandby(t, production.Install, dir, relayDir, "pgb")
	caughtUp(t, production, s)

	t.Run("production restarts", func(t *testing.T) {
		production.Stop(t)
		eventually(t, 5*time.Second, "the relay says that nothing listens", func() bool {
			st := r.Status()
			return !st.Connected && st.LastError != nil && strings.Contains(st.LastError.Error(), "nothing listens")
		})
		production.Run(t)
		eventually(t, 10*time.Second, "it is connected again", func() bool { return r.Status().Connected })
		caughtUp(t, production, s)
	})

	t.Run("production is paused", func(t *testing.T) {
		signalAll(t, production, syscall.SIGSTOP)
		begin := time.Now()
		eventually(t, 20*time.Second, "the silence is noticed", func() bool {
			st := r.Status()
			return !st.Connected && strings.Contains(st.LastError.Error(), "sent nothing for 3s")
		})
		if took := time.Since(begin); took < 2*time.Second {
			t.Errorf("the silence was noticed after %s already", took)
		}
		eventually(t, 20*time.Second, "the relay says that there is no answer", func() bool {
			st := r.Status()
			return strings.Contains(st.LastError.Error(), "no answer from 127.0.0.1") && pgbough.ErrorCode(st.LastError) == pgbough.EUnreachable
		})
		signalAll(t, production, syscall.SIGCONT)
		eventually(t, 20*time.Second, "it is connected again", func() bool { return r.Status().Connected })
		caughtUp(t, production, s)
	})

	t.Run("the password changes", func(t *testing.T) {
		production.Exec(t, "postgres", "ALTER ROLE follower PASSWORD 'second'")
		if !r.Status().Connected {
			t.Error("a connection that was made before does not stay")
		}
		wrong, err := Dialer(with("wrong"), "pgbough relay")
		must(t, err)
		r.SetDial(wrong)
		eventually(t, 10*time.Second, "the relay says that the password is wrong", func() bool {
			st := r.Status()
			return !st.Connected && strings.Contains(st.LastError.Error(), "password authentication failed") && !strings.Contains(st.LastError.Error(), "second")
		})
		eventually(t, 5*time.Second, "the standby's log tells why it cannot connect", func() bool {
			log, err := os.ReadFile(s.log)
			return err == nil && strings.Contains(string(log), "password authentication failed")
		})
		right, err := Dialer(with("second"), "pgbough relay")
		must(t, err)
		r.SetDial(right)
		eventually(t, 10*time.Second, "it is connected again", func() bool { return r.Status().Connected })
		caughtUp(t, production, s)
	})

	t.Run("the slot is gone", func(t *testing.T) {
		r.SetDial(func(context.Context) (*pgconn.HijackedConn, error) { return nil, errors.New("not now") })
		must(t, DropSlot(testContext(t), replicationConn(t, production), "pgb"))
		right, err := Dialer(with("second"), "pgbough relay")
		must(t, err)
		r.SetDial(right)
		eventually(t, 10*time.Second, "the relay noted what production answered", func() bool {
			var e *pgconn.PgError
			return errors.As(r.Status().LastError, &e) && e.Code == "42704" && strings.Contains(e.Message, `replication slot "pgb" does not exist`)
		})
		must(t, CreateSlot(testContext(t), replicationConn(t, production), "pgb"))
		caughtUp(t, production, s)
	})

	t.Run("nothing happens at production", func(t *testing.T) {
		stopWriting()
		caughtUp(t, production, s)
		before := r.Status()
		time.Sleep(5 * time.Second) // longer than the idle timeout; the standby asks for signs of life meanwhile
		if st := r.Status(); !st.Connected || st.Since != before.Since {
			t.Errorf("the connection did not stay: %+v, then %+v", before, st)
		}
		write(t, production)
	})

	t.Run("cut while it streams", func(t *testing.T) {
		begin := time.Now()
		r.Cut()
		took := time.Since(begin)
		received := r.Status().Received
		t.Logf("the cut took %s", took)
		if took > 50*time.Millisecond { // a few hundred microseconds on an idle machine
			t.Errorf("the cut took %s", took)
		}
		r.Cut()
		if _, err := os.Lstat(filepath.Join(relayDir, SocketName)); !os.IsNotExist(err) {
			t.Errorf("the socket is still there: %v", err)
		}
		eventually(t, 5*time.Second, "production has noticed", func() bool {
			return production.Value(t, "postgres", "SELECT count(*) FROM pg_stat_replication") == "0"
		})
		if _, err := s.query("pg_promote()"); err != nil {
			t.Fatal(err)
		}
		if st := r.Status(); st.Received != received || st.Connected || !st.Cut {
			t.Errorf("after the cut: %+v, with %d bytes received before", st, received)
		}
	})
}

// signalAll sends sig to a server's postmaster and to all its children: first
// to the postmaster, so that no child is new.
func signalAll(t *testing.T, s *pgtest.Server, sig syscall.Signal) {
	t.Helper()
	must(t, syscall.Kill(s.PID(), sig))
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	must(t, err)
	for _, stat := range stats {
		b, err := os.ReadFile(stat)
		if err != nil {
			continue // it has ended
		}
		fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
		if fields[1] != itoa(s.PID()) {
			continue
		}
		pid := atoi(filepath.Base(filepath.Dir(stat)))
		_ = syscall.Kill(pid, sig) // it may have ended
	}
}

// upstreamPipe is an upstream of a relay that the test plays itself.
type upstreamPipe struct {
	mu    sync.Mutex
	conns []net.Conn // our ends
}

func (u *upstreamPipe) dial(t *testing.T) Dial {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	return func(ctx context.Context) (*pgconn.HijackedConn, error) {
		theirs, err := new(net.Dialer).DialContext(ctx, "tcp", listener.Addr().String())
		if err != nil {
			return nil, err
		}
		ours, err := listener.Accept()
		if err != nil {
			return nil, err
		}
		u.mu.Lock()
		defer u.mu.Unlock()
		u.conns = append(u.conns, ours)
		return &pgconn.HijackedConn{Conn: theirs, PID: 42, SecretKey: []byte("keep"), ParameterStatuses: map[string]string{"server_version": "15.18"}}, nil
	}
}

func (u *upstreamPipe) conn(t *testing.T, i int) net.Conn {
	t.Helper()
	var c net.Conn
	eventually(t, 5*time.Second, "the relay dials", func() bool {
		u.mu.Lock()
		defer u.mu.Unlock()
		if len(u.conns) > i {
			c = u.conns[i]
		}
		return c != nil
	})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func startRelay(t *testing.T, o RelayOptions) *Relay {
	t.Helper()
	o.UID, o.GID, o.Log = -1, -1, testLog(t)
	if o.Dir == "" {
		o.Dir = shortDir(t)
	}
	r, err := StartRelay(t.Context(), o)
	must(t, err)
	t.Cleanup(r.Cut)
	return r
}

func dialRelay(t *testing.T, r *Relay) net.Conn {
	t.Helper()
	c, err := net.Dial("unix", filepath.Join(r.o.Dir, SocketName))
	must(t, err)
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

func startupPacket(t *testing.T, version uint32, parameters ...string) []byte {
	t.Helper()
	b := binary.BigEndian.AppendUint32(nil, 0)
	b = binary.BigEndian.AppendUint32(b, version)
	for _, p := range parameters {
		b = append(append(b, p...), 0)
	}
	b = append(b, 0)
	binary.BigEndian.PutUint32(b, uint32(len(b)))
	return b
}

func TestRelayHandshake(t *testing.T) {
	var up upstreamPipe
	r := startRelay(t, RelayOptions{Dial: up.dial(t)})
	c := dialRelay(t, r)
	for _, code := range []uint32{codeGSS, codeSSL} {
		_, err := c.Write(binary.BigEndian.AppendUint32([]byte{0, 0, 0, 8}, code))
		must(t, err)
		var answer [1]byte
		if _, err := io.ReadFull(c, answer[:]); err != nil || answer[0] != 'N' {
			t.Fatalf("encryption: got %q, %v, want N", answer, err)
		}
	}
	_, err := c.Write(startupPacket(t, 3<<16|2, "user", "x", "replication", "true", "_pq_.something", "1"))
	must(t, err)
	front := pgproto3.NewFrontend(c, c)
	var got []string
	for len(got) < 5 {
		message, err := front.Receive()
		must(t, err)
		switch m := message.(type) {
		case *pgproto3.NegotiateProtocolVersion:
			got = append(got, "negotiate "+itoa(int(m.NewestMinorProtocol))+" "+strings.Join(m.UnrecognizedOptions, ","))
		case *pgproto3.AuthenticationOk:
			got = append(got, "ok")
		case *pgproto3.ParameterStatus:
			got = append(got, m.Name+"="+m.Value)
		case *pgproto3.BackendKeyData:
			if string(m.SecretKey) == "keep" || len(m.SecretKey) != 4 {
				t.Errorf("the key %q must be made up, of 4 bytes", m.SecretKey)
			}
			got = append(got, "key")
		case *pgproto3.ReadyForQuery:
			got = append(got, "ready")
		}
	}
	if want := "negotiate 0 _pq_.something; ok; server_version=15.18; key; ready"; strings.Join(got, "; ") != want {
		t.Errorf("got  %s\nwant %s", strings.Join(got, "; "), want)
	}
	upstream := up.conn(t, 0)
	for _, pair := range [][2]net.Conn{{c, upstream}, {upstream, c}} {
		_, err := pair[0].Write([]byte("d\x00\x00\x00\x09hello"))
		must(t, err)
		var b [10]byte
		if _, err := io.ReadFull(pair[1], b[:]); err != nil || string(b[5:]) != "hello" {
			t.Errorf("got %q, %v", b, err)
		}
	}
	eventually(t, 2*time.Second, "the bytes are counted", func() bool { s := r.Status(); return s.Received == 10 && s.Sent == 10 })

	second := dialRelay(t, r) // the standby came again and left the first behind
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("the connection before goes on")
	}
	if _, err := upstream.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the upstream connection before: got %v, want its end", err)
	}
	_, err = second.Write(startupPacket(t, 3<<16, "replication", "on"))
	must(t, err)
	up.conn(t, 1)
	eventually(t, 2*time.Second, "the second is connected", func() bool { return r.Status().Connected })
}

func TestRelayRefuses(t *testing.T) {
	r := startRelay(t, RelayOptions{Dial: func(context.Context) (*pgconn.HijackedConn, error) {
		return nil, errors.New("with a secret inside")
	}})
	for _, c := range []struct {
		name   string
		packet []byte
		want   string
	}{
		{"SQL", startupPacket(t, 3<<16, "user", "x", "database", "y"), "only a standby"},
		{"logical replication", startupPacket(t, 3<<16, "replication", "database"), "only a standby"},
		{"version 2", startupPacket(t, 2<<16), "version 2.0"},
		{"endless", []byte{0xff, 0xff, 0xff, 0xff, 0, 3, 0, 0}, "length"},
		{"no end", append([]byte{0, 0, 0, 9, 0, 3, 0, 0}, 'x'), "no end"},
		{"no upstream", startupPacket(t, 3<<16, "replication", "true"), "cannot be reached"},
	} {
		conn := dialRelay(t, r)
		_, err := conn.Write(c.packet)
		must(t, err)
		message, err := pgproto3.NewFrontend(conn, conn).Receive()
		e, ok := message.(*pgproto3.ErrorResponse)
		if err != nil || !ok || e.Severity != "FATAL" || !strings.Contains(e.Message, c.want) || strings.Contains(e.Message, "secret") {
			t.Errorf("%s: got %+v, %v, want FATAL with %q", c.name, message, err, c.want)
		}
	}
	cancelRequest := dialRelay(t, r)
	_, err := cancelRequest.Write(append([]byte{0, 0, 0, 16, 0x04, 0xd2, 0x16, 0x2e}, make([]byte, 8)...))
	must(t, err)
	if n, err := cancelRequest.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Error("a cancel request got an answer")
	}
}

// A standby can stream with our role, and do nothing else with it.
func TestRelayPassesOnlyStreaming(t *testing.T) {
	for _, c := range []struct {
		name, message string
		passes        bool
	}{
		{"start", query(`START_REPLICATION SLOT "a" 0/1 TIMELINE 1`), true},
		{"identify", query("IDENTIFY_SYSTEM"), true},
		{"status", "d\x00\x00\x00\x05r", true},
		{"base backup", query("BASE_BACKUP"), false},
		{"drop a slot", query(" drop_replication_slot \"theirs\""), false},
		{"SQL", query("SELECT 1"), false},
		{"extended query", "P\x00\x00\x00\x08\x00\x00\x00\x00", false},
		{"bad length", "Q\x00\x00\x00\x03", false},
		{"too long", "d\x7f\x00\x00\x03", false},
	} {
		var up upstreamPipe
		r := startRelay(t, RelayOptions{Dial: up.dial(t)})
		conn := dialRelay(t, r)
		_, err := conn.Write(startupPacket(t, 3<<16, "replication", "true"))
		must(t, err)
		upstream := up.conn(t, 0)
		_, err = conn.Write([]byte(c.message))
		must(t, err)
		if c.passes {
			_, err = conn.Write([]byte("X\x00\x00\x00\x04"))
			must(t, err)
			must(t, conn.(*net.UnixConn).CloseWrite())
		}
		_ = upstream.SetReadDeadline(time.Now().Add(5 * time.Second))
		got, err := io.ReadAll(upstream)
		if want := map[bool]string{true: c.message + "X\x00\x00\x00\x04"}[c.passes]; err != nil || string(got) != want {
			t.Errorf("%s: the upstream got %q, %v, want %q", c.name, got, err, want)
		}
		if noted := r.Status().LastError != nil; noted == c.passes {
			t.Errorf("%s: noted as an error: %v", c.name, r.Status().LastError)
		}
		r.Cut()
	}
}

func query(text string) string {
	b, _ := (&pgproto3.Query{String: text}).Encode(nil)
	return string(b)
}

// A cut does not wait for a dial, a silent standby or a peer that reads nothing.
func TestRelayCutIsAtOnce(t *testing.T) {
	t.Run("while it dials", func(t *testing.T) {
		dialing := make(chan struct{})
		r := startRelay(t, RelayOptions{Dial: func(ctx context.Context) (*pgconn.HijackedConn, error) {
			close(dialing)
			<-ctx.Done()
			return nil, ctx.Err()
		}})
		_, err := dialRelay(t, r).Write(startupPacket(t, 3<<16, "replication", "true"))
		must(t, err)
		<-dialing
		cutQuickly(t, r)
		if err := r.Status().LastError; err != nil {
			t.Errorf("the cut is noted as an error: %v", err)
		}
	})
	t.Run("before the startup packet", func(t *testing.T) {
		r := startRelay(t, RelayOptions{})
		dialRelay(t, r)
		cutQuickly(t, r)
	})
	t.Run("while the standby reads nothing", func(t *testing.T) {
		var up upstreamPipe
		r := startRelay(t, RelayOptions{Dial: up.dial(t)})
		_, err := dialRelay(t, r).Write(startupPacket(t, 3<<16, "replication", "true"))
		must(t, err)
		upstream := up.conn(t, 0)
		_ = upstream.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
		if n, err := upstream.Write(make([]byte, 64<<20)); err == nil {
			t.Fatalf("all %d bytes passed", n)
		}
		cutQuickly(t, r)
	})
}

// Between Hush and Cut nothing passes, and the standby does not notice an end.
func TestRelayHush(t *testing.T) {
	var up upstreamPipe
	r := startRelay(t, RelayOptions{Dial: up.dial(t)})
	standby := dialRelay(t, r)
	_, err := standby.Write(startupPacket(t, 3<<16, "replication", "true"))
	must(t, err)
	upstream := up.conn(t, 0)
	eventually(t, 5*time.Second, "it is connected through", func() bool { return r.Status().Connected })
	r.Hush()
	if _, err := upstream.Write([]byte("x")); err == nil {
		_ = upstream.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := upstream.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("the upstream connection is still there: %v", err)
		}
	}
	if _, err := net.Dial("unix", filepath.Join(r.o.Dir, SocketName)); err == nil {
		t.Error("the socket still takes connections")
	}
	greeting := make([]byte, 4096)
	must(t, standby.SetReadDeadline(time.Now().Add(300*time.Millisecond)))
	for err == nil {
		_, err = standby.Read(greeting)
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the standby sees %v, want silence", err)
	}
	r.Cut()
	must(t, standby.SetReadDeadline(time.Now().Add(5*time.Second)))
	if _, err := standby.Read(greeting); errors.Is(err, os.ErrDeadlineExceeded) || err == nil {
		t.Errorf("after the cut the standby sees %v, want the end", err)
	}
}

func cutQuickly(t *testing.T, r *Relay) {
	t.Helper()
	begin := time.Now()
	r.Cut()
	if took := time.Since(begin); took > 100*time.Millisecond { // 5 ms, and room for a busy machine
		t.Errorf("the cut took %s", took)
	}
	if _, err := net.Dial("unix", filepath.Join(r.o.Dir, SocketName)); err == nil {
		t.Error("the socket still takes connections")
	}
}

func TestRelayIdleTimeout(t *testing.T) {
	var up upstreamPipe
	r := startRelay(t, RelayOptions{Dial: up.dial(t), IdleTimeout: 300 * time.Millisecond})
	c := dialRelay(t, r)
	_, err := c.Write(startupPacket(t, 3<<16, "replication", "true"))
	must(t, err)
	upstream := up.conn(t, 0)
	for range 4 { // a sign of life keeps it
		time.Sleep(150 * time.Millisecond)
		_, err := upstream.Write([]byte("x"))
		must(t, err)
	}
	if !r.Status().Connected {
		t.Fatal("it ended although the upstream spoke")
	}
	eventually(t, 5*time.Second, "the silence is noticed", func() bool { return !r.Status().Connected })
	if err := r.Status().LastError; err == nil || !strings.Contains(err.Error(), "sent nothing for 300ms") {
		t.Errorf("got %v", err)
	}
}

// What lies at the socket's place is replaced, and a link there not followed.
func TestRelaySocketPlace(t *testing.T) {
	dir, elsewhere := shortDir(t), shortDir(t)
	target := filepath.Join(elsewhere, "target")
	must(t, os.WriteFile(target, []byte("precious"), 0o640))
	for name, plant := range map[string]func(path string) error{
		"a link to a file":    func(p string) error { return os.Symlink(target, p) },
		"a link to nothing":   func(p string) error { return os.Symlink(filepath.Join(elsewhere, "new"), p) },
		"a plain file":        func(p string) error { return os.WriteFile(p, nil, 0o600) },
		"a stale socket":      staleSocket,
		"nothing":             func(string) error { return nil },
		"two stale leftovers": func(p string) error { return errors.Join(staleSocket(p), os.Symlink(target, p+".new")) },
	} {
		must(t, plant(filepath.Join(dir, SocketName)))
		r := startRelay(t, RelayOptions{Dir: dir})
		info, err := os.Lstat(filepath.Join(dir, SocketName))
		must(t, err)
		if info.Mode().Type() != os.ModeSocket || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: got %s, want a socket for its owner alone", name, info.Mode())
		}
		dialRelay(t, r)
		r.Cut()
		if left, _ := os.ReadDir(dir); len(left) != 0 {
			t.Errorf("%s: after the cut there is still %s", name, left[0].Name())
		}
	}
	b, err := os.ReadFile(target)
	info, _ := os.Stat(target)
	if left, _ := os.ReadDir(elsewhere); err != nil || string(b) != "precious" || info.Mode().Perm() != 0o640 || len(left) != 1 {
		t.Errorf("a link was followed: %q %v %v", b, err, info.Mode())
	}
}

func staleSocket(path string) error {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return err
	}
	l.SetUnlinkOnClose(false)
	return l.Close()
}

// A standby that reaches its upstream by a directory with a long name.
func TestRelayLongDirectory(t *testing.T) {
	dir := filepath.Join(shortDir(t), strings.Repeat("long", 40))
	must(t, os.Mkdir(dir, 0o700))
	startRelay(t, RelayOptions{Dir: dir})
	if _, err := os.Lstat(filepath.Join(dir, SocketName)); err != nil {
		t.Error(err)
	}
}
