package replication

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbough/pgbough/internal/pgtest"
	"github.com/pgbough/pgbough/internal/postgres"
)

// owner is whom a test gives files to: the user that servers run as.
func owner() int {
	if os.Geteuid() == 0 {
		return pgtest.UID
	}
	return -1
}

// shortDir is a directory that the servers' user can enter; t.TempDir's cannot,
// and its name may be too long for a socket.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "repl")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	must(t, os.Chown(dir, owner(), owner()))
	must(t, os.Chmod(dir, 0o700))
	return dir
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func testLog(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}

// eventually waits until ok holds.
func eventually(t *testing.T, within time.Duration, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(within)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", within, what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func replicationConn(t *testing.T, s *pgtest.Server) *pgconn.PgConn {
	t.Helper()
	conn, err := Connect(testContext(t), s.ConnString("postgres", "postgres"), "pgbough test")
	must(t, err)
	t.Cleanup(func() { closeSoon(context.Background(), conn) })
	return conn
}

// backupOf takes a base backup of s into a fresh directory.
func backupOf(t *testing.T, s *pgtest.Server, o BackupOptions) (string, BackupResult) {
	t.Helper()
	dir := shortDir(t)
	o.ConnString, o.Dir, o.UID, o.GID, o.FastCheckpoint, o.Log = s.ConnString("postgres", "postgres"), openRoot(t, dir), owner(), owner(), true, testLog(t)
	result, err := BaseBackup(testContext(t), o)
	must(t, err)
	return dir, result
}

func openRoot(t *testing.T, dir string) *os.Root {
	t.Helper()
	root, err := os.OpenRoot(dir)
	must(t, err)
	t.Cleanup(func() { _ = root.Close() })
	return root
}

// standby is a plain Postgres that streams through a relay's directory.
type standby struct {
	sockets string
	cmd     *exec.Cmd
	log     string
}

func startStandby(t *testing.T, in postgres.Installation, dir, relayDir, slot string) *standby {
	t.Helper()
	s := &standby{sockets: shortDir(t)}
	s.log = filepath.Join(s.sockets, "log")
	must(t, os.WriteFile(filepath.Join(dir, "standby.signal"), nil, 0o600))
	must(t, os.Chown(filepath.Join(dir, "standby.signal"), owner(), owner()))
	log, err := os.Create(s.log)
	must(t, err)
	defer func() { _ = log.Close() }()
	s.cmd = exec.Command(filepath.Join(in.BinDir, "postgres"), "-D", dir,
		"-c", "listen_addresses=", "-c", "port=5432", "-c", "unix_socket_directories="+s.sockets,
		"-c", "primary_conninfo=host="+relayDir+" user=nobody", "-c", "primary_slot_name="+slot,
		"-c", "wal_retrieve_retry_interval=200ms", "-c", "wal_receiver_status_interval=1s", "-c", "wal_receiver_timeout=4s")
	s.cmd.Stdout, s.cmd.Stderr, s.cmd.Dir = log, log, "/"
	s.cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C.UTF-8"}
	if os.Geteuid() == 0 {
		s.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: pgtest.UID, Gid: pgtest.UID}}
	}
	must(t, s.cmd.Start())
	t.Cleanup(func() {
		_ = s.cmd.Process.Signal(syscall.SIGQUIT)
		_ = s.cmd.Wait()
		if t.Failed() {
			b, _ := os.ReadFile(s.log)
			lines := strings.Split(string(b), "\n")
			t.Logf("the standby's log ends with:\n%s", strings.Join(lines[max(0, len(lines)-25):], "\n"))
		}
	})
	eventually(t, 60*time.Second, "the standby takes connections", func() bool {
		_, err := s.query("SELECT 1")
		return err == nil
	})
	return s
}

func (s *standby) query(sql string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, fmt.Sprintf("host=%s user=postgres dbname=postgres sslmode=disable", s.sockets))
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close(ctx) }()
	var v string
	err = conn.QueryRow(ctx, "SELECT ("+sql+")::text").Scan(&v)
	return v, err
}

// write inserts numbered rows into table t, one transaction each, until stop.
func write(t *testing.T, s *pgtest.Server) (stop func()) {
	t.Helper()
	s.Exec(t, "postgres", "CREATE TABLE IF NOT EXISTS t (id bigserial PRIMARY KEY, pad text DEFAULT repeat('x', 500))")
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			conn, err := pgx.Connect(ctx, s.ConnString("postgres", "postgres"))
			for err == nil {
				_, err = conn.Exec(ctx, "INSERT INTO t DEFAULT VALUES")
			}
			if conn != nil {
				_ = conn.Close(context.Background())
			}
			_ = pause(ctx, 50*time.Millisecond)
		}
	}()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return stop
}

// majors are the versions, beside Debian's, that a test runs on where they are installed.
func majors(t *testing.T) []int {
	t.Helper()
	all, err := postgres.Installations(t.Context())
	must(t, err)
	seen := map[int]bool{15: true}
	out := []int{15}
	for _, in := range all {
		if !seen[in.Major] && in.Major >= oldestVersion {
			seen[in.Major] = true
			out = append(out, in.Major)
		}
	}
	return out
}
