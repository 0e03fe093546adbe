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
	"net/url"
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

	"github.com/jackc/pgx/v5"

	"github.com/pgbough/pgbough/internal/pgtest"
)

// TestNothingOutside is promise 4: a production that is connected to everything
// is branched, and nothing acts from the branch. A plain copy of the same
// production, started by stock Postgres, is the control: there all of it acts.
func TestNothingOutside(t *testing.T) {
	w := newWorld(t)
	s := startServer(t)
	s.must("attach", "shop", "--source", sourceOf(w.production), "--role", "app", "--database", "shop")
	s.waitSpare()
	// From here on: a spare that acts when it is promoted is caught too.
	before := w.seen(t)
	began := time.Now()
	s.must("branch", "create", "a")
	s.must("branch", "create", "b")

	in := func(name string, test func(*testing.T)) {
		t.Run(name, func(t *testing.T) { s.t = t; test(t) })
	}
	in("nothing acts", func(t *testing.T) { w.nothingActs(t, s, before, began) })
	var c *plainCopy
	in("control: a plain copy acts", func(t *testing.T) {
		c = w.plainCopy(t)
		w.everythingActs(t, c)
	})
	in("the scheduler stays quiet", func(t *testing.T) {
		// The copy's has run meanwhile, at a full minute that the branch lived through too.
		w.noTrace(t, before)
		if got := s.sql("a", "shop", "SELECT count(*) FROM cron.job_run_details WHERE start_time > "+quoted(began.Format(time.RFC3339))); got != "0" {
			t.Errorf("pg_cron ran %s jobs in the branch", got)
		}
	})
	in("no secret in files", func(t *testing.T) { w.noSecrets(t, s, c) })
	in("programs", func(t *testing.T) { w.programs(t, s, c) })
	in("symlinks", func(t *testing.T) { plantedSymlinks(t, s) })
	in("a replaced socket", func(t *testing.T) { w.replacedSocket(t, s) })
	s.t = t
}

// world is production and all that it is connected to.
type world struct {
	production, upstream *pgtest.Server
	archive              string // production's archive_command writes there
	listener             *listener
	secrets              []string // of production, in its files
}

func newWorld(t *testing.T) *world {
	t.Helper()
	needRoot(t)
	w := &world{listener: listen(t)}
	dir := t.TempDir()
	for d := dir; d != os.TempDir(); d = filepath.Dir(d) { // t.TempDir is for root only
		check(t, os.Chmod(d, 0o755))
	}
	w.archive = filepath.Join(dir, "archive")
	check(t, os.Mkdir(w.archive, 0o777))
	check(t, os.Chmod(w.archive, 0o777))
	library := filepath.Join(dir, "outside.so")
	compile := exec.Command("gcc", "-Wall", "-shared", "-fPIC", fmt.Sprintf("-DPORT=%d", w.listener.port), fmt.Sprintf("-DLIBRARY=%q", library),
		"-o", library, filepath.Join("testdata", "outside", "worker.c"))
	if out, err := compile.CombinedOutput(); err != nil {
		t.Fatalf("compile the library with a background worker (scripts/setup installs gcc): %v\n%s", err, out)
	}
	logging := map[string]string{"wal_level": "logical", "log_connections": "on", "log_replication_commands": "on"}
	w.upstream = pgtest.Start(t, pgtest.Options{Conf: logging, HBA: []string{"host all feeder 127.0.0.1/32 scram-sha-256"}})
	w.upstream.Exec(t, "postgres", `CREATE ROLE feeder LOGIN REPLICATION PASSWORD 'sekret-of-feeder'; CREATE TABLE acted (how text, by text);
		CREATE TABLE orders (id int PRIMARY KEY); INSERT INTO orders VALUES (1), (2); GRANT SELECT ON orders TO feeder; CREATE PUBLICATION feed FOR TABLE orders`)

	conf := map[string]string{
		"archive_mode": "on", "archive_command": "touch " + w.archive + "/%f", "max_prepared_transactions": "5", "cluster_name": "production",
		"shared_preload_libraries": "pg_stat_statements, pg_cron, pg_prewarm, " + library, "cron.database_name": "shop", "max_worker_processes": "20",
	}
	for k, v := range logging {
		conf[k] = v
	}
	w.production = production(t, pgtest.Options{Conf: conf, HBA: []string{
		"host all fdw_user 127.0.0.1/32 scram-sha-256", "host all link_user 127.0.0.1/32 scram-sha-256",
		`host all directory 127.0.0.1/32 ldap ldapserver=127.0.0.1 ldapbasedn="dc=x" ldapbinddn="cn=x" ldapbindpasswd="sekret-of-ldap"`,
	}})
	w.fill(t)
	return w
}

