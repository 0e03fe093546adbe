package replication

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/pgtest"
)

// The whole way of a follower: a slot, a base backup under writes, a plain
// standby that streams through a relay, and its promotion once that is cut.
func TestBackupToStandby(t *testing.T) {
	for _, major := range majors(t) {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			backupToStandby(t, major)
		})
	}
}

func backupToStandby(t *testing.T, major int) {
	production := pgtest.Start(t, pgtest.Options{Major: major})
	stopWriting := write(t, production)
	ctx := testContext(t)
	conn := replicationConn(t, production)
	must(t, CreateSlot(ctx, conn, "pgb"))
	var done, total int64
	dir, result := backupOf(t, production, BackupOptions{Progress: func(d, n int64) {
		if d < done || n < d {
			t.Errorf("progress: %d of %d after %d", d, n, done)
		}
		done, total = d, n
	}})
	if done != total || done < result.Bytes || result.Files < 500 || result.Bytes < 10<<20 {
		t.Errorf("got %d files of %d bytes, progress %d of %d", result.Files, result.Bytes, done, total)
	}
	if want := production.Value(t, "postgres", "SELECT system_identifier FROM pg_control_system()"); fmt.Sprint(result.SystemID) != want {
		t.Errorf("system: got %d, want %s", result.SystemID, want)
	}
	if result.Timeline != 1 || result.StartLSN == 0 || result.EndLSN <= result.StartLSN || result.Version != production.Install.Version {
		t.Errorf("got %+v", result)
	}
	checkOwners(t, dir)

	relayDir := shortDir(t)
	r := relayTo(t, relayDir, production.ConnString("postgres", "postgres"))
	s := startStandby(t, production.Install, dir, relayDir, "pgb")
	caughtUp(t, production, s)
	status := r.Status()
	if !status.Connected || status.Received < 1000 || status.Sent == 0 || time.Since(status.LastByteAt) > 10*time.Second {
		t.Errorf("while it streams: %+v", status)
	}
	if name := production.Value(t, "postgres", "SELECT string_agg(application_name, ',') FROM pg_stat_replication WHERE state = 'streaming'"); name != "pgbough relay" {
		t.Errorf("production lists %q, want one standby by the name the relay gives", name)
	}
	stopWriting()
	caughtUp(t, production, s)
	r.Cut()
	if _, err := s.query("pg_promote()"); err != nil {
		t.Fatalf("promote after the cut: %v", err)
	}
	eventually(t, 20*time.Second, "it is promoted", func() bool { v, err := s.query("pg_is_in_recovery()"); return err == nil && v == "false" })
	want := production.Value(t, "postgres", "SELECT count(*) FROM t")
	if got, err := s.query("SELECT count(*) FROM t"); err != nil || got != want {
		t.Errorf("rows after promotion: got %s, %v, want %s", got, err, want)
	}
	history(t, s)
}

// history reads the promoted standby's own timeline history over its socket.
func history(t *testing.T, s *standby) {
	t.Helper()
	conn, err := Connect(testContext(t), "host="+s.sockets+" user=postgres", "pgbough test")
	must(t, err)
	defer closeSoon(context.Background(), conn)
	file, err := TimelineHistory(testContext(t), conn, 2)
	must(t, err)
	entries, err := ParseHistory(file)
	must(t, err)
	if len(entries) != 1 || entries[0].Timeline != 1 || entries[0].SwitchLSN == 0 || entries[0].Reason != "no recovery target specified" {
		t.Errorf("got %+v from %q", entries, file)
	}
}

func relayTo(t *testing.T, dir, connString string) *Relay {
	t.Helper()
	dial, err := Dialer(connString, "pgbough relay")
	must(t, err)
	r, err := StartRelay(t.Context(), RelayOptions{Dir: dir, UID: owner(), GID: owner(), Dial: dial, IdleTimeout: 3 * time.Second, Log: testLog(t)})
	must(t, err)
	t.Cleanup(r.Cut)
	return r
}

func caughtUp(t *testing.T, production *pgtest.Server, s *standby) {
	t.Helper()
	target := production.Value(t, "postgres", "SELECT pg_current_wal_flush_lsn()")
	eventually(t, 30*time.Second, "the standby has replayed "+target, func() bool {
		v, err := s.query("pg_last_wal_replay_lsn() >= '" + target + "'")
		return err == nil && v == "true"
	})
}

