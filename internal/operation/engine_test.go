package operation

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pgbough/pgbough"
)

// toy is the state of the kinds in these tests.
type toy struct {
	N     int    `json:"n"`
	Trace string `json:"trace,omitempty"`
}

// journal is what steps did, in order.
type journal struct {
	mu    sync.Mutex
	lines []string
}

func (j *journal) add(format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, fmt.Sprintf(format, args...))
}

func (j *journal) get() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.lines)
}

type doFunc = func(context.Context, *Run[toy]) error

// steps makes steps a, b, c that write to the journal; do and undo replace or
// extend what they do.
func (j *journal) steps(do, undo map[string]doFunc) []Step[toy] {
	var steps []Step[toy]
	for _, name := range []string{"a", "b", "c"} {
		wrap := func(verb string, f doFunc) doFunc {
			return func(ctx context.Context, r *Run[toy]) error {
				j.add("%s %s", verb, name)
				r.State.N++
				if f != nil {
					return f(ctx, r)
				}
				return nil
			}
		}
		steps = append(steps, Step[toy]{Name: name, Do: wrap("do", do[name]), Undo: wrap("undo", undo[name])})
	}
	return steps
}

func open(t *testing.T, store Store, failpoint func(string), kinds ...Kind) *Engine {
	t.Helper()
	e := New(store, slog.New(slog.DiscardHandler), failpoint)
	e.Register(kinds...)
	if err := e.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	return e
}

func start(t *testing.T, e *Engine, kind string, req Request) pgbough.Operation {
	t.Helper()
	op, err := e.Start(t.Context(), kind, req)
	if err != nil {
		t.Fatal(err)
	}
	return op
}

func TestRunsToTheEnd(t *testing.T) {
	var did journal
	store := newMemory()
	durable := func(_ context.Context, r *Run[toy]) error {
		op, err := store.Operation(t.Context(), r.ID)
		if err != nil || op.Step != 0 {
			t.Errorf("when the first step runs the store has step %d, %v", op.Step, err)
		}
		return nil
	}
	var seen []string
	e := open(t, store, func(name string) { seen = append(seen, name) },
		Define("toy", did.steps(map[string]doFunc{"a": durable}, nil)...))
	ctx, cancel := context.WithCancel(t.Context())
	store.onSave = func(pgbough.Operation) { cancel() } // must not end it, not even while it is made durable
	op, err := e.Start(ctx, "toy", Request{ProjectID: "p", BranchID: "b", State: toy{N: 10}})
	if err != nil {
		t.Fatal(err)
	}
	if op.Status != pgbough.OperationRunning || len(op.Steps) != 3 {
		t.Errorf("started: %+v", op)
	}
	got, err := e.Wait(t.Context(), op.ID)
	if err != nil {
		t.Fatal(err)
	}
	if got.Status != pgbough.OperationFinished || string(got.State) != `{"n":13}` || got.Step != 3 {
		t.Errorf("finished: %+v", got)
	}
	if op.Steps[0].Attempts != 0 {
		t.Error("what Start returned has changed")
	}
	for _, s := range got.Steps {
		if s.Attempts != 1 || s.FinishedAt.IsZero() || s.StartedAt.IsZero() || s.Error != "" {
			t.Errorf("record %+v", s)
		}
	}
	stored, _ := store.Operation(t.Context(), op.ID)
	if diff := cmp.Diff(got, stored); diff != "" {
		t.Errorf("shown and stored differ:\n%s", diff)
	}
	if diff := cmp.Diff([]string{"do a", "do b", "do c"}, did.get()); diff != "" {
		t.Error(diff)
	}
	e.Close() // the last failpoint comes after the end is seen
	if diff := cmp.Diff(e.kinds["toy"].Failpoints()[:9], seen); diff != "" {
		t.Errorf("failpoints:\n%s", diff)
	}
}