func (w *world) fill(t *testing.T) {
	t.Helper()
	p := w.production
	var long strings.Builder
	for i := range 200 {
		fmt.Fprintf(&long, "%x", md5Of(i))
	}
	fill := strings.NewReplacer("@PORT@", fmt.Sprint(p.Port), "@UPSTREAM@", fmt.Sprint(w.upstream.Port), "@LISTENER@", fmt.Sprint(w.listener.port), "@LONG@", long.String())
	for _, f := range []struct{ file, database string }{{"cluster.sql", "postgres"}, {"shop.sql", "shop"}, {"frozen.sql", "frozen"}} {
		text, err := os.ReadFile(filepath.Join("testdata", "outside", f.file))
		check(t, err)
		psql := exec.Command("psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-o", os.DevNull, p.ConnString("postgres", f.database))
		psql.Stdin = strings.NewReader(fill.Replace(string(text)))
		if out, err := psql.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", f.file, err, out)
		}
	}
	verifiers := func() {
		for _, v := range strings.Fields(p.Value(t, "postgres", "SELECT string_agg(rolpassword, ' ') FROM pg_authid")) {
			_, keys, _ := strings.Cut(strings.TrimPrefix(v, "SCRAM-SHA-256$"), "$")
			w.secrets = append(w.secrets, strings.Split(keys, ":")...)
		}
	}
	verifiers()
	p.Exec(t, "postgres", "ALTER ROLE app PASSWORD 'sekret-of-app-2'; ALTER ROLE former NOLOGIN")
	verifiers()
	p.Exec(t, "postgres", "ALTER SYSTEM SET primary_conninfo = 'host=127.0.0.1 user=follower password=sekret-of-standby'")
	check(t, os.WriteFile(filepath.Join(p.Dir, "server.key"), []byte("-----BEGIN PRIVATE KEY-----\nsekret-of-key\n"), 0o600))
	check(t, os.Chown(filepath.Join(p.Dir, "server.key"), pgtest.UID, pgtest.UID))
	w.secrets = append(w.secrets, long.String()[:64], "sekret-of-old-fdw", "sekret-of-fdw", "sekret-of-link", "sekret-of-feeder", "sekret-of-frozen",
		"sekret-of-standby", "sekret-of-ldap", "sekret-of-key")
	eventually(t, 2*time.Minute, "production is connected to everything", func() bool {
		return p.Value(t, "shop", "SELECT count(*) FROM orders") == "2" && w.listener.heard("production")
	})
}

// ways are the functions of shop.sql that reach out.
var ways = []string{"use_fdw()", "use_link()", "use_conninfo()", "use_program()"}

// trace is what has acted on everything outside of a branch up to some moment.
type trace struct {
	production, upstream int // lengths of logs
	slots                string
}

func (w *world) seen(t *testing.T) trace {
	t.Helper()
	return trace{
		len(logOf(t, w.production)), len(logOf(t, w.upstream)),
		w.production.Value(t, "postgres", "SELECT string_agg(slot_name || slot_type || active, ' ' ORDER BY slot_name) FROM pg_replication_slots WHERE slot_name IN ('standby', 'cdc')"),
	}
}

