package operation

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/pgbough/pgbough"
)

const (
	firstPause    = 100 * time.Millisecond // before a step is tried again; doubled each time
	longestPause  = 30 * time.Second
	progressPause = 500 * time.Millisecond // between two writes of progress
)

// job runs one operation.
type job struct {
	engine *Engine
	kind   Kind
	log    *slog.Logger
	state  any   // the *S; belongs to the goroutine of run
	stuck  error // why it cannot run; fixed before it is shared
	ended  chan struct{}
	began  time.Time // the step that runs; belongs to the goroutine of run

	ctx    context.Context // of Do
	cancel context.CancelCauseFunc

	saving sync.Mutex // one save at a time; held without mu

	mu       sync.Mutex
	op       pgbough.Operation // what is stored, but with newer Progress; slices are never changed in place
	changed  chan struct{}     // closed and replaced when op changes
	storedAt time.Time
}

func (e *Engine) newJob(k Kind, op pgbough.Operation) *job {
	ctx, cancel := context.WithCancelCause(e.ctx)
	return &job{
		engine: e, kind: k, op: op, ctx: ctx, cancel: cancel,
		log:   e.log.With("operation", op.ID, "kind", op.Kind),
		ended: make(chan struct{}), changed: make(chan struct{}),
	}
}

// now is the operation as it is.
func (j *job) now() pgbough.Operation {
	op, _ := j.look()
	return op
}

// look is the operation as it is, and a channel that closes when it changes.
func (j *job) look() (pgbough.Operation, <-chan struct{}) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.op, j.changed
}

func (j *job) excludes(other *job) bool {
	a, b := j.now(), other.now()
	if a.ProjectID != b.ProjectID {
		return false
	}
	if a.BranchID != "" && a.BranchID == b.BranchID {
		return true
	}
	return j.kind.wide && (other.kind.wide || b.BranchID != "") || other.kind.wide && a.BranchID != ""
}

// run takes the operation to its end, or as far as it gets before the Engine closes.
func (j *job) run() {
	defer close(j.ended)
	defer j.cancel(nil)
	var err error
	if j.state, err = j.kind.decode(j.now().State); err != nil {
		j.log.ErrorContext(j.ctx, "operation cannot run", "err", err) // Start and Resume have tried the same
		return
	}
	if j.now().Status == pgbough.OperationUndoing {
		j.cancel(ErrCancelled)
	}
	failures := 0
	for j.engine.ctx.Err() == nil {
		op := j.now()
		if op.Status.Done() {
			j.engine.leave(j)
			if j.engine.observe != nil {
				j.engine.observe(op)
			}
			j.log.InfoContext(j.ctx, "operation ended", "status", op.Status, "error", op.Error, "duration", time.Since(op.CreatedAt))
			return
		}
		ok := false
		if op.Status == pgbough.OperationUndoing {
			ok = j.back(op)
		} else {
			ok = j.forward(op)
		}
		if ok {
			failures = 0
			continue
		}
		j.pause(failures)
		failures++
	}
}

// pause waits before something is tried again that failed so many times before.
func (j *job) pause(failures int) {
	t := time.NewTimer(min(firstPause<<min(failures, 20), longestPause))
	defer t.Stop()
	select {
	case <-t.C:
	case <-j.engine.ctx.Done():
	case <-j.cancelled():
	}
}

// cancelled ends a pause for an operation that is to be undone; while it is
// undone, pauses last as long as they should.
func (j *job) cancelled() <-chan struct{} {
	if j.now().Status == pgbough.OperationUndoing {
		return nil
	}
	return j.ctx.Done()
}

// forward runs one step. It returns false when the same must be tried again.
func (j *job) forward(op pgbough.Operation) bool {
	i := op.Step
	s := j.kind.steps[i]
	began := time.Now().UTC()
	j.began = began
	err := j.call(s.name+"/before", nil)
	if err == nil {
		err = j.call(s.name+"/done", func() error { return s.do(j.ctx, j) })
	}
	if j.now().Status.Done() {
		return true // by Run.Finish
	}
	if err != nil && j.engine.ctx.Err() != nil {
		j.log.InfoContext(j.ctx, "step left for the next start of the server", "step", s.name, "err", err)
		return false
	}
	if err != nil {
		return j.failed(i, began, err)
	}
	keep := j.persist
	switch {
	case s.lazy && i+1 == len(j.kind.steps):
		keep = j.persistSoon
	case s.lazy:
		keep = j.remember
	}
	if !keep(func(op *pgbough.Operation) {
		record := note(op, i, began, nil)
		record.FinishedAt = op.UpdatedAt
		op.Progress = pgbough.Progress{}
		if op.Status == pgbough.OperationUndoing {
			return // cancelled meanwhile
		}
		if op.Step++; op.Step == len(j.kind.steps) {
			op.Status = pgbough.OperationFinished
		}
	}) {
		return false
	}
	if err := j.call(s.name+"/saved", nil); err != nil && i+1 < len(j.kind.steps) {
		return j.failed(i+1, time.Now().UTC(), err)
	}
	return true
}

