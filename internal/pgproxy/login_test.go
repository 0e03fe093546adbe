package pgproxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/pgtest"
)

func loginTests() []proxyTest {
	return []proxyTest{
		{"ways to name a branch", testWays},
		{"no branch", testNoBranch},
		{"refused logins", testRefused},
		{"the Postgres refuses", testPostgresRefuses},
		{"settings of the startup packet", testSettings},
		{"a branch that is being made", testBeingMade},
		{"a branch that is woken", testBeingWoken},
		{"a compute that does not start", testNoStart},
		{"silent clients", testSilent},
		{"what strangers are told", testSecretive},
		{"too many clients", testTooMany},
		{"too many strangers", testStrangers},
		{"no TLS", testPlain},
	}
}

func testWays(t *testing.T, server *pgtest.Server) {
	r := newRig(t, server, nil)
	for _, way := range []struct{ extra, database string }{
		{"", "postgres"},
		{"options='-c geqo=off endpoint=" + endpoint + "'", "postgres"},
		{"options='--endpoint=" + branchID + " -c geqo=off'", "postgres"},
		{"options='' dbname=postgres@fix-login", "postgres"},
		{"options='' dbname=postgres@shop/fix-login", "postgres"},
		{"options='' dbname=at@home@fix-login", "at@home"},
		{"dbname=at@home", "at@home"}, // the options count first
	} {
		conn, err := r.try(t, way.extra)
		if err != nil {
			t.Errorf("%s: %v", way.extra, err)
			continue
		}
		if got := value[string](t, conn, "SELECT current_database()"); got != way.database {
			t.Errorf("%s: database %q, want %q", way.extra, got, way.database)
		}
		if want := strings.Contains(way.extra, "geqo"); (value[string](t, conn, "SHOW geqo") == "off") != want {
			t.Errorf("%s: the other options do not count", way.extra)
		}
	}
}

func testNoBranch(t *testing.T, server *pgtest.Server) {
	r := newRig(t, server, nil)
	for extra, want := range map[string][2]string{
		"options=''":                                           {"08004", "does not say which branch it is for"},
		"options='' dbname=postgres@":                          {"08004", "endpoint%3D"},
		"options='' dbname=postgres@other":                     {"3D000", `branch "other" does not exist`},
		"options='endpoint=ep-other-oak-1'":                    {"3D000", `branch "ep-other-oak-1" does not exist`},
		"options='endpoint=a endpoint=b'":                      {"08004", "two branches"},
		"options='endpoint=a" + strings.Repeat("b", 200) + "'": {"3D000", "does not exist"},
	} {
		_, err := r.try(t, extra)
		wants(t, err, want[0], want[1])
	}
	if r.world.connects.Load() != 0 {
		t.Error("a Postgres was connected to")
	}
}

// testRefused looks at the bytes of logins that are refused: all must be alike.
// The names have the same length, so that only they differ.
func testRefused(t *testing.T, server *pgtest.Server) {
	r := newRig(t, server, nil)
	r.world.set(func() { r.world.expires["old"] = time.Now().Add(-time.Minute) })
	_, err := r.try(t, "password=wrong")
	wants(t, err, "28P01", `password authentication failed for user "app"`)
	wrong := r.refusal(t, "app")
	for _, role := range []string{"nos", "nil", "old"} {
		_, err := r.try(t, "password=old user="+role)
		wants(t, err, "28P01", `password authentication failed for user "`+role+`"`)
		if diff := cmp.Diff(wrong, strings.ReplaceAll(r.refusal(t, role), role, "app")); diff != "" {
			t.Errorf("%s is not refused as a wrong password is:\n%s", role, diff)
		}
	}
	if first, second := r.salt(t, "nos"), r.salt(t, "nos"); first != second {
		t.Error("a role that does not exist has another salt each time")
	}
	_, err = r.try(t, "user=five password=wrong")
	wants(t, err, "28P01", `password authentication failed for user "five"`)
	if r.world.connects.Load() != 0 {
		t.Error("a Postgres was connected to before the login")
	}
	r.world.set(func() { r.world.expires["old"] = time.Now().Add(time.Hour) })
	r.worksWith(t, "user=old password=old")
	r.worksWith(t, "user=five password=five")
	if got := r.Stats().AuthFailures; got < 8 {
		t.Errorf("%d failures were counted", got)
	}
	if log := r.log.String(); !strings.Contains(log, "level=INFO msg=\"a client was refused\"") || !strings.Contains(log, "role=nos branch="+branchID) {
		t.Errorf("the log does not tell who was refused:\n%s", log)
	}
}