func checkOwners(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if want := map[bool]os.FileMode{true: 0o700, false: 0o600}[d.IsDir()]; info.Mode().Perm() != want {
			t.Errorf("%s has mode %s, want %s", path, info.Mode().Perm(), want)
		}
		if os.Geteuid() == 0 && !ownedBy(info, pgtest.UID) {
			t.Errorf("%s was not given away", path)
		}
		return nil
	})
	must(t, err)
}

func TestBackupRate(t *testing.T) {
	s := pgtest.Start(t, pgtest.Options{})
	begin := time.Now()
	_, result := backupOf(t, s, BackupOptions{MaxRate: 8 << 20, Checksum: "SHA256"})
	want := time.Duration(float64(result.Bytes) / (8 << 20) * 0.8 * float64(time.Second))
	if took := time.Since(begin); took < want {
		t.Errorf("%d bytes at 8 MB/s took %s, want at least %s", result.Bytes, took, want)
	}
}

func TestBackupRefusesTablespaces(t *testing.T) {
	s := pgtest.Start(t, pgtest.Options{})
	s.Exec(t, "postgres", fmt.Sprintf("CREATE TABLESPACE elsewhere LOCATION '%s'", shortDir(t)))
	dir := shortDir(t)
	_, err := BaseBackup(testContext(t), BackupOptions{ConnString: s.ConnString("postgres", "postgres"), Dir: openRoot(t, dir), UID: -1, GID: -1, FastCheckpoint: true})
	if pgbough.ErrorCode(err) != pgbough.EConflict || !strings.Contains(err.Error(), "tablespace") {
		t.Errorf("got %v, want a conflict about the tablespace", err)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("%d files were copied before", len(left))
	}
}

func TestBackupNeedsAnEmptyDirectory(t *testing.T) {
	dir := shortDir(t)
	must(t, os.WriteFile(filepath.Join(dir, "precious"), nil, 0o600))
	_, err := BaseBackup(testContext(t), BackupOptions{ConnString: "host=127.0.0.1 port=1", Dir: openRoot(t, dir), UID: -1, GID: -1})
	if pgbough.ErrorCode(err) != pgbough.EConflict || !strings.Contains(err.Error(), "precious") {
		t.Errorf("got %v, want a conflict that names the file", err)
	}
}

// Cancelling ends the server's part at once, in the checkpoint as well as in
// the copy.
func TestBackupCancel(t *testing.T) {
	s := pgtest.Start(t, pgtest.Options{Conf: map[string]string{"checkpoint_timeout": "1h"}})
	s.Exec(t, "postgres", "CREATE TABLE big AS SELECT g, repeat('x', 900) AS pad FROM generate_series(1, 30000) g")
	for name, o := range map[string]BackupOptions{
		"in the spread checkpoint": {},
		"in the copy":              {FastCheckpoint: true, MaxRate: 1 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(testContext(t))
			o.ConnString, o.Dir, o.UID, o.GID = s.ConnString("postgres", "postgres"), openRoot(t, shortDir(t)), -1, -1
			failed := make(chan error, 1)
			go func() { _, err := BaseBackup(ctx, o); failed <- err }()
			phase := map[bool]string{true: "streaming database files", false: "waiting for checkpoint to finish"}[o.FastCheckpoint]
			eventually(t, 20*time.Second, phase, func() bool {
				return s.Value(t, "postgres", "SELECT string_agg(phase, ',') FROM pg_stat_progress_basebackup") == phase
			})
			begin := time.Now()
			cancel()
			if err := <-failed; !errors.Is(err, context.Canceled) {
				t.Errorf("got %v, want context.Canceled", err)
			}
			if took := time.Since(begin); took > time.Second {
				t.Errorf("it took %s to stop", took)
			}
			eventually(t, 3*time.Second, "the walsender is gone", func() bool {
				return s.Value(t, "postgres", "SELECT count(*) FROM pg_stat_replication") == "0"
			})
		})
	}
}

