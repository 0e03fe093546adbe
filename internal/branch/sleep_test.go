package branch_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/branch"
)

// logins are what clients must prove now, of every role that the tests make.
func (w *world) logins(t *testing.T, name string) map[string]pgbough.Login {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out := map[string]pgbough.Login{}
	for _, role := range []string{"app", "made", "old", "renamed", "silent", "hashed", "limited", "for_ever", "none"} {
		l, err := w.Login(ctx, name, role)
		check(t, err)
		out[role] = l
	}
	return out
}

func TestSleepAndWake(t *testing.T) {
	var onMark atomic.Pointer[func()]
	w := newWorld(t, func(o *branch.Options) {
		o.SuspendAfter = 5 * time.Minute
		o.Failpoint = func(place string) {
			if f := onMark.Load(); f != nil && place == "delete_branch/mark/before" {
				(*f)()
			}
		}
	})
	b := w.create(t, "one")
	if b.Compute != pgbough.ComputeActive || b.SuspendAfter != 5*time.Minute {
		t.Errorf("a new branch is %s and sleeps after %s", b.Compute, b.SuspendAfter)
	}
	t.Run("Logins", func(t *testing.T) { testLogins(t, w, b) })
	t.Run("Restarts", func(t *testing.T) { testRestarts(t, w, b) })
	t.Run("Idle", func(t *testing.T) { testIdle(t, w, b) })
	t.Run("Burst", func(t *testing.T) { testBurst(t, w, b) })
	t.Run("Rename", func(t *testing.T) { testRename(t, w, b) })
	t.Run("LockedCatalog", func(t *testing.T) { testLockedCatalog(t, w, b) })
	t.Run("WillNotStart", func(t *testing.T) { testWillNotStart(t, w, b) })
	t.Run("Expires", func(t *testing.T) {
		w.create(t, "short")
		at := time.Now().Add(time.Second)
		v, err := w.UpdateBranch(t.Context(), "shop", "short", pgbough.BranchChange{ExpiresAt: &at})
		if err != nil || !v.ExpiresAt.Equal(at) {
			t.Errorf("it expires at %s, %v", v.ExpiresAt, err)
		}
		eventually(t, "it is gone within a minute", func() bool {
			_, err := w.Branch(t.Context(), "shop", "short")
			return pgbough.ErrorCode(err) == pgbough.ENotFound
		})
	})
	t.Run("Protected", func(t *testing.T) { testProtected(t, w, &onMark) })
	t.Run("DeleteAsleep", func(t *testing.T) {
		two := w.create(t, "two")
		w.suspend(t, "two")
		_, op, err := w.DeleteBranch(t.Context(), "shop", "two", false)
		check(t, err)
		w.finish(t, op)
		if _, err := w.Login(t.Context(), two.EndpointID, "app"); pgbough.ErrorCode(err) != pgbough.ENotFound {
			t.Errorf("login to a branch that is gone: %v", err)
		}
		if _, err := w.Connect(t.Context(), two.ID); pgbough.ErrorCode(err) != pgbough.ENotFound {
			t.Errorf("connect to a branch that is gone: %v", err)
		}
	})
}