func TestFailureIsUndone(t *testing.T) {
	var did journal
	refuse := pgbough.Errorf(pgbough.ENoSpace, "the pool is full\nreally").WithHint("pgbough pool resize")
	refuse.Err = errors.New("a private cause")
	fails := map[string]doFunc{"b": func(_ context.Context, r *Run[toy]) error {
		r.State.Trace = "half done"
		return fmt.Errorf("clone: %w", refuse)
	}}
	undo := map[string]doFunc{"b": func(_ context.Context, r *Run[toy]) error {
		if r.State.Trace != "half done" {
			t.Errorf("undo does not see what the failed step kept: %+v", r.State)
		}
		return nil
	}}
	var seen []string
	store := newMemory()
	e := open(t, store, func(name string) { seen = append(seen, name) }, Define("toy", did.steps(fails, undo)...))
	op, err := e.Wait(t.Context(), start(t, e, "toy", Request{}).ID)
	var got *pgbough.Error
	if !errors.As(err, &got) {
		t.Fatalf("got %v, want an Error", err)
	}
	if want := (&pgbough.Error{Code: refuse.Code, Message: refuse.Message, Hint: refuse.Hint}); *got != *want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if op.Status != pgbough.OperationFailed || strings.Contains(op.Error, "private") {
		t.Errorf("%+v", op)
	}
	if diff := cmp.Diff([]string{"do a", "do b", "undo b", "undo a"}, did.get()); diff != "" {
		t.Error(diff)
	}
	want := strings.Fields("toy/a/before toy/a/done toy/a/saved toy/b/before " +
		"toy/b/undo/before toy/b/undo/done toy/b/undo/saved toy/a/undo/before toy/a/undo/done toy/a/undo/saved")
	e.Close()
	if diff := cmp.Diff(want, seen); diff != "" {
		t.Errorf("failpoints:\n%s", diff)
	}
	// A later engine tells the same, from the store.
	later := open(t, store, nil)
	if _, err := later.Wait(t.Context(), op.ID); pgbough.ErrorCode(err) != pgbough.ENoSpace {
		t.Errorf("from the store: %v", err)
	}
}

func TestFailureTexts(t *testing.T) {
	for _, c := range []struct {
		err  error
		want pgbough.Error
	}{
		{errors.New("a: b"), pgbough.Error{Code: pgbough.EInternal, Message: "step s: a: b"}},
		{pgbough.Errorf(pgbough.EConflict, "x: y"), pgbough.Error{Code: pgbough.EConflict, Message: "x: y"}},
	} {
		var got *pgbough.Error
		op := pgbough.Operation{Status: pgbough.OperationFailed, Error: failureText("s", c.err)}
		if !errors.As(Failure(op), &got) || *got != c.want {
			t.Errorf("%v: got %+v, want %+v", c.err, got, c.want)
		}
	}
	if got := Failure(pgbough.Operation{Status: pgbough.OperationFailed, Error: "older text: x"}); pgbough.ErrorCode(got) != pgbough.EInternal || got.Error() != "older text: x" {
		t.Errorf("a text of another form: %v", got)
	}
}

func TestPanicIsAFailure(t *testing.T) {
	var did journal
	e := open(t, newMemory(), nil, Define("toy", did.steps(map[string]doFunc{"a": func(context.Context, *Run[toy]) error { panic("boom") }}, nil)...))
	_, err := e.Wait(t.Context(), start(t, e, "toy", Request{}).ID)
	if pgbough.ErrorCode(err) != pgbough.EInternal || !strings.Contains(err.Error(), "boom") {
		t.Errorf("got %v", err)
	}
	if diff := cmp.Diff([]string{"do a", "undo a"}, did.get()); diff != "" {
		t.Error(diff)
	}
}