func (r *rig) worksWith(t *testing.T, extra string) {
	t.Helper()
	conn, err := r.try(t, extra)
	if err != nil {
		t.Errorf("%s: %v", extra, err)
		return
	}
	_ = value[int](t, conn, "SELECT 1")
}

// refusal is all that a server says to somebody with a wrong password, without
// what is random in it.
func (r *rig) refusal(t *testing.T, role string) string {
	t.Helper()
	w := dial(t, r.addr.String())
	w.startup(t, protocol3, "user", role, "database", "postgres", "options", "endpoint="+endpoint)
	said := fmt.Sprintf("%q", w.message(t))
	w.send(t, 'p', "SCRAM-SHA-256\x00\x00\x00\x00\x0cn,,n=,r=nonce")
	challenge := w.message(t)
	fields := strings.Split(string(challenge), ",")
	nonce := strings.TrimPrefix(fields[0][9:], "r=")
	said += fmt.Sprintf(" %q %d %s", challenge[:len("Rxxxxyyyyr=nonce")], len(challenge), fields[2])
	w.send(t, 'p', "c=biws,r="+nonce+",p="+strings.Repeat("A", 43)+"=")
	said += fmt.Sprintf(" %q", w.message(t))
	w.end(t)
	return said
}

func (r *rig) salt(t *testing.T, role string) string {
	t.Helper()
	w := dial(t, r.addr.String())
	w.startup(t, protocol3, "user", role, "database", "postgres", "options", "endpoint="+endpoint)
	w.message(t)
	w.send(t, 'p', "SCRAM-SHA-256\x00\x00\x00\x00\x0cn,,n=,r=nonce")
	return strings.Split(string(w.message(t)), ",")[1]
}

func testPostgresRefuses(t *testing.T, server *pgtest.Server) {
	r := newRig(t, server, nil)
	_, err := r.try(t, "dbname=nosuch")
	wants(t, err, "3D000", `database "nosuch" does not exist`)
	_, err = r.try(t, "user=nobody")
	wants(t, err, "28000", `role "nobody" is not permitted to log in`)
	_, err = r.try(t, "options='endpoint="+endpoint+" -c nosuch.=1'")
	wants(t, err, "42602", "nosuch.")
}