// failed keeps that step i failed, and turns round if that is still possible.
func (j *job) failed(i int, began time.Time, err error) bool {
	final := i >= j.kind.final
	j.log.WarnContext(j.ctx, "step failed", "step", j.kind.steps[i].name, "again", final, "err", err)
	saved := j.persist(func(op *pgbough.Operation) {
		note(op, i, began, err)
		if final || op.Status == pgbough.OperationUndoing {
			return
		}
		op.Status, op.Error = pgbough.OperationUndoing, failureText(j.kind.steps[i].name, err)
		op.Progress = pgbough.Progress{Message: "undoing what was done"}
	})
	return saved && !final
}

// back undoes one step. It returns false when the same must be tried again.
func (j *job) back(op pgbough.Operation) bool {
	i := op.Step
	if i >= 0 {
		s := j.kind.steps[i]
		began := time.Now().UTC()
		err := j.call(s.name+"/undo/before", nil)
		if err == nil {
			err = j.call(s.name+"/undo/done", func() error {
				if s.undo == nil {
					return nil
				}
				return s.undo(j.engine.ctx, j)
			})
		}
		if err != nil {
			if j.engine.ctx.Err() == nil {
				j.log.WarnContext(j.engine.ctx, "step cannot be undone yet", "step", s.name, "err", err)
				j.persist(func(op *pgbough.Operation) { note(op, i, began, fmt.Errorf("undoing it failed: %w", err)) })
			}
			return false
		}
	}
	if !j.persist(func(op *pgbough.Operation) {
		op.Step--
		if op.Step >= 0 {
			return
		}
		op.Step, op.Progress = 0, pgbough.Progress{}
		op.Status = pgbough.OperationFailed
		if op.Error == "" {
			op.Status = pgbough.OperationCancelled
		}
	}) {
		return false
	}
	return i < 0 || j.call(j.kind.steps[i].name+"/undo/saved", nil) == nil
}

// note adds one attempt at step i to its record.
func note(op *pgbough.Operation, i int, began time.Time, err error) *pgbough.StepRecord {
	r := &op.Steps[i]
	if r.StartedAt.IsZero() {
		r.StartedAt = began
	}
	r.Attempts++
	r.Duration += op.UpdatedAt.Sub(began)
	r.Error = ""
	if err != nil {
		r.Error = err.Error()
	}
	return r
}

// call runs f, then the failpoint at a place of this kind. A panic of either is
// an error.
func (j *job) call(place string, f func() error) (err error) {
	defer func() {
		switch v := recover().(type) {
		case nil:
		case injectedError:
			err = v
		default:
			err = panicError{v}
			j.log.ErrorContext(j.ctx, "panic in an operation", "place", place, "panic", v, "stack", string(debug.Stack()))
		}
	}()
	if f != nil {
		if err := f(); err != nil {
			return err
		}
	}
	j.engine.failpoint(j.kind.name + "/" + place)
	return nil
}

// persist saves the state and a change of the operation, and tries until that
// succeeds: nothing goes on that is not durable. It returns false when the
// Engine closes before. It is called by the goroutine of run only, while no step runs.
func (j *job) persist(change func(*pgbough.Operation)) bool {
	return j.persistBy(j.engine.store.SaveOperation, change)
}

// persistSoon is persist without waiting for the disk.
func (j *job) persistSoon(change func(*pgbough.Operation)) bool {
	return j.persistBy(j.engine.store.SaveSoon, change)
}

func (j *job) persistBy(write writeFunc, change func(*pgbough.Operation)) bool {
	raw, err := json.Marshal(j.state)
	if err != nil {
		j.log.ErrorContext(j.ctx, "the state of an operation cannot be written; what was stored before stays", "err", err)
	}
	for failures := 0; ; failures++ {
		err := j.save(j.ctx, write, func(op *pgbough.Operation) {
			if raw != nil {
				op.State = raw
			}
			change(op)
		})
		if err == nil {
			return true
		}
		j.log.ErrorContext(j.ctx, "an operation cannot be saved", "err", err)
		if j.engine.ctx.Err() != nil {
			return false
		}
		j.pause(failures)
	}
}

