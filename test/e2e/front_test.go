package e2e

import (
	"context"
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
	"golang.org/x/sync/errgroup"

	"github.com/pgbough/pgbough/internal/pgtest"
)

// front is the process that serves the clients of s; 0 while there is none.
func (s *server) front() int {
	all, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", s.cmd.Process.Pid))
	for _, name := range all {
		b, _ := os.ReadFile(name)
		for _, child := range strings.Fields(string(b)) {
			var pid int
			if comm, _ := os.ReadFile("/proc/" + child + "/comm"); string(comm) == "pgbough-front\n" {
				_, _ = fmt.Sscan(child, &pid)
				return pid
			}
		}
	}
	return 0
}

// alive tells whether a process runs; what nobody has waited for yet does not.
func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := strings.Cut(string(b), ") ")
	return err == nil && !strings.HasPrefix(rest, "Z") && !strings.HasPrefix(rest, "X")
}

// uri leads a client to a branch.
func (s *server) uri(branch string) string {
	s.t.Helper()
	return s.must("url", branch)
}

func (s *server) session(uri string) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return pgx.Connect(ctx, uri)
}

// TestTwoProcesses: who reads what strangers send has no rights, and each of the
// two processes can be killed without harm to anything but its connections.
func TestTwoProcesses(t *testing.T) {
	p := calmProduction(t, pgtest.Options{Conf: map[string]string{"max_connections": "250"}})
	s := startServer(t)
	s.attach(p)
	s.must("branch", "create", "mine")
	s.query("mine", "CREATE TABLE m AS SELECT 1 AS a")
	s.must("branch", "create", "sleeper")
	s.query("sleeper", "CREATE TABLE m AS SELECT 1 AS a")
	mine := s.uri("mine")

	t.Run("Rights", func(t *testing.T) { s.withoutRights(t) })
	t.Run("Sessions", func(t *testing.T) { s.manySessions(t, mine) })
	t.Run("FrontKilled", func(t *testing.T) {
		s.must("branch", "suspend", "sleeper")
		before := s.postmasters()[s.volumeOf("mine")]
		usual := time.Now()
		conn, err := s.session(mine)
		check(t, err)
		limit := time.Second + 3*time.Since(usual) // which is long on a busy machine
		pid := s.front()
		check(t, syscall.Kill(pid, syscall.SIGKILL))
		began := time.Now()
		if _, err := conn.Exec(t.Context(), "SELECT 1"); err == nil {
			t.Error("a session of a front that was killed goes on")
		}
		again, err := s.session(mine)
		check(t, err)
		check(t, again.Close(t.Context()))
		if took := time.Since(began); took > limit {
			t.Errorf("the next session came after %s, want less than %s", took, limit)
		} else {
			t.Logf("the next session came after %s", took)
		}
		if now := s.front(); now == pid || now == 0 {
			t.Errorf("the front is %d, was %d", now, pid)
		}
		for _, branch := range []string{"mine", "sleeper"} {
			if got := s.query(branch, "INSERT INTO m VALUES (2); SELECT count(*) > 1 FROM m"); got != "t" {
				t.Errorf("branch %s: %q", branch, got)
			}
		}
		if after := s.postmasters()[s.volumeOf("mine")]; fmt.Sprint(after) != fmt.Sprint(before) {
			t.Errorf("the Postgres of the branch is %v, was %v", after, before)
		}
		s.nothingLost()
	})
	t.Run("EngineKilled", func(t *testing.T) {
		before := s.postmasters()[s.volumeOf("mine")]
		pid := s.front()
		conn, err := s.session(mine)
		check(t, err)
		s.kill()
		gone := time.Now()
		for alive(pid) {
			if time.Since(gone) > time.Second {
				t.Fatal("the front is there without an engine")
			}
			time.Sleep(time.Millisecond)
		}
		if _, err := conn.Exec(t.Context(), "SELECT 1"); err == nil {
			t.Error("a session goes on without a server")
		}
		for _, addr := range []string{s.api, s.proxy} {
			l, err := net.Listen("tcp", addr)
			check(t, err)
			check(t, l.Close())
		}
		s.start()
		if after := s.postmasters()[s.volumeOf("mine")]; fmt.Sprint(after) != fmt.Sprint(before) {
			t.Errorf("the Postgres of the branch is %v, was %v", after, before)
		}
		if got := s.query("mine", "SELECT count(*) > 1 FROM m"); got != "t" {
			t.Errorf("the branch: %q", got)
		}
		s.nothingLost()
	})
}

