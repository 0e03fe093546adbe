package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/pgbough/pgbough/internal/pgtest"
)

// link is the network between pgbough and a production: a proxy that can be cut
// (connections closed, new ones refused) and paused (connections stay, no byte
// passes), and be pointed at another server.
type link struct {
	listener net.Listener
	ended    sync.WaitGroup
	moved    atomic.Int64 // bytes, both ways

	mu      sync.Mutex
	target  string
	cut     bool
	flowing chan struct{} // closed while bytes may pass
	conns   map[net.Conn]struct{}
}

func startLink(t *testing.T, p *pgtest.Server) *link {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &link{listener: listener, target: fmt.Sprintf("127.0.0.1:%d", p.Port), flowing: make(chan struct{}), conns: map[net.Conn]struct{}{}}
	close(l.flowing)
	l.ended.Go(l.accept)
	t.Cleanup(func() {
		_ = listener.Close()
		l.resume()
		l.sever()
		l.ended.Wait()
	})
	return l
}

// source is how production is reached through the link.
func (l *link) source() string {
	return fmt.Sprintf("host=127.0.0.1 port=%d user=follower password=sekret-of-follower dbname=postgres", l.listener.Addr().(*net.TCPAddr).Port)
}

func (l *link) accept() {
	for {
		client, err := l.listener.Accept()
		if err != nil {
			return
		}
		l.mu.Lock()
		target, cut := l.target, l.cut
		l.mu.Unlock()
		if cut {
			_ = client.Close()
			continue
		}
		server, err := net.Dial("tcp", target)
		if err != nil {
			_ = client.Close()
			continue
		}
		l.mu.Lock()
		l.conns[client], l.conns[server] = struct{}{}, struct{}{}
		l.mu.Unlock()
		l.ended.Go(func() { l.copy(server, client) })
		l.ended.Go(func() { l.copy(client, server) })
	}
}

func (l *link) copy(to, from net.Conn) {
	defer func() {
		_, _ = from.Close(), to.Close()
		l.mu.Lock()
		delete(l.conns, from)
		l.mu.Unlock()
	}()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			l.mu.Lock()
			flowing := l.flowing
			l.mu.Unlock()
			<-flowing
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
			l.moved.Add(int64(n))
		}
		if err != nil {
			return
		}
	}
}

// close refuses new connections and breaks the present ones; open takes them again.
func (l *link) close() {
	l.mu.Lock()
	l.cut = true
	l.mu.Unlock()
	l.sever()
}

func (l *link) open() {
	l.mu.Lock()
	l.cut = false
	l.mu.Unlock()
}

func (l *link) sever() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.conns {
		_ = c.Close()
	}
}

// pause lets no byte pass, without closing anything.
func (l *link) pause() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flowing = make(chan struct{})
}

func (l *link) resume() {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.flowing:
	default:
		close(l.flowing)
	}
}

// calmProduction is a production on which a writer commits some fifty times a
// second, so that what these tests wait for is not the machine's disk.
func calmProduction(t *testing.T, o pgtest.Options) *pgtest.Server {
	t.Helper()
	conf := map[string]string{"fsync": "off"} // nothing here crashes the machine
	for k, v := range o.Conf {
		conf[k] = v
	}
	o.Conf = conf
	p := production(t, o)
	p.Exec(t, "postgres", `
		CREATE FUNCTION breathe() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.02); RETURN new; END $$;
		CREATE TRIGGER breathe BEFORE INSERT ON acked FOR EACH ROW EXECUTE FUNCTION breathe()`)
	return p
}

// signalAll signals every process of a production, the postmaster first.
func signalAll(t *testing.T, p *pgtest.Server, sig syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(p.PID(), sig); err != nil {
		t.Fatal(err)
	}
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", p.PID(), p.PID()))
	if err != nil {
		t.Fatal(err)
	}
	for pid := range strings.FieldsSeq(string(children)) {
		var n int
		if _, err := fmt.Sscan(pid, &n); err == nil {
			_ = syscall.Kill(n, sig) // a backend may just have ended
		}
	}
}

