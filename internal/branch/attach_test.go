package branch

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/pgtest"
)

// An attach that somebody broke off waiting for is found by the same request, and
// leaves nothing of production's own configuration behind.
func TestAttachAgain(t *testing.T) {
	r := newRig(t)
	p := production(t, pgtest.Options{})
	p.Exec(t, "postgres", "ALTER SYSTEM SET primary_conninfo = 'password=sekret'")
	req := pgbough.AttachRequest{Name: "shop", SourceRequest: sourceOf(p)}
	project, op, err := r.Attach(t.Context(), req)
	must(t, err)
	again, same, err := r.Attach(t.Context(), req)
	if err != nil || again.ID != project.ID || same.ID != op.ID {
		t.Errorf("the same again: project %s, operation %s, %v", again.ID, same.ID, err)
	}
	other := req
	other.ConnString += " application_name=other"
	if _, _, err := r.Attach(t.Context(), other); pgbough.ErrorCode(err) != pgbough.EConflict {
		t.Errorf("another production under the same name: %v", err)
	}
	_, err = r.WaitOperation(t.Context(), op.ID)
	must(t, err)
	if _, _, err := r.Attach(t.Context(), req); pgbough.ErrorCode(err) != pgbough.EConflict {
		t.Errorf("a project that is there: %v", err)
	}
	if out, err := exec.Command("grep", "-rl", "password=sekret", r.dir+"/pool").Output(); len(out) > 0 {
		t.Errorf("production's password is in %s (%v)", out, err)
	}
}

// An attach that is undone is no active project any more from its first moment:
// a server that is started in the middle of it keeps no spares for it.
func TestUndoneAttachIsNotActive(t *testing.T) {
	r := newRig(t)
	p := r.project()
	must(t, r.stopProject(t.Context(), &attachRun{ProjectID: p.ID, State: &attachState{BranchID: p.RootBranchID}}))
	p, err := r.catalog.Project(t.Context(), p.ID)
	if err != nil || p.State != pgbough.ProjectDeleting {
		t.Errorf("the project is %s (%v)", p.State, err)
	}
	must(t, r.catalog.DeleteProject(t.Context(), p.ID))
	if err := r.tend(p.ID); err != nil {
		t.Errorf("a keeper of a project that is gone: %v", err)
	}
}

// A follower whose replay has paused at a setting that production raised is
// restarted when production can tell the setting, and not again and again before.
func TestRaisedSettingWithoutProduction(t *testing.T) {
	r := newRig(t)
	p := production(t, pgtest.Options{Conf: map[string]string{"max_connections": "30"}})
	project := r.attach(p)
	f, err := r.followerOf(project.ID)
	must(t, err)
	must(t, f.Source().SetConnString("host=127.0.0.1 port=1 user=nobody"))
	postmaster := r.postmaster(project)
	p.Configure(t, map[string]string{"max_connections": "300"})
	p.Restart(t)
	eventually(t, time.Minute, "the follower tells that it has paused", func() bool {
		st := f.Status()
		return st.State == pgbough.FollowerDisconnected && strings.Contains(st.Reason, "raised a setting")
	})
	looks := 0
	last := f.Status()
	eventually(t, time.Minute, "the follower looks several times", func() bool {
		p.Exec(t, "postgres", "INSERT INTO t VALUES (1)") // what it receives, and does not replay
		if st := f.Status(); st != last {
			looks, last = looks+1, st
		}
		return looks > 2
	})
	if now := r.postmaster(project); now != postmaster {
		t.Errorf("its Postgres was restarted: postmaster %d, was %d", now, postmaster)
	}
	must(t, f.Source().SetConnString(sourceOf(p).ConnString))
	eventually(t, time.Minute, "the follower streams again", func() bool { return f.Status().State == pgbough.FollowerStreaming })
	if now := r.postmaster(project); now == postmaster {
		t.Error("its Postgres was not restarted")
	}
}

// A slot that production cannot be asked to drop is told with the operation, so
// that whoever deletes the project sees what is left to do.
func TestSlotThatStays(t *testing.T) {
	r := newRig(t)
	p := production(t, pgtest.Options{})
	project := r.attach(p)
	p.Stop(t)
	_, op, err := r.DeleteProject(t.Context(), "shop")
	must(t, err)
	op, err = r.WaitOperation(t.Context(), op.ID)
	must(t, err)
	want := "SELECT pg_drop_replication_slot('" + project.Source.Slot + "');"
	if !slices.ContainsFunc(op.Steps, func(s pgbough.StepRecord) bool { return strings.Contains(s.Note, want) }) {
		t.Errorf("the operation does not tell %s: %+v", want, op.Steps)
	}
	p.Run(t)
	p.Exec(t, "postgres", want) // it is the statement that helps
}

// source set holds production to the rules of attach, and a refused one changes nothing.
func TestSourceSetKeepsTheRules(t *testing.T) {
	r := newRig(t)
	p := production(t, pgtest.Options{})
	project := r.attach(p)
	other := sourceOf(p)
	other.ConnString += " connect_timeout=7"
	for setting, value := range map[string]string{"max_slot_wal_keep_size": "-1", "synchronous_standby_names": "pgbough"} {
		p.Exec(t, "postgres", "ALTER SYSTEM SET "+setting+" = '"+value+"'")
		p.Exec(t, "postgres", "SELECT pg_reload_conf()")
		eventually(t, time.Minute, "production has the setting", func() bool { return p.Value(t, "postgres", "SELECT current_setting('"+setting+"')") == value })
		if _, _, err := r.SetSource(t.Context(), "shop", other); pgbough.ErrorCode(err) != pgbough.EConflict || !strings.Contains(err.Error(), setting) {
			t.Errorf("%s = %s: %v", setting, value, err)
		}
		p.Exec(t, "postgres", "ALTER SYSTEM RESET "+setting)
		p.Exec(t, "postgres", "SELECT pg_reload_conf()")
		eventually(t, time.Minute, "production has its setting back", func() bool { return p.Value(t, "postgres", "SELECT current_setting('"+setting+"')") != value })
	}
	if now, err := r.catalog.Project(t.Context(), "shop"); err != nil || now.Source.ConnString != project.Source.ConnString {
		t.Errorf("a refused source is kept: %v", err)
	}
	_, _, err := r.SetSource(t.Context(), "shop", other)
	must(t, err)
	if now, err := r.catalog.Project(t.Context(), "shop"); err != nil || now.Source.ConnString != other.ConnString {
		t.Errorf("the new source is not kept: %v", err)
	}
}
