package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"

	"github.com/pgbough/pgbough/internal/postgres"
)

// limited starts a sandbox with limits; the test needs a machine with cgroups.
func limited(t testing.TB, l *Launcher, limits postgres.Limits) (postgres.Spec, *process) {
	t.Helper()
	if err := l.Unlimited(); err != nil {
		t.Fatalf("this test needs cgroups: %v", err)
	}
	s := newSpec(t, l)
	s.Limits = limits
	return s, start(t, l, s).(*process)
}

func membersOf(t testing.TB, g *group) []int {
	t.Helper()
	pids, err := cgroups.GetPids(g.Path("memory"))
	if err != nil {
		t.Fatal(err)
	}
	return pids
}

func goneDirs(g *group) bool {
	for _, dir := range g.GetPaths() {
		if cgroups.PathExists(dir) {
			return false
		}
	}
	return true
}

func TestGroup(t *testing.T) {
	l := newLauncher(t)
	s, p := limited(t, l, postgres.Limits{Memory: 512 << 20, Processes: 100})
	conn := connect(t, s)
	members := membersOf(t, p.group)
	if !slices.Contains(members, p.PID()) || !slices.Contains(members, p.boss) || !slices.Contains(members, p.cmd.Process.Pid) {
		t.Errorf("the cgroup has %v, want bwrap %d, the init %d and the postmaster %d in it", members, p.cmd.Process.Pid, p.boss, p.PID())
	}
	if got := inside(t, conn, "cut -d: -f3 /proc/self/cgroup | sort -u | grep -c pgbough"); got != "0" {
		t.Errorf("inside, %s paths of cgroups can be seen", got)
	}

	again := newLauncher(t)
	found, ok, err := again.Find(t.Context(), s.ID)
	if err != nil || !ok {
		t.Fatalf("found %v, %v", ok, err)
	}
	adopted := found.(*process)
	if got, want := adopted.group.Path("memory"), p.group.Path("memory"); got != want {
		t.Errorf("adopted with cgroup %q, want %q", got, want)
	}
	if err := found.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitDone(t, p)
	wait(t, "the removal of the cgroup", func() bool { return goneDirs(p.group) })
}

// TestMemory has one Postgres use more than its limit; nobody else is harmed.
func TestMemory(t *testing.T) {
	l := newLauncher(t)
	quiet, _ := limited(t, l, postgres.Limits{Memory: 128 << 20})
	s, p := limited(t, l, postgres.Limits{Memory: 128 << 20})
	free, unlimited := limited(t, l, postgres.Limits{})
	const hog = "SELECT length(string_agg(repeat('x', 1000000), '')) FROM generate_series(1, 300)"
	neighbour := connect(t, quiet)

	_, err := connect(t, s).Exec(t.Context(), hog)
	if err == nil {
		t.Error("300 MB were used under a limit of 128 MB")
	}
	if n := p.MemoryKills(); n == 0 {
		t.Errorf("no process counts as killed; the statement said: %v", err)
	}
	exec1(t, neighbour, "SELECT 1")
	exec1(t, connect(t, s), "SELECT 1") // the postmaster goes on by itself
	if err := p.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := p.MemoryKills(); n == 0 {
		t.Error("the kills are forgotten at the end")
	}

	exec1(t, connect(t, free), hog)
	if n := unlimited.MemoryKills(); n != 0 {
		t.Errorf("%d processes were killed without a limit", n)
	}
}

// TestForkBomb has one Postgres make processes without end.
func TestForkBomb(t *testing.T) {
	l := newLauncher(t)
	quiet, _ := limited(t, l, postgres.Limits{Processes: 100})
	const most = 120
	s, p := limited(t, l, postgres.Limits{Processes: most})
	neighbour := connect(t, quiet)
	conn := connect(t, s)

	// As many as it can: what is refused ends the shell.
	inside(t, conn, background+"i=0; while [ $i -lt 300 ]; do sleep 1000 & i=$((i+1)); done) & wait")
	if n := len(membersOf(t, p.group)); n > most || n < most-20 {
		t.Fatalf("%d processes under a limit of %d", n, most) // no bomb without it
	}
	// From outside: inside there may be no room for the shell that does it.
	for _, pid := range membersOf(t, p.group) {
		if comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); string(comm) == "sleep\n" {
			_ = unix.Kill(pid, unix.SIGKILL) // it may have ended
		}
	}
	wait(t, "there is room for a bomb", func() bool { return len(membersOf(t, p.group)) < most/2 })
	refused := p.Refusals()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	inside(t, conn, background+"sleep 1; b() { b | b & b; }; b) &") // once the program that starts it has ended
	wait(t, "the bomb is refused more", func() bool { return p.Refusals() > refused })
	for range 20 {
		if _, err := neighbour.Exec(ctx, "SELECT 1"); err != nil {
			t.Fatalf("beside a fork bomb: %v", err)
		}
	}
	if n := len(membersOf(t, p.group)); n > most {
		t.Errorf("%d processes under a limit of %d", n, most)
	}
	if err := p.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	wait(t, "the removal of the cgroup", func() bool { return goneDirs(p.group) })
}

