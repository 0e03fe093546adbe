package operation

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/pgbough/pgbough"
)

func TestLocks(t *testing.T) {
	release := make(chan struct{})
	wait := Step[toy]{Name: "wait", Do: func(ctx context.Context, _ *Run[toy]) error {
		select {
		case <-release:
		case <-ctx.Done():
		}
		return ctx.Err()
	}}
	kinds := []Kind{Define("branchy", wait), Define("free", wait), Define("wide", wait).ProjectWide()}
	type try struct {
		kind, project, branch string
	}
	for _, c := range []struct {
		first, second try
		locked        bool
	}{
		{try{"branchy", "p", "b"}, try{"branchy", "p", "b"}, true},
		{try{"branchy", "p", "b"}, try{"free", "p", "b"}, true},
		{try{"branchy", "p", "b"}, try{"branchy", "p", "c"}, false},
		{try{"branchy", "p", "b"}, try{"free", "p", ""}, false},
		{try{"branchy", "p", "b"}, try{"wide", "p", ""}, true},
		{try{"branchy", "q", "b"}, try{"wide", "p", ""}, false},
		{try{"wide", "p", ""}, try{"branchy", "p", "b"}, true},
		{try{"wide", "p", ""}, try{"wide", "p", ""}, true},
		{try{"wide", "p", ""}, try{"wide", "q", ""}, false},
		{try{"wide", "p", ""}, try{"free", "p", ""}, false},
		{try{"free", "p", ""}, try{"wide", "p", ""}, false},
		{try{"free", "p", ""}, try{"free", "p", ""}, false},
	} {
		store := newMemory()
		e := open(t, store, nil, kinds...)
		first := start(t, e, c.first.kind, Request{ProjectID: c.first.project, BranchID: c.first.branch})
		e.Close() // locks are held over a restart
		e = open(t, store, nil, kinds...)
		_, err := e.Start(t.Context(), c.second.kind, Request{ProjectID: c.second.project, BranchID: c.second.branch})
		if locked := pgbough.ErrorCode(err) == pgbough.ELocked; locked != c.locked || !locked && err != nil || locked && !strings.Contains(err.Error(), first.ID) {
			t.Errorf("%v after %v: %v", c.second, c.first, err)
		}
		e.Close()
	}
	close(release)
}

// TestLockIsFreeWhenDone holds the goroutine of an operation at its very end: who
// has waited for it may start the next at once.
func TestLockIsFreeWhenDone(t *testing.T) {
	var did journal
	hold := make(chan struct{})
	e := open(t, newMemory(), func(name string) {
		if name == "toy/c/saved" {
			<-hold
		}
	}, Define("toy", did.steps(nil, nil)...).ProjectWide())
	defer close(hold)
	for range 2 {
		if _, err := e.Wait(t.Context(), start(t, e, "toy", Request{ProjectID: "p", BranchID: "b"}).ID); err != nil {
			t.Fatal(err)
		}
	}
}

func TestResumeOfWhatIsUnknown(t *testing.T) {
	store := newMemory()
	for i, op := range []pgbough.Operation{
		{ID: "1", Kind: "gone", BranchID: "b", Status: pgbough.OperationRunning},
		{ID: "2", Kind: "toy", Status: pgbough.OperationRunning, State: []byte("{}"), Steps: []pgbough.StepRecord{{Name: "other"}}},
		{ID: "3", Kind: "toy", Status: pgbough.OperationRunning, State: []byte("{"), Steps: []pgbough.StepRecord{{Name: "a"}}},
		{ID: "4", Kind: "toy", Status: pgbough.OperationRunning, State: []byte("{}"), Steps: []pgbough.StepRecord{{Name: "a"}}},
	} {
		if err := store.SaveOperation(t.Context(), op); err != nil {
			t.Fatal(i, err)
		}
	}
	e := New(store, slog.New(slog.DiscardHandler), nil)
	defer e.Close()
	e.Register(Define("toy", Step[toy]{Name: "a", Do: func(context.Context, *Run[toy]) error { return nil }}))
	err := e.Resume(t.Context())
	for _, id := range []string{"(1)", "(2)", "(3)"} {
		if err == nil || !strings.Contains(err.Error(), id) {
			t.Errorf("%s is not in %v", id, err)
		}
	}
	if _, err := e.Wait(t.Context(), "4"); err != nil {
		t.Error(err)
	}
	if _, err := e.Wait(t.Context(), "1"); pgbough.ErrorCode(err) != pgbough.EInternal {
		t.Errorf("Wait for one that is stuck: %v", err)
	}
	if _, err := e.Start(t.Context(), "toy", Request{BranchID: "b"}); pgbough.ErrorCode(err) != pgbough.ELocked {
		t.Errorf("the branch of one that is stuck: %v", err)
	}
	if left, _ := store.Unfinished(t.Context()); len(left) != 3 {
		t.Errorf("%d unfinished, want 3", len(left))
	}
}

func TestStartSavesTogether(t *testing.T) {
	var did journal
	store := newMemory()
	e := open(t, store, nil, Define("toy", did.steps(nil, nil)...))
	no := errors.New("no")
	_, err := e.Start(t.Context(), "toy", Request{BranchID: "b", Save: func(context.Context, pgbough.Operation) error { return no }})
	if saves, _ := store.counts(); !errors.Is(err, no) || saves != 0 {
		t.Errorf("%v, %d saves", err, saves)
	}
	op, err := e.Start(t.Context(), "toy", Request{BranchID: "b", Save: func(ctx context.Context, op pgbough.Operation) error {
		return store.SaveOperation(ctx, op)
	}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Wait(t.Context(), op.ID); err != nil {
		t.Error(err)
	}
}

func TestStartRefusesAWrongState(t *testing.T) {
	var did journal
	e := open(t, newMemory(), nil, Define("toy", did.steps(nil, nil)...))
	if _, err := e.Start(t.Context(), "toy", Request{State: "text"}); err == nil {
		t.Error("a state of another type: no error")
	}
	if _, err := e.Start(t.Context(), "none", Request{}); err == nil {
		t.Error("an unknown kind: no error")
	}
	if _, err := e.Wait(t.Context(), start(t, e, "toy", Request{State: &toy{N: 1}}).ID); err != nil {
		t.Error(err)
	}
}
