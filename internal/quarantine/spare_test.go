package quarantine_test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbough/pgbough/internal/pgtest"
	"github.com/pgbough/pgbough/internal/postgres"
	"github.com/pgbough/pgbough/internal/quarantine"
)

// instance is a copy of a stopped production that runs as a standby without a
// primary, as a spare does whose relay was cut.
type instance struct {
	dir, sockets, log string
	install           postgres.Installation
	cmd               *exec.Cmd
	done              chan struct{}
}

// startSpare copies production's data directory and starts the copy with our
// own configuration file.
func startSpare(t testing.TB, production *pgtest.Server, params ...[]postgres.Param) *instance {
	t.Helper()
	root, err := os.MkdirTemp("", "spare")
	must(t, err)
	s := &instance{dir: filepath.Join(root, "data"), sockets: filepath.Join(root, "s"), log: filepath.Join(root, "log"), install: production.Install}
	t.Cleanup(func() {
		s.end(t, syscall.SIGQUIT)
		if b, err := os.ReadFile(s.log); err == nil && t.Failed() {
			lines := strings.Split(string(b), "\n")
			t.Logf("tail of the spare's log:\n%s", strings.Join(lines[max(0, len(lines)-40):], "\n"))
		}
		must(t, os.RemoveAll(root))
	})
	must(t, os.Chmod(root, 0o755))
	must(t, os.Mkdir(s.sockets, 0o700))
	if out, err := exec.Command("cp", "-a", production.Dir, s.dir).CombinedOutput(); err != nil {
		t.Fatalf("copy production: %v\n%s", err, out)
	}
	// What the base backup's receiver does: production's configuration and what names it stay out.
	for _, name := range []string{"postgresql.conf", "postgresql.auto.conf", "pg_hba.conf", "postmaster.pid", "postmaster.opts", "pg_stat/pg_stat_statements.stat", "pg_stat_tmp/pgss_query_texts.stat"} {
		must(t, os.RemoveAll(filepath.Join(s.dir, name)))
	}
	conf := postgres.File("", append(params, []postgres.Param{
		{Name: "unix_socket_directories", Value: s.sockets}, {Name: "hba_file", Value: filepath.Join(root, "hba")}, {Name: "listen_addresses", Value: ""},
	})...)
	for name, text := range map[string]string{filepath.Join(root, "conf"): conf, filepath.Join(root, "hba"): "local all all trust\n", filepath.Join(s.dir, "standby.signal"): "", s.log: ""} {
		must(t, os.WriteFile(name, []byte(text), 0o644))
		if os.Geteuid() == 0 {
			must(t, os.Chown(name, pgtest.UID, pgtest.UID))
		}
	}
	if os.Geteuid() == 0 {
		must(t, os.Chown(s.sockets, pgtest.UID, pgtest.UID))
	}
	s.start(t)
	return s
}

func (s *instance) start(t testing.TB) {
	t.Helper()
	log, err := os.OpenFile(s.log, os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	defer func() { _ = log.Close() }()
	s.cmd = exec.Command(filepath.Join(s.install.BinDir, "postgres"), "-D", s.dir, "-c", "config_file="+filepath.Join(filepath.Dir(s.dir), "conf"))
	s.cmd.Dir, s.cmd.Env = "/", []string{"PATH=/usr/bin:/bin", "LC_ALL=C.UTF-8", "TZ=UTC"}
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if os.Geteuid() == 0 {
		s.cmd.SysProcAttr.Credential = &syscall.Credential{Uid: pgtest.UID, Gid: pgtest.UID}
	}
	must(t, s.cmd.Start())
	s.done = make(chan struct{})
	go func(cmd *exec.Cmd, done chan struct{}) { _ = cmd.Wait(); close(done) }(s.cmd, s.done)
	eventually(t, "the spare answers", func() bool {
		select {
		case <-s.done:
			b, _ := os.ReadFile(s.log)
			t.Fatalf("the spare did not start:\n%s", b)
		default:
		}
		conn, err := s.connect("template1")
		if err != nil {
			return false
		}
		return conn.Close(context.Background()) == nil
	})
}

func (s *instance) end(t testing.TB, sig syscall.Signal) {
	t.Helper()
	select {
	case <-s.done:
		return
	default:
	}
	if err := s.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Error(err)
	}
	select {
	case <-s.done:
	case <-time.After(time.Minute):
		t.Error("the spare did not stop")
	}
}