// TestFavoured spins as much in two sandboxes; one gets more of the CPUs.
func TestFavoured(t *testing.T) {
	l := newLauncher(t)
	less, a := limited(t, l, postgres.Limits{})
	more, b := limited(t, l, postgres.Limits{Favoured: true})
	n := 4 * runtime.NumCPU()
	spinning(t, less, a, n)
	spinning(t, more, b, n)
	began := [2]time.Duration{used(t, a), used(t, b)}
	var total, favoured time.Duration
	wait(t, "three seconds of CPU time", func() bool {
		favoured = used(t, b) - began[1]
		total = used(t, a) - began[0] + favoured
		return total > 3*time.Second
	})
	// It should be four fifths, and would be half of it without being favoured.
	if got := favoured.Seconds() / total.Seconds(); got < 0.65 {
		t.Errorf("the favoured one got %.2f of the CPU time", got)
	}
}

// TestCPUs gives a sandbox a fifth of a CPU.
func TestCPUs(t *testing.T) {
	l := newLauncher(t)
	s, p := limited(t, l, postgres.Limits{CPUs: 0.2})
	spinning(t, s, p, 1)
	from, at := used(t, p), time.Now()
	wait(t, "half a second of CPU time", func() bool { return used(t, p)-from > 500*time.Millisecond })
	if took := time.Since(at); took < 1500*time.Millisecond {
		t.Errorf("half a second of CPU time took %v", took)
	}
}

// background is the start of a command in the background of a script that does
// not hold the script's output open.
const background = "(exec >/dev/null 2>&1; "

// spinning runs n processes inside that do nothing but run, for a minute at
// most, and waits until they do.
func spinning(t *testing.T, s postgres.Spec, p *process, n int) {
	t.Helper()
	began := used(t, p)
	inside(t, connect(t, s), strings.Repeat(background+"exec timeout 60 sh -c 'while :; do :; done') & ", n))
	wait(t, "the spinning", func() bool { return used(t, p)-began > 20*time.Millisecond })
}

// used is the CPU time of the processes that are in the cgroup now.
func used(t *testing.T, p *process) time.Duration {
	t.Helper()
	var ticks int
	for _, pid := range membersOf(t, p.group) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue // it has ended
		}
		fields := strings.Fields(string(b)[strings.LastIndexByte(string(b), ')')+1:])
		for _, f := range fields[11:13] { // utime and stime, in proc_pid_stat(5) fields 14 and 15
			n, err := strconv.Atoi(f)
			if err != nil {
				t.Fatal(err)
			}
			ticks += n
		}
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// TestStartWaitsForTheLast: while a process of an earlier sandbox lives in its
// cgroup, nothing starts on the volume.
func TestStartWaitsForTheLast(t *testing.T) {
	l := newLauncher(t)
	s := newSpec(t, l)
	earlier, err := l.groups.make(s.ID, postgres.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	argv := earlier.enter([]string{"/bin/sleep", "1000"})
	last := exec.Command(argv[0], argv[1:]...)
	if err := last.Start(); err != nil {
		t.Fatal(err)
	}
	wait(t, "the process in the cgroup", func() bool { return len(membersOf(t, earlier)) > 0 })
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := l.Start(ctx, s); !errors.Is(err, postgres.ErrLocked) {
		t.Errorf("a start beside it: %v, want ErrLocked", err)
	}
	_ = last.Process.Kill()
	_ = last.Wait()
	start(t, l, s)
	if !goneDirs(earlier) {
		t.Error("the earlier cgroup is still there")
	}
}

func TestSweep(t *testing.T) {
	l := newLauncher(t)
	old := time.Now().Add(-2 * sweepAge)
	var made [3]*group // a leftover, a new one, one in use
	for i := range made {
		g, err := l.groups.make(fmt.Sprintf("vsweep%dx%d", os.Getpid(), i), postgres.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := g.Destroy(); err != nil {
				t.Error(err)
			}
		})
		made[i] = g
	}
	for _, g := range []*group{made[0], made[2]} {
		for _, dir := range g.GetPaths() {
			if err := os.Chtimes(dir, old, old); err != nil {
				t.Fatal(err)
			}
		}
	}
	argv := made[2].enter([]string{"/bin/sleep", "1000"})
	user := exec.Command(argv[0], argv[1:]...)
	if err := user.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = user.Process.Kill(); _ = user.Wait() })
	wait(t, "the process in the cgroup", func() bool { return len(membersOf(t, made[2])) > 0 })
	if err := l.groups.sweep(); err != nil {
		t.Fatal(err)
	}
	if !goneDirs(made[0]) || goneDirs(made[1]) || goneDirs(made[2]) {
		t.Errorf("gone: leftover %v, new %v, in use %v", goneDirs(made[0]), goneDirs(made[1]), goneDirs(made[2]))
	}
}

// TestWithoutGroups: a machine without cgroups has no limits, and says so.
func TestWithoutGroups(t *testing.T) {
	l := newLauncher(t)
	l.groups, l.noLimit = nil, errors.New("no cgroups here")
	s := newSpec(t, l)
	s.Limits = postgres.Limits{Memory: 64 << 20}
	p := start(t, l, s)
	exec1(t, connect(t, s), "SELECT 1")
	if err := p.SetLimits(postgres.Limits{Memory: 1 << 30}); err != nil || p.MemoryKills() != 0 {
		t.Errorf("limits: %v, kills %d", err, p.MemoryKills())
	}
	if l.Unlimited() == nil {
		t.Error("it does not say that there are no limits")
	}
	own, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p.PID()))
	if err != nil || strings.Contains(string(own), filepath.Join(groupsName, s.ID)) {
		t.Errorf("it is in %s (%v)", own, err)
	}
}
