package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pgbough/pgbough/internal/pgtest"
)

// volumeJSON is one of `pool --json`.
type volumeJSON struct {
	ID     string `json:"id"`
	Role   string `json:"role"`
	Branch string `json:"branch"`
	Known  bool   `json:"known"`
}

func (s *server) poolVolumes() []volumeJSON {
	s.t.Helper()
	var p struct {
		Pool struct {
			Volumes []volumeJSON `json:"volumes"`
		} `json:"pool"`
	}
	s.json(&p, "pool")
	return p.Pool.Volumes
}

var postmasterInside = regexp.MustCompile(`(?m)^NSpid:.*\t2$`)

// postmasters are the postmasters of this server's volumes, by volume id. They
// are looked for on the machine, not asked of the server: its sandboxes show
// the volume in cluster_name and have this data directory's file system as /pgdata.
func (s *server) postmasters() map[string][]int {
	s.t.Helper()
	var pool unix.Stat_t
	if err := unix.Stat(filepath.Join(s.data(), "pool"), &pool); err != nil {
		return nil
	}
	found := map[string][]int{}
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range lines {
		b, _ := os.ReadFile(path)
		args := strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")
		if filepath.Base(args[0]) != "postgres" {
			continue
		}
		_, id, ok := strings.Cut(args[len(args)-1], "cluster_name=pgbough/")
		var pid int
		if _, err := fmt.Sscanf(path, "/proc/%d/cmdline", &pid); err != nil || !ok {
			continue
		}
		// What it has just forked still has its command line; the postmaster is 2 inside.
		if status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)); !postmasterInside.Match(status) {
			continue
		}
		var data unix.Stat_t
		if err := unix.Stat(fmt.Sprintf("/proc/%d/root/pgdata", pid), &data); err == nil && data.Dev == pool.Dev {
			found[id] = append(found[id], pid)
		}
	}
	return found
}

// killPostgres kills the postmaster on a volume, and with it its sandbox.
func (s *server) killPostgres(volume string) {
	s.t.Helper()
	pids := s.postmasters()[volume]
	if len(pids) != 1 {
		s.t.Fatalf("%d postmasters run on volume %s, want 1", len(pids), volume)
	}
	if err := syscall.Kill(pids[0], syscall.SIGKILL); err != nil {
		s.t.Fatal(err)
	}
}

