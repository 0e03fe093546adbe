package e2e

import (
	"encoding/base64"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pgbough/pgbough/internal/pgtest"
)

// ownUID is what the files of each Postgres belong to, and what none runs as.
const ownUID = 64420

// attack is what a superuser of the branch evil does, with its neighbour.
type attack struct {
	*server
	data   string // PGDATA of evil, on the host
	volume string // its id
	victim string // the neighbour's
	// ids are the volumes of the neighbour and the follower; before is what runs on
	// them, and the server.
	ids    []string
	before string
}

// TestSuperuser has the superuser of one branch do with what is his all that
// could harm others. It harms his own branch, which says how, and nothing else.
func TestSuperuser(t *testing.T) {
	p := calmProduction(t, pgtest.Options{})
	w := startWriter(t, p, "")
	s := startServer(t)
	s.attach(p)
	s.must("branch", "create", "victim")
	s.query("victim", "CREATE TABLE mine AS SELECT 1 AS a")
	s.waitSpare()
	s.must("branch", "create", "evil")
	s.query("evil", "CREATE TABLE mine AS SELECT 1 AS a")
	a := &attack{server: s, volume: s.volumeOf("evil"), victim: s.volumeOf("victim")}
	a.data = filepath.Join(s.data(), "pool", "volumes", a.volume, "data")
	for _, v := range s.poolVolumes() {
		if id := v.ID; v.Role != "spare" && id != a.volume && len(s.postmasters()[id]) == 1 {
			a.ids = append(a.ids, id)
		}
	}
	a.before = a.others()
	for _, test := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"each is a user of its own", a.users},
		{"signals", a.signals},
		{"settings", a.settings},
		{"settings that it cannot start with", a.brokenSettings},
		{"a standby", a.standby},
		{"pg_control", a.control},
		{"more roles than can be kept", a.roles},
		{"a library that takes the socket's place", a.library},
	} {
		t.Run(test.name, func(t *testing.T) {
			defer func(outer *testing.T) { s.t = outer }(s.t)
			s.t = t
			test.run(t)
			a.unharmed()
		})
	}
	s.waitSpare()
	s.branchIsNow("after", w)
	s.must("branch", "delete", "evil")
}

// others are the processes that an attack must not end. Spares are renewed.
func (a *attack) others() string {
	a.t.Helper()
	out := fmt.Sprint(a.cmd.Process.Pid)
	running := a.postmasters()
	for _, id := range a.ids {
		out += fmt.Sprint(" ", id, running[id])
	}
	return out
}

func (a *attack) unharmed() {
	a.t.Helper()
	if !a.running() {
		a.t.Fatalf("the server has ended: %s", a.logTail(40))
	}
	if now := a.others(); now != a.before {
		a.t.Errorf("others run as %s, before %s", now, a.before)
	}
	if got := a.query("victim", "INSERT INTO mine VALUES (1); SELECT count(*) > 1 FROM mine"); got != "t" {
		a.t.Errorf("the neighbour says %q", got)
	}
	if notes := a.notes("victim"); notes != "" {
		a.t.Errorf("the neighbour has notes: %s", notes)
	}
	a.waitFollower(time.Minute, "streaming")
	a.recovered()
}

// recovered waits until evil, whose files are whole again, answers.
func (a *attack) recovered() {
	a.t.Helper()
	a.eventually(time.Minute, "the branch that was attacked from answers again", func() bool {
		a.cliFor(20*time.Second, "branch", "wake", "evil") // a client alone does not hasten the next start
		return a.cliFor(20*time.Second, "psql", "evil", "--", "-XAtqc", "SELECT a FROM mine").out == "1\n"
	})
}

// do runs a shell command in evil that may end the session it runs in.
func (a *attack) do(command string) {
	a.t.Helper()
	a.cliFor(30*time.Second, "psql", "evil", "--role", "postgres", "--database", "postgres", "--", "-XAtqc", inProgram(command))
}

// crash has evil's superuser end its postmaster, and with it all that runs there.
func (a *attack) crash() { a.t.Helper(); a.do("kill -9 2") }

// put writes a file of evil from inside.
func (a *attack) put(path, text string) {
	a.t.Helper()
	a.program("evil", "echo "+base64.StdEncoding.EncodeToString([]byte(text))+" | base64 -d >"+path)
}

// fails waits until evil is known not to run, for a reason that contains why.
func (a *attack) fails(why string) {
	a.t.Helper()
	a.eventually(time.Minute, "its notes say why it does not run", func() bool {
		a.cliFor(20*time.Second, "branch", "wake", "evil")
		notes := a.notes("evil")
		return strings.Contains(notes, "its Postgres does not run") && strings.Contains(notes, why)
	})
}

// heal puts back a file that was saved as root.
func (a *attack) heal(saved, name string) {
	a.t.Helper()
	path := filepath.Join(a.data, name)
	if out, err := exec.Command("sh", "-c", "rm -rf "+path+" && cp -a "+saved+" "+path).CombinedOutput(); err != nil {
		a.t.Fatalf("%v: %s", err, out)
	}
}

