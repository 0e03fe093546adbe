package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
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
)

// sql asks a branch as its superuser.
func (s *server) sql(branch, database, sql string) string {
	s.t.Helper()
	return s.must("psql", branch, "--role", "postgres", "--database", database, "--", "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", sql)
}

// inProgram makes SQL that runs a shell command on the server's side. Encoded,
// both it and its output are one line of plain letters.
func inProgram(command string) string {
	return `CREATE TEMP TABLE o (l text); COPY o FROM PROGRAM '(echo ` + base64.StdEncoding.EncodeToString([]byte(command)) +
		` | base64 -d | bash 2>&1; true) | base64 -w0'; SELECT l FROM o`
}

func decoded(t *testing.T, out string) string {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(out))
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(b)
}

// program runs a shell command as a superuser's COPY FROM PROGRAM in a branch.
func (s *server) program(branch, command string) string {
	s.t.Helper()
	return decoded(s.t, s.sql(branch, "postgres", inProgram(command)))
}

func (w *world) programs(t *testing.T, s *server, c *plainCopy) {
	s.sql("a", "postgres", "COPY (SELECT 'written by a program') TO PROGRAM 'cat > /tmp/inside'")
	if got := s.program("a", "cat /tmp/inside; id -u"); !strings.HasPrefix(got, "written by a program\n") || strings.HasSuffix(got, "\n0\n") {
		t.Errorf("control: a program in the branch says %q", got)
	}
	// No address, by name, number or family; the copy's programs reach them.
	targets := []string{fmt.Sprintf("127.0.0.1/%d", w.production.Port), strings.ReplaceAll(s.api, ":", "/")}
	addresses, err := net.InterfaceAddrs()
	check(t, err)
	for _, a := range addresses {
		if ip, ok := a.(*net.IPNet); ok && ip.IP.To4() != nil && !ip.IP.IsLoopback() {
			targets = append(targets, fmt.Sprintf("%s/%d", ip.IP, w.listener.port))
		}
	}
	reach := `for to in ` + strings.Join(targets, " ") + `; do timeout 5 bash -c "exec 3<>/dev/tcp/$to" && echo "reached $to"; done`
	if got := s.program("a", reach); strings.Contains(got, "reached") || strings.Count(got, "connect") < len(targets) {
		t.Errorf("a program in the branch tries to connect to %v: %s", targets, got)
	}
	if c != nil {
		conn, err := c.connect("postgres")
		check(t, err)
		defer func() { _ = conn.Close(context.Background()) }()
		_, err = conn.Exec(context.Background(), "CREATE TEMP TABLE o (l text)")
		check(t, err)
		_, copySQL, _ := strings.Cut(inProgram(reach), "; ")
		copySQL, _, _ = strings.Cut(copySQL, "; SELECT")
		_, err = conn.Exec(context.Background(), copySQL)
		check(t, err)
		var out string
		check(t, conn.QueryRow(context.Background(), "SELECT l FROM o").Scan(&out))
		if got := decoded(t, out); strings.Count(got, "reached") != len(targets) {
			t.Errorf("control: a program of the copy tries to connect to %v: %s", targets, got)
		}
	}

	own, others := s.volumes("a")
	processes := s.program("a", `for p in /proc/[0-9]*; do tr '\0' ' ' < $p/cmdline; echo; done; ls /proc`)
	if !strings.Contains(processes, own) {
		t.Errorf("control: its own postmaster is not among the processes: %s", processes)
	}
	for _, hidden := range append(slices.Clone(others), w.production.Dir, "pgbough server", fmt.Sprintf("\n%d\n", s.cmd.Process.Pid)) {
		if strings.Contains(processes, hidden) {
			t.Errorf("a program in the branch sees %q among the processes: %s", hidden, processes)
		}
	}
	everything := `{ cat /proc/self/mountinfo /proc/[0-9]*/environ /proc/[0-9]*/maps; cat /volume-id; ls -l /proc/[0-9]*/fd /proc/[0-9]*/cwd; find / -path /proc -prune -o -print; } 2>/dev/null | tr '\0' '\n' | grep -a -e `
	if got := s.program("a", everything+own); got == "" {
		t.Error("control: its own volume is found nowhere")
	}
	if got := s.program("a", everything+strings.Join(others, " -e ")); got != "" {
		t.Errorf("a program in the branch sees other volumes: %s", got)
	}
	if got := s.program("a", `ls /dev; cat /proc/net/unix; ls -d /home /root /var/lib /sys /srv /mnt /media /boot`); regexp.MustCompile(`\b(loop|vd[a-z]|sd[a-z]|nvme|mem|kmsg|fuse|btrfs-control)|\.s\.PGSQL\.\d+\.|^/`).MatchString(got) {
		t.Errorf("a program in the branch sees the host: %s", got)
	}
	if got := s.program("a", `for f in /etc /usr /usr/bin / /run /run/pgbough /run/pgbough/socket /run/pgbough/relay /etc/pgbough; do touch $f/planted 2>/dev/null && echo $f; done; for f in /etc/pgbough/*; do echo >> $f && echo $f; done 2>/dev/null; true`); got != "" {
		t.Errorf("a program in the branch can write to: %s", got)
	}
	if got := s.program("a", `rm -f /run/pgbough/socket/.s.PGSQL.5432; mv -f /run/pgbough/socket/.s.PGSQL.5432 /tmp/s; ln -sfn /etc/shadow /run/pgbough/socket/.s.PGSQL.5432`); strings.Count(got, "ermission denied") != 3 {
		t.Errorf("a program in the branch changes its socket: %s", got)
	}
}