// processes are those of the Postgres on a volume, the postmaster first.
func (s *server) processes(volume string) []int {
	s.t.Helper()
	pids := s.postmasters()[volume]
	if len(pids) != 1 {
		s.t.Fatalf("%d postmasters run on volume %s, want 1", len(pids), volume)
	}
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pids[0], pids[0]))
	if err != nil {
		s.t.Fatal(err)
	}
	for text := range strings.FieldsSeq(string(children)) {
		var pid int
		if _, err := fmt.Sscan(text, &pid); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// killAll kills the server and every Postgres of it.
func (s *server) killAll() {
	s.t.Helper()
	s.kill()
	for _, pids := range s.postmasters() {
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
		}
	}
	deadline := time.Now().Add(30 * time.Second)
	for len(s.postmasters()) > 0 {
		if time.Now().After(deadline) {
			s.t.Fatalf("killed Postgres still run: %v", s.postmasters())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (s *server) volumeOf(branch string) string {
	s.t.Helper()
	var b branchJSON
	s.json(&b, "branch", "get", branch)
	return filepath.Base(b.Branch.Path)
}

// TestPoolFull fills the pool from inside a branch: production goes on, new
// branches are refused with the numbers and what to do, the branch is stopped
// when it comes to the reserve, so that neighbours and the follower go on, and
// deleting it makes everything work again.
func TestPoolFull(t *testing.T) {
	p := calmProduction(t, pgtest.Options{})
	w := startWriter(t, p, "")
	s := startServer(t, "--pool-size", "2GB", "--pool-reserve", "300MB")
	if st := s.status(); st.Pool.Free_bytes > st.Pool.Size_bytes-300<<20 {
		t.Errorf("free for branches: %d of %d bytes, with 300 MB in reserve", st.Pool.Free_bytes, st.Pool.Size_bytes)
	}
	s.attach(p)
	s.must("branch", "create", "neighbour")
	s.query("neighbour", "CREATE TABLE mine AS SELECT 1 AS a")
	s.must("branch", "create", "greedy")
	s.waitSpare()

	r := s.cliFor(3*time.Minute, "psql", "greedy", "--", "-XAtq", "-v", "ON_ERROR_STOP=1", "-c",
		"CREATE TABLE fill (t text); ALTER TABLE fill ALTER t SET STORAGE PLAIN",
		"-c", "INSERT INTO fill SELECT repeat(md5(i::text), 100) FROM generate_series(1, 3000000) i")
	t.Logf("the greedy branch: exit %d: %s", r.code, strings.TrimSpace(r.err))
	if r.code == 0 {
		t.Error("a branch wrote more than the pool has")
	}
	b, _ := json.Marshal(s.status().Pool)
	t.Logf("pool: %s", b)

	s.eventually(time.Minute, "the notes of the greedy branch tell why it was stopped", func() bool {
		return strings.Contains(s.notes("greedy"), "no more than its reserve")
	})
	s.waitFollower(10*time.Second, "streaming")
	before := w.acked()
	time.Sleep(time.Second)
	if w.acked() == before {
		t.Error("production has stopped")
	}
	filler := filepath.Join(s.data(), "pool", "filler")
	if out, err := exec.Command("fallocate", "-l", fmt.Sprint(s.status().Pool.Free_bytes), filler).CombinedOutput(); err != nil {
		t.Fatalf("fill what the stopped branch has given back: %v: %s", err, out)
	}
	for i := range 3 {
		r = s.cliFor(60*time.Second, "branch", "create", fmt.Sprintf("too-much-%d", i))
		t.Logf("branch create: exit %d: %s", r.code, strings.TrimSpace(r.err))
		if r.code != 4 || !strings.Contains(r.err, "free") || !strings.Contains(r.err, "delete") {
			t.Errorf("branch create on a full pool: exit %d, want 4, how much is free, and what to do\n%s", r.code, r.err)
		}
	}
	if got := s.cliFor(30*time.Second, "psql", "neighbour", "--", "-XAtqc", "INSERT INTO mine VALUES (1); SELECT count(*) FROM mine"); strings.TrimSpace(got.out) != "2" {
		t.Errorf("the neighbour of a branch that filled the pool: exit %d\n%s%s", got.code, got.out, got.err)
	}
	check(t, os.Remove(filler))
	s.must("branch", "delete", "greedy")
	s.waitFollower(2*time.Minute, "streaming")
	s.waitSpare()
	s.branchIsNow("again", w)
	if got := s.query("neighbour", "INSERT INTO mine VALUES (2); SELECT count(*) FROM mine"); got != "3" {
		t.Errorf("rows of the neighbour: %s", got)
	}
}

// TestPoolResize makes the pool larger while branches are used.
func TestPoolResize(t *testing.T) {
	p := calmProduction(t, pgtest.Options{})
	s := startServer(t, "--pool-size", "2GB", "--pool-sparse=false")
	s.attach(p)
	s.must("branch", "create", "used")
	before := s.status().Pool
	s.must("pool", "resize", "2500MB")
	if got := s.status().Pool; got.Size_bytes < before.Size_bytes+400<<20 || got.Free_bytes < before.Free_bytes+300<<20 {
		t.Errorf("the pool was %+v, and is %+v after a resize", before, got)
	}
	if got := s.query("used", "SELECT 1"); got != "1" {
		t.Errorf("the branch says %q", got)
	}
	if r := s.cli("pool", "resize", "1GB"); r.code != 4 || !strings.Contains(r.err, "cannot become smaller") {
		t.Errorf("smaller: exit %d, want 4 and why\n%s", r.code, r.err)
	}
	if r := s.cli("pool", "resize", "1000TB"); r.code != 4 || !strings.Contains(r.err, "does not fit") {
		t.Errorf("larger than the disk: exit %d, want 4 and why\n%s", r.code, r.err)
	}
	if r := s.cli("pool", "resize", "much"); r.code != 2 {
		t.Errorf("no size: exit %d, want 2", r.code)
	}
}

// TestDefaultReserve: a server that is told nothing keeps a reserve too.
func TestDefaultReserve(t *testing.T) {
	s := startServer(t)
	var p struct {
		Pool struct {
			ReserveBytes int64 `json:"reserve_bytes"`
			SizeBytes    int64 `json:"size_bytes"`
		} `json:"pool"`
	}
	s.json(&p, "pool")
	if p.Pool.ReserveBytes < p.Pool.SizeBytes/25 {
		t.Errorf("%d bytes of %d are in reserve; the help says 5%%", p.Pool.ReserveBytes, p.Pool.SizeBytes)
	}
}

// TestKilled kills what can be killed, one after the other; each comes back, and
// nothing that was acknowledged is lost.
func TestKilled(t *testing.T) {
	p := calmProduction(t, pgtest.Options{})
	w := startWriter(t, p, "")
	s := startServer(t)
	s.attach(p)
	s.must("branch", "create", "keep")
	s.query("keep", "CREATE TABLE mine (n int)")
	rows := 0
	write := func() { // an acknowledged row of the branch
		t.Helper()
		s.query("keep", fmt.Sprintf("INSERT INTO mine VALUES (%d)", rows+1))
		rows++
	}
	kept := func() {
		s.t.Helper()
		if got := s.query("keep", "SELECT count(*) = max(n) AND count(*) = "+fmt.Sprint(rows)+" FROM mine"); got != "t" {
			s.t.Errorf("the branch lost rows that it had acknowledged")
		}
	}
	run := func(name string, f func(t *testing.T)) {
		t.Run(name, func(t *testing.T) {
			outer := s.t
			s.t = t
			defer func() { s.t = outer }()
			s.waitSpare()
			write()
			f(t)
			kept()
			s.nothingLost()
		})
	}

	run("Compute", func(t *testing.T) {
		volume := s.volumeOf("keep")
		s.killPostgres(volume)
		began := time.Now()
		kept()
		t.Logf("it answers again after %s", time.Since(began).Round(time.Millisecond))
	})
	run("Follower", func(t *testing.T) {
		s.killPostgres(s.volumeOf("main"))
		s.eventually(30*time.Second, "the follower runs again", func() bool { return len(s.postmasters()[s.volumeOf("main")]) == 1 })
		s.waitFollower(time.Minute, "streaming")
		s.branchIsNow("follower-killed", w)
	})
	run("Spare", func(t *testing.T) {
		var spare string
		for _, v := range s.poolVolumes() {
			if v.Role == "spare" {
				spare = v.ID
			}
		}
		s.killPostgres(spare)
		s.branchIsNow("spare-killed", w)
		s.eventually(time.Minute, "the killed spare is gone", func() bool {
			for _, v := range s.poolVolumes() {
				if v.ID == spare {
					return false
				}
			}
			return true
		})
	})
	run("StuckSpare", func(t *testing.T) {
		// The follower's walsender waits for one that reads no more (facts 4); so
		// does whoever stops the spare.
		spare := s.status().Projects[0].Spares.List[0].VolumeID
		for _, pid := range s.processes(spare) {
			if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
		}
		began := time.Now()
		s.stop()
		t.Logf("the server stopped within %s", time.Since(began).Round(100*time.Millisecond))
		if pm := s.postmasters(); len(pm) > 0 {
			t.Errorf("Postgres run on after a clean stop: %v", pm)
		}
		s.start()
	})
	run("ServerAtRandom", func(t *testing.T) {
		s.killAtRandom(w, 10, func(i int) bool { return i%5 == 4 })
	})
	run("Reboot", func(t *testing.T) {
		s.must("branch", "create", "over-reboot")
		s.reboot()
		s.waitFollower(2*time.Minute, "streaming")
		if got := s.query("over-reboot", "SELECT count(*) = max(n) FROM acked"); got != "t" {
			t.Error("the branch lost rows over a reboot")
		}
		s.branchIsNow("after-reboot", w)
		s.must("branch", "delete", "over-reboot")
	})
	run("CatalogLost", func(t *testing.T) { s.loseCatalog() })
}

// killAtRandom kills the server at random moments while branches are made and
// removed; where all tells so, every Postgres with it. What was acknowledged is
// there afterwards.
func (s *server) killAtRandom(w *writer, times int, all func(i int) bool) {
	s.t.Helper()
	seed := uint64(time.Now().UnixNano())
	s.t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	acked := map[string]int64{} // branches that were acknowledged, with the newest row before their request
	for i := range times {
		var mu sync.Mutex
		var load sync.WaitGroup
		stop := make(chan struct{})
		load.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				name := fmt.Sprintf("r-%d-%d", i, n)
				before := w.acked()
				if r := s.cliFor(90*time.Second, "branch", "create", name); r.code == 0 {
					mu.Lock()
					acked[name] = before
					mu.Unlock()
				}
				if n%2 == 1 {
					old := fmt.Sprintf("r-%d-%d", i, n-1)
					mu.Lock()
					delete(acked, old) // whatever comes of it
					mu.Unlock()
					s.cliFor(90*time.Second, "branch", "delete", old)
				}
			}
		})
		time.Sleep(time.Duration(500+rnd.IntN(7000)) * time.Millisecond)
		if all(i) {
			s.killAll()
		} else {
			s.kill()
		}
		close(stop)
		load.Wait()
		s.start()
		s.settled(fmt.Sprint("kill ", i))
		for name, before := range acked {
			r := s.cliFor(90*time.Second, "psql", name, "--", "-XAtqc", fmt.Sprintf("SELECT count(*) = max(n) AND max(n) >= %d FROM acked", before))
			if strings.TrimSpace(r.out) != "t" {
				s.t.Errorf("after kill %d, branch %s, which was acknowledged: exit %d: %s%s", i, name, r.code, r.out, r.err)
			}
		}
		var list struct {
			Branches []struct {
				Name string `json:"name"`
			} `json:"branches"`
		}
		s.json(&list, "branch", "list")
		for _, b := range list.Branches {
			if strings.HasPrefix(b.Name, "r-") {
				s.must("branch", "delete", b.Name)
			}
		}
		clear(acked)
		s.nothingLost()
	}
}