func TestUndoIsTriedUntilItSucceeds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var did journal
		store := newMemory()
		tries := 0
		kind := Define("toy", did.steps(
			map[string]doFunc{"b": func(context.Context, *Run[toy]) error { return pgbough.Errorf(pgbough.EConflict, "no") }},
			map[string]doFunc{"a": func(context.Context, *Run[toy]) error {
				if tries++; tries <= 4 {
					return errors.New("busy")
				}
				return nil
			}})...)
		first := open(t, store, nil, kind)
		began := time.Now()
		id := start(t, first, "toy", Request{}).ID
		time.Sleep(250 * time.Millisecond) // tries at 0 and 100 ms; the next is due at 300 ms
		synctest.Wait()
		op, _ := store.Operation(t.Context(), id)
		if op.Status != pgbough.OperationUndoing || tries != 2 || !strings.Contains(op.Steps[0].Error, "busy") || op.Step != 0 {
			t.Errorf("after 250 ms: %d tries, %+v", tries, op)
		}
		first.Close() // a shutdown in the middle
		second := open(t, store, nil, kind)
		_, err := second.Wait(t.Context(), id)
		if pgbough.ErrorCode(err) != pgbough.EConflict {
			t.Errorf("got %v, want the error of the step", err)
		}
		if tries != 5 || time.Since(began) != 550*time.Millisecond {
			t.Errorf("%d tries in %v", tries, time.Since(began))
		}
	})
}

func TestFinalIsTriedForward(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var did journal
		store := newMemory()
		tries := map[string]int{}
		flaky := func(name string) doFunc {
			return func(context.Context, *Run[toy]) error {
				if tries[name]++; tries[name] < 3 {
					return errors.New("not yet")
				}
				return nil
			}
		}
		steps := did.steps(map[string]doFunc{"b": flaky("b"), "c": flaky("c")}, nil)
		steps[1].Final = true
		e := open(t, store, nil, Define("toy", steps...))
		id := start(t, e, "toy", Request{}).ID
		synctest.Wait()
		if err := e.Cancel(t.Context(), id); pgbough.ErrorCode(err) != pgbough.EConflict {
			t.Errorf("cancel after the point of no return: got %v", err)
		}
		op, _ := store.Operation(t.Context(), id)
		if op.Status != pgbough.OperationRunning || op.Step != 1 || op.Steps[1].Error != "not yet" {
			t.Errorf("between two tries: %+v", op)
		}
		op, err := e.Wait(t.Context(), id)
		if err != nil || op.Steps[1].Attempts != 3 || op.Steps[2].Attempts != 3 || op.Steps[1].Error != "" {
			t.Errorf("%v, %+v", err, op)
		}
		if got := strings.Join(did.get(), ","); strings.Contains(got, "undo") {
			t.Error(got)
		}
		if places := e.kinds["toy"].Failpoints(); len(places) != 12 || strings.Contains(strings.Join(places, ","), "b/undo") {
			t.Errorf("failpoints %v", places)
		}
	})
}

func TestCloseLeavesAndResumeGoesOn(t *testing.T) {
	var did journal
	store := newMemory()
	entered := make(chan struct{}, 1)
	closing := true
	block := map[string]doFunc{"b": func(ctx context.Context, r *Run[toy]) error {
		if !closing {
			return nil
		}
		r.State.Trace = "kept"
		if err := r.Save(ctx); err != nil {
			return err
		}
		entered <- struct{}{}
		<-ctx.Done()
		if cause := context.Cause(ctx); !errors.Is(cause, ErrClosing) {
			t.Errorf("cause %v", cause)
		}
		return ctx.Err()
	}}
	kind := Define("toy", did.steps(block, nil)...)
	first := open(t, store, nil, kind)
	id := start(t, first, "toy", Request{ProjectID: "p", BranchID: "b"}).ID
	<-entered
	waited := make(chan error)
	go func() {
		_, err := first.Wait(context.Background(), id)
		waited <- err
	}()
	first.Close()
	if err := <-waited; !errors.Is(err, ErrClosing) {
		t.Errorf("Wait over a Close: %v", err)
	}
	if _, err := first.Start(t.Context(), "toy", Request{}); !errors.Is(err, ErrClosing) {
		t.Errorf("Start after Close: %v", err)
	}
	op, _ := store.Operation(t.Context(), id)
	if op.Status != pgbough.OperationRunning || op.Step != 1 || string(op.State) != `{"n":2,"trace":"kept"}` {
		t.Errorf("left behind: %+v %s", op, op.State)
	}
	closing = false
	second := New(store, slog.New(slog.DiscardHandler), nil)
	second.Register(kind)
	defer second.Close()
	if _, err := second.Start(t.Context(), "toy", Request{}); err == nil {
		t.Error("Start before Resume: no error")
	}
	if err := second.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	if op, err := second.Wait(t.Context(), id); err != nil || op.Status != pgbough.OperationFinished {
		t.Errorf("%v, %+v", err, op)
	}
	if diff := cmp.Diff([]string{"do a", "do b", "do b", "do c"}, did.get()); diff != "" {
		t.Error(diff)
	}
}