// remember is persist without making it durable: the next persist does.
func (j *job) remember(change func(*pgbough.Operation)) bool {
	raw, err := json.Marshal(j.state)
	if err != nil {
		return j.persist(change)
	}
	j.saving.Lock()
	defer j.saving.Unlock()
	j.show(j.after(func(op *pgbough.Operation) {
		op.State = raw
		change(op)
	}))
	return true
}

// finish is Run.Finish.
func (j *job) finish(ctx context.Context, save func(context.Context, pgbough.Operation) error) error {
	raw, err := json.Marshal(j.state)
	if err != nil {
		return fmt.Errorf("save the state of an operation: %w", err)
	}
	j.saving.Lock()
	defer j.saving.Unlock()
	if j.now().Status != pgbough.OperationRunning {
		return ErrCancelled
	}
	op := j.after(func(op *pgbough.Operation) {
		note(op, op.Step, j.began, nil).FinishedAt = op.UpdatedAt
		op.State, op.Progress = raw, pgbough.Progress{}
		op.Step, op.Status = len(j.kind.steps), pgbough.OperationFinished
	})
	if err := save(context.WithoutCancel(ctx), op); err != nil {
		return err
	}
	j.show(op)
	return nil
}

// save makes a change of the operation durable, then shows it. The end of ctx
// does not break it off, so that its outcome is always known.
func (j *job) save(ctx context.Context, write writeFunc, change func(*pgbough.Operation)) error {
	j.saving.Lock()
	defer j.saving.Unlock()
	return j.saveLocked(ctx, write, change)
}

// writeFunc writes an operation to the Store.
type writeFunc func(context.Context, pgbough.Operation) error

func (j *job) saveLocked(ctx context.Context, write writeFunc, change func(*pgbough.Operation)) error {
	op := j.after(change)
	if err := write(context.WithoutCancel(ctx), op); err != nil {
		return err
	}
	j.show(op)
	return nil
}

// saveIn shows what write makes durable: it calls now for the operation with the
// state as it is then, unless there is nothing to save.
func (j *job) saveIn(ctx context.Context, write func(ctx context.Context, now func() (pgbough.Operation, error)) error) error {
	j.saving.Lock()
	defer j.saving.Unlock()
	var op *pgbough.Operation
	err := write(context.WithoutCancel(ctx), func() (pgbough.Operation, error) {
		raw, err := json.Marshal(j.state)
		now := j.after(func(op *pgbough.Operation) { op.State = raw })
		op = &now
		return now, err
	})
	if err == nil && op != nil {
		j.show(*op)
	}
	return err
}

// after is the operation as a change leaves it.
func (j *job) after(change func(*pgbough.Operation)) pgbough.Operation {
	op := j.now()
	op.Steps = slices.Clone(op.Steps)
	op.UpdatedAt = time.Now().UTC()
	change(&op)
	return op
}

func (j *job) show(op pgbough.Operation) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.op = op
	j.storedAt = time.Now()
	close(j.changed)
	j.changed = make(chan struct{})
}

// progress shows p, and stores it unless something was stored just before: the
// end of the step stores the rest.
func (j *job) progress(p pgbough.Progress) {
	j.mu.Lock()
	j.op.Progress = p
	close(j.changed)
	j.changed = make(chan struct{})
	due := time.Since(j.storedAt) >= progressPause
	j.mu.Unlock()
	if !due || !j.saving.TryLock() {
		return
	}
	defer j.saving.Unlock()
	op := j.now()
	op.UpdatedAt = time.Now().UTC()
	if err := j.engine.store.SaveProgress(context.WithoutCancel(j.ctx), op); err != nil {
		j.log.WarnContext(j.ctx, "progress cannot be saved", "err", err)
	}
	j.mu.Lock()
	j.storedAt = time.Now()
	j.mu.Unlock()
}

// stop has the operation undone.
func (j *job) stop(ctx context.Context) error {
	if j.stuck != nil {
		return j.stuck
	}
	j.saving.Lock()
	defer j.saving.Unlock()
	op := j.now()
	if op.Status == pgbough.OperationUndoing {
		return nil
	}
	if op.Status.Done() || op.Step >= j.kind.final {
		return refuseCancel(op)
	}
	err := j.saveLocked(ctx, j.engine.store.SaveOperation, func(op *pgbough.Operation) {
		op.Status = pgbough.OperationUndoing
		op.Progress = pgbough.Progress{Message: "undoing what was done"}
	})
	if err == nil {
		j.cancel(ErrCancelled)
	}
	return err
}
