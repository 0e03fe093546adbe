package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sys/unix"

	"github.com/pgbough/pgbough/internal/postgres"
)

var testCredential = postgres.Credential{UID: 64420, GID: 64420}

// specEnv makes the test binary a small server: it starts the postgres.Spec in
// this variable, prints the postmaster's pid or the error, and waits.
const specEnv = "SANDBOX_TEST_SPEC"

func TestMain(m *testing.M) {
	if text := os.Getenv(specEnv); text != "" {
		serve(text)
		return
	}
	m.Run()
	if dir := templateDir.path; dir != "" {
		_ = os.RemoveAll(dir)
	}
}

func serve(text string) {
	var spec postgres.Spec
	err := json.Unmarshal([]byte(text), &spec)
	var l *Launcher
	if err == nil {
		l, err = New(Options{Credential: testCredential, Dirs: []string{os.TempDir()}, Log: slog.New(slog.DiscardHandler)})
	}
	if err == nil {
		fmt.Println("ready")
		var p postgres.Process
		if p, err = l.Start(context.Background(), prepared(spec)); err == nil {
			fmt.Println(p.PID())
			if os.Getenv("SANDBOX_TEST_FREEZE") != "" {
				err = p.Freeze(context.Background())
				fmt.Println("frozen", err)
			}
			_, _ = io.Copy(io.Discard, os.Stdin)
			return
		}
	}
	fmt.Println(errors.Is(err, postgres.ErrLocked), err)
}

// needRoot skips a test that cannot run; in CI that is a failure.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("this test must run as root")
	}
	t.Skip("needs root: it makes namespaces for another user")
}

