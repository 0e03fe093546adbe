package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/pgbough/pgbough/internal/pgtest"
)

// TestSoak does at random what users and accidents do, for PGBOUGH_SOAK_TIME
// (half a minute where that is not set) and until PGBOUGH_SOAK_CREATES branches
// are made, and checks after each step that every acknowledged branch is there
// with its rows and that nothing is left over.
func TestSoak(t *testing.T) {
	length, err := time.ParseDuration(envOr("PGBOUGH_SOAK_TIME", "30s"))
	if err != nil {
		t.Fatal(err)
	}
	creates, err := strconv.Atoi(envOr("PGBOUGH_SOAK_CREATES", "0"))
	if err != nil {
		t.Fatal(err)
	}
	seed, err := strconv.ParseUint(envOr("PGBOUGH_SOAK_SEED", fmt.Sprint(time.Now().UnixNano())), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	p := production(t, pgtest.Options{})
	s := startServer(t)
	s.attach(p)
	// Two of four sessions get acknowledgements of what is not written down yet.
	const async = "SET synchronous_commit = off"
	k := &soak{t: t, s: s, c: startCrowd(t, p, "", async, "", async), random: random, rows: map[string]string{}}
	for end := time.Now().Add(length); time.Now().Before(end) || k.created < creates; {
		k.step()
	}
	s.nothingLost()
	t.Logf("%d branches created, %d deleted, %d kills of the server, %d of computes", k.created, k.deleted, k.kills, k.computeKills)
}

type soak struct {
	t      *testing.T
	s      *server
	c      *crowd
	random *rand.Rand
	rows   map[string]string // what each acknowledged branch must count

	created, deleted, kills, computeKills int
}

const soakBranches = 6 // at most at a time

func (k *soak) step() {
	k.t.Helper()
	time.Sleep(time.Duration(k.random.IntN(500)) * time.Millisecond)
	switch n := k.random.IntN(10); {
	case len(k.rows) == 0, n < 5 && len(k.rows) < soakBranches:
		k.create()
	case n < 7:
		name := k.pick()
		k.s.must("branch", "delete", name)
		delete(k.rows, name)
		k.deleted++
	case n < 9:
		k.s.kill()
		k.s.start()
		k.kills++
		k.s.nothingLost()
	default:
		k.killCompute(k.pick())
	}
	for name, want := range k.rows {
		k.s.eventually(time.Minute, "branch "+name+" answers with its rows", func() bool {
			r := k.s.cli("psql", name, "--", "-XAtq", "-c", "SELECT count(*) FROM acked_by")
			if r.code == 0 && r.out != want+"\n" {
				k.t.Fatalf("branch %s has %s rows, want %s", name, r.out, want)
			}
			return r.code == 0
		})
	}
	k.s.oneEach()
	if k.t.Failed() {
		k.t.FailNow()
	}
}

func (k *soak) create() {
	k.t.Helper()
	k.created++
	name := fmt.Sprintf("soak-%d", k.created)
	before := k.c.known()
	k.s.must("branch", "create", name)
	k.s.checkNow(k.c, name, before)
	k.rows[name] = k.s.query(name, "SELECT count(*) FROM acked_by")
}

func (k *soak) pick() string {
	names := make([]string, 0, len(k.rows))
	for i := range k.created {
		if name := fmt.Sprintf("soak-%d", i+1); k.rows[name] != "" {
			names = append(names, name)
		}
	}
	return names[k.random.IntN(len(names))]
}

// killCompute ends a branch's Postgres as the kernel would that runs out of memory.
func (k *soak) killCompute(name string) {
	k.t.Helper()
	pid := k.s.postmaster(name)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		k.t.Fatalf("kill the Postgres of %s: %v", name, err)
	}
	k.computeKills++
}

// postmaster is the process id of a branch's postmaster.
func (s *server) postmaster(name string) int {
	s.t.Helper()
	var b branchJSON
	s.json(&b, "branch", "get", name)
	id := b.Branch.Path[len(b.Branch.Path)-12:] // the volume's id
	for _, pid := range postmasters(s.t) {
		cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if containsArg(cmdline, "cluster_name=pgbough/"+id) {
			return pid
		}
	}
	s.t.Fatalf("no postmaster runs on volume %s", id)
	return 0
}

func envOr(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}