// follower is the state of the first project's follower, and its reason.
func (s *server) follower() (state, reason string) {
	s.t.Helper()
	st := s.status()
	if len(st.Projects) == 0 {
		return "none", ""
	}
	return st.Projects[0].Follower.State, st.Projects[0].Follower.Reason
}

// waitFollower waits until the follower is in a state, and returns its reason.
func (s *server) waitFollower(limit time.Duration, want string) (reason string) {
	s.t.Helper()
	var state string
	deadline := time.Now().Add(limit)
	for {
		if state, reason = s.follower(); state == want {
			return reason
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("the follower is %s (%s) after %s, want %s", state, reason, limit, want)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// branchIsNow makes a branch, checks that it has everything that w's production
// had acknowledged before, and deletes it.
func (s *server) branchIsNow(name string, w *writer) {
	s.t.Helper()
	before := w.acked()
	s.must("branch", "create", name)
	if got := s.query(name, fmt.Sprintf("SELECT count(*) = max(n) AND max(n) >= %d FROM acked", before)); got != "t" {
		s.t.Errorf("branch %s lacks rows that were acknowledged before it was asked for, or has a gap", name)
	}
	s.must("branch", "delete", name)
}

// refuseUnreachable checks that branches cannot be made while production cannot
// be asked, that this is said within 35 s, and how old the newest state is. It
// asks twice: the first refusal must not have cost the spare.
func (s *server) refuseUnreachable(name string) {
	s.t.Helper()
	for i := range 2 {
		began := time.Now()
		r := s.cliFor(60*time.Second, "branch", "create", fmt.Sprintf("%s-%d", name, i))
		took := time.Since(began)
		s.t.Logf("branch create: exit %d after %s: %s", r.code, took.Round(time.Millisecond), strings.TrimSpace(r.err))
		if r.code != 5 {
			s.t.Errorf("branch create %d while production cannot be asked: exit %d after %s, want 5\n%s%s", i, r.code, took, r.out, r.err)
		}
		if took > 35*time.Second {
			s.t.Errorf("branch create %d while production cannot be asked took %s", i, took)
		}
		if !strings.Contains(r.err, "ago") {
			s.t.Errorf("branch create %d does not say how old the newest state is: %s", i, r.err)
		}
		if b := s.cli("branch", "get", fmt.Sprintf("%s-%d", name, i)); b.code != 3 {
			s.t.Errorf("branch get after the refusal: exit %d, want 3\n%s%s", b.code, b.out, b.err)
			s.cli("branch", "delete", fmt.Sprintf("%s-%d", name, i))
		}
	}
	if st := s.status(); st.Projects[0].Spares.Ready < 1 {
		s.t.Errorf("the refusals cost the spare: %+v", st.Projects[0].Spares)
	}
}

// cliFor is cli with a limit: a command that takes longer is killed.
func (s *server) cliFor(limit time.Duration, args ...string) result {
	done := make(chan result, 1)
	cmd := exec.Command(binary, args...)
	cmd.Env = append(os.Environ(), "PGBOUGH_DATA="+s.data(), "PGBOUGH_API=http://"+s.api)
	var out, errOut strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Start(); err != nil {
		return result{"", err.Error(), -1}
	}
	go func() { _ = cmd.Wait(); done <- result{out.String(), errOut.String(), cmd.ProcessState.ExitCode()} }()
	select {
	case r := <-done:
		return r
	case <-time.After(limit):
		_ = cmd.Process.Kill()
		r := <-done
		r.err += fmt.Sprintf("(the test killed it after %s)", limit)
		return r
	}
}

// TestSourceTrouble is what happens to a production that is followed: each time
// the follower comes back by itself, or says what has to be done.
func TestSourceTrouble(t *testing.T) {
	p := calmProduction(t, pgtest.Options{})
	w := startWriter(t, p, "")
	wire := startLink(t, p)
	s := startServer(t)
	s.must("attach", "shop", "--source", wire.source(), "--role", "app")

	run := func(name string, f func(t *testing.T)) {
		t.Run(name, func(t *testing.T) {
			outer := s.t
			s.t = t
			defer func() { s.t = outer }()
			s.waitFollower(2*time.Minute, "streaming")
			s.waitSpare()
			f(t)
		})
	}
	back := func(name string) {
		s.t.Helper()
		began := time.Now()
		s.waitFollower(90*time.Second, "streaming")
		s.t.Logf("streaming again after %s", time.Since(began).Round(100*time.Millisecond))
		s.waitSpare()
		s.branchIsNow(name, w)
	}

	run("Restart", func(t *testing.T) {
		p.Stop(t)
		s.waitFollower(30*time.Second, "disconnected")
		p.Run(t)
		back("restart")
	})
	run("Cut", func(t *testing.T) {
		wire.close()
		if reason := s.waitFollower(60*time.Second, "disconnected"); reason == "" {
			t.Error("the status does not say why the follower is disconnected")
		}
		s.refuseUnreachable("cut")
		wire.open()
		back("cut-after")
	})
	run("Paused", func(t *testing.T) {
		wire.pause()
		s.refuseUnreachable("paused")
		s.waitFollower(2*time.Minute, "disconnected")
		wire.resume()
		back("paused-after")
	})
	run("Stopped", func(t *testing.T) {
		signalAll(t, p, syscall.SIGSTOP)
		defer signalAll(t, p, syscall.SIGCONT)
		s.refuseUnreachable("stopped")
		signalAll(t, p, syscall.SIGCONT)
		back("stopped-after")
	})
	run("Password", func(t *testing.T) {
		p.Exec(t, "postgres", "ALTER ROLE follower PASSWORD 'another'; SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'follower'")
		reason := s.waitFollower(60*time.Second, "disconnected")
		s.eventually(20*time.Second, "the status says that production refuses the password", func() bool {
			_, reason = s.follower()
			return strings.Contains(reason, "password")
		})
		t.Log(reason)
		if !strings.Contains(reason, "source set") {
			t.Errorf("the status does not say what mends a changed password: %s", reason)
		}
		source := strings.Replace(wire.source(), "sekret-of-follower", "another", 1)
		if r := s.cli("source", "set", "shop", "--source", strings.Replace(source, "another", "a-wrong-one", 1)); r.code != 4 && r.code != 5 {
			t.Errorf("source set with a wrong password: exit %d\n%s", r.code, r.err)
		}
		s.must("source", "set", "shop", "--source", source)
		back("password-after")
		p.Exec(t, "postgres", "ALTER ROLE follower PASSWORD 'sekret-of-follower'")
		s.must("source", "set", "shop", "--source", wire.source())
	})
	run("MaxConnections", func(t *testing.T) {
		p.Configure(t, map[string]string{"max_connections": "150", "max_prepared_transactions": "7"})
		p.Restart(t)
		time.Sleep(3 * time.Second) // for the record of the change to be replayed everywhere
		s.waitFollower(2*time.Minute, "streaming")
		s.eventually(2*time.Minute, "a branch can be made", func() bool {
			r := s.cli("branch", "create", "raised")
			if r.code != 0 {
				t.Errorf("branch create after production raised max_connections: exit %d\n%s", r.code, r.err)
			}
			return r.code == 0
		})
		if got := s.query("raised", "SHOW max_connections"); got != "150" {
			t.Errorf("max_connections of a branch made after production raised it: %s", got)
		}
		s.must("branch", "delete", "raised")
		back("raised-after")
	})
	run("OtherSystem", func(t *testing.T) {
		other := calmProduction(t, pgtest.Options{})
		if r := s.cli("source", "set", "shop", "--source", sourceOf(other)); r.code != 4 || !strings.Contains(r.err, "system identifier") {
			t.Errorf("source set to another cluster: exit %d, want 4 and the reason\n%s", r.code, r.err)
		}
		if n := other.Value(t, "postgres", "SELECT count(*) FROM pg_replication_slots"); n != "0" {
			t.Errorf("the refused cluster has %s of our slots", n)
		}
		back("other-after")
	})
}

// standbyOf is a stock standby of a production, with our slot or any other of
// pgbough's things nowhere on it.
func standbyOf(t *testing.T, p *pgtest.Server) *pgtest.Server {
	t.Helper()
	root, err := os.MkdirTemp("", "pgstandby")
	if err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(freeAddr(t))
	if err != nil {
		t.Fatal(err)
	}
	sb := &pgtest.Server{Dir: filepath.Join(root, "data"), Sockets: filepath.Join(root, "s"), Install: p.Install, LogFile: filepath.Join(root, "log")}
	if _, err := fmt.Sscan(port, &sb.Port); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		sb.Kill(t)
		if err := os.RemoveAll(root); err != nil {
			t.Error(err)
		}
	})
	if err := os.Mkdir(sb.Sockets, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{root, sb.Sockets} {
		if err := os.Chown(dir, pgtest.UID, pgtest.UID); err != nil {
			t.Fatal(err)
		}
	}
	backup := exec.Command(filepath.Join(p.Install.BinDir, "pg_basebackup"), "-h", "127.0.0.1", "-p", fmt.Sprint(p.Port), "-U", "postgres", "-c", "fast", "-R", "-D", sb.Dir)
	backup.Dir, backup.Env = "/", []string{"PATH=/usr/bin:/bin", "LC_ALL=C.UTF-8"}
	backup.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: pgtest.UID, Gid: pgtest.UID}}
	if out, err := backup.CombinedOutput(); err != nil {
		t.Fatalf("pg_basebackup: %v\n%s", err, out)
	}
	sb.Configure(t, map[string]string{"port": port, "unix_socket_directories": sb.Sockets})
	sb.Run(t)
	return sb
}