func newLauncher(t testing.TB) *Launcher {
	t.Helper()
	needRoot(t)
	l, err := New(Options{Credential: testCredential, Dirs: []string{os.TempDir()}, Log: slog.New(slog.NewTextHandler(testWriter{t}, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

var templateDir struct {
	sync.Mutex
	path string
}

// template is a stopped cluster that belongs to testCredential. initdb wants a
// user with a name, so nobody makes it.
func template(t testing.TB) string {
	t.Helper()
	templateDir.Lock()
	defer templateDir.Unlock()
	if templateDir.path != "" {
		return filepath.Join(templateDir.path, "data")
	}
	in, err := postgres.FindInstallation(t.Context(), 15)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "sbxt")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(in.BinDir, "initdb"), "-D", filepath.Join(dir, "data"), "-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale", "C.UTF-8")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	cmd.Dir = "/"
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	err = filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		return errors.Join(err, testCredential.Chown(path))
	})
	if err != nil {
		t.Fatal(err)
	}
	templateDir.path = dir
	return filepath.Join(dir, "data")
}

var volumes struct {
	sync.Mutex
	n int
}

// newSpec makes a volume with a cluster in a directory that only root may enter.
func newSpec(t testing.TB, l *Launcher) postgres.Spec {
	t.Helper()
	needRoot(t)
	volumes.Lock()
	volumes.n++
	id := fmt.Sprintf("vtest%dx%d", os.Getpid(), volumes.n)
	volumes.Unlock()
	in, err := postgres.FindInstallation(t.Context(), 15)
	if err != nil {
		t.Fatal(err)
	}
	top, err := os.MkdirTemp("", "sbx")
	if err != nil {
		t.Fatal(err)
	}
	s := postgres.Spec{
		ID: id, BinDir: in.BinDir, DataDir: filepath.Join(top, "data"), EtcDir: filepath.Join(top, "etc"), Socket: filepath.Join(top, "socket"),
		LogFile: filepath.Join(top, "postgres.log"), LockFile: filepath.Join(top, "lock"), Env: []string{"LC_ALL=C.UTF-8", "TZ=UTC"},
	}
	t.Cleanup(func() {
		if t.Failed() {
			b, _ := os.ReadFile(s.LogFile)
			t.Logf("log of postgres:\n%s", b)
		}
		end(t, l, s.ID)
		if err := os.RemoveAll(top); err != nil {
			t.Error(err)
		}
	})
	for _, dir := range []string{s.EtcDir, s.Socket} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := testCredential.Chown(s.Socket); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cp", "-a", template(t), s.DataDir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	write(t, filepath.Join(s.EtcDir, "postgresql.conf"), "fsync = off\nshared_buffers = 16MB\n")
	write(t, filepath.Join(s.EtcDir, "pg_hba.conf"), "local all all trust\n")
	write(t, filepath.Join(s.EtcDir, "pg_ident.conf"), "")
	s.Args = postgresArgs(l.Inside(s))
	return prepared(s)
}

// prepared is a spec whose start removes what a postmaster that was killed has left
// of its lock file, as every start does: none starts beside an empty one.
func prepared(s postgres.Spec) postgres.Spec {
	s.Prepare = func() error { return os.RemoveAll(filepath.Join(s.DataDir, "postmaster.pid")) }
	return s
}

func postgresArgs(in postgres.Inside) []string {
	return []string{
		"-D", in.DataDir, "-c", "config_file=" + in.EtcDir + "/postgresql.conf", "-c", "hba_file=" + in.EtcDir + "/pg_hba.conf",
		"-c", "ident_file=" + in.EtcDir + "/pg_ident.conf", "-c", "unix_socket_directories=" + in.Socket, "-c", "listen_addresses=",
	}
}

// end kills whatever runs on volume id, with a launcher of its own.
func end(t testing.TB, l *Launcher, id string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	p, ok, err := l.Find(ctx, id)
	if err != nil {
		t.Error(err)
	}
	if !ok {
		return
	}
	if err := p.Kill(ctx); err != nil {
		t.Error(err)
	}
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func start(t testing.TB, l *Launcher, s postgres.Spec) postgres.Process {
	t.Helper()
	p, err := l.Start(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// connect waits until the server answers.
func connect(t testing.TB, s postgres.Spec) *pgx.Conn {
	t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for {
		conn, err := pgx.Connect(t.Context(), fmt.Sprintf("host=%s user=postgres dbname=postgres connect_timeout=5", s.Socket))
		if err == nil {
			t.Cleanup(func() {
				ctx, cancel := context.WithTimeout(context.Background(), time.Second)
				defer cancel()
				_ = conn.Close(ctx)
			})
			return conn
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func exec1(t testing.TB, conn *pgx.Conn, sql string) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// inside runs a shell command in the sandbox, as a superuser of the branch can.
func inside(t testing.TB, conn *pgx.Conn, script string) string {
	t.Helper()
	exec1(t, conn, "CREATE TEMP TABLE IF NOT EXISTS out (line text); TRUNCATE out")
	quote := func(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }
	exec1(t, conn, `COPY out FROM PROGRAM `+quote("{ "+script+"\n} 2>&1 | sed 's/[\\\\]/\\\\\\\\/g'")+` (DELIMITER E'\x01')`)
	var text string
	if err := conn.QueryRow(t.Context(), "SELECT coalesce(string_agg(line, E'\\n'), '') FROM out").Scan(&text); err != nil {
		t.Fatal(err)
	}
	return text
}

func wait(t testing.TB, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !f(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func waitDone(t testing.TB, p postgres.Process) {
	t.Helper()
	select {
	case <-p.Done():
	case <-time.After(30 * time.Second):
		t.Fatal("the sandbox did not end")
	}
}

func exists(pid int) bool {
	st, err := readStatus(pid)
	return err == nil && !st.dead()
}

// server is the test binary run as another server.
type server struct {
	cmd   *exec.Cmd
	lines chan string
}

func startServer(t testing.TB, s postgres.Spec, env ...string) *server {
	t.Helper()
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(append(os.Environ(), specEnv+"="+string(text)), env...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	srv := &server{cmd: cmd, lines: make(chan string, 16)}
	var reader sync.WaitGroup
	reader.Go(func() {
		b := make([]byte, 4096)
		for {
			n, err := stdout.Read(b)
			for line := range strings.Lines(string(b[:n])) {
				srv.lines <- strings.TrimSpace(line)
			}
			if err != nil {
				close(srv.lines)
				return
			}
		}
	})
	t.Cleanup(func() {
		_ = stdin.Close()
		_ = cmd.Process.Kill()
		reader.Wait()
		_ = cmd.Wait()
	})
	return srv
}

func (s *server) line(t testing.TB) string {
	t.Helper()
	select {
	case line := <-s.lines:
		return line
	case <-time.After(60 * time.Second):
		t.Fatal("the other server says nothing")
		return ""
	}
}

func (s *server) kill(t testing.TB) {
	t.Helper()
	if err := s.cmd.Process.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	wait(t, "the other server is dead", func() bool { return !exists(s.cmd.Process.Pid) })
}