func (s *instance) config(database string) (*pgx.ConnConfig, error) {
	return pgx.ParseConfig(fmt.Sprintf("host=%s port=5432 user=postgres dbname='%s' sslmode=disable connect_timeout=20", s.sockets, database))
}

// connect is a session that production's own settings of roles and databases
// cannot spoil.
func (s *instance) connect(database string) (*pgx.Conn, error) {
	cfg, err := s.config(database)
	if err != nil {
		return nil, err
	}
	cfg.RuntimeParams = map[string]string{"session_preload_libraries": "", "default_transaction_read_only": "off", "role": "none", "statement_timeout": "0"}
	if s.install.Major >= 17 {
		cfg.RuntimeParams["event_triggers"] = "off"
	}
	cfg.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	return pgx.ConnectConfig(context.Background(), cfg)
}

func (s *instance) exec(t testing.TB, database, sql string) error {
	t.Helper()
	conn, err := s.connect(database)
	must(t, err)
	defer func() { _ = conn.Close(context.Background()) }()
	_, err = conn.Exec(context.Background(), sql)
	return err
}

func (s *instance) value(t testing.TB, database, sql string) string {
	t.Helper()
	conn, err := s.connect(database)
	must(t, err)
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

func (s *instance) logged(t testing.TB) string {
	t.Helper()
	b, err := os.ReadFile(s.log)
	must(t, err)
	return string(b)
}

func (s *instance) promote(t testing.TB) {
	t.Helper()
	if got := s.value(t, "template1", "pg_promote()"); got != "true" {
		t.Fatalf("pg_promote: %s", got)
	}
}

func (s *instance) options(t testing.TB) quarantine.Options {
	return quarantine.Options{
		Config: s.config, Major: s.install.Major, Secret: newSecret,
		Log: slog.New(slog.NewTextHandler(writer{t}, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
}

type writer struct{ t testing.TB }

func (w writer) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// newSecret is SCRAM-SHA-256 as RFC 5803 stores it, with few rounds.
func newSecret() (quarantine.Secret, error) {
	const rounds = 16
	salt := make([]byte, 16)
	_, _ = rand.Read(salt)
	password := rand.Text()
	salted, err := pbkdf2.Key(sha256.New, password, salt, rounds, 32)
	if err != nil {
		return quarantine.Secret{}, err
	}
	mac := func(text string) []byte {
		h := hmac.New(sha256.New, salted)
		h.Write([]byte(text))
		return h.Sum(nil)
	}
	stored := sha256.Sum256(mac("Client Key"))
	b64 := base64.StdEncoding.EncodeToString
	return quarantine.Secret{
		Password: password,
		Verifier: fmt.Sprintf("SCRAM-SHA-256$%d:%s$%s:%s", rounds, b64(salt), b64(stored[:]), b64(mac("Server Key"))),
	}, nil
}

// holding lists the files below dir that hold one of the texts, as "text in file".
func holding(t testing.TB, dir string, texts []string) []string {
	t.Helper()
	var found []string
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || err == nil && !d.Type().IsRegular() {
			return nil
		}
		if err != nil {
			return err
		}
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		for _, text := range texts {
			if bytes.Contains(b, []byte(text)) {
				rel, _ := filepath.Rel(dir, path)
				found = append(found, text+" in "+rel)
			}
		}
		return err
	}))
	return found
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	began := time.Now()
	defer func() {
		if took := time.Since(began); took > 5*time.Second {
			t.Logf("%s: after %v", what, took)
		}
	}()
	for deadline := time.Now().Add(60 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("not in a minute: %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