func testLogins(t *testing.T, w *world, b pgbough.BranchView) {
	before := w.logins(t, "one")
	if l := before["app"]; !strings.HasPrefix(l.Verifier, "SCRAM-SHA-256$") || l.BranchID != b.ID || l.Major != 15 || l.Role != "app" {
		t.Errorf("app: %+v", l)
	}
	if want := w.value(t, b.ID, "SELECT rolpassword FROM pg_authid WHERE rolname = 'app'"); before["app"].Verifier != want {
		t.Errorf("the verifier of app is not that of the branch")
	}
	if l := before["made"]; l.Verifier != "" || l.Role != "made" {
		t.Errorf("a role that is not there: %+v", l)
	}
	w.exec(t, b.ID, `ALTER ROLE app PASSWORD 'changed'; CREATE ROLE made LOGIN PASSWORD 'made'; CREATE ROLE old LOGIN PASSWORD 'old'; ALTER ROLE old RENAME TO renamed;
		CREATE ROLE silent NOLOGIN PASSWORD 'silent'; SET password_encryption = 'md5'; CREATE ROLE hashed LOGIN PASSWORD 'hashed';
		CREATE ROLE limited LOGIN PASSWORD 'x' VALID UNTIL '2030-01-02 03:04:05+00'; CREATE ROLE for_ever LOGIN PASSWORD 'x' VALID UNTIL 'infinity'`)
	awake := w.logins(t, "one")
	if awake["app"] == before["app"] {
		t.Error("a changed password does not count at once")
	}
	for role, prefix := range map[string]string{"made": "SCRAM-SHA-256$", "renamed": "SCRAM-SHA-256$", "silent": "SCRAM-SHA-256$", "hashed": "md5"} {
		if !strings.HasPrefix(awake[role].Verifier, prefix) {
			t.Errorf("%s: %+v", role, awake[role])
		}
	}
	if awake["old"].Verifier != "" {
		t.Error("a renamed role has its old name too")
	}
	if until := awake["limited"].ValidUntil; !until.Equal(time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)) || !awake["for_ever"].ValidUntil.IsZero() {
		t.Errorf("valid until %s and %s", until, awake["for_ever"].ValidUntil)
	}
	w.suspend(t, "one")
	if pid := w.postmaster(t, b); pid != 0 {
		t.Errorf("a branch at rest has process %d", pid)
	}
	if diff := cmp.Diff(awake, w.logins(t, b.EndpointID)); diff != "" {
		t.Errorf("asleep (-awake +asleep):\n%s", diff)
	}
	if w.postmaster(t, b) != 0 {
		t.Error("a login woke it")
	}
	if got := w.value(t, b.ID, "SELECT count(*) FROM orders"); got != "1000" {
		t.Errorf("rows after it woke: %s", got)
	}
	if diff := cmp.Diff(awake, w.logins(t, "shop/one")); diff != "" {
		t.Errorf("awake again (-before +after):\n%s", diff)
	}
	log, err := w.Log(t.Context(), "shop", "one", false)
	check(t, err)
	defer func() { _ = log.Close() }()
	for _, name := range []string{"main", "nothing", "shop/nothing"} {
		if _, err := w.Login(t.Context(), name, "app"); pgbough.ErrorCode(err) != pgbough.ENotFound {
			t.Errorf("login to %s: %v", name, err)
		}
	}
}