func testSettings(t *testing.T, server *pgtest.Server) {
	r := newRig(t, server, nil)
	conn := r.connect(t, "application_name='a b' client_encoding=LATIN1 search_path=x")
	for name, want := range map[string]string{"application_name": "a b", "client_encoding": "LATIN1", "search_path": "x"} {
		if got := value[string](t, conn, "SELECT current_setting($1)", name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if got := conn.PgConn().ParameterStatus("client_encoding"); got != "LATIN1" {
		t.Errorf("the client was told that client_encoding is %q", got)
	}
	if pid := value[uint32](t, conn, "SELECT pg_backend_pid()"); pid != conn.PgConn().PID() {
		t.Errorf("the client was told pid %d, it is %d", conn.PgConn().PID(), pid)
	}
}

// later connects in the background.
func (r *rig) later(t *testing.T, extra string) <-chan error {
	done := make(chan error, 1)
	go func() {
		conn, err := r.try(t, extra)
		if err == nil {
			_, err = conn.Exec(t.Context(), "SELECT 1")
		}
		done <- err
	}()
	return done
}

func testBeingMade(t *testing.T, server *pgtest.Server) {
	r := newRig(t, server, func(o *Options) { o.Wait = 700 * time.Millisecond })
	r.world.set(func() { r.world.making = make(chan struct{}) })
	done := r.later(t, "")
	eventually(t, "it waits", func() bool { return r.Stats().Open == 1 })
	// One that goes away is noticed.
	w := dial(t, r.addr.String())
	w.startup(t, protocol3, "user", "app", "database", "postgres", "options", "endpoint="+endpoint)
	eventually(t, "two wait", func() bool { return r.Stats().Open == 2 })
	w.close(t)
	eventually(t, "one has gone", func() bool { return r.Stats().Open == 1 })
	close(r.world.making)
	must(t, <-done)
	r.world.set(func() { r.world.making = make(chan struct{}) })
	_, err := r.try(t, "")
	wants(t, err, "57P03", "not ready yet")
}

func testBeingWoken(t *testing.T, server *pgtest.Server) {
	r := newRig(t, server, nil)
	r.world.set(func() { r.world.starting = make(chan struct{}) })
	done := r.later(t, "")
	eventually(t, "it waits", func() bool { return r.Clients(branchID) == 1 && r.world.connects.Load() == 1 })
	leave := r.abandoned(t)
	eventually(t, "two wait", func() bool { return r.Clients(branchID) == 2 })
	leave()
	eventually(t, "one has gone", func() bool { return r.Clients(branchID) == 1 })
	close(r.world.starting)
	must(t, <-done)
}

// abandoned logs in, and returns what breaks the connection.
func (r *rig) abandoned(t *testing.T) (leave func()) {
	t.Helper()
	config, err := pgconn.ParseConfig(r.uri(""))
	must(t, err)
	dialled := make(chan net.Conn, 1)
	config.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
		dialled <- conn
		return conn, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if _, err := pgconn.ConnectConfig(t.Context(), config); err == nil {
			t.Error("it was not left")
		}
	}()
	return func() { _ = (<-dialled).Close(); <-done }
}

func testNoStart(t *testing.T, server *pgtest.Server) {
	r := newRig(t, server, nil)
	for code, want := range map[pgbough.Code]string{
		pgbough.EInternal: "58000", pgbough.EConflict: "57P03", pgbough.ELocked: "57P03", pgbough.ENoSpace: "53100", pgbough.ENotFound: "3D000",
	} {
		r.world.set(func() { r.world.failure = pgbough.Errorf(code, "it cannot run").WithHint("do this") })
		_, err := r.try(t, "")
		wants(t, err, want, "it cannot run do this")
	}
	r.world.set(func() { r.world.failure = errors.New("private") })
	_, err := r.try(t, "")
	wants(t, err, "58000", "could not serve this connection")
	if !strings.Contains(r.log.String(), "private") {
		t.Error("the log does not say why")
	}
	// A Postgres that goes away while it takes the connection.
	l, err := net.Listen("unix", t.TempDir()+"/s")
	must(t, err)
	defer func() { _ = l.Close() }()
	go func() {
		conn, err := l.Accept()
		if err == nil {
			_ = conn.Close()
		}
	}()
	r = newRig(t, server, func(o *Options) { o.Service = elsewhere{o.Service.(*world), l.Addr().String()} })
	_, err = r.try(t, "")
	wants(t, err, "57P03", "ended while it took the connection")
}

// elsewhere is a world whose branches are behind another socket.
type elsewhere struct {
	*world
	path string
}

func (e elsewhere) Connect(ctx context.Context, _ string) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "unix", e.path)
}

func testSilent(t *testing.T, server *pgtest.Server) {
	r := newRig(t, server, func(o *Options) { o.Startup, o.Login = 100*time.Millisecond, 150*time.Millisecond })
	silent := dial(t, r.addr.String())
	half := dial(t, r.addr.String())
	half.write(t, []byte{0, 0, 0, 100, 0, 3})
	tls := dial(t, r.addr.String())
	tls.write(t, []byte{0x16, 3, 1, 2, 0})
	unproved := dial(t, r.addr.String())
	unproved.startup(t, protocol3, "user", "app", "database", "postgres", "options", "endpoint="+endpoint)
	unproved.message(t)
	for _, w := range []*wire{silent, half, unproved} {
		if said := string(w.message(t)); !strings.Contains(said, "C08P01\x00Mthe client took too long") {
			t.Errorf("got %q", said)
		}
		w.end(t)
	}
	tls.end(t)
	if r.world.connects.Load() != 0 {
		t.Error("a Postgres was connected to")
	}
}