// reboot ends everything as a reboot does: processes, the mount, the loop device.
func (s *server) reboot() {
	s.t.Helper()
	s.killAll()
	pool, image := filepath.Join(s.data(), "pool"), filepath.Join(s.data(), "pool.img")
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := unix.Unmount(pool, 0)
		if err == nil || err == unix.EINVAL {
			break
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("unmount %s: %v", pool, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	out, err := exec.Command("losetup", "-j", image, "-n", "-O", "NAME").Output()
	if err != nil {
		s.t.Fatal(err)
	}
	for dev := range strings.FieldsSeq(string(out)) {
		if out, err := exec.Command("losetup", "-d", dev).CombinedOutput(); err != nil {
			s.t.Logf("losetup -d %s: %v %s", dev, err, out) // the kernel may have detached it with the mount
		}
	}
	if err := os.RemoveAll(filepath.Join(s.data(), "run")); err != nil { // often a tmpfs
		s.t.Fatal(err)
	}
	s.start()
}

// loseCatalog stops the server and takes its catalog away: it deletes nothing,
// lists what it does not know, and removes that when it is told to. Then the old
// catalog comes back with the volumes gone, which is not this test's.
func (s *server) loseCatalog() {
	s.t.Helper()
	s.nothingLost()
	before := s.poolVolumes()
	s.stop()
	aside := filepath.Join(s.dir, "aside")
	if err := os.Mkdir(aside, 0o700); err != nil {
		s.t.Fatal(err)
	}
	files, _ := filepath.Glob(filepath.Join(s.data(), "catalog.db*"))
	move := func(from, to string) {
		for _, f := range files {
			if err := os.Rename(filepath.Join(from, filepath.Base(f)), filepath.Join(to, filepath.Base(f))); err != nil && !os.IsNotExist(err) {
				s.t.Fatal(err)
			}
		}
	}
	move(s.data(), aside)
	s.start()
	check := func(when string) {
		s.t.Helper()
		found := s.poolVolumes()
		if len(found) != len(before) {
			s.t.Errorf("%s: %d volumes, there were %d", when, len(found), len(before))
		}
		for _, v := range found {
			if v.Known {
				s.t.Errorf("%s: volume %s is known to an empty catalog", when, v.ID)
			}
		}
	}
	check("after the catalog was lost")
	time.Sleep(3 * time.Second)
	check("some seconds later")
	if r := s.cli("pool", "prune", "--dry-run"); r.code != 0 || strings.Count(r.out, "\n") < len(before) {
		s.t.Errorf("pool prune --dry-run: exit %d, want all %d volumes\n%s%s", r.code, len(before), r.out, r.err)
	}
	if r := s.cli("pool", "prune"); r.code != 2 {
		s.t.Errorf("pool prune without a terminal: exit %d, want 2\n%s%s", r.code, r.out, r.err)
	}
	check("after prune was not confirmed")

	// The catalog that was away comes back: everything is there.
	s.stop()
	files, _ = filepath.Glob(filepath.Join(s.data(), "catalog.db*"))
	for _, f := range files {
		if err := os.Remove(f); err != nil {
			s.t.Fatal(err)
		}
	}
	files, _ = filepath.Glob(filepath.Join(aside, "catalog.db*"))
	move(aside, s.data())
	s.start()
	s.nothingLost()
	if got := len(s.poolVolumes()); got < len(before) {
		s.t.Errorf("%d volumes after the catalog came back, there were %d", got, len(before))
	}
}

// TestPrune: volumes of a catalog that is lost for good go by prune, and only then.
func TestPrune(t *testing.T) {
	p := calmProduction(t, pgtest.Options{})
	s := startServer(t)
	s.attach(p)
	s.must("branch", "create", "lost")
	s.waitSpare()
	s.settled("attach")
	// No Postgres runs on a point of the past.
	s.eventually(time.Minute, "there is a point of the past", func() bool {
		return slices.ContainsFunc(s.poolVolumes(), func(v volumeJSON) bool { return v.Role == "past" && v.Known })
	})
	s.kill() // its Postgres run on
	files, _ := filepath.Glob(filepath.Join(s.data(), "catalog.db*"))
	for _, f := range files {
		if err := os.Remove(f); err != nil {
			t.Fatal(err)
		}
	}
	s.start()
	before := s.poolVolumes()
	if len(before) < 3 {
		t.Errorf("volumes after the catalog was lost: %+v, want root, branch and spare", before)
	}
	if r := s.cli("pool", "prune", "--yes"); r.code != 4 {
		t.Errorf("pool prune while Postgres runs on the volumes: exit %d, want 4\n%s%s", r.code, r.out, r.err)
	}
	if got := s.poolVolumes(); len(got) != len(before) {
		t.Errorf("%d volumes are left of %d although prune was refused", len(got), len(before))
	}
	s.killAll()
	s.start()
	s.must("pool", "prune", "--yes")
	if got := s.poolVolumes(); len(got) > 0 {
		t.Errorf("volumes left after prune: %+v", got)
	}
	// The pool is of use for a new start.
	p.Exec(t, "postgres", "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
	s.attach(p)
	s.must("branch", "create", "anew")
}
