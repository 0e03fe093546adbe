package operation

import (
	"context"
	"errors"
	"log/slog"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pgbough/pgbough"
)

// Each operation is told of once, when it has ended, however that was.
func TestObserve(t *testing.T) {
	var did journal
	e := New(newMemory(), slog.New(slog.DiscardHandler), nil)
	e.Register(Define("good", did.steps(nil, nil)...),
		Define("bad", did.steps(map[string]doFunc{"b": func(context.Context, *Run[toy]) error { return errors.New("no") }}, nil)...))
	var told journal
	e.Observe(func(op pgbough.Operation) {
		told.add("%s %s", op.Kind, op.Status)
		if op.UpdatedAt.Before(op.CreatedAt) || op.ID == "" {
			t.Errorf("told of %+v", op)
		}
	})
	if err := e.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"good", "bad"} {
		_, _ = e.Wait(t.Context(), start(t, e, kind, Request{}).ID) // the bad one fails
	}
	e.Close()
	got := told.get()
	if len(got) == 2 && got[0] == "bad failed" { // each ends in its own goroutine
		got[0], got[1] = got[1], got[0]
	}
	if diff := cmp.Diff([]string{"good finished", "bad failed"}, got); diff != "" {
		t.Error(diff)
	}
}