// testSecretive lets the service say things that are not for somebody who has
// proved nothing.
func testSecretive(t *testing.T, server *pgtest.Server) {
	r := newRig(t, server, nil)
	for _, code := range []pgbough.Code{pgbough.EInternal, pgbough.EConflict, pgbough.ELocked, pgbough.ENoSpace, pgbough.EDenied} {
		r.world.set(func() {
			r.world.refusal = pgbough.Errorf(code, "secret-branch is stopped: %w", errors.New("secret-cause")).WithHint("see secret-project")
		})
		w := dial(t, r.addr.String())
		w.startup(t, protocol3, "user", "app", "database", "postgres", "options", "endpoint="+endpoint)
		said := string(w.message(t))
		if strings.Contains(said, "secret-") || !strings.Contains(said, "C57P03\x00Mthe branch cannot be connected to now") {
			t.Errorf("%s: a stranger is told %q", code, said)
		}
		w.end(t)
	}
	if !strings.Contains(r.log.String(), "secret-branch is stopped") {
		t.Error("the log does not say why")
	}
}

func testTooMany(t *testing.T, server *pgtest.Server) {
	r := newRig(t, server, func(o *Options) { o.MaxClients = 2 })
	first := r.connect(t, "")
	r.connect(t, "")
	_, err := r.try(t, "")
	wants(t, err, "53300", "limit of 2 connections")
	must(t, first.Close(t.Context()))
	eventually(t, "one has gone", func() bool { return r.Stats().Open == 1 })
	r.worksWith(t, "")
}

// testStrangers has strangers come in greater numbers than there are places:
// users get in all the same, and the strangers that were there first are sent away.
func testStrangers(t *testing.T, server *pgtest.Server) {
	r := newRig(t, server, func(o *Options) { o.MaxClients, o.MaxStrangers = 2, 3 })
	user := r.connect(t, "")
	var all []*wire
	for i := range 6 {
		w := dial(t, r.addr.String())
		switch i % 3 {
		case 0: // one that asks for what there is not
			w.code(t, codeGSS)
			w.byte(t)
		case 1: // one that has named a branch, and is asked for a password
			w.startup(t, protocol3, "user", "app", "database", "postgres", "options", "endpoint="+endpoint)
			w.message(t)
		case 2: // one that begins with TLS
			w.code(t, codeSSL)
			w.byte(t)
		}
		all = append(all, w)
	}
	r.worksWith(t, "")
	for i, w := range all[:4] {
		if i%3 == 2 {
			w.end(t) // nothing can be said while TLS begins
		} else if said := string(w.message(t)); !strings.Contains(said, "C53300\x00Mtoo many clients that have not logged in") {
			t.Errorf("stranger %d: %q", i, said)
		}
	}
	eventually(t, "the first have gone", func() bool { return r.Stats().Open <= 4 })
	all[4].send(t, 'p', "SCRAM-SHA-256\x00\x00\x00\x00\x0cn,,n=,r=nonce")
	all[4].message(t) // it goes on
	_ = value[int](t, user, "SELECT 1")
}

func testPlain(t *testing.T, server *pgtest.Server) {
	r := newRig(t, server, func(o *Options) { o.Plain = PlainNever })
	_, err := r.try(t, "")
	wants(t, err, "28000", "sslmode=require")
	r.worksWith(t, "sslmode=require")
	for plain, want := range map[Plain]bool{PlainNever: false, PlainLoopback: false, PlainAlways: true} {
		p := New(Options{Plain: plain})
		if err := p.admit(&client{raw: remote{}, conn: remote{}}); (err == nil) != want {
			t.Errorf("a client of another machine, without TLS, with %d: %v", plain, err)
		}
	}
}

// remote is a connection from another machine.
type remote struct{ net.Conn }

func (remote) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1} }
