package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pgbough/pgbough/internal/pgtest"
)

// second runs another server to its end, which must come by itself and soon.
func (s *server) second(args ...string) result {
	s.t.Helper()
	cmd := exec.Command(binary, append([]string{"server"}, args...)...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { _ = cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(15 * time.Second):
		// Hard: a clean stop would end every Postgres that it took over.
		_ = cmd.Process.Kill()
		<-done
		s.t.Errorf("the second server (%s) runs\n%s%s", strings.Join(args, " "), out.String(), errOut.String())
	}
	return result{out.String(), errOut.String(), cmd.ProcessState.ExitCode()}
}

// TestTwoServers: of two servers on the same things the second is refused,
// whatever it shares with the first, and the first goes on.
func TestTwoServers(t *testing.T) {
	p := calmProduction(t, pgtest.Options{})
	w := startWriter(t, p, "")
	s := startServer(t)
	s.attach(p)
	s.must("branch", "create", "mine")
	refused := func(t *testing.T, says string, args ...string) {
		t.Helper()
		outer := s.t
		s.t = t
		defer func() { s.t = outer }()
		before := s.postmasters()
		r := s.second(args...)
		t.Logf("exit %d: %s", r.code, lastLines(r.err, 3))
		if r.code != 4 || !strings.Contains(r.err, says) || !strings.Contains(r.err, "hint:") {
			t.Errorf("a second server: exit %d, want 4, %q and what to do\n%s", r.code, says, r.err)
		}
		if strings.Contains(r.out, "ready") {
			t.Errorf("a second server became ready: %s", r.out)
		}
		for id, pids := range before {
			if after := s.postmasters()[id]; fmt.Sprint(after) != fmt.Sprint(pids) && id == s.volumeOf("mine") {
				t.Errorf("the Postgres of the branch is %v, was %v", after, pids)
			}
		}
		s.query("mine", "SELECT 1")
		s.waitFollower(time.Minute, "streaming")
		s.branchIsNow("still-serving", w)
		s.oneEach()
	}
	t.Run("SameData", func(t *testing.T) {
		refused(t, fmt.Sprintf("pid %d", s.cmd.Process.Pid), "--data", s.data(), "--api", freeAddr(t))
	})
	t.Run("SameDataThroughLink", func(t *testing.T) {
		link := filepath.Join(s.dir, "l")
		if err := os.Symlink(s.data(), link); err != nil {
			t.Fatal(err)
		}
		refused(t, "another pgbough server", "--data", link, "--api", freeAddr(t))
	})
	t.Run("SameAPI", func(t *testing.T) {
		refused(t, s.api, "--data", filepath.Join(s.dir, "d2"), "--api", s.api, "--pool", "copy")
	})
	t.Run("CopiedCatalogSamePool", func(t *testing.T) {
		d3 := filepath.Join(s.dir, "d3")
		copyServer(t, s.data(), d3)
		refused(t, "pool", "--data", d3, "--api", freeAddr(t), "--pool", "reflink:"+filepath.Join(s.data(), "pool"))
	})
	t.Run("OtherCatalogSamePool", func(t *testing.T) {
		refused(t, "pool", "--data", filepath.Join(s.dir, "d4"), "--api", freeAddr(t), "--pool", "reflink:"+filepath.Join(s.data(), "pool"))
	})
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// copyServer copies what makes a server out of its data directory, as a backup
// that is restored elsewhere does.
func copyServer(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Mkdir(to, 0o711); err != nil {
		t.Fatal(err)
	}
	files, _ := filepath.Glob(filepath.Join(from, "*"))
	for _, f := range files {
		base := filepath.Base(f)
		if !strings.HasPrefix(base, "catalog.db") && !strings.HasSuffix(base, ".key") {
			continue
		}
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(to, base), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestTwoStarts tries to get two Postgres onto one volume.
func TestTwoStarts(t *testing.T) {
	p := calmProduction(t, pgtest.Options{})
	startWriter(t, p, "")
	s := startServer(t)
	s.attach(p)
	s.must("branch", "create", "mine")
	s.query("mine", "CREATE TABLE m AS SELECT 1 AS a")
	volume := s.volumeOf("mine")
	lock := filepath.Join(s.data(), "pool", "volumes", volume, "lock")

	run := func(name string, f func(t *testing.T)) {
		t.Run(name, func(t *testing.T) {
			outer := s.t
			s.t = t
			defer func() { s.t = outer }()
			s.waitSpare()
			f(t)
			s.nothingLost()
			if got := s.query("mine", "SELECT a FROM m"); got != "1" {
				t.Errorf("the branch's row: %q", got)
			}
		})
	}
	run("LockIsHeld", func(t *testing.T) {
		for id := range s.postmasters() {
			path := filepath.Join(s.data(), "pool", "volumes", id, "lock")
			if f, err := flock(path); err == nil {
				_ = f.Close()
				t.Errorf("the lock of volume %s is free although a Postgres runs on it", id)
			}
		}
		// Also when the server that started it is gone.
		s.kill()
		if f, err := flock(lock); err == nil {
			_ = f.Close()
			t.Error("the lock of a branch is free although its Postgres outlived the server")
		}
		s.start()
	})
	run("LockOfAnother", func(t *testing.T) {
		s.killPostgres(volume)
		// Something else has the volume first: it may take some tries, since the server is quick.
		var held *os.File
		for held == nil {
			f, err := flock(lock)
			if err == nil {
				held = f
				break
			}
			if pids := s.postmasters()[volume]; len(pids) == 1 {
				_ = syscall.Kill(pids[0], syscall.SIGKILL)
			}
		}
		time.Sleep(4 * time.Second)
		if pids := s.postmasters()[volume]; len(pids) > 0 {
			t.Errorf("a Postgres started on a volume whose lock another process holds: %v", pids)
		}
		if err := held.Close(); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		s.query("mine", "SELECT 1")
		t.Logf("it runs %s after the lock was free", time.Since(began).Round(time.Millisecond))
	})
	run("ServerKilledWhileItStarts", func(t *testing.T) {
		// Between the start of a Postgres and whatever is noted of it.
		for _, after := range []time.Duration{0, 5, 10, 20, 40, 80, 160} {
			s.killPostgres(volume)
			time.Sleep(200*time.Millisecond + after*time.Millisecond)
			s.kill()
			s.start()
			s.query("mine", "SELECT 1")
			s.oneEach()
		}
	})
	run("KilledBetweenStartAndRecord", func(t *testing.T) {
		for _, place := range []string{"refill_spare/start/done", "refill_spare/clone/done", "create_branch/promote/done", "create_branch/publish/done"} {
			s.kill()
			s.env = []string{"PGBOUGH_FAILPOINT=" + place + "=kill"}
			s.start()
			s.cliFor(time.Minute, "branch", "create", "b")
			select {
			case <-s.done:
			case <-time.After(time.Minute):
				t.Fatalf("the server was not killed at %s", place)
			}
			s.env = nil
			s.start()
			s.settled(place)
			s.oneEach()
			if s.cli("branch", "get", "b").code == 0 {
				s.query("b", "SELECT 1")
				s.must("branch", "delete", "b")
			}
			s.nothingLost()
		}
	})
	run("RunDirectoryLost", func(t *testing.T) {
		// Sockets and configuration of running Postgres are gone: they cannot be reached, but they run.
		s.kill()
		if err := os.RemoveAll(filepath.Join(s.data(), "run")); err != nil {
			t.Fatal(err)
		}
		s.start()
		s.eventually(time.Minute, "the branch answers", func() bool {
			return s.cliFor(20*time.Second, "psql", "mine", "--", "-XAtqc", "SELECT 1").code == 0
		})
		s.oneEach()
	})
	run("FrozenOrphan", func(t *testing.T) {
		// A server that died between freezing and thawing the follower.
		main := s.volumeOf("main")
		pids := s.postmasters()[main]
		s.kill()
		for _, pid := range pids {
			if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
		}
		s.start()
		s.waitFollower(time.Minute, "streaming")
		if got := s.postmasters()[main]; len(got) != 1 {
			t.Errorf("postmasters of the follower: %v", got)
		}
	})
}

// flock takes the lock of a volume, as its Postgres does, or fails at once.
func flock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// TestPoolGone: a pool whose image or mount is gone is never replaced by an
// empty one. The server says what is missing, and makes nothing.
func TestPoolGone(t *testing.T) {
	s := startServer(t)
	s.stop()
	image := filepath.Join(s.data(), "pool.img")
	refused := func(what string) {
		t.Helper()
		if r := s.second(append([]string{"--data", s.data(), "--api", s.api}, s.args...)...); r.code == 0 || !strings.Contains(r.err, "pool-") {
			t.Errorf("a start without %s: exit %d\n%s", what, r.code, r.err)
		}
	}
	check(t, os.Rename(image, image+".away"))
	refused("its image")
	if _, err := os.Lstat(image); err == nil {
		t.Error("a new image was made")
	}
	mount := t.TempDir()
	s.args = []string{"--pool", "auto:" + mount}
	refused("its mount")
	if left, err := filepath.Glob(mount + "/*"); err != nil || len(left) > 0 {
		t.Errorf("made in the empty directory: %v (%v)", left, err)
	}
	s.args = []string{"--pool-size", "3GB", "--pool-sparse"}
	check(t, os.Rename(image+".away", image))
	s.start()
}
