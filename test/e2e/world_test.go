package e2e

import (
	"context"
	"crypto/md5"
	"fmt"
	"io"
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

	"github.com/jackc/pgx/v5"

	"github.com/pgbough/pgbough/internal/pgtest"
)

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
		fmt.Fprintf(&long, "%x", md5.Sum([]byte{byte(i)}))
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

// plainCopy is a base backup of production that stock Postgres runs.
type plainCopy struct {
	dir  string
	port string
}

// It runs until the whole test ends.
func (w *world) plainCopy(t, whole *testing.T) *plainCopy {
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
	whole.Cleanup(func() {
		_ = run.Process.Signal(syscall.SIGQUIT)
		_ = run.Wait()
		_ = log.Close()
		check(whole, os.RemoveAll(root))
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

// listener is a TCP server that remembers what it is told, at all addresses.
type listener struct {
	port int

	mu   sync.Mutex
	said []string
}

func listen(t *testing.T) *listener {
	t.Helper()
	server, err := net.Listen("tcp4", "0.0.0.0:0")
	check(t, err)
	l := &listener{port: server.Addr().(*net.TCPAddr).Port}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := server.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
				b, _ := io.ReadAll(conn)
				_ = conn.Close()
				l.mu.Lock()
				defer l.mu.Unlock()
				if said := strings.TrimSpace(string(b)); !slices.Contains(l.said, said) {
					l.said = append(l.said, said)
				}
			})
		}
	})
	t.Cleanup(func() {
		_ = server.Close()
		wg.Wait()
	})
	return l
}

func (l *listener) heard(who string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Contains(l.said, who)
}

// mentioning is what it heard with a word in it.
func (l *listener) mentioning(word string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []string
	for _, s := range l.said {
		if strings.Contains(s, word) {
			out = append(out, s)
		}
	}
	return strings.Join(out, ", ")
}

func logOf(t *testing.T, p *pgtest.Server) string {
	t.Helper()
	b, err := os.ReadFile(p.LogFile)
	check(t, err)
	return string(b)
}

var authorized = regexp.MustCompile(`connection authorized: user=(\S+)`)

// loggedIn are the users that a log says have logged in, with each once.
func loggedIn(log string) []string {
	var users []string
	for _, m := range authorized.FindAllStringSubmatch(log, -1) {
		users = append(users, m[1])
	}
	slices.Sort(users)
	return slices.Compact(users)
}

// titles are those of all processes of a Postgres with this cluster_name, in lines.
func titles(cluster string) string {
	var out strings.Builder
	processes, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range processes {
		b, _ := os.ReadFile(path) // it may have ended
		if title, ok := strings.CutPrefix(string(b), "postgres: "+cluster+": "); ok {
			fmt.Fprintln(&out, strings.TrimRight(title, " \x00"))
		}
	}
	return out.String()
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func eventually(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !ok(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", limit, what)
		}
	}
}

func quoted(text string) string { return "'" + strings.ReplaceAll(text, "'", "''") + "'" }