// volumes is the id of a branch's volume, and those of all others.
func (s *server) volumes(branch string) (own string, others []string) {
	s.t.Helper()
	var b branchJSON
	s.json(&b, "branch", "get", branch)
	own = filepath.Base(b.Branch.Path)
	var answer struct {
		Pool struct{ Volumes []struct{ ID string } }
	}
	s.json(&answer, "pool")
	all := answer.Pool.Volumes
	for _, v := range all {
		if v.ID != own {
			others = append(others, v.ID)
		}
	}
	if len(others) < 2 || len(others) == len(all) {
		s.t.Fatalf("volumes of the pool: %+v, own %s", all, own)
	}
	return own, others
}

// plantedSymlinks has a branch's superuser lay out everything in PGDATA that
// could lead a careless root astray, and then uses all commands on the branch.
func plantedSymlinks(t *testing.T, s *server) {
	s.must("branch", "create", "trap")
	var trap, victim branchJSON
	s.json(&trap, "branch", "get", "trap")
	s.json(&victim, "branch", "get", "b")
	canary := filepath.Join(s.dir, "canary")
	check(t, os.Mkdir(canary, 0o755))
	check(t, exec.Command("fallocate", "-l", "300M", filepath.Join(canary, "big")).Run())
	watched := []string{
		"/etc/shadow", "/etc/passwd", filepath.Join(s.data(), "catalog.db"), filepath.Join(s.data(), "admin.key"), canary, filepath.Join(canary, "big"),
		victim.Branch.Path, filepath.Join(victim.Branch.Path, "data"), filepath.Join(victim.Branch.Path, "data", "PG_VERSION"), filepath.Join(victim.Branch.Path, "manifest.json"),
	}
	states := func() map[string]string {
		out := map[string]string{}
		for _, path := range watched {
			st, err := os.Lstat(path)
			check(t, err)
			sys := st.Sys().(*syscall.Stat_t)
			out[path] = fmt.Sprintln(sys.Ino, sys.Uid, sys.Gid, sys.Mode, sys.Nlink)
		}
		return out
	}
	before := states()
	plant := `cd /pgdata
		for d in . base global pg_wal pg_replslot pg_tblspc pg_stat pg_logical base/1; do n=0; for to in ` + strings.Join(watched, " ") + ` /proc/1/root ../../../../../../../../etc; do n=$((n+1)); ln -s $to $d/planted$n; done; done
		ln -s . base/loop; mkfifo base/fifo pg_replslot/fifo pg_wal/fifo global/fifo
		mkdir base/closed && touch base/closed/x && chmod 0 base/closed; touch $'base/new\nline' base/$'\x01\xff'; chmod 4777 base/closed
		mkdir -p $(printf 'deep/%.0s' $(seq 80))
		for f in pg_hba.conf pg_ident.conf postgresql.conf postgresql.auto.conf postmaster.opts current_logfiles backup_label tablespace_map standby.signal backup_manifest; do rm -f $f; ln -s /etc/shadow $f; done
		btrfs subvolume create base/nested >/dev/null 2>&1 && touch base/nested/x
		ls | grep -c planted`
	if got := s.program("trap", plant); got != fmt.Sprintf("%d\n", len(watched)+2) {
		t.Fatalf("planting said %q", got)
	}
	quick := func(args ...string) result {
		t.Helper()
		began := time.Now()
		r := s.cli(args...)
		if took := time.Since(began); took > time.Minute {
			t.Errorf("pgbough %s took %v", strings.Join(args, " "), took)
		}
		if r.code != 0 {
			t.Errorf("pgbough %s: exit %d\n%s%s", strings.Join(args, " "), r.code, r.out, r.err)
		}
		if strings.Contains(r.out+r.err, "root:") {
			t.Errorf("pgbough %s prints /etc/shadow: %s", strings.Join(args, " "), r.out)
		}
		return r
	}
	for _, args := range [][]string{{"branch", "get", "trap"}, {"branch", "list"}, {"pool"}, {"status"}, {"logs", "trap"}, {"url", "trap"}, {"psql", "trap", "--", "-c", "SELECT 1"}} {
		quick(args...)
	}
	var now branchJSON
	s.json(&now, "branch", "get", "trap")
	if grown := now.Branch.LogicalBytes - trap.Branch.LogicalBytes; grown > 200<<20 || grown < 0 && now.Branch.LogicalBytes == 0 {
		t.Errorf("the branch is measured with what its symlinks point to: %d bytes, before %d", now.Branch.LogicalBytes, trap.Branch.LogicalBytes)
	}
	if now.Branch.LogicalBytes == 0 || now.Branch.OwnBytes == 0 {
		t.Errorf("the branch cannot be measured any more: %+v", now.Branch)
	}
	quick("branch", "delete", "trap")
	if _, err := os.Lstat(trap.Branch.Path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the deleted branch's volume is still there: %v", err)
	}
	for path, state := range states() {
		if state != before[path] {
			t.Errorf("%s was changed through a symlink: %s, before %s", path, state, before[path])
		}
	}
	if got := s.sql("b", "shop", "SELECT count(*) FROM orders"); got != "2" {
		t.Errorf("the other branch has %s rows", got)
	}
}

