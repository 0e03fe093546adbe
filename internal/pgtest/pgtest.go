// Package pgtest runs real Postgres servers for tests. A Server stands in for
// production: it listens on a free port of the loopback interface and on a
// socket, and can be stopped, killed, restarted and paused.
package pgtest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbough/pgbough/internal/postgres"
)

// UID is the unprivileged user that test servers run as when the test is root:
// nobody, since initdb wants one that has a name.
const UID = 65534

// Options of a Server. The zero value is Postgres 15 with wal_level=replica,
// fsync off, a superuser postgres, and trust on loopback and socket.
type Options struct {
	Major int               // 15 when 0
	Conf  map[string]string // lines of postgresql.conf
	HBA   []string          // lines put before the default ones of pg_hba.conf
	Init  []string          // further arguments of initdb
}

// Server is a running Postgres.
type Server struct {
	Dir     string // PGDATA
	Sockets string // socket directory
	Port    int
	Install postgres.Installation
	LogFile string

	root string
	cmd  *exec.Cmd
	done chan struct{}
}

// Start makes a new cluster and starts it. It is stopped and removed with the test.
func Start(t testing.TB, o Options) *Server {
	t.Helper()
	if o.Major == 0 {
		o.Major = 15
	}
	in, err := postgres.FindInstallation(context.Background(), o.Major)
	if err != nil {
		t.Fatalf("%v (scripts/setup installs it)", err)
	}
	root, err := os.MkdirTemp("", "pgtest")
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{Dir: filepath.Join(root, "data"), Sockets: filepath.Join(root, "s"), Install: in, root: root, LogFile: filepath.Join(root, "log")}
	t.Cleanup(func() {
		s.Kill(t)
		if t.Failed() {
			t.Logf("tail of the test server's log:\n%s", s.LogTail(60))
		}
		if err := os.RemoveAll(root); err != nil {
			t.Errorf("remove the test server: %v", err)
		}
	})
	s.must(t, os.Mkdir(s.Sockets, 0o700))
	for _, dir := range []string{root, s.Sockets} {
		if os.Geteuid() == 0 {
			s.must(t, os.Chown(dir, UID, UID))
		}
	}
	args := append([]string{"-D", s.Dir, "-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale", "C.UTF-8", "--data-checksums"}, o.Init...)
	initdb := s.command("initdb", args...)
	if out, err := initdb.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	s.Port = freePort(t)
	conf := map[string]string{
		"listen_addresses": "127.0.0.1", "port": fmt.Sprint(s.Port), "unix_socket_directories": s.Sockets,
		"fsync": "off", "wal_level": "replica", "max_wal_senders": "10", "max_slot_wal_keep_size": "4GB",
	}
	for k, v := range o.Conf {
		conf[k] = v
	}
	var lines strings.Builder
	for k, v := range conf {
		fmt.Fprintf(&lines, "%s = '%s'\n", k, strings.ReplaceAll(v, "'", "''"))
	}
	s.append(t, "postgresql.conf", lines.String())
	if len(o.HBA) > 0 {
		old, err := os.ReadFile(filepath.Join(s.Dir, "pg_hba.conf"))
		s.must(t, err)
		s.must(t, os.WriteFile(filepath.Join(s.Dir, "pg_hba.conf"), append([]byte(strings.Join(o.HBA, "\n")+"\n"), old...), 0o600))
	}
	s.Run(t)
	return s
}

// Run starts a stopped server and waits until it accepts connections.
func (s *Server) Run(t testing.TB) {
	t.Helper()
	log, err := os.OpenFile(s.LogFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	s.must(t, err)
	defer func() { _ = log.Close() }()
	s.cmd = s.command("postgres", "-D", s.Dir)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.must(t, s.cmd.Start())
	s.done = make(chan struct{})
	go func(cmd *exec.Cmd, done chan struct{}) { _ = cmd.Wait(); close(done) }(s.cmd, s.done)
	deadline := time.Now().Add(60 * time.Second)
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		conn, err := pgx.Connect(ctx, s.ConnString("postgres", "postgres"))
		if err == nil {
			_ = conn.Close(ctx)
			cancel()
			return
		}
		cancel()
		select {
		case <-s.done:
			t.Fatalf("the test server did not start:\n%s", s.LogTail(40))
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("the test server does not accept connections: %v\n%s", err, s.LogTail(40))
		}
	}
}

// Stop stops the server in fast mode.
func (s *Server) Stop(t testing.TB) { s.end(t, syscall.SIGINT) }

// Kill ends the server at once, as a crash would.
func (s *Server) Kill(t testing.TB) { s.end(t, syscall.SIGQUIT) }

func (s *Server) end(t testing.TB, sig syscall.Signal) {
	t.Helper()
	if s.done == nil {
		return
	}
	select {
	case <-s.done:
		return
	default:
	}
	if err := s.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("stop the test server: %v", err)
	}
	select {
	case <-s.done:
	case <-time.After(60 * time.Second):
		t.Errorf("the test server did not stop in a minute")
		_ = s.cmd.Process.Kill()
		<-s.done
	}
}

// Restart stops and starts the server.
func (s *Server) Restart(t testing.TB) { t.Helper(); s.Stop(t); s.Run(t) }

// PID is the postmaster's.
func (s *Server) PID() int { return s.cmd.Process.Pid }

// ConnString is a libpq connection string over TCP.
func (s *Server) ConnString(user, database string) string {
	return fmt.Sprintf("host=127.0.0.1 port=%d user=%s dbname=%s sslmode=disable", s.Port, user, database)
}

// Conn connects as postgres to database; the connection closes with the test.
func (s *Server) Conn(t testing.TB, database string) *pgx.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, s.ConnString("postgres", database))
	s.must(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = conn.Close(ctx)
	})
	return conn
}

// Exec runs SQL (several statements without arguments, or one with) in database.
func (s *Server) Exec(t testing.TB, database, sql string, args ...any) {
	t.Helper()
	conn := s.Conn(t, database)
	defer func() { _ = conn.Close(context.Background()) }()
	if _, err := conn.Exec(context.Background(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// Value runs a query that returns one value as text.
func (s *Server) Value(t testing.TB, database, sql string, args ...any) string {
	t.Helper()
	conn := s.Conn(t, database)
	defer func() { _ = conn.Close(context.Background()) }()
	var v *string
	if err := conn.QueryRow(context.Background(), "SELECT ("+sql+")::text", args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	if v == nil {
		return ""
	}
	return *v
}

// LogTail is the last n lines of its log.
func (s *Server) LogTail(n int) string {
	b, err := os.ReadFile(s.LogFile)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

func (s *Server) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(s.Install.BinDir, name), args...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C.UTF-8", "TZ=UTC"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: UID, Gid: UID}
	}
	return cmd
}

func (s *Server) append(t testing.TB, file, text string) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(s.Dir, file), os.O_APPEND|os.O_WRONLY, 0o600)
	s.must(t, err)
	_, err = f.WriteString("\n" + text)
	s.must(t, err)
	s.must(t, f.Close())
}

// Configure appends settings to postgresql.conf; Restart or a reload makes them count.
func (s *Server) Configure(t testing.TB, conf map[string]string) {
	t.Helper()
	var lines strings.Builder
	for k, v := range conf {
		fmt.Fprintf(&lines, "%s = '%s'\n", k, strings.ReplaceAll(v, "'", "''"))
	}
	s.append(t, "postgresql.conf", lines.String())
}

func (s *Server) must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func freePort(t testing.TB) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port
}
