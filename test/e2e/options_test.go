package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pgbough/pgbough/internal/pgtest"
)

// TestOptions tries what commands are told by flags, and what production sees of
// it all, on a production with some data.
func TestOptions(t *testing.T) {
	p := calmProduction(t, pgtest.Options{})
	p.Exec(t, "postgres", "CREATE TABLE bulk AS SELECT i, repeat(md5(i::text), 8) AS t FROM generate_series(1, 400000) i; ALTER TABLE bulk OWNER TO app")
	p.Exec(t, "postgres", "CHECKPOINT")
	wire := startLink(t, p)
	s := startServer(t)
	seen := watch(t, p)
	before := schemaOf(t, p)
	most := wire.fastest(t, func() {
		s.must("attach", "shop", "--source", wire.source(), "--role", "app", "--max-rate", "20M")
	})
	// Twice what is allowed; without the limit it is several times as much.
	t.Logf("at most %d MB came in two seconds", most>>20)
	if most > 80<<20 {
		t.Errorf("with --max-rate 20M, %d MB came in two seconds", most>>20)
	}
	seen.hold(t, "attach", 2, 2) // check looks into every database
	w := startWriter(t, p, "")

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
	// Whoever asks has a minute to see it, in which the following happens.
	s.must("branch", "create", "brief", "--expires", "3s")
	run("Own", func(t *testing.T) { s.ownsLittle() })
	run("Reuse", func(t *testing.T) {
		id := func() string {
			var made branchJSON
			s.json(&made, "branch", "create", "again", "--reuse")
			return made.Branch.ID
		}
		if first, second := id(), id(); first != second || first == "" {
			t.Errorf("branch create --reuse made %q, then %q", first, second)
		}
		if r := s.cli("branch", "create", "again"); r.code != 4 {
			t.Errorf("branch create of a name that is there: exit %d, want 4\n%s", r.code, r.err)
		}
		s.must("branch", "delete", "again")
	})
	run("Run", func(t *testing.T) { s.runs() })
	seen.hold(t, "branches", 1, 1)
	run("Checkpoint", func(t *testing.T) { s.renewed(p) })
	run("Subtransactions", func(t *testing.T) { s.overflowed(p, w) })
	run("MaxLag", func(t *testing.T) {
		w.end()
		time.Sleep(2 * time.Second) // until the follower has replayed what it was last told of
		wire.close()
		s.waitFollower(time.Minute, "disconnected")
		s.must("branch", "create", "old", "--max-lag", "10m")
		if got := s.query("old", fmt.Sprintf("SELECT count(*) = max(n) AND max(n) = %d FROM acked", w.acked())); got != "t" {
			t.Error("a branch of an allowed age is not a prefix of production")
		}
		if r := s.cliFor(time.Minute, "branch", "create", "older", "--max-lag", "1s"); r.code != 5 || !strings.Contains(r.err, "ago") {
			t.Errorf("branch create of a state that is too old: exit %d, want 5 and how old it is\n%s", r.code, r.err)
		}
		wire.open()
		s.must("branch", "delete", "old")
	})
	run("Expires", func(t *testing.T) {
		s.must("branch", "create", "long", "--expires", "1h")
		s.eventually(80*time.Second, "the expired branch is gone", func() bool { return s.cli("branch", "get", "brief").code == 3 })
		s.must("branch", "delete", "long")
	})
	if after := schemaOf(t, p); after != before {
		t.Errorf("production's catalogs changed: %s, before %s", after, before)
	}
	s.nothingLost()
}

// fastest is the most bytes that came through the link within two seconds
// while f ran.
func (l *link) fastest(t *testing.T, f func()) (most int64) {
	t.Helper()
	const beat, beats = 100 * time.Millisecond, 20
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		ticker := time.NewTicker(beat)
		defer ticker.Stop()
		var moved []int64
		for {
			select {
			case <-done:
				return
			case <-ticker.C:
			}
			moved = append(moved, l.moved.Load())
			most = max(most, moved[len(moved)-1]-moved[max(0, len(moved)-1-beats)])
		}
	}()
	f()
	close(done)
	<-ended
	return most
}