// replacedSocket puts something else in the place of a branch's socket while
// the server is away: it must not be taken for the branch.
func (w *world) replacedSocket(t *testing.T, s *server) {
	socket := filepath.Join(s.data(), "run", s.volumeOf("b"), "socket", ".s.PGSQL.5432")
	state := func() string {
		var b branchJSON
		s.json(&b, "branch", "get", "b")
		return b.Branch.ComputeState
	}
	eventually(t, time.Minute, "the branch is active", func() bool { return state() == "active" })
	s.kill()
	check(t, os.Rename(socket, socket+".real"))
	check(t, os.Symlink(filepath.Join(w.production.Sockets, fmt.Sprintf(".s.PGSQL.%d", w.production.Port)), socket))
	before := len(logOf(t, w.production))
	s.start()
	for range 20 {
		if got := state(); got == "active" {
			t.Error("a symlink to production's socket is taken for the branch")
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if log := logOf(t, w.production)[before:]; strings.Contains(log, "host=[local]") {
		t.Errorf("something connected to production through the symlink:\n%s", log)
	}
	check(t, os.Remove(socket))
	l, err := net.Listen("unix", socket)
	check(t, err)
	var got bytes.Buffer
	var wg sync.WaitGroup
	tries := 0
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			tries++
			_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
			_, _ = io.Copy(&got, conn)
			_ = conn.Close()
		}
	})
	time.Sleep(2 * time.Second)
	if state() == "active" {
		t.Error("a socket of another process is taken for the branch's")
	}
	check(t, l.Close())
	wg.Wait()
	if tries == 0 || got.Len() > 0 {
		t.Errorf("a foreign socket saw %d connections and the bytes %q, want some and none", tries, got.Bytes())
	}
	_ = os.Remove(socket) // Close has done it
	check(t, os.Rename(socket+".real", socket))
	eventually(t, time.Minute, "the branch is active again", func() bool { return state() == "active" })
	if got := s.sql("b", "shop", "SELECT count(*) FROM orders"); got != "2" {
		t.Errorf("the branch has %s rows", got)
	}
}