// The end of a lazy step costs no write; a process that dies after it runs it again.
func TestLazyIsSavedWithTheNext(t *testing.T) {
	var did journal
	store := newMemory()
	fail := make(chan error, 1)
	define := func() Kind {
		steps := did.steps(map[string]doFunc{"c": func(context.Context, *Run[toy]) error { return <-fail }}, nil)
		steps[1].Lazy = true
		return Define("toy", steps...)
	}
	e := open(t, store, nil, define())
	op := start(t, e, "toy", Request{})
	for shown, err := range e.Watch(t.Context(), op.ID) {
		if err != nil {
			t.Fatal(err)
		}
		if shown.Step == 2 {
			break
		}
	}
	stored, err := store.Operation(t.Context(), op.ID)
	if err != nil || stored.Step != 1 || string(stored.State) != `{"n":1}` || store.saves != 2 {
		t.Errorf("after the lazy step the store has %d writes, step %d, state %s, %v", store.saves, stored.Step, stored.State, err)
	}
	// As after a kill: another engine goes on from what is stored.
	died := newMemory()
	died.put(stored)
	fail <- nil
	if _, err := e.Wait(t.Context(), op.ID); err != nil {
		t.Fatal(err)
	}
	fail <- errors.New("no")
	later := open(t, died, nil, define())
	if _, err := later.Wait(t.Context(), op.ID); err == nil {
		t.Error("the last step failed, the operation not")
	}
	want := []string{"do a", "do b", "do c", "do b", "do c", "undo c", "undo b", "undo a"}
	if diff := cmp.Diff(want, did.get()); diff != "" {
		t.Error(diff)
	}
}

func TestCancel(t *testing.T) {
	var did journal
	store := newMemory()
	entered := make(chan struct{}, 1)
	for _, result := range []error{nil, errors.New("broken off")} {
		did.lines = nil
		kind := Define("toy", did.steps(map[string]doFunc{"b": func(ctx context.Context, _ *Run[toy]) error {
			entered <- struct{}{}
			<-ctx.Done()
			if !errors.Is(context.Cause(ctx), ErrCancelled) {
				t.Errorf("cause %v", context.Cause(ctx))
			}
			return result
		}}, map[string]doFunc{"a": func(ctx context.Context, _ *Run[toy]) error { return ctx.Err() }})...)
		e := open(t, store, nil, kind)
		id := start(t, e, "toy", Request{}).ID
		<-entered
		if err := errors.Join(e.Cancel(t.Context(), id), e.Cancel(t.Context(), id)); err != nil {
			t.Fatal(err)
		}
		op, err := e.Wait(t.Context(), id)
		if op.Status != pgbough.OperationCancelled || pgbough.ErrorCode(err) != pgbough.EConflict {
			t.Errorf("%v, %+v", err, op)
		}
		if diff := cmp.Diff([]string{"do a", "do b", "undo b", "undo a"}, did.get()); diff != "" {
			t.Error(diff)
		}
		if err := e.Cancel(t.Context(), id); err != nil {
			t.Errorf("again at the end: %v", err)
		}
	}
	if err := open(t, store, nil).Cancel(t.Context(), "none"); pgbough.ErrorCode(err) != pgbough.ENotFound {
		t.Errorf("an unknown operation: %v", err)
	}
}

func TestStoreThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var did journal
		store := newMemory()
		full := errors.New("disk full")
		e := open(t, store, nil, Define("toy", did.steps(map[string]doFunc{"a": func(context.Context, *Run[toy]) error {
			if len(did.get()) == 1 {
				store.setFail(full)
			}
			return nil
		}}, nil)...))
		id := start(t, e, "toy", Request{ProjectID: "p", BranchID: "b"}).ID
		time.Sleep(10 * time.Second)
		if diff := cmp.Diff([]string{"do a"}, did.get()); diff != "" {
			t.Errorf("went on although nothing is durable:\n%s", diff)
		}
		if _, err := e.Start(t.Context(), "toy", Request{ProjectID: "p", BranchID: "c"}); !errors.Is(err, full) {
			t.Errorf("Start: %v", err)
		}
		store.setFail(nil)
		if _, err := e.Wait(t.Context(), id); err != nil {
			t.Error(err)
		}
		// The lock of the Start that failed is free again.
		if _, err := e.Wait(t.Context(), start(t, e, "toy", Request{ProjectID: "p", BranchID: "c"}).ID); err != nil {
			t.Error(err)
		}
	})
}

func TestProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemory()
		e := open(t, store, nil, Define("toy", Step[toy]{Name: "a", Do: func(_ context.Context, r *Run[toy]) error {
			for i := range int64(1000) {
				r.Progress(pgbough.Progress{Done: i + 1, Total: 1000, Unit: "bytes"})
				time.Sleep(10 * time.Millisecond)
			}
			return nil
		}}))
		id := start(t, e, "toy", Request{}).ID
		seen := 0
		var last pgbough.Operation
		for op, err := range e.Watch(t.Context(), id) {
			if err != nil {
				t.Fatal(err)
			}
			seen++
			if op.Progress.Done == 500 {
				if stored, _ := store.Operation(t.Context(), id); stored.Progress.Done < 440 {
					t.Errorf("half way the store has %d", stored.Progress.Done)
				}
			}
			last = op
		}
		saves, progress := store.counts()
		if seen < 900 || progress < 15 || progress > 21 || saves != 2 || last.Status != pgbough.OperationFinished || last.Progress != (pgbough.Progress{}) {
			t.Errorf("seen %d, stored %d times, %d saves, last %+v", seen, progress, saves, last)
		}
	})
}

func TestFailpoints(t *testing.T) {
	for _, bad := range []string{"a", "a=", "a=kil", "a=error:0", "a=error:x", "a=sleep", "a=sleep:1"} {
		if _, err := Failpoints(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
	if f, err := Failpoints(" ; "); f != nil || err != nil {
		t.Errorf("nothing: %v", err)
	}
	// Each place alone fails once; whatever happens, the operation ends, and what it leaves is all or nothing.
	for _, place := range Define("toy", new(journal).steps(nil, nil)...).Failpoints() {
		t.Run(strings.ReplaceAll(place, "/", "."), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				text := place + "=error:1; toy/none=sleep:1ms"
				undoing := strings.Contains(place, "undo")
				if undoing {
					text += ";toy/c/before=error"
				}
				failpoint, err := Failpoints(text)
				if err != nil {
					t.Fatal(err)
				}
				have := map[string]bool{}
				var steps []Step[toy]
				for _, name := range []string{"a", "b", "c"} {
					steps = append(steps, Step[toy]{
						Name: name,
						Do:   func(context.Context, *Run[toy]) error { have[name] = true; return nil },
						Undo: func(context.Context, *Run[toy]) error { delete(have, name); return nil },
					})
				}
				e := open(t, newMemory(), failpoint, Define("toy", steps...))
				op, err := e.Wait(t.Context(), start(t, e, "toy", Request{}).ID)
				if finishes := place == "toy/c/saved"; (err == nil) != finishes || err != nil && (len(have) != 0 || op.Status != pgbough.OperationFailed) || err == nil && len(have) != 3 {
					t.Errorf("%v, left %v, %+v", err, have, op)
				}
				if err != nil && !strings.Contains(err.Error(), "failpoint toy/") {
					t.Errorf("got %v", err)
				}
			})
		})
	}
}

