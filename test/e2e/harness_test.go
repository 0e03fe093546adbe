// Package e2e tries pgbough as its users do: the built binary, a real
// production under load, psql. Nothing here imports what it tests.
package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbough/pgbough/internal/pgtest"
)

// The programs that are tried, built once: what users run, and the same with
// the race detector, which serves.
var binary, racing string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "pgbough-bin")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer func() { _ = os.RemoveAll(dir) }()
		binary, racing = filepath.Join(dir, "pgbough"), filepath.Join(dir, "pgbough-race")
		if err := errors.Join(build(binary, "CGO_ENABLED=0"), build(racing, "CGO_ENABLED=1", "-race")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

func build(to, env string, flags ...string) error {
	cmd := exec.Command("go", append(append([]string{"build"}, flags...), "-o", to, "github.com/pgbough/pgbough/cmd/pgbough")...)
	cmd.Env = append(os.Environ(), env)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build pgbough: %w\n%s", err, out)
	}
	return nil
}

// needRoot skips a test that mounts and starts sandboxes where it cannot; in CI
// that is a failure.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") != "" || os.Getenv("PGBOUGH_MUST") != "" {
		t.Fatal("this test needs root")
	}
	t.Skip("needs root: it mounts a pool and starts sandboxes")
}

// server is a pgbough server under test.
type server struct {
	t     *testing.T
	dir   string
	api   string
	proxy string
	args  []string
	env   []string
	cmd   *exec.Cmd
	done  chan struct{}
	log   *os.File
	// source is the production that nothingLost asks, once one is attached directly.
	source *pgtest.Server
}

// startServer starts a server on a data directory of its own. At the end of the
// test it is stopped, and nothing may be left behind.
func startServer(t *testing.T, args ...string) *server {
	t.Helper()
	needRoot(t)
	dir, err := os.MkdirTemp("", "pgb")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, dir: dir, api: freeAddr(t), proxy: freeAddr(t), args: append([]string{"--pool-size", "3GB", "--pool-sparse", "--spares", "1"}, args...)}
	if s.log, err = os.Create(filepath.Join(dir, "server.log")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.cleanup)
	s.start()
	return s
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

func (s *server) data() string { return filepath.Join(s.dir, "d") }

// start starts the server's process and waits for "ready".
func (s *server) start() {
	s.t.Helper()
	if err := s.tryStart(); err != nil {
		s.t.Fatalf("%v\n%s", err, s.logTail(60))
	}
}

func (s *server) tryStart() error {
	s.cmd = exec.Command(racing, append([]string{"server", "--data", s.data(), "--api", s.api, "--proxy", s.proxy}, s.args...)...)
	s.cmd.Stderr = s.log
	s.cmd.Env = append(os.Environ(), s.env...)
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := s.cmd.Start(); err != nil {
		return err
	}
	s.done = make(chan struct{})
	line := make(chan string, 1)
	go func(cmd *exec.Cmd, done chan struct{}) {
		sc := bufio.NewScanner(out)
		if sc.Scan() {
			line <- sc.Text()
		}
		for sc.Scan() {
			_, _ = fmt.Fprintln(s.log, "stdout:", sc.Text())
		}
		_ = cmd.Wait()
		close(done)
	}(s.cmd, s.done)
	select {
	case l := <-line:
		if !strings.HasPrefix(l, "ready") {
			return fmt.Errorf("the server said %q, want ready", l)
		}
		return nil
	case <-s.done:
		return fmt.Errorf("the server ended: %s", s.cmd.ProcessState)
	case <-time.After(2 * time.Minute):
		return errors.New("the server does not become ready")
	}
}

// kill ends the server as a crash would, and only it: its Postgres stay.
func (s *server) kill() {
	s.t.Helper()
	_ = s.cmd.Process.Kill()
	<-s.done
}

// stop ends the server cleanly.
func (s *server) stop() {
	s.t.Helper()
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.done:
	case <-time.After(2 * time.Minute):
		s.t.Errorf("the server does not stop\n%s", s.logTail(40))
		_ = s.cmd.Process.Kill()
		<-s.done
	}
	if code := s.cmd.ProcessState.ExitCode(); code != 0 {
		s.t.Errorf("the server exited with %d\n%s", code, s.logTail(40))
	}
}

func (s *server) running() bool {
	select {
	case <-s.done:
		return false
	default:
		return true
	}
}