// withoutRights looks at the process that accepts on both ports.
func (s *server) withoutRights(t *testing.T) {
	pid := s.front()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	check(t, err)
	status := string(b)
	for _, want := range []string{"Uid:\t64921\t64921\t64921\t64921\n", "Gid:\t64921\t64921\t64921\t64921\n", "CapPrm:\t0000000000000000\n", "CapEff:\t0000000000000000\n", "NoNewPrivs:\t1\n"} {
		if !strings.Contains(status, want) {
			t.Errorf("the front is not %q:\n%s", want, status)
		}
	}
	sockets := map[string]bool{}
	all, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	check(t, err)
	for _, fd := range all {
		to, _ := os.Readlink(fd)
		sockets[to] = true
		if strings.Contains(to, s.dir) {
			t.Errorf("it has %s open", to)
		}
	}
	for _, addr := range []string{s.api, s.proxy} {
		if inode := listening(t, addr); !sockets["socket:["+inode+"]"] {
			t.Errorf("the front does not have the port of %s", addr)
		}
	}
	if files, err := os.ReadDir(fmt.Sprintf("/proc/%d/root", pid)); err != nil || len(files) != 0 {
		t.Errorf("it sees files: %v, %v", files, err)
	}
	// Even if it saw them, as who it is:
	for _, name := range []string{"secret.key", "admin.key", "ca.pem", "catalog.db", "pool/volumes/" + s.volumeOf("mine") + "/data/PG_VERSION"} {
		cmd := exec.Command("cat", filepath.Join(s.data(), name))
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 64921, Gid: 64921}}
		if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "Permission denied") {
			t.Errorf("its user reads %s: %v, %q", name, err, out)
		}
	}
}

// listening is the inode of the socket that listens on an address of 127.0.0.1.
func listening(t *testing.T, addr string) string {
	t.Helper()
	_, port, err := net.SplitHostPort(addr)
	check(t, err)
	var n int
	_, err = fmt.Sscan(port, &n)
	check(t, err)
	b, err := os.ReadFile("/proc/net/tcp")
	check(t, err)
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) > 9 && f[1] == fmt.Sprintf("0100007F:%04X", n) && f[3] == "0A" {
			return f[9]
		}
	}
	t.Fatalf("nobody listens on %s", addr)
	return ""
}

// manySessions has many clients connected at once, and looks that neither process
// keeps anything of them.
func (s *server) manySessions(t *testing.T, uri string) {
	files := func() (n [2]int) {
		for i, pid := range []int{s.cmd.Process.Pid, s.front()} {
			all, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
			check(t, err)
			n[i] = len(all)
		}
		return n
	}
	round := func() {
		conns := make([]*pgx.Conn, 200)
		var all errgroup.Group
		all.SetLimit(20) // logins at a time
		for i := range conns {
			all.Go(func() (err error) {
				conns[i], err = s.session(uri)
				return err
			})
		}
		check(t, all.Wait())
		for _, conn := range conns {
			check(t, conn.Ping(t.Context()))
			check(t, conn.Close(t.Context()))
		}
	}
	round() // what is kept for the next ones is there now
	before := files()
	round()
	const kept = 64 // streams between the two that wait for the next question
	s.eventually(20*time.Second, fmt.Sprintf("files are given back, of %v", before), func() bool {
		now := files()
		return now[0] <= before[0]+kept && now[1] <= before[1]+kept
	})
}