// ownsLittle is promise 5, and that a branch is soon as cheap to start anew as
// after a clean stop (facts 17).
func (s *server) ownsLittle() {
	s.t.Helper()
	s.must("branch", "create", "small")
	var b branchJSON
	s.eventually(time.Minute, "a branch owns less than a quarter of its data", func() bool {
		s.json(&b, "branch", "get", "small")
		return b.Branch.OwnBytes > 0 && b.Branch.OwnBytes < b.Branch.LogicalBytes/4
	})
	s.t.Logf("%d MB of %d MB are its own", b.Branch.OwnBytes>>20, b.Branch.LogicalBytes>>20)
	if b.Branch.LogicalBytes < 100<<20 {
		s.t.Errorf("logical size %d, there are more than 100 MB of data", b.Branch.LogicalBytes)
	}
	s.must("psql", "small", "--", "-XAtqc", "UPDATE bulk SET t = t WHERE i <= 200000")
	s.eventually(time.Minute, "what a branch writes is its own", func() bool {
		own := b.Branch.OwnBytes
		var now branchJSON
		s.json(&now, "branch", "get", "small")
		return now.Branch.OwnBytes > own+50<<20
	})
	redo := fmt.Sprintf("SELECT redo_lsn >= '%s' FROM pg_control_checkpoint()", b.Branch.ParentLSN)
	s.eventually(time.Minute, "a new branch has a checkpoint of its own", func() bool {
		return s.must("psql", "small", "--", "-XAtqc", redo) == "t"
	})
	s.must("branch", "delete", "small")
}

// runs tries pgbough run: the command's environment and exit status, signals,
// and what becomes of the branch.
func (s *server) runs() {
	s.t.Helper()
	r := s.cli("run", "--", "sh", "-c", `psql -XAtc 'SELECT count(*) > 0 FROM bulk' "$DATABASE_URL"; psql -XAtc 'SELECT current_user'; exit 7`)
	if r.code != 7 || r.out != "t\napp\n" {
		s.t.Errorf("run: exit %d, want 7\n%s%s", r.code, r.out, r.err)
	}
	if left := s.runBranches(); len(left) > 0 {
		s.t.Errorf("branches left by run: %v", left)
	}
	if r := s.cli("run", "--", "no-such-program"); r.code != 127 {
		s.t.Errorf("run of a program that there is not: exit %d, want 127\n%s", r.code, r.err)
	}
	start := func(script string) *exec.Cmd {
		cmd := exec.Command(binary, "run", "--", "sh", "-c", script)
		cmd.Env = append(os.Environ(), "PGBOUGH_DATA="+s.data(), "PGBOUGH_API=http://"+s.api)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		out, err := cmd.StdoutPipe()
		check(s.t, err)
		check(s.t, cmd.Start())
		if _, err := out.Read(make([]byte, 1)); err != nil {
			s.t.Fatalf("the command of run does not begin: %v", err)
		}
		return cmd
	}
	told := start(`trap 'exit 9' TERM; echo here; while :; do sleep 0.1; done`)
	check(s.t, told.Process.Signal(syscall.SIGTERM))
	_ = told.Wait()
	if code := told.ProcessState.ExitCode(); code != 9 {
		s.t.Errorf("run that was told to end: exit %d, want the command's 9", code)
	}
	if left := s.runBranches(); len(left) > 0 {
		s.t.Errorf("branches left by run: %v", left)
	}
	killed := start("echo here; exec sleep 600")
	check(s.t, syscall.Kill(-killed.Process.Pid, syscall.SIGKILL))
	_ = killed.Wait()
	left := s.runBranches()
	if len(left) != 1 {
		s.t.Fatalf("branches of a run that was killed: %v, want one", left)
	}
	for name, expires := range left {
		if until := time.Until(expires); expires.IsZero() || until > 2*time.Minute {
			s.t.Errorf("the branch of a run that was killed expires in %s, its lease is two minutes", until)
		}
		s.must("branch", "delete", name)
	}
}