// nothingActs tries everything by hand in the branch, and looks at what happens by itself.
func (w *world) nothingActs(t *testing.T, s *server, before trace, began time.Time) {
	for _, who := range []struct{ role, database string }{{"app", "shop"}, {"postgres", "shop"}} {
		for _, way := range append(ways, "act('by hand')") {
			r := s.cli("psql", "a", "--role", who.role, "--database", who.database, "--", "-XAtqc", "SELECT "+way)
			if r.code == 0 {
				t.Errorf("%s as %s succeeded in the branch", way, who.role)
			}
		}
	}
	if r := s.cli("psql", "a", "--role", "postgres", "--database", "shop", "--", "-XAtqc", "CREATE TABLE x ()"); !strings.Contains(r.err, "could not connect") && !strings.Contains(r.err, "refused") {
		t.Errorf("the event trigger in the branch: exit %d, %s; want that it cannot connect", r.code, r.err)
	}
	// The relay that it streamed from as a spare, for both protocols.
	for _, more := range []string{"", " replication=true"} {
		r := s.cli("psql", "a", "--role", "postgres", "--database", "shop", "--", "-XAtqc", "SELECT dblink_connect('host=/run/pgbough/relay port=5432 user=pgbough dbname=postgres"+more+"')")
		if r.code == 0 {
			t.Errorf("the relay still answers the branch (%q)", more)
		}
	}
	s.sql("a", "shop", "SELECT pg_switch_wal(); CHECKPOINT")
	for _, c := range []struct{ what, sql, want string }{
		{"subscriptions", "SELECT count(*) FROM pg_subscription", "0"},
		{"replication slots", "SELECT count(*) FROM pg_replication_slots", "0"},
		{"prepared transactions", "SELECT count(*) FROM pg_prepared_xacts", "0"},
		{"active jobs", "SELECT count(*) FROM cron.job WHERE active", "0"},
		{"rows of the prepared transaction", "SELECT count(*) FROM orders WHERE id < 0", "0"},
		{"rows", "SELECT count(*) FROM orders", "2"},
		{"WAL receivers and archiving", "SELECT count(*) + (SELECT archived_count + failed_count FROM pg_stat_archiver) FROM pg_stat_wal_receiver", "0"},
		{
			"background processes", `SELECT string_agg(DISTINCT backend_type, ',') FROM pg_stat_activity WHERE backend_type NOT IN
			('client backend', 'checkpointer', 'background writer', 'walwriter', 'autovacuum launcher', 'autovacuum worker', 'parallel worker')`, "",
		},
	} {
		if got := s.sql("a", "shop", c.sql); got != c.want {
			t.Errorf("%s in the branch: %q, want %q", c.what, got, c.want)
		}
	}
	var b branchJSON
	s.json(&b, "branch", "get", "a")
	for _, want := range []string{
		"preload_library pg_cron", "preload_library outside", "subscription sub", "prepared_transaction left open", "foreign_server loop", "user_mapping public@loop",
		"scheduled_job cron.job", "password",
	} {
		if !slices.ContainsFunc(b.Branch.Differences, func(d struct{ Kind, Object, Action, Reason, Detail string }) bool {
			return strings.HasPrefix(d.Kind+" "+d.Object, want)
		}) {
			t.Errorf("no difference %q is listed with the branch: %+v", want, b.Branch.Differences)
		}
	}
	// A subscription's worker that could not begin tries again after five seconds.
	time.Sleep(time.Until(began.Add(12 * time.Second)))
	w.noTrace(t, before)
	after := logOf(t, w.upstream)[before.upstream:]
	if n := strings.Count(after, "user=feeder"); n > 0 {
		t.Errorf("%d connections with the subscription's password at the publisher:\n%s", n, after)
	}
	for _, user := range loggedIn(logOf(t, w.production)[before.production:]) {
		if user != "follower" && user != "postgres" { // pgbough's own, the test's own
			t.Errorf("%s connected to production", user)
		}
	}
}

// noTrace looks for what a branch leaves that acts outside. A branch's
// cluster_name begins with pgbough, and it is on the second timeline.
func (w *world) noTrace(t *testing.T, before trace) {
	t.Helper()
	for where, got := range map[string]string{
		"at the other server": w.upstream.Value(t, "postgres", "SELECT string_agg(DISTINCT how || ' by ' || by, ', ') FROM acted WHERE by LIKE 'pgbough%'"),
		"in production":       w.production.Value(t, "shop", "SELECT string_agg(DISTINCT how || ' by ' || by, ', ') FROM touched WHERE by LIKE 'pgbough%'"),
		"at a listener":       w.listener.from("pgbough"),
	} {
		if got != "" {
			t.Errorf("something from a branch acted %s: %s", where, got)
		}
	}
	if now := w.seen(t).slots; now != before.slots {
		t.Errorf("production's slots: %s, before %s", now, before.slots)
	}
	if got := w.upstream.Value(t, "postgres", "SELECT count(*) FROM pg_replication_slots"); got != "1" {
		t.Errorf("%s slots at the publisher, want 1", got)
	}
}