func (s *server) cleanup() {
	if !s.running() {
		if err := s.tryStart(); err != nil {
			s.t.Errorf("start the server again to clean up: %v", err)
		}
	}
	if s.running() {
		s.stop()
	}
	if s.t.Failed() {
		s.t.Logf("tail of the server's log:\n%s", s.logTail(120))
	}
	_ = s.log.Close()
	if log, _ := os.ReadFile(s.log.Name()); bytes.Contains(log, []byte("WARNING: DATA RACE")) {
		_, race, _ := bytes.Cut(log, []byte("WARNING: DATA RACE"))
		s.t.Errorf("the server has a data race:%.8000s", race)
	}
	if left := s.leftBehind(); len(left) > 0 {
		s.t.Errorf("left behind after the server stopped: %s", strings.Join(left, "; "))
	}
	if err := os.RemoveAll(s.dir); err != nil {
		s.t.Error(err)
	}
}

// leftBehind are leftovers that stay. A sandbox that another server starts now
// begins with all mounts of the machine, and so keeps a loop device for a moment,
// which is long on a busy machine.
func (s *server) leftBehind() []string {
	left := s.leftovers()
	for deadline := time.Now().Add(time.Minute); len(left) > 0 && time.Now().Before(deadline); left = s.leftovers() {
		time.Sleep(100 * time.Millisecond)
	}
	return left
}