// promote makes a standby the primary and waits until it is.
func promote(t *testing.T, sb *pgtest.Server) {
	t.Helper()
	if got := sb.Value(t, "postgres", "SELECT pg_promote()"); got != "true" {
		t.Fatalf("the standby was not promoted: %s", sb.LogTail(5))
	}
}

// TestFailover: a standby of production takes over, and a project goes on with it.
func TestFailover(t *testing.T) {
	p := calmProduction(t, pgtest.Options{})
	w := startWriter(t, p, "")
	s := startServer(t)
	s.attach(p)
	s.must("branch", "create", "old")
	sb := standbyOf(t, p)
	s.eventually(30*time.Second, "the standby streams", func() bool {
		return p.Value(t, "postgres", "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'walreceiver' AND state = 'streaming'") == "1"
	})
	s.waitSpare()

	if r := s.cli("source", "set", "shop", "--source", sourceOf(sb)); r.code != 4 {
		t.Errorf("source set to a standby: exit %d, want 4: it cannot be asked where production is\n%s%s", r.code, r.out, r.err)
		s.must("source", "set", "shop", "--source", sourceOf(p))
	}
	w.end()
	last := w.acked()
	p.Stop(t) // its walsenders give everything away first
	s.waitFollower(30*time.Second, "disconnected")
	promote(t, sb)
	sb.Exec(t, "postgres", "CREATE TABLE after_failover AS SELECT 2 AS timeline; ALTER TABLE after_failover OWNER TO app")
	s.must("source", "set", "shop", "--source", sourceOf(sb))
	s.waitFollower(90*time.Second, "streaming")
	w2 := startWriter(t, sb, "")
	s.eventually(20*time.Second, "the new primary takes writes", func() bool { return w2.acked() > last })

	s.waitSpare()
	for i := range 3 { // the second and third are of spares made after the failover
		name := fmt.Sprintf("new-%d", i)
		s.waitSpare()
		before := w2.acked()
		if r := s.cli("branch", "create", name); r.code != 0 {
			t.Errorf("branch create %d after the failover: exit %d\n%s", i, r.code, r.err)
			continue
		}
		if got := s.query(name, fmt.Sprintf("SELECT count(*) = max(n) AND max(n) >= %d AND (SELECT timeline FROM after_failover) = 2 FROM acked", before)); got != "t" {
			t.Errorf("branch %s is not of the new primary", name)
		}
	}
	if got := s.query("old", fmt.Sprintf("SELECT max(n) <= %d FROM acked", last)); got != "t" {
		t.Error("the branch that was there changed")
	}
	if n := sb.Value(t, "postgres", "SELECT count(*) FROM pg_replication_slots WHERE active"); n != "1" {
		t.Errorf("active slots on the new primary: %s, want 1", n)
	}
	// The state outlives a restart of the server.
	s.kill()
	s.start()
	s.waitFollower(90*time.Second, "streaming")
	s.waitSpare()
	s.branchIsNow("restarted", w2)
	w2.end()
	s.must("project", "delete", "shop", "--yes")
	if n := sb.Value(t, "postgres", "SELECT count(*) FROM pg_replication_slots"); n != "0" {
		t.Errorf("slots left on the new primary: %s", n)
	}
}

