package branch_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pgbough/pgbough"
)

// commits writes rows to production, each in a transaction of its own, and
// returns the stamp of each and a position right after it.
func (w *world) commits(t *testing.T, n int) (stamps []time.Time, after []pgbough.LSN) {
	t.Helper()
	conn := w.source.Conn(t, "postgres")
	for i := range n {
		var position string
		_, err := conn.Exec(t.Context(), "INSERT INTO moments VALUES ($1)", i)
		check(t, err)
		check(t, conn.QueryRow(t.Context(), "SELECT pg_current_wal_insert_lsn()::text").Scan(&position))
		lsn, err := pgbough.ParseLSN(position)
		check(t, err)
		var at time.Time
		check(t, conn.QueryRow(t.Context(), "SELECT pg_xact_commit_timestamp(xmin) FROM moments WHERE n = $1", i).Scan(&at))
		stamps, after = append(stamps, at), append(after, lsn)
		if i%9 == 4 { // segments that are finished, and aborts
			_, err := conn.Exec(t.Context(), "SELECT pg_switch_wal()")
			check(t, err)
			_, err = conn.Exec(t.Context(), "BEGIN; INSERT INTO moments VALUES (-1); ROLLBACK")
			check(t, err)
		}
	}
	return stamps, after
}

func newPast(t *testing.T) *world {
	t.Helper()
	w := newWorld(t, nil)
	w.source.Configure(t, map[string]string{"track_commit_timestamp": "on"})
	w.source.Restart(t)
	w.source.Exec(t, "postgres", "CREATE TABLE moments (n int)")
	eventually(t, "there is a moment of the past", func() bool { return !w.history(t).FromTime.IsZero() })
	return w
}

func (w *world) history(t *testing.T) pgbough.History {
	t.Helper()
	h, err := w.History(t.Context(), "shop")
	check(t, err)
	return h
}

func (w *world) createAt(t *testing.T, name string, at pgbough.Past) pgbough.BranchView {
	t.Helper()
	c, err := w.CreateBranch(t.Context(), "shop", pgbough.CreateRequest{Name: name, At: at})
	check(t, err)
	w.finish(t, c.Operation)
	return w.get(t, name)
}