func (w *world) archived(t *testing.T) (secondTimeline bool) {
	t.Helper()
	files, err := os.ReadDir(w.archive)
	check(t, err)
	return slices.ContainsFunc(files, func(f os.DirEntry) bool { return strings.HasPrefix(f.Name(), "00000002") })
}

// everythingActs is what a branch would do without quarantine and sandbox.
func (w *world) everythingActs(t *testing.T, c *plainCopy) {
	if w.archived(t) {
		t.Error("WAL of a branch came into production's archive")
	}
	began := time.Now()
	before := w.seen(t)
	c.exec(t, "postgres", "SELECT pg_promote()")
	prepared, slots := c.value(t, "shop", "SELECT count(*) FROM pg_prepared_xacts"), c.value(t, "shop", "SELECT count(*) FROM pg_subscription")
	if prepared != "1" || slots != "1" {
		t.Errorf("control: %s prepared transactions and %s subscriptions in the copy, want 1 and 1", prepared, slots)
	}
	for _, way := range ways {
		c.exec(t, "shop", "SELECT "+way)
	}
	c.exec(t, "shop", "CREATE TABLE x ()")
	c.exec(t, "shop", "SELECT pg_switch_wal()")
	acted := func(how string) func() bool {
		return func() bool {
			return w.upstream.Value(t, "postgres", "SELECT count(*) FROM acted WHERE how = '"+how+"' AND by = 'copy'") != "0"
		}
	}
	touched := func(how string) func() bool {
		return func() bool {
			return w.production.Value(t, "shop", "SELECT count(*) FROM touched WHERE how = '"+how+"' AND by = 'copy'") != "0"
		}
	}
	for _, c := range []struct {
		what string
		ok   func() bool
	}{
		{"the foreign table writes to production", touched("fdw")},
		{"dblink writes to production", touched("link")},
		{"dblink with a connection string writes to production", touched("conninfo")},
		{"COPY TO PROGRAM reaches a listener", func() bool { return w.listener.heard("program of copy") }},
		{"the unknown background worker reaches a listener", func() bool { return w.listener.heard("copy") }},
		{"the event trigger acts", acted("event trigger")},
		{"the subscription wants production's slot", func() bool { return strings.Contains(logOf(t, w.upstream)[before.upstream:], "user=feeder") }},
		{"WAL is archived", func() bool { return w.archived(t) }},
		{"autoprewarm runs", func() bool {
			return c.value(t, "shop", "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'autoprewarm%'") != "0"
		}},
		{"pg_cron runs its job", func() bool {
			return c.value(t, "shop", "SELECT count(*) FROM cron.job_run_details WHERE start_time > "+quoted(began.Format(time.RFC3339))) != "0"
		}},
	} {
		eventually(t, 2*time.Minute, "control: "+c.what, c.ok)
	}
}

// plainCopy is a base backup of production that stock Postgres runs.
type plainCopy struct {
	dir  string
	port string
}

func (w *world) plainCopy(t *testing.T) *plainCopy {
	t.Helper()
	root, err := os.MkdirTemp("", "copy")
	check(t, err)
	check(t, os.Chown(root, pgtest.UID, pgtest.UID))
	_, port, err := net.SplitHostPort(freeAddr(t))
	check(t, err)
	c := &plainCopy{dir: filepath.Join(root, "data"), port: port}
	log, err := os.Create(filepath.Join(root, "log"))
	check(t, err)
	bin := w.production.Install.BinDir
	nobody := &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: pgtest.UID, Gid: pgtest.UID}, Setpgid: true}
	backup := exec.Command(filepath.Join(bin, "pg_basebackup"), "-D", c.dir, "-c", "fast", "-X", "stream", "-R", "-d", w.production.ConnString("postgres", "postgres"))
	backup.Dir, backup.SysProcAttr = "/", nobody
	if out, err := backup.CombinedOutput(); err != nil {
		t.Fatalf("pg_basebackup: %v\n%s", err, out)
	}
	run := exec.Command(filepath.Join(bin, "postgres"), "-D", c.dir, "-c", "port="+port, "-c", "unix_socket_directories=", "-c", "cluster_name=copy")
	run.Dir, run.SysProcAttr, run.Stdout, run.Stderr = "/", nobody, log, log
	check(t, run.Start())
	// It is stopped at the end of the whole test, since later parts use it.
	cleanupOf(t, func(t *testing.T) {
		_ = run.Process.Signal(syscall.SIGQUIT)
		_ = run.Wait()
		_ = log.Close()
		check(t, os.RemoveAll(root))
	})
	eventually(t, time.Minute, "the copy answers", func() bool {
		conn, err := c.connect("postgres")
		if err != nil {
			return false
		}
		return conn.Close(context.Background()) == nil
	})
	return c
}