// testRestarts: whatever ends, the next server has the branch as it was, and old
// verifiers let nobody in.
func testRestarts(t *testing.T, w *world, b pgbough.BranchView) {
	change := func(password string) map[string]pgbough.Login {
		w.exec(t, b.ID, "ALTER ROLE app PASSWORD '"+password+"'")
		return w.logins(t, "one")
	}
	same := func(what string, want map[string]pgbough.Login) {
		t.Helper()
		if diff := cmp.Diff(want, w.logins(t, "one")); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	want := change("first")
	pid := w.postmaster(t, b)
	w.again(t, false)
	same("adopted by the next server", want)
	if now := w.postmaster(t, b); now != pid {
		t.Errorf("the Postgres is %d, was %d", now, pid)
	}
	want = change("second")
	check(t, syscall.Kill(w.postmaster(t, b), syscall.SIGKILL))
	same("started again after its postmaster was killed", want)
	if v := w.get(t, "one"); v.Endpoint.Restarts != 1 || v.Endpoint.Failure == "" || v.Endpoint.FailedAt.IsZero() {
		t.Errorf("what is known of it: %+v", v.Endpoint)
	}
	want = change("third")
	w.close(t, false) // all of it dies
	check(t, syscall.Kill(w.postmaster(t, b), syscall.SIGKILL))
	eventually(t, "it is dead", func() bool { return w.postmaster(t, b) == 0 })
	w.open(t)
	same("after server and Postgres were killed", want)
	w.again(t, true)
	if v := w.get(t, "one"); v.Compute == pgbough.ComputeIdle {
		t.Error("a branch that was awake sleeps after a clean stop of the server")
	}
	same("after a clean stop", want)
	for _, stop := range []bool{false, true} {
		w.suspend(t, "one")
		w.again(t, stop)
		if v := w.get(t, "one"); v.Compute != pgbough.ComputeIdle || w.postmaster(t, b) != 0 || v.Endpoint.LastActive.IsZero() {
			t.Errorf("a branch that slept is %s for the next server", v.Compute)
		}
		same("asleep over a restart", want)
		_, op, err := w.Wake(t.Context(), "shop", "one")
		check(t, err)
		w.finish(t, op)
		same("awake after it", want)
	}
}

func testIdle(t *testing.T, w *world, b pgbough.BranchView) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	second := time.Second
	set := func(d time.Duration) {
		_, err := w.UpdateBranch(ctx, "shop", "one", pgbough.BranchChange{SuspendAfter: &d})
		check(t, err)
	}
	working, err := w.client(ctx, b.ID, "app")
	check(t, err)
	idle, err := w.client(ctx, b.ID, "app")
	check(t, err)
	_, err = working.Exec(ctx, "BEGIN")
	check(t, err)
	set(second)
	time.Sleep(3 * second)
	if err := idle.Ping(ctx); err != nil {
		t.Fatalf("a session was ended although another is in a transaction: %v", err)
	}
	_, err = working.Exec(ctx, "COMMIT")
	check(t, err)
	eventually(t, "it sleeps although sessions are connected, all idle", func() bool { return w.get(t, "one").Compute == pgbough.ComputeIdle })
	_, err = idle.PgConn().ReceiveMessage(ctx)
	var told *pgconn.PgError
	if !errors.As(err, &told) || told.Code != "57P01" {
		t.Errorf("an idle session was told %v, want 57P01", err)
	}
	if w.value(t, b.ID, "SELECT count(*) FROM orders") != "1000" {
		t.Error("it did not wake")
	}
	set(5 * time.Minute)
}

// testBurst: many clients at once cause one start, over and over.
func testBurst(t *testing.T, w *world, b pgbough.BranchView) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	starts := func() string { return w.value(t, b.ID, "SELECT pg_postmaster_start_time()") }
	for range 5 {
		w.suspend(t, "one")
		seen := make([]string, 16)
		var wg sync.WaitGroup
		for i := range seen {
			wg.Go(func() {
				conn, err := w.client(ctx, b.ID, "app")
				if err != nil {
					t.Errorf("client %d: %v", i, err)
					return
				}
				if err := conn.QueryRow(ctx, "SELECT pg_postmaster_start_time()::text").Scan(&seen[i]); err != nil {
					t.Errorf("client %d: %v", i, err)
				}
				_ = conn.Close(ctx)
			})
		}
		wg.Wait()
		for i, s := range seen {
			if s != starts() {
				t.Errorf("client %d was on the Postgres of %s", i, s)
			}
		}
	}
}

func testRename(t *testing.T, w *world, b pgbough.BranchView) {
	rename := func(to string) error {
		_, err := w.UpdateBranch(t.Context(), "shop", b.ID, pgbough.BranchChange{Name: &to})
		return err
	}
	check(t, rename("other"))
	if _, err := w.Login(t.Context(), "one", "app"); pgbough.ErrorCode(err) != pgbough.ENotFound {
		t.Errorf("login by its old name: %v", err)
	}
	if l, err := w.Login(t.Context(), "other", "app"); err != nil || l.BranchID != b.ID {
		t.Errorf("login by its new name: %+v, %v", l, err)
	}
	if err := rename("main"); pgbough.ErrorCode(err) != pgbough.EConflict {
		t.Errorf("a name that is taken: %v", err)
	}
	if err := rename("-x"); pgbough.ErrorCode(err) != pgbough.EInvalid {
		t.Errorf("no name: %v", err)
	}
	check(t, rename("one"))
}