// TestExactlyThen makes branches of random moments, by time and by position:
// each has the commits up to then, and none after.
func TestExactlyThen(t *testing.T) {
	w := newPast(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	stamps, after := w.commits(t, 60)
	for i := range 10 {
		n := random.IntN(len(stamps))
		at := pgbough.Past{LSN: after[n]}
		if i%2 == 0 {
			at = pgbough.Past{Time: stamps[n]}
		}
		name := fmt.Sprintf("then%d", i)
		b := w.createAt(t, name, at)
		if got, want := w.value(t, b.ID, "SELECT count(*) || ' up to ' || max(n) FROM moments"), fmt.Sprintf("%d up to %d", n+1, n); got != want {
			t.Errorf("at %v: %s rows, want %s", at, got, want)
		}
		if got := w.value(t, b.ID, "SELECT timeline_id FROM pg_control_checkpoint()"); got != "2" && got != "1" {
			t.Errorf("it is on timeline %s", got)
		}
		if !b.ParentTime.Equal(stamps[n].UTC()) || at.LSN != 0 && b.ParentLSN > at.LSN {
			t.Errorf("at %v: it says that it is of %s, %s", at, b.ParentLSN, b.ParentTime)
		}
		_, op, err := w.DeleteBranch(t.Context(), "shop", name, false)
		check(t, err)
		w.finish(t, op)
	}
	for what, at := range map[string]pgbough.Past{
		"is too long ago": {LSN: 0x1000000}, "begins at": {Time: time.Now().Add(-time.Hour)},
		"is in the future: production is at": {LSN: after[len(after)-1] + 1<<30}, "production's clock says": {Time: time.Now().Add(time.Hour)},
	} {
		_, err := w.CreateBranch(t.Context(), "shop", pgbough.CreateRequest{Name: "never", At: at})
		if pgbough.ErrorCode(err) != pgbough.EInvalid || !strings.Contains(err.Error(), what) {
			t.Errorf("at %v: %v", at, err)
		}
	}
}

// TestKilledInThePast kills the server with a real SIGKILL at every boundary of
// making a branch of the past: the next server finishes it, or none is left.
func TestKilledInThePast(t *testing.T) {
	w := newPast(t)
	_, after := w.commits(t, 20)
	want := after[11]
	for i, step := range []string{"take", "catch_up", "promote", "quarantine"} {
		for _, at := range []string{"before", "done", "saved"} {
			place := "create_branch/" + step + "/" + at
			t.Run(place, func(t *testing.T) {
				name := fmt.Sprintf("k%d%s", i, at)
				w.close(t, false)
				cmd := exec.Command(os.Args[0], "-test.run=^TestKilledServer$", "-test.v")
				cmd.Env = append(os.Environ(), killedDir+"="+w.dir, killedAt+"="+place, killedVerb+"=past "+want.String(), killedName+"="+name)
				out, err := cmd.CombinedOutput()
				w.open(t)
				if err == nil || cmd.ProcessState.Exited() {
					t.Fatalf("the server was not killed at %s: %v\n%s", place, err, out)
				}
				w.settle(t)
				b := w.get(t, name)
				if got := w.value(t, b.ID, "SELECT count(*) FROM moments"); got != "12" || b.ParentLSN > want {
					t.Errorf("it has %s rows, and is of %s", got, b.ParentLSN)
				}
				_, op, err := w.DeleteBranch(t.Context(), "shop", name, false)
				check(t, err)
				w.finish(t, op)
			})
		}
	}
	pool, err := w.Pool(t.Context())
	check(t, err)
	for _, v := range pool.Volumes {
		if !v.Known || v.Role == "branch" {
			t.Errorf("volume %s (%s) is left over", v.ID, v.Role)
		}
	}
}

// TestDamagedPast: a changed byte in an archived segment is found before a
// branch is made of it, and what does not need it is still served.
func TestDamagedPast(t *testing.T) {
	w := newPast(t)
	_, after := w.commits(t, 60)
	files := func() []string {
		list, err := filepath.Glob(filepath.Join(w.dir, "archive", "*", "00000001*.zst"))
		check(t, err)
		return list
	}
	eventually(t, "segments are archived", func() bool { return len(files()) >= 5 })
	list := files()
	bad := list[len(list)-1]
	b, err := os.ReadFile(bad)
	check(t, err)
	b[len(b)-1] ^= 1
	check(t, os.WriteFile(bad, b, 0o600))
	c, err := w.CreateBranch(t.Context(), "shop", pgbough.CreateRequest{Name: "bad", At: pgbough.Past{LSN: after[59]}})
	if err == nil {
		_, err = w.WaitOperation(t.Context(), c.Operation.ID)
	}
	if err == nil || !strings.Contains(err.Error(), filepath.Base(bad)) {
		t.Errorf("made of the damaged segment %s: %v", bad, err)
	}
	if got := w.value(t, w.createAt(t, "good", pgbough.Past{LSN: after[3]}).ID, "SELECT count(*) FROM moments"); got != "4" {
		t.Errorf("%s rows", got)
	}
}

// TestFullDisk: when history may take nothing more of its disk, following and
// branches of now go on, it is told, and nothing is lost once there is room.
func TestFullDisk(t *testing.T) {
	w := newPast(t)
	_, before := w.commits(t, 3)
	w.options.Reserve = 1 << 60
	w.again(t, false)
	w.source.Exec(t, "postgres", "SELECT pg_switch_wal()")
	eventually(t, "it is told that history is not kept", func() bool { return strings.Contains(fmt.Sprint(w.history(t).Notes), "full") })
	if got := w.value(t, w.create(t, "now").ID, "SELECT count(*) FROM moments"); got != "3" {
		t.Errorf("a branch of now has %s rows", got)
	}
	w.options.Reserve = 0
	w.again(t, false)
	eventually(t, "history is kept again", func() bool { h := w.history(t); return len(h.Notes) == 0 && h.To > before[2] })
	if h := w.history(t); len(h.Gaps) != 0 {
		t.Errorf("gaps: %v", h.Gaps)
	}
	if got := w.value(t, w.createAt(t, "then", pgbough.Past{LSN: before[1]}).ID, "SELECT count(*) FROM moments"); got != "2" {
		t.Errorf("a branch of then has %s rows", got)
	}
}

// TestKilledKeepingHistory kills the server with a real SIGKILL at every boundary
// of making and of removing a point of the past: the next server has all of it or
// nothing.
func TestKilledKeepingHistory(t *testing.T) {
	w := newPast(t)
	set := func(d time.Duration) {
		_, err := w.ChangeProject(t.Context(), "shop", pgbough.ProjectChange{History: &d})
		check(t, err)
	}
	var places []string
	for _, at := range []string{"before", "done", "saved"} {
		places = append(places, "keep_point/clone/"+at, "drop_point/destroy/"+at)
	}
	places = append(places, "keep_point/publish/before", "keep_point/publish/done")
	const undone = "keep_point/publish/before=error;keep_point/clone/undo/"
	places = append(places, undone+"before", undone+"done")
	for _, place := range places {
		t.Run(place, func(t *testing.T) {
			want, verb := 1, "history 24h"
			if strings.HasPrefix(place, "drop_point") {
				want, verb = 0, "history 0"
			}
			set(time.Duration(1-want) * 24 * time.Hour)
			eventually(t, "the history is as it has to be before", func() bool { return len(w.history(t).Points) == 1-want })
			w.settle(t)
			w.close(t, false)
			cmd := exec.Command(os.Args[0], "-test.run=^TestKilledServer$", "-test.v")
			cmd.Env = append(os.Environ(), killedDir+"="+w.dir, killedAt+"="+place, killedVerb+"="+verb)
			out, err := cmd.CombinedOutput()
			w.open(t)
			if err == nil || cmd.ProcessState.Exited() {
				t.Fatalf("the server was not killed at %s: %v\n%s", place, err, out)
			}
			eventually(t, "the history is as it was wanted", func() bool { return len(w.history(t).Points) == want })
			w.settle(t)
			pool, err := w.Pool(t.Context())
			check(t, err)
			past := 0
			for _, v := range pool.Volumes {
				if v.Role == "past" {
					past++
				}
				if !v.Known {
					t.Errorf("volume %s (%s) is nobody's", v.ID, v.Role)
				}
			}
			if past != want {
				t.Errorf("%d volumes of the past, want %d", past, want)
			}
		})
	}
}
