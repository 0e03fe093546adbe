package credential

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/pgtest"
)

func TestEnsureKey(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "secret.key")
	first := mustKey(t, path)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != 0o600 || info.Size() != KeySize {
		t.Errorf("key file: mode %v, %d bytes; want 0600, %d", info.Mode(), info.Size(), KeySize)
	}
	if again := mustKey(t, path); again.secret != first.secret {
		t.Error("a second look at the file gave another key")
	}
	if other := mustKey(t, filepath.Join(dir, "other.key")); other.secret == first.secret {
		t.Error("two files have the same key")
	}
	if names, _ := filepath.Glob(filepath.Join(dir, ".*")); len(names) > 0 {
		t.Errorf("drafts left behind: %v", names)
	}
}

func TestEnsureKeyAtTheSameTime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secret.key")
	keys := make([]*Key, 16)
	var wg sync.WaitGroup
	for i := range keys {
		wg.Go(func() { keys[i], _ = EnsureKey(path) })
	}
	wg.Wait()
	for _, k := range keys {
		if k == nil || k.secret != keys[0].secret {
			t.Fatal("two callers got different keys, or none")
		}
	}
}

func TestBadKeyFiles(t *testing.T) {
	dir := t.TempDir()
	file := func(name string, size int, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, make([]byte, size), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(file("target", KeySize, 0o600), link); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		file("open", KeySize, 0o640):    "chmod 600",
		file("short", KeySize-1, 0o600): "restore it from a backup",
		file("long", KeySize+1, 0o600):  "restore it from a backup",
		file("empty", 0, 0o600):         "restore it from a backup",
		link:                            "symbolic link",
		dir:                             "not a regular file",
	} {
		_, err := EnsureKey(path)
		if pgbough.ErrorCode(err) != pgbough.EInvalid || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want EInvalid with %q", filepath.Base(path), err, want)
		}
	}
}

func TestBox(t *testing.T) {
	key := mustKey(t, filepath.Join(t.TempDir(), "secret.key"))
	box := mustBox(t, key, "catalog")
	place := Place{Table: "roles", Row: "br-1", Column: "password"}
	sealed := box.Seal(place, "hunter2")
	if got, err := box.Open(place, sealed); err != nil || got != "hunter2" {
		t.Errorf("got %q, %v", got, err)
	}
	if got, err := mustBox(t, key, "catalog").Open(place, sealed); err != nil || got != "hunter2" {
		t.Errorf("a box of the same purpose: got %q, %v", got, err)
	}
	if strings.Contains(string(sealed), "hunter2") {
		t.Error("the secret is readable")
	}
	if string(box.Seal(place, "hunter2")) == string(sealed) {
		t.Error("the same secret twice gives the same bytes")
	}
	if got, err := box.Open(place, box.Seal(place, "")); err != nil || got != "" {
		t.Errorf("the empty secret: got %q, %v", got, err)
	}
	flipped := []byte(string(sealed))
	flipped[len(flipped)-1] ^= 1
	for name, try := range map[string]struct {
		box    *Box
		place  Place
		sealed []byte
	}{
		"another row":     {box, Place{"roles", "br-2", "password"}, sealed},
		"another column":  {box, Place{"roles", "br-1", "name"}, sealed},
		"shifted":         {box, Place{"rolesb", "r-1", "password"}, sealed},
		"another purpose": {mustBox(t, key, "other"), place, sealed},
		"another key":     {mustBox(t, mustKey(t, filepath.Join(t.TempDir(), "k")), "catalog"), place, sealed},
		"changed":         {box, place, flipped},
		"cut":             {box, place, sealed[:5]},
		"empty":           {box, place, nil},
	} {
		if got, err := try.box.Open(try.place, try.sealed); err == nil {
			t.Errorf("%s: opened as %q", name, got)
		}
	}
}

func TestAPIKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin.key")
	if _, err := ReadAPIKey(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: got %v, want ErrNotExist", err)
	}
	key, err := EnsureAPIKey(path)
	if err != nil {
		t.Fatal(err)
	}
	read, err := ReadAPIKey(path)
	if err != nil || read != key {
		t.Errorf("read again: %v, same %v", err, read == key)
	}
	if !key.Matches(read.Reveal()) || key.Matches("") || key.Matches(key.Reveal()+"x") || (APIKey{}).Matches("") {
		t.Error("Matches is wrong")
	}
	for _, text := range []string{fmt.Sprint(key), fmt.Sprintf("%+v %#v", key, key), key.LogValue().String()} {
		if strings.Contains(text, key.Reveal()) {
			t.Errorf("the key shows in %q", text)
		}
	}
	if err := os.WriteFile(path, []byte("short\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadAPIKey(path); pgbough.ErrorCode(err) != pgbough.EInvalid {
		t.Errorf("a file without a key: got %v", err)
	}
}

func TestNewPassword(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		p := NewPassword()
		if len(p) < 26 || url.QueryEscape(p) != p || url.PathEscape(p) != p || seen[p] {
			t.Fatalf("bad password %q", p)
		}
		seen[p] = true
	}
}

func TestSCRAMForm(t *testing.T) {
	v, err := NewSCRAM("pencil", SCRAMIterations)
	form := regexp.MustCompile(`^SCRAM-SHA-256\$4096:[A-Za-z0-9+/]{22}==\$[A-Za-z0-9+/]{43}=:[A-Za-z0-9+/]{43}=$`)
	if err != nil || !form.MatchString(v) {
		t.Errorf("got %q, %v", v, err)
	}
	if again, _ := NewSCRAM("pencil", SCRAMIterations); again == v {
		t.Error("the salt is always the same")
	}
	for _, bad := range []string{"", "ünicode", "tab\t"} {
		if v, err := NewSCRAM(bad, SCRAMIterations); err == nil {
			t.Errorf("NewSCRAM(%q) = %q, want an error", bad, v)
		}
	}
	if _, err := NewSCRAM("x", 0); err == nil {
		t.Error("no iterations: want an error")
	}
}

// TestSCRAMLogin gives a verifier to a real server and logs in with the password.
func TestSCRAMLogin(t *testing.T) {
	s := pgtest.Start(t, pgtest.Options{HBA: []string{"host all app 127.0.0.1/32 scram-sha-256"}})
	password := NewPassword()
	verifier, err := NewSCRAM(password, SCRAMIterations)
	if err != nil {
		t.Fatal(err)
	}
	s.Exec(t, "postgres", "CREATE ROLE app LOGIN PASSWORD '"+verifier+"'")
	if got := s.Value(t, "postgres", "SELECT rolpassword FROM pg_authid WHERE rolname = 'app'"); got != verifier {
		t.Errorf("Postgres stored %q, we sent %q", got, verifier)
	}
	login := func(password string) error {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		conn, err := pgx.Connect(ctx, s.ConnString("app", "postgres")+" password="+password)
		if err != nil {
			return err
		}
		return conn.Close(ctx)
	}
	if err := login(password); err != nil {
		t.Errorf("the right password: %v", err)
	}
	var pgErr *pgconn.PgError
	if err := login(password + "x"); !errors.As(err, &pgErr) || pgErr.Code != "28P01" {
		t.Errorf("a wrong password: got %v, want invalid_password", err)
	}
}

func mustKey(t *testing.T, path string) *Key {
	t.Helper()
	k, err := EnsureKey(path)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func mustBox(t *testing.T, k *Key, purpose string) *Box {
	t.Helper()
	b, err := k.Box(purpose)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