func (a *attack) save(name string) string {
	a.t.Helper()
	saved := filepath.Join(a.t.TempDir(), "saved")
	if out, err := exec.Command("cp", "-a", filepath.Join(a.data, name), saved).CombinedOutput(); err != nil {
		a.t.Fatalf("%v: %s", err, out)
	}
	return saved
}

func (a *attack) users(t *testing.T) {
	seen := map[uint32]string{ownUID: "the files' owner"}
	for id, pids := range a.postmasters() {
		for _, pid := range pids {
			var st syscall.Stat_t
			check(t, syscall.Stat(fmt.Sprintf("/proc/%d", pid), &st))
			if other, taken := seen[st.Uid]; taken {
				t.Errorf("volume %s runs as uid %d, as does %s", id, st.Uid, other)
			}
			seen[st.Uid] = id
		}
	}
	if len(seen) < 4 {
		t.Errorf("control: these run: %v", seen)
	}
	var st syscall.Stat_t
	check(t, syscall.Stat(filepath.Join(a.data, "PG_VERSION"), &st))
	if st.Uid != ownUID {
		t.Errorf("the files of a branch belong to uid %d", st.Uid)
	}
	if r := a.cli("status"); strings.Contains(r.out, "one operating system user") {
		t.Errorf("the status: %s", r.out)
	}
}

// signals go to everything that can be named or reached.
func (a *attack) signals(*testing.T) {
	before := a.postmasters()[a.volume]
	named := fmt.Sprint(a.cmd.Process.Pid)
	for _, pids := range a.postmasters() {
		for _, pid := range pids {
			named += " " + strconv.Itoa(pid)
		}
	}
	a.do("kill -9 1 " + named + "; kill -9 -1")
	a.eventually(time.Minute, "control: it has ended itself", func() bool {
		now := a.postmasters()[a.volume]
		return len(now) == 1 && now[0] != before[0]
	})
}

// settings of PGDATA that lead a Postgres out of its place, and some that act,
// also from an included file.
func (a *attack) settings(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "outside")
	check(t, os.Mkdir(outside, 0o777))
	for d := outside; d != os.TempDir(); d = filepath.Dir(d) {
		check(t, os.Chmod(d, 0o777))
	}
	a.put("/pgdata/more.conf", "maintenance_work_mem = 77MB\n")
	a.put("/pgdata/pg_hba.conf", "local all all reject\n")
	for _, set := range []string{
		"work_mem = '7MB'", "listen_addresses = '*'", "port = 5433", "unix_socket_directories = '/tmp'", "cluster_name = 'another'",
		"archive_mode = on", fmt.Sprintf("archive_command = 'touch /pgdata/archived; cp %%p %s/stolen'", outside),
	} {
		a.sql("evil", "postgres", "ALTER SYSTEM SET "+set)
	}
	a.program("evil", `printf "hba_file = '/pgdata/pg_hba.conf'\ninclude '/pgdata/more.conf'\n" >>/pgdata/postgresql.auto.conf`)
	saved := a.save("postgresql.auto.conf")
	a.must("branch", "suspend", "evil")
	a.recovered()
	got := a.sql("evil", "postgres", `SELECT string_agg(name || '=' || setting, ' ' ORDER BY name) FROM pg_settings WHERE name IN
		('work_mem', 'maintenance_work_mem', 'listen_addresses', 'port', 'unix_socket_directories', 'hba_file', 'cluster_name')`)
	want := "cluster_name=pgbough/" + a.volume + " hba_file=/etc/pgbough/pg_hba.conf listen_addresses= maintenance_work_mem=78848 port=5432 unix_socket_directories=/run/pgbough/socket work_mem=7168"
	if got != want {
		t.Errorf("the settings are\n%s\nwant, with those of memory as a control,\n%s", got, want)
	}
	a.sql("evil", "postgres", "SELECT pg_switch_wal()")
	a.eventually(time.Minute, "control: archive_command runs inside", func() bool {
		_, err := os.Stat(filepath.Join(a.data, "archived"))
		return err == nil
	})
	left, err := os.ReadDir(outside)
	check(t, err)
	if len(left) > 0 {
		t.Errorf("archive_command has written %s on the machine", left[0].Name())
	}
	check(t, os.WriteFile(saved, nil, 0o600))
	a.heal(saved, "postgresql.auto.conf")
	check(t, os.Chown(filepath.Join(a.data, "postgresql.auto.conf"), ownUID, ownUID))
	a.crash()
}

func (a *attack) brokenSettings(*testing.T) {
	defer a.heal(a.save("postgresql.auto.conf"), "postgresql.auto.conf")
	a.put("/pgdata/postgresql.auto.conf", "shared_buffers = 9TB\n")
	a.crash()
	a.fails("postgresql.auto.conf")
	if r := a.cliFor(time.Minute, "psql", "evil", "--", "-XAtqc", "SELECT 1"); !strings.Contains(r.err, "FATAL:  the branch cannot be connected to now") {
		a.t.Errorf("a client of a branch that does not run is told: exit %d, %s", r.code, r.err)
	}
}