// leftovers are mounts, loop devices and processes of this server's data directory.
func (s *server) leftovers() []string {
	var left []string
	for _, m := range s.mounts() {
		left = append(left, "mount "+m)
	}
	if out, err := exec.Command("losetup", "-a").Output(); err == nil {
		for line := range strings.Lines(string(out)) {
			if strings.Contains(line, s.dir+"/") {
				left = append(left, "loop device "+strings.TrimSpace(line))
			}
		}
	}
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		b, _ := os.ReadFile(p)
		if strings.Contains(string(b), s.dir+"/") {
			left = append(left, "process "+strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	return left
}

func (s *server) logTail(n int) string {
	b, _ := os.ReadFile(filepath.Join(s.dir, "server.log"))
	lines := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// result of a command of the CLI.
type result struct {
	out, err string
	code     int
}

// cli runs one command.
func (s *server) cli(args ...string) result {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Env = append(os.Environ(), "PGBOUGH_DATA="+s.data(), "PGBOUGH_API=http://"+s.api)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	_ = cmd.Run()
	return result{out.String(), errOut.String(), cmd.ProcessState.ExitCode()}
}

// must runs a command that has to succeed, and returns its answer.
func (s *server) must(args ...string) string {
	s.t.Helper()
	r := s.cli(args...)
	if r.code != 0 {
		s.t.Fatalf("pgbough %s: exit %d\n%s%s", strings.Join(args, " "), r.code, r.out, r.err)
	}
	return strings.TrimRight(r.out, "\n")
}

// json runs a command with --json and decodes its answer.
func (s *server) json(into any, args ...string) {
	s.t.Helper()
	out := s.must(append(args, "--json")...)
	if err := json.Unmarshal([]byte(out), into); err != nil {
		s.t.Fatalf("pgbough %s --json: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// query asks a branch through psql.
func (s *server) query(branch, sql string) string {
	s.t.Helper()
	return s.must("psql", branch, "--", "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", sql)
}

// branchJSON is what scripts rely on of `branch get --json`.
type branchJSON struct {
	Branch struct {
		ID           string `json:"id"`
		Name         string `json:"name"`
		ParentID     string `json:"parent_id"`
		ParentLSN    string `json:"parent_lsn"`
		CurrentState string `json:"current_state"`
		ComputeState string `json:"compute_state"`
		OwnBytes     int64  `json:"own_bytes"`
		LogicalBytes int64  `json:"logical_bytes"`
		Path         string `json:"path"`
		Differences  []struct {
			Kind, Object, Action, Reason, Detail string
		} `json:"differences"`
	} `json:"branch"`
}

type statusJSON struct {
	Projects []struct {
		Name     string `json:"name"`
		Follower struct {
			State      string  `json:"state"`
			Reason     string  `json:"reason"`
			ReplayLSN  string  `json:"replay_lsn"`
			RedoLSN    string  `json:"redo_lsn"`
			LagBytes   int64   `json:"lag_bytes"`
			LagSeconds float64 `json:"lag_seconds"`
		} `json:"follower"`
		Spares struct {
			Ready, Wanted int
			List          []struct {
				VolumeID string `json:"volume_id"`
				State    string `json:"state"`
				RedoLSN  string `json:"redo_lsn"`
			}
		} `json:"spares"`
	} `json:"projects"`
	Pool struct {
		Kind                               string
		Size_bytes, Used_bytes, Free_bytes int64
	} `json:"pool"`
}

func (s *server) status() statusJSON {
	s.t.Helper()
	var st statusJSON
	s.json(&st, "status")
	return st
}

// waitSpare waits until the first project has a ready spare.
func (s *server) waitSpare() {
	s.t.Helper()
	s.eventually(2*time.Minute, "a spare is ready", func() bool {
		st := s.status()
		return len(st.Projects) > 0 && st.Projects[0].Spares.Ready > 0
	})
}

func (s *server) eventually(limit time.Duration, what string, ok func() bool) {
	s.t.Helper()
	deadline := time.Now().Add(limit)
	for !ok() {
		if time.Now().After(deadline) {
			s.t.Fatalf("not within %s: %s\n%s", limit, what, s.logTail(40))
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// production starts a production with a role that may replicate.
func production(t *testing.T, o pgtest.Options) *pgtest.Server {
	t.Helper()
	conf := map[string]string{"checkpoint_timeout": "30s", "max_wal_size": "1GB", "fsync": "on"}
	for k, v := range o.Conf {
		conf[k] = v
	}
	o.Conf = conf
	o.HBA = append([]string{"host all follower 127.0.0.1/32 scram-sha-256", "host replication follower 127.0.0.1/32 scram-sha-256"}, o.HBA...)
	p := pgtest.Start(t, o)
	p.Exec(t, "postgres", `
		CREATE ROLE follower LOGIN REPLICATION PASSWORD 'sekret-of-follower';
		GRANT pg_read_all_settings TO follower;
		CREATE ROLE app LOGIN PASSWORD 'sekret-of-app';
		CREATE TABLE acked (n bigint PRIMARY KEY, at timestamptz DEFAULT clock_timestamp());
		ALTER TABLE acked OWNER TO app;
		GRANT CREATE ON SCHEMA public TO app;
		CREATE SEQUENCE numbers;`)
	p.Exec(t, "postgres", "CHECKPOINT") // as in attach
	return p
}

func sourceOf(p *pgtest.Server) string {
	return fmt.Sprintf("host=127.0.0.1 port=%d user=follower password=sekret-of-follower dbname=postgres", p.Port)
}

// attach attaches a production as project shop.
func (s *server) attach(p *pgtest.Server) {
	s.t.Helper()
	p.Exec(s.t, "postgres", "CHECKPOINT") // the spread one of the base backup has little to do then
	s.must("attach", "shop", "--source", sourceOf(p), "--role", "app")
	s.source = p
}

// writer commits numbered rows as fast as it can, and knows which were acknowledged.
type writer struct {
	t     *testing.T
	mu    sync.Mutex
	last  int64
	stop  chan struct{}
	ended sync.WaitGroup
}

func startWriter(t *testing.T, p *pgtest.Server, session string) *writer {
	t.Helper()
	w := &writer{t: t, stop: make(chan struct{})}
	w.ended.Go(func() {
		var conn *pgx.Conn
		for n := int64(1); ; {
			select {
			case <-w.stop:
				if conn != nil {
					_ = conn.Close(context.Background())
				}
				return
			default:
			}
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			if conn == nil {
				c, err := pgx.Connect(ctx, p.ConnString("postgres", "postgres"))
				if err == nil && session != "" {
					_, err = c.Exec(ctx, session)
				}
				if err != nil {
					cancel()
					time.Sleep(50 * time.Millisecond)
					continue
				}
				conn = c
				// A commit whose acknowledgement was lost may be there.
				if err := conn.QueryRow(ctx, "SELECT coalesce(max(n), 0) + 1 FROM acked").Scan(&n); err != nil {
					conn = nil
					cancel()
					continue
				}
			}
			_, err := conn.Exec(ctx, "INSERT INTO acked (n) VALUES ($1)", n)
			cancel()
			if err != nil {
				_ = conn.Close(context.Background())
				conn = nil
				continue
			}
			w.mu.Lock()
			w.last = n
			w.mu.Unlock()
			n++
		}
	})
	t.Cleanup(w.end)
	return w
}

func (w *writer) acked() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.last
}

func (w *writer) end() {
	select {
	case <-w.stop:
	default:
		close(w.stop)
	}
	w.ended.Wait()
}

// postmasters are the process ids of all postmasters on this machine.
func postmasters(t *testing.T) []int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, f := range files {
		exe, err := os.Readlink(f)
		if err != nil || filepath.Base(exe) != "postgres" {
			continue
		}
		var pid int
		if _, err := fmt.Sscanf(f, "/proc/%d/exe", &pid); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// containsArg tells whether a /proc/PID/cmdline has an argument that is arg.
func containsArg(cmdline []byte, arg string) bool {
	for part := range bytes.SplitSeq(cmdline, []byte{0}) {
		if string(part) == arg {
			return true
		}
	}
	return false
}