// runBranches are the branches of run, with the ends of their leases.
func (s *server) runBranches() map[string]time.Time {
	s.t.Helper()
	var list struct {
		Branches []struct {
			Name      string    `json:"name"`
			ExpiresAt time.Time `json:"expires_at"`
		} `json:"branches"`
	}
	s.json(&list, "branch", "list")
	found := map[string]time.Time{}
	for _, b := range list.Branches {
		if strings.HasPrefix(b.Name, "run-") {
			found[b.Name] = b.ExpiresAt
		}
	}
	return found
}

// renewed is facts 9: as soon as production has checkpointed the follower has a
// restartpoint there, and a spare that is far behind it is replaced.
func (s *server) renewed(p *pgtest.Server) {
	s.t.Helper()
	p.Exec(s.t, "postgres", "UPDATE bulk SET t = t")
	p.Exec(s.t, "postgres", "CHECKPOINT")
	redo := p.Value(s.t, "postgres", "SELECT redo_lsn FROM pg_control_checkpoint()")
	began := time.Now()
	s.eventually(2*time.Minute, "the spare begins at production's checkpoint", func() bool {
		list := s.status().Projects[0].Spares.List
		return len(list) == 1 && list[0].State == "ready" &&
			p.Value(s.t, "postgres", fmt.Sprintf("SELECT '%s'::pg_lsn >= '%s'::pg_lsn", list[0].RedoLSN, redo)) == "true"
	})
	s.t.Logf("renewed %s after production's checkpoint", time.Since(began).Round(100*time.Millisecond))
}

// reached tells whether the follower's restartpoint is at production's checkpoint.
func (s *server) reached(p *pgtest.Server) bool {
	s.t.Helper()
	return p.Value(s.t, "postgres", "SELECT '"+s.status().Projects[0].Follower.RedoLSN+"'::pg_lsn >= redo_lsn FROM pg_control_checkpoint()") == "true"
}

// overflowed is facts 10: a spare that begins while a transaction of production
// has more subtransactions than Postgres keeps in memory takes no connection
// until that has ended. A create waits for it.
func (s *server) overflowed(p *pgtest.Server, w *writer) {
	s.t.Helper()
	conn := p.Conn(s.t, "postgres")
	open := "BEGIN;"
	for i := range 80 {
		open += fmt.Sprintf("SAVEPOINT s%d; INSERT INTO acked_sub VALUES (%d);", i, i)
	}
	p.Exec(s.t, "postgres", "CREATE TABLE IF NOT EXISTS acked_sub (n int)")
	if _, err := conn.Exec(context.Background(), open); err != nil {
		s.t.Fatal(err)
	}
	// What a clone begins with: the checkpoint's list of running transactions.
	p.Exec(s.t, "postgres", "CHECKPOINT")
	s.eventually(30*time.Second, "the follower has a restartpoint there", func() bool { return s.reached(p) })
	s.killPostgres(s.status().Projects[0].Spares.List[0].VolumeID)
	done := make(chan result, 1)
	before := w.acked()
	go func() { done <- s.cliFor(3*time.Minute, "branch", "create", "patient") }()
	select {
	case r := <-done:
		s.t.Errorf("branch create did not wait for the transaction: exit %d\n%s", r.code, r.err)
		done <- r
	case <-time.After(5 * time.Second):
	}
	if _, err := conn.Exec(context.Background(), "COMMIT"); err != nil {
		s.t.Fatal(err)
	}
	p.Exec(s.t, "postgres", "DROP TABLE acked_sub")
	if r := <-done; r.code != 0 {
		s.t.Fatalf("branch create: exit %d\n%s%s", r.code, r.err, s.postgresLogs(12))
	}
	if got := s.query("patient", fmt.Sprintf("SELECT count(*) = max(n) AND max(n) >= %d FROM acked", before)); got != "t" {
		s.t.Error("the branch lacks rows that were acknowledged before it was asked for, or has a gap")
	}
	s.must("branch", "delete", "patient")
}