// TestSourceLost: what the follower needs is gone for good. Its state says so,
// and what to do; its branches live on, and the project can be deleted.
func TestSourceLost(t *testing.T) {
	p := calmProduction(t, pgtest.Options{Conf: map[string]string{"min_wal_size": "32MB", "max_wal_size": "64MB"}})
	wire := startLink(t, p)
	s := startServer(t)
	s.must("attach", "shop", "--source", wire.source(), "--role", "app")
	s.must("branch", "create", "kept")

	broken := func(t *testing.T) {
		t.Helper()
		reason := s.waitFollower(90*time.Second, "broken")
		t.Log(reason)
		if !strings.Contains(reason, "attach") {
			t.Errorf("the reason does not say what to do: %s", reason)
		}
		began := time.Now()
		r := s.cliFor(60*time.Second, "branch", "create", "impossible")
		t.Logf("branch create: exit %d after %s: %s", r.code, time.Since(began).Round(time.Millisecond), r.err)
		if r.code != 4 && r.code != 5 {
			t.Errorf("branch create on a broken follower: exit %d, want 4 or 5\n%s", r.code, r.err)
		}
		if s.cli("branch", "get", "impossible").code == 0 {
			s.cli("branch", "delete", "impossible")
		}
		if got := s.query("kept", "SELECT count(*) FROM acked"); got == "" {
			t.Error("the branch that was there is gone")
		}
	}
	t.Run("SlotDroppedAndWALRemoved", func(t *testing.T) {
		outer := s.t
		s.t = t
		defer func() { s.t = outer }()
		s.waitFollower(60*time.Second, "streaming")
		wire.close()
		s.waitFollower(60*time.Second, "disconnected")
		s.eventually(20*time.Second, "the slot is free", func() bool {
			return p.Value(t, "postgres", "SELECT count(*) FROM pg_replication_slots WHERE active") == "0"
		})
		p.Exec(t, "postgres", "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
		for range 8 {
			p.Exec(t, "postgres", "SELECT pg_logical_emit_message(true, 'fill', repeat('x', 1000))")
			p.Exec(t, "postgres", "SELECT pg_switch_wal()")
		}
		p.Exec(t, "postgres", "CHECKPOINT")
		p.Exec(t, "postgres", "CHECKPOINT")
		wire.open()
		// Either the status tells at once that it is broken, or that the slot has to be made anew, which then shows it.
		deadline := time.Now().Add(60 * time.Second)
		for state, reason := s.follower(); state != "broken"; state, reason = s.follower() {
			if strings.Contains(reason, "source set") && strings.Contains(reason, "slot") {
				t.Log(reason)
				s.must("source", "set", "shop", "--source", wire.source())
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("the status does not say that the slot is gone: %s: %s", state, reason)
			}
			time.Sleep(200 * time.Millisecond)
		}
		broken(t)
	})
	s.must("project", "delete", "shop", "--yes")
	if n := p.Value(t, "postgres", "SELECT count(*) FROM pg_replication_slots"); n != "0" {
		t.Errorf("slots left on production: %s", n)
	}

	t.Run("FailoverThatLostTransactions", func(t *testing.T) {
		outer := s.t
		s.t = t
		defer func() { s.t = outer }()
		s.attach(p)
		s.must("branch", "create", "kept")
		sb := standbyOf(t, p)
		sb.Stop(t)
		p.Exec(t, "postgres", "CREATE TABLE lost AS SELECT generate_series(1, 10000)")
		want := p.Value(t, "postgres", "SELECT pg_current_wal_flush_lsn()")
		s.eventually(20*time.Second, "the follower has what the standby lacks", func() bool {
			r := s.status().Projects[0].Follower
			return r.ReplayLSN != "" && r.LagBytes == 0 && p.Value(t, "postgres", fmt.Sprintf("SELECT '%s'::pg_lsn >= '%s'::pg_lsn", r.ReplayLSN, want)) == "true"
		})
		p.Kill(t)
		sb.Run(t)
		promote(t, sb)
		s.must("source", "set", "shop", "--source", sourceOf(sb))
		broken(t)
		p.Run(t)
	})
}

// TestAttachKilled kills the server at every step boundary of attach. Then the
// operation goes on to its end by itself, or project delete leaves nothing.
func TestAttachKilled(t *testing.T) {
	p := calmProduction(t, pgtest.Options{})
	s := startServer(t)
	for i, step := range []string{"slot", "base_backup", "follow", "publish", "spare"} {
		for _, at := range boundaries(i) {
			place := "attach_project/" + step + "/" + at
			for _, then := range []string{"goes on", "deleted"} {
				if then == "deleted" && at != "done" {
					continue
				}
				t.Run(step+"/"+at+"/"+then, func(t *testing.T) {
					outer := s.t
					s.t = t
					defer func() { s.t = outer }()
					p.Exec(t, "postgres", "CHECKPOINT") // the base backup's own has little to do then
					s.kill()
					s.env = []string{"PGBOUGH_FAILPOINT=" + place + "=kill"}
					s.start()
					r := s.cli("attach", "shop", "--source", sourceOf(p), "--role", "app")
					if r.code == 0 {
						t.Errorf("attach: exit 0 although the server was killed at %s", place)
					}
					select {
					case <-s.done:
					case <-time.After(time.Minute):
						t.Fatalf("the server was not killed at %s: attach said exit %d\n%s", place, r.code, r.err)
					}
					s.env = nil
					s.start()
					defer s.gone(p)
					if then == "goes on" {
						s.eventually(90*time.Second, "attach goes on to its end", func() bool {
							st := s.status()
							return len(st.Projects) == 1 && st.Projects[0].Follower.State == "streaming" && st.Projects[0].Spares.Ready > 0
						})
						s.settled("attach")
						if r := s.cli("branch", "create", "first"); r.code != 0 {
							t.Errorf("branch create: exit %d\n%s%s", r.code, r.err, s.postgresLogs(12))
						}
					}
				})
			}
		}
	}
}

// TestAttachUndone kills the server while it undoes an attach that failed: in the
// end nothing of it is left, here or on production.
func TestAttachUndone(t *testing.T) {
	p := calmProduction(t, pgtest.Options{})
	s := startServer(t)
	for _, k := range []killing{
		{"attach_project", "attach_project/slot/undo/before", "attach_project/slot/done"},
		{"attach_project", "attach_project/base_backup/undo/done", "attach_project/base_backup/done"},
		{"attach_project", "attach_project/follow/undo/done", "attach_project/publish/before"},
		{"attach_project", "attach_project/publish/undo/before", "attach_project/spare/before"},
		{"attach_project", "attach_project/publish/undo/done", "attach_project/spare/before"},
		{"attach_project", "attach_project/slot/undo/done", "attach_project/spare/before"},
	} {
		t.Run(k.place, func(t *testing.T) {
			outer := s.t
			s.t = t
			defer func() { s.t = outer }()
			p.Exec(t, "postgres", "CHECKPOINT")
			s.kill()
			s.env = []string{"PGBOUGH_FAILPOINT=" + k.failpoint()}
			s.start()
			r := s.cli("attach", "shop", "--source", sourceOf(p), "--role", "app")
			if r.code == 0 {
				t.Errorf("attach: exit 0 although it failed at %s", k.fault)
			}
			select {
			case <-s.done:
			case <-time.After(time.Minute):
				t.Fatalf("the server was not killed at %s: attach said exit %d\n%s", k.place, r.code, r.err)
			}
			s.env = nil
			s.start()
			s.settled("attach is undone")
			s.nothingLeft(p)
		})
	}
}

// postgresLogs is the tail of the log of every Postgres of the server, with where
// it is in the WAL.
func (s *server) postgresLogs(lines int) string {
	var text strings.Builder
	dirs, _ := filepath.Glob(filepath.Join(s.data(), "run", "*"))
	for _, dir := range dirs {
		b, _ := os.ReadFile(filepath.Join(dir, "log", "postgres.log"))
		out, _ := exec.Command("psql", "-XAt", "-h", filepath.Join(dir, "socket"), "-U", "postgres", "-d", "template1", "-c",
			"SELECT pg_is_in_recovery(), pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn(), (SELECT status || ' ' || flushed_lsn FROM pg_stat_wal_receiver)").CombinedOutput()
		fmt.Fprintf(&text, "--- %s: %s%s\n", filepath.Base(dir), out, lastLines(string(b), lines))
	}
	return text.String()
}

// gone deletes the project shop and checks that nothing of it is left, here or
// on production.
func (s *server) gone(p *pgtest.Server) {
	s.t.Helper()
	if r := s.cliFor(2*time.Minute, "project", "delete", "shop", "--yes"); r.code != 0 {
		s.t.Errorf("project delete: exit %d\n%s", r.code, r.err)
	}
	s.settled("project delete")
	s.nothingLeft(p)
}

// nothingLeft checks that no project is left, here or on production.
func (s *server) nothingLeft(p *pgtest.Server) {
	s.t.Helper()
	var projects struct {
		Projects []struct{ Name, State string }
	}
	s.json(&projects, "project", "list")
	if len(projects.Projects) > 0 {
		s.t.Errorf("projects left: %+v", projects.Projects)
	}
	var pool struct {
		Pool struct{ Volumes []struct{ ID, Role string } }
	}
	s.json(&pool, "pool")
	if len(pool.Pool.Volumes) > 0 {
		s.t.Errorf("volumes left: %+v", pool.Pool.Volumes)
	}
	if pm := s.postmasters(); len(pm) > 0 {
		s.t.Errorf("Postgres left running: %v", pm)
	}
	if n := p.Value(s.t, "postgres", "SELECT count(*) FROM pg_replication_slots"); n != "0" {
		s.t.Errorf("slots left on production: %s", n)
	}
	s.eventually(10*time.Second, "production has no connection of ours", func() bool {
		return p.Value(s.t, "postgres", "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'pgbough%'") == "0"
	})
}

// TestAttachRefused: what check finds refuses attach before anything is made.
func TestAttachRefused(t *testing.T) {
	p := calmProduction(t, pgtest.Options{Conf: map[string]string{"max_slot_wal_keep_size": "-1"}})
	p.Exec(t, "postgres", "CREATE ROLE plain LOGIN PASSWORD 'sekret-of-plain'; GRANT pg_read_all_settings TO plain")
	s := startServer(t)
	closed := freeAddr(t)
	_, port, _ := net.SplitHostPort(closed)
	for _, tc := range []struct {
		name, source string
		code         int
		says         string
	}{
		{"WrongPassword", strings.Replace(sourceOf(p), "sekret-of-follower", "wrong", 1), 4, "password"},
		{"NoReplication", strings.Replace(strings.Replace(sourceOf(p), "sekret-of-follower", "sekret-of-plain", 1), "user=follower", "user=plain", 1), 4, "REPLICATION"},
		{"UnlimitedSlot", sourceOf(p), 4, "max_slot_wal_keep_size"},
		{"NoServer", "host=127.0.0.1 port=" + port + " user=follower password=x dbname=postgres", 5, port},
		{"NoConnectionString", "this is none", 2, "connection string"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			outer := s.t
			s.t = t
			defer func() { s.t = outer }()
			r := s.cli("attach", "shop", "--source", tc.source)
			t.Logf("exit %d: %s", r.code, strings.TrimSpace(r.err))
			if r.code != tc.code {
				t.Errorf("attach: exit %d, want %d", r.code, tc.code)
			}
			if !strings.Contains(r.err, tc.says) || !strings.Contains(r.err, "hint:") {
				t.Errorf("attach does not say %q and what to do:\n%s", tc.says, r.err)
			}
			if strings.Contains(r.err, "sekret") {
				t.Errorf("attach shows the password: %s", r.err)
			}
			s.nothingLeft(p)
		})
	}
	t.Run("UnlimitedSlotAccepted", func(t *testing.T) {
		outer := s.t
		s.t = t
		defer func() { s.t = outer }()
		s.must("attach", "shop", "--source", sourceOf(p), "--role", "app", "--accept-unlimited-slot")
		s.gone(p)
	})
}