// testLockedCatalog: a superuser of the branch holds what logins read; that ends
// his own branch's logins, and no suspension.
func testLockedCatalog(t *testing.T, w *world, b pgbough.BranchView) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	conn, err := w.client(ctx, b.ID, "postgres")
	check(t, err)
	defer func() { _ = conn.Close(ctx) }() // one that nobody refers to is closed by the garbage collector
	_, err = conn.Exec(ctx, "BEGIN; LOCK TABLE pg_authid IN ACCESS EXCLUSIVE MODE")
	check(t, err)
	var wg sync.WaitGroup
	logins := func(limit time.Duration, done func(error)) {
		for range 4 {
			wg.Go(func() {
				short, cancel := context.WithTimeout(ctx, limit)
				defer cancel()
				_, err := w.Login(short, "one", "app")
				done(err)
			})
		}
	}
	logins(time.Second, func(err error) {
		if err == nil {
			t.Error("a login was answered from a locked catalog")
		}
	})
	wg.Wait()
	// Those that wait when it falls asleep are in nobody's way; what they are told
	// depends on who was first.
	logins(10*time.Second, func(error) {})
	w.suspend(t, "one")
	wg.Wait()
	if l, err := w.Login(ctx, "one", "app"); err != nil || l.Verifier == "" {
		t.Errorf("login after it: %+v, %v", l, err)
	}
}

// testWillNotStart: a superuser of the branch has broken it; whoever connects is
// told what its log says, and others are served.
func testWillNotStart(t *testing.T, w *world, b pgbough.BranchView) {
	w.exec(t, b.ID, "ALTER SYSTEM SET shared_preload_libraries = 'nothing_such'")
	w.suspend(t, "one")
	if l, err := w.Login(t.Context(), "one", "app"); err != nil || l.Verifier == "" {
		t.Errorf("login: %+v, %v", l, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	_, err := w.Connect(ctx, b.ID)
	if pgbough.ErrorCode(err) != pgbough.EInternal || !strings.Contains(err.Error(), "nothing_such") || !strings.Contains(err.Error(), "pgbough logs one") {
		t.Errorf("connect: %v", err)
	}
	if v := w.get(t, "one"); v.Compute != pgbough.ComputeInit || v.Endpoint.Failure == "" {
		t.Errorf("it is %s, its failure %q", v.Compute, v.Endpoint.Failure)
	}
}

// TestLoginWaitsForBranch: who comes while a branch is made waits until it can be used.
func TestLoginWaitsForBranch(t *testing.T) {
	w := newWorld(t, func(o *branch.Options) { o.MaxAwake = 2 })
	c, err := w.CreateBranch(t.Context(), "shop", pgbough.CreateRequest{Name: "one"})
	check(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	l, err := w.Login(ctx, c.Branch.EndpointID, "app")
	if err != nil || l.Verifier == "" {
		t.Errorf("login while it is made: %+v, %v", l, err)
	}
	conn, err := w.client(ctx, c.Branch.ID, "app")
	check(t, err)
	t.Run("Limit", func(t *testing.T) {
		two := w.create(t, "two")
		other, err := w.client(ctx, two.ID, "app")
		check(t, err)
		_, err = w.CreateBranch(ctx, "shop", pgbough.CreateRequest{Name: "three"})
		if pgbough.ErrorCode(err) != pgbough.EConflict || !strings.Contains(err.Error(), "2 computes are awake") {
			t.Errorf("a third awake branch: %v", err)
		}
		check(t, conn.Close(ctx))
		eventually(t, "the one without a session gives way", func() bool {
			c, err := w.CreateBranch(ctx, "shop", pgbough.CreateRequest{Name: "three"})
			if err == nil {
				w.finish(t, c.Operation)
			}
			return err == nil
		})
		if got := w.get(t, "one").Compute; got != pgbough.ComputeIdle {
			t.Errorf("the one without a session is %s", got)
		}
		if err := other.Ping(ctx); err != nil {
			t.Errorf("the other's session: %v", err)
		}
		_ = other.Close(ctx)
	})
}