// What a person sees when production does not let us in.
func TestBackupRefusals(t *testing.T) {
	s := pgtest.Start(t, pgtest.Options{
		Conf: map[string]string{"max_wal_senders": "1", "password_encryption": "scram-sha-256"},
		HBA: []string{
			"host all,replication needs_password 127.0.0.1/32 scram-sha-256",
			"host replication not_listed 127.0.0.1/32 reject",
			"host replication no_entry 127.0.0.1/32 reject",
		},
	})
	s.Exec(t, "postgres", "CREATE ROLE needs_password LOGIN REPLICATION PASSWORD 'right'")
	s.Exec(t, "postgres", "CREATE ROLE no_entry LOGIN REPLICATION")
	s.Exec(t, "postgres", "CREATE ROLE plain LOGIN")
	as := func(user string) string { return s.ConnString(user, "postgres") }
	for _, c := range []struct {
		name, conn string
		code       pgbough.Code
		want       []string
	}{
		{"wrong password", as("needs_password") + " password=sesame", pgbough.EUnreachable, []string{"password authentication failed", "check user and password"}},
		{"rejected by pg_hba.conf", as("no_entry"), pgbough.EUnreachable, []string{"pg_hba.conf", "host replication no_entry"}},
		{"no REPLICATION", as("plain"), pgbough.EUnreachable, []string{`ALTER ROLE "plain" REPLICATION`}},
		{"nobody listens", "host=127.0.0.1 port=1 user=x password=sesame", pgbough.EUnreachable, []string{"nothing listens at 127.0.0.1:1"}},
		{"no such socket", "host=/nowhere user=x", pgbough.EUnreachable, []string{"nothing listens at /nowhere"}},
		{"no TLS", strings.Replace(as("plain"), "disable", "require", 1), pgbough.EUnreachable, []string{"offers no TLS"}},
		{"not a connection string", "host=x password=sesame sslmode=maybe", pgbough.EInvalid, []string{"sslmode"}},
		{"a password that breaks the URI", "postgres://u:sesame/%zz@host/db", pgbough.EInvalid, []string{"%40"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := BaseBackup(testContext(t), BackupOptions{ConnString: c.conn, Dir: openRoot(t, shortDir(t)), UID: -1, GID: -1})
			if pgbough.ErrorCode(err) != c.code {
				t.Fatalf("got %v, want code %s", err, c.code)
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("got %q, want it to say %q", err, want)
				}
			}
			if strings.Contains(err.Error(), "sesame") {
				t.Errorf("the password is in the message: %s", err)
			}
		})
	}
	t.Run("no walsender free", func(t *testing.T) {
		replicationConn(t, s)
		_, err := BaseBackup(testContext(t), BackupOptions{ConnString: as("postgres"), Dir: openRoot(t, shortDir(t)), UID: -1, GID: -1})
		if pgbough.ErrorCode(err) != pgbough.EUnreachable || !strings.Contains(err.Error(), "raise max_wal_senders") {
			t.Errorf("got %v", err)
		}
	})
}

// A line that flips a byte, ends early or hangs.
func TestBackupOverABadLine(t *testing.T) {
	s := pgtest.Start(t, pgtest.Options{})
	s.Exec(t, "postgres", "CREATE TABLE big AS SELECT g, repeat('x', 900) AS pad FROM generate_series(1, 30000) g")
	for _, c := range []struct {
		name string
		line line
		code pgbough.Code
		want string
	}{
		{"flips a byte", line{flip: []byte("xxxxxxxxxxxxxxxx")}, pgbough.EInternal, "does not match its manifest: the checksum of base/"},
		{"ends early", line{cutAfter: 10 << 20}, pgbough.EUnreachable, "broke during the base backup"},
		{"hangs", line{hangAfter: 10 << 20}, pgbough.EUnreachable, "nothing came for 1s"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.line.upstream = fmt.Sprintf("127.0.0.1:%d", s.Port)
			port := c.line.open(t)
			begin := time.Now()
			_, err := BaseBackup(testContext(t), BackupOptions{
				ConnString: fmt.Sprintf("host=127.0.0.1 port=%d user=postgres sslmode=disable", port), StallTimeout: time.Second,
				Dir: openRoot(t, shortDir(t)), UID: -1, GID: -1, FastCheckpoint: true,
			})
			if pgbough.ErrorCode(err) != c.code || !strings.Contains(fmt.Sprint(err), c.want) {
				t.Errorf("got %v, want %s: %s", err, c.code, c.want)
			}
			if took := time.Since(begin); took > 20*time.Second {
				t.Errorf("it took %s", took)
			}
		})
	}
}

func TestBackupCommand(t *testing.T) {
	o := BackupOptions{Label: "it's", Checksum: "CRC32C", MaxRate: 1}
	if got, want := backupCommand(o, 18), "BASE_BACKUP (LABEL 'it''s', PROGRESS, TABLESPACE_MAP, MANIFEST 'yes', MANIFEST_CHECKSUMS 'CRC32C', MAX_RATE 32, WAIT false, CHECKPOINT 'spread')"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	o.FastCheckpoint, o.MaxRate = true, 1<<40
	if got, want := backupCommand(o, 14), "BASE_BACKUP LABEL 'it''s' PROGRESS TABLESPACE_MAP MANIFEST 'yes' MANIFEST_CHECKSUMS 'CRC32C' MAX_RATE 1048576 NOWAIT FAST"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