func (c *plainCopy) connect(database string) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return pgx.Connect(ctx, fmt.Sprintf("host=127.0.0.1 port=%s user=postgres dbname=%s sslmode=disable", c.port, database))
}

func (c *plainCopy) exec(t *testing.T, database, sql string) {
	t.Helper()
	conn, err := c.connect(database)
	check(t, err)
	defer func() { _ = conn.Close(context.Background()) }()
	if _, err := conn.Exec(context.Background(), sql); err != nil {
		t.Errorf("control: %s: %v", sql, err)
	}
}

func (c *plainCopy) value(t *testing.T, database, sql string) string {
	t.Helper()
	conn, err := c.connect(database)
	check(t, err)
	defer func() { _ = conn.Close(context.Background()) }()
	var v *string
	if err := conn.QueryRow(context.Background(), "SELECT ("+sql+")::text").Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	if v == nil {
		return ""
	}
	return *v
}

// noSecrets scans the bytes of both branches' volumes, and of what the server
// keeps beside the pool.
func (w *world) noSecrets(t *testing.T, s *server, c *plainCopy) {
	if c == nil {
		t.Skip("there is no copy to compare with")
	}
	inCopy := holding(t, c.dir, w.secrets)
	for _, secret := range w.secrets {
		if !slices.ContainsFunc(inCopy, func(f string) bool { return strings.HasPrefix(f, secret+" in ") }) {
			t.Errorf("control: %s is in no file of the plain copy", secret)
		}
	}
	secrets := append([]string{"sekret-of"}, w.secrets...) // the follower's and the roles' own
	for _, name := range []string{"a", "b"} {
		var b branchJSON
		s.json(&b, "branch", "get", name)
		var found []string
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Second) {
			if found = holding(t, b.Branch.Path, secrets); len(found) == 0 || time.Now().After(deadline) {
				break
			}
		}
		for _, f := range found {
			t.Errorf("branch %s holds a secret of production: %s", name, f)
		}
	}
	for _, f := range slices.Concat(holding(t, filepath.Join(s.data(), "run"), secrets), holding(t, s.data(), secrets, "pool", "pool.img", "run")) {
		t.Errorf("the server holds a secret of production: %s", f)
	}
}

// holding lists the regular files below dir that hold one of the texts, as "text in file".
func holding(t *testing.T, dir string, texts []string, skip ...string) []string {
	t.Helper()
	var found []string
	check(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case filepath.Dir(path) == dir && slices.Contains(skip, d.Name()):
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		case !d.Type().IsRegular():
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, text := range texts {
			if bytes.Contains(b, []byte(text)) {
				found = append(found, text+" in "+strings.TrimPrefix(path, dir))
			}
		}
		return nil
	}))
	return found
}

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
	var pool struct{ Volumes []struct{ ID string } }
	s.json(&pool, "pool")
	for _, v := range pool.Volumes {
		if v.ID != own {
			others = append(others, v.ID)
		}
	}
	if len(others) < 2 || len(others) == len(pool.Volumes) {
		s.t.Fatalf("volumes of the pool: %+v, own %s", pool.Volumes, own)
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
	watched := []string{"/etc/shadow", "/etc/passwd", filepath.Join(s.data(), "catalog.db"), filepath.Join(s.data(), "admin.key"), canary, filepath.Join(canary, "big"),
		victim.Branch.Path, filepath.Join(victim.Branch.Path, "data"), filepath.Join(victim.Branch.Path, "data", "PG_VERSION"), filepath.Join(victim.Branch.Path, "manifest.json")}
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
		mkdir -p $(printf 'deep/%.0s' $(seq 300))
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
	u, err := url.Parse(s.must("url", "b"))
	check(t, err)
	socket := filepath.Join(u.Query().Get("host"), ".s.PGSQL.5432")
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