// standby makes the branch one that would wait for WAL for ever.
func (a *attack) standby(t *testing.T) {
	defer a.heal(a.save("postgresql.auto.conf"), "postgresql.auto.conf")
	defer func() { check(t, os.Remove(filepath.Join(a.data, "standby.signal"))) }()
	a.put("/pgdata/postgresql.auto.conf", "hot_standby = off\nrestore_command = 'touch /pgdata/restored; false'\n")
	a.program("evil", "touch /pgdata/standby.signal")
	a.crash()
	a.fails("standby.signal")
	if _, err := os.Stat(filepath.Join(a.data, "restored")); err != nil {
		t.Errorf("control: restore_command has not run: %v", err)
	}
}

// control replaces the file that the server too reads when it stops a Postgres.
func (a *attack) control(t *testing.T) {
	others := filepath.Join(a.server.data(), "pool", "volumes", a.victim, "data", "global", "pg_control")
	before, err := os.ReadFile(others)
	check(t, err)
	for _, how := range []struct{ name, command string }{
		{"garbage", "yes garbage | head -c 8192 >pg_control"},
		{"a symbolic link", "ln -sfn " + others + " pg_control"},
		{"a pipe", "rm pg_control; mkfifo pg_control"},
	} {
		a.sql("evil", "postgres", "CHECKPOINT")
		saved := a.save("global/pg_control")
		a.program("evil", "cd /pgdata/global; "+how.command)
		if how.name == "garbage" {
			a.crash()
			a.fails("PG_CONTROL_VERSION")
		} else {
			began := time.Now()
			if r := a.cliFor(time.Minute, "branch", "suspend", "evil"); r.code == 0 || time.Since(began) > 45*time.Second {
				t.Errorf("suspend with %s as pg_control: exit %d after %v: %s", how.name, r.code, time.Since(began), r.err)
			}
		}
		a.heal(saved, "global/pg_control")
		for _, pid := range a.postmasters()[a.volume] {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may wait for the pipe's other end
		}
		a.recovered()
	}
	if now, err := os.ReadFile(others); err != nil || len(now) != len(before) {
		t.Errorf("the neighbour's pg_control has %d bytes, before %d: %v", len(now), len(before), err)
	}
}

// roles would be read into the server's memory when the branch falls asleep.
func (a *attack) roles(t *testing.T) {
	a.sql("evil", "postgres", `INSERT INTO pg_authid SELECT 900000 + i, 'r' || i, false, true, false, false, true, false, false, -1, 'md5' || md5(i::text), NULL
		FROM generate_series(1, 30000) i`)
	if r := a.cliFor(time.Minute, "branch", "suspend", "evil"); r.code == 0 || !strings.Contains(r.err, "more than 20000 roles") {
		t.Errorf("suspend with 30000 roles: exit %d, %s", r.code, r.err)
	}
	a.sql("evil", "postgres", "DELETE FROM pg_authid WHERE oid > 900000")
	a.must("branch", "suspend", "evil")
}

// library is preloaded: it acts in the postmaster, before anybody has seen the
// socket. What it puts in its place sends a message of a gigabyte to the server.
func (a *attack) library(t *testing.T) {
	library := filepath.Join(t.TempDir(), "evil.so")
	if out, err := exec.Command("gcc", "-Wall", "-shared", "-fPIC", "-o", library, filepath.Join("testdata", "superuser", "evil.c")).CombinedOutput(); err != nil {
		t.Fatalf("compile a library (scripts/setup installs gcc): %v\n%s", err, out)
	}
	b, err := os.ReadFile(library)
	check(t, err)
	script, err := os.ReadFile(filepath.Join("testdata", "superuser", "evil.pl"))
	check(t, err)
	a.put("/pgdata/evil.so", string(b))
	a.put("/pgdata/evil.pl", string(script))
	defer func(saved string) {
		a.heal(saved, "postgresql.auto.conf")
		a.killPostgres(a.volume)
	}(a.save("postgresql.auto.conf"))
	a.put("/pgdata/postgresql.auto.conf", "shared_preload_libraries = '/pgdata/evil.so'\n")
	memory := a.peak()
	a.crash()
	a.eventually(time.Minute, "control: the server has asked what the library put there", func() bool {
		a.cliFor(20*time.Second, "psql", "evil", "--", "-XAtqc", "SELECT 1")
		_, err := os.Stat(filepath.Join(a.data, "asked"))
		return err == nil
	})
	r := a.cliFor(30*time.Second, "psql", "evil", "--", "-XAtqc", "SELECT 1")
	if r.code == 0 || !strings.Contains(r.err, "FATAL") {
		t.Errorf("a client is told: exit %d, %s", r.code, r.err)
	}
	if grown := a.peak() - memory; grown > 512<<20 {
		t.Errorf("the server's memory has grown by %d MB", grown>>20)
	}
}

// peak is the most memory that the server has had.
func (a *attack) peak() (bytes int64) {
	a.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", a.cmd.Process.Pid))
	check(a.t, err)
	_, line, _ := strings.Cut(string(b), "VmHWM:")
	if _, err := fmt.Sscan(line, &bytes); err != nil {
		a.t.Fatal(err)
	}
	return bytes << 10
}