// A step's state can be saved with what somebody else writes, or not at all; the end
// of a last step that is lazy is written without waiting.
func TestSaveInAndSoon(t *testing.T) {
	var did journal
	store := newMemory()
	none := func(context.Context, func() (pgbough.Operation, error)) error { return nil }
	steps := did.steps(map[string]doFunc{"b": func(ctx context.Context, r *Run[toy]) error {
		if err := r.SaveIn(ctx, none); err != nil {
			return err
		}
		return r.SaveIn(ctx, func(ctx context.Context, now func() (pgbough.Operation, error)) error {
			r.State.Trace = "with it"
			op, err := now()
			if err != nil {
				return err
			}
			return store.SaveOperation(ctx, op)
		})
	}}, nil)
	steps[1].Lazy, steps[2].Lazy = true, true
	e := open(t, store, nil, Define("toy", steps...))
	var traces []string
	store.onSave = func(op pgbough.Operation) {
		traces = append(traces, fmt.Sprint(op.Step, strings.Contains(string(op.State), "with it")))
	}
	op, err := e.Wait(t.Context(), start(t, e, "toy", Request{}).ID)
	if err != nil || op.Status != pgbough.OperationFinished {
		t.Fatalf("%+v, %v", op, err)
	}
	e.Close()
	if diff := cmp.Diff([]string{"0 false", "1 false", "1 true"}, traces); diff != "" {
		t.Errorf("durable writes:\n%s", diff)
	}
	if stored, err := store.Operation(t.Context(), op.ID); err != nil || stored.Status != pgbough.OperationFinished || store.soon != 1 {
		t.Errorf("%d writes that do not wait, and the store has %+v, %v", store.soon, stored, err)
	}
}

// A step may finish the operation: what follows is left out, no failure afterwards
// turns it round, and what is saved with the end is there exactly when the end is.
func TestFinishWithinAStep(t *testing.T) {
	broken := errors.New("the disk is full")
	for name, c := range map[string]struct {
		save      error
		cancelled bool
		failpoint string
		status    pgbough.OperationStatus
		did       []string
	}{
		"at once":              {status: pgbough.OperationFinished, did: []string{"do a", "do b"}},
		"and fails after it":   {failpoint: "toy/b/done=error", status: pgbough.OperationFinished, did: []string{"do a", "do b"}},
		"and cannot be saved":  {save: broken, status: pgbough.OperationFailed, did: []string{"do a", "do b", "undo b", "undo a"}},
		"when it is cancelled": {cancelled: true, status: pgbough.OperationCancelled, did: []string{"do a", "do b", "undo b", "undo a"}},
	} {
		t.Run(name, func(t *testing.T) {
			var did journal
			store := newMemory()
			var e *Engine
			finish := func(ctx context.Context, r *Run[toy]) error {
				if c.cancelled {
					if err := e.Cancel(t.Context(), r.ID); err != nil {
						t.Error(err)
					}
				}
				r.State.Trace = "finished"
				return r.Finish(ctx, func(ctx context.Context, op pgbough.Operation) error {
					if c.save != nil {
						return c.save
					}
					return store.SaveOperation(ctx, op)
				})
			}
			failpoint, err := Failpoints(c.failpoint)
			if err != nil {
				t.Fatal(err)
			}
			e = open(t, store, failpoint, Define("toy", did.steps(map[string]doFunc{"b": finish}, nil)...))
			op := start(t, e, "toy", Request{ProjectID: "p", BranchID: "b"})
			got, _ := e.Wait(t.Context(), op.ID)
			if got.Status != c.status {
				t.Errorf("it is %s (%s), want %s", got.Status, got.Error, c.status)
			}
			e.Close()
			if diff := cmp.Diff(c.did, did.get()); diff != "" {
				t.Errorf("what was done (-want +got):\n%s", diff)
			}
			kept, err := store.Operation(t.Context(), op.ID)
			if err != nil || kept.Status != c.status {
				t.Errorf("the store has it as %s (%v)", kept.Status, err)
			}
			if c.status == pgbough.OperationFinished && (!strings.Contains(string(kept.State), "finished") || kept.Steps[1].FinishedAt.IsZero() || kept.Steps[1].Attempts != 1) {
				t.Errorf("the store has %s and %+v", kept.State, kept.Steps)
			}
		})
	}
}
