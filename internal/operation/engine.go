package operation

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/pgbough/pgbough"
)

// Store keeps operations. Only one Engine uses it at a time.
type Store interface {
	// SaveOperation writes op, a new or a known one. It is durable on return.
	SaveOperation(ctx context.Context, op pgbough.Operation) error
	// SaveSoon is SaveOperation of a known one that does not wait for the disk: it
	// survives the end of the process, and a power cut once something else was saved.
	SaveSoon(ctx context.Context, op pgbough.Operation) error
	// SaveProgress writes op, a known one. It survives the end of the process,
	// but a power cut may lose it.
	SaveProgress(ctx context.Context, op pgbough.Operation) error
	// Operation returns an error with the code ENotFound if there is none.
	Operation(ctx context.Context, id string) (pgbough.Operation, error)
	// Unfinished returns all operations that are not Done, the oldest first.
	Unfinished(ctx context.Context) ([]pgbough.Operation, error)
}

// Request says what an operation is about. Without a BranchID, and if its kind
// is not ProjectWide, it excludes no other.
type Request struct {
	ProjectID string
	BranchID  string
	State     any // what the kind's steps begin with, an S or *S; nil is the zero S
	// Save, if given, makes op durable in the place of Store.SaveOperation,
	// together with what else must be there exactly when the operation is: the row
	// of the branch that it makes.
	Save func(ctx context.Context, op pgbough.Operation) error
}

// Engine runs operations, each in a goroutine of its own.
type Engine struct {
	store     Store
	log       *slog.Logger
	failpoint func(name string)
	observe   func(pgbough.Operation) // nil, or fixed before Resume
	kinds     map[string]Kind         // fixed before Resume

	ctx   context.Context // ends with ErrClosing
	close context.CancelCauseFunc
	wg    sync.WaitGroup

	mu      sync.Mutex
	resumed bool
	jobs    map[string]*job // all that are unfinished, by id
}

// New makes an Engine without kinds. The failpoint is called with the name of
// each place where a crash would be interesting, in the goroutine of the
// operation; it may panic with an error to fail the step. It may be nil.
func New(store Store, log *slog.Logger, failpoint func(name string)) *Engine {
	ctx, cancel := context.WithCancelCause(context.Background())
	if failpoint == nil {
		failpoint = func(string) {}
	}
	return &Engine{
		store: store, log: log, failpoint: failpoint, kinds: map[string]Kind{},
		ctx: ctx, close: cancel, jobs: map[string]*job{},
	}
}

// Register makes kinds known, all before Resume. It panics on a kind without a
// name or steps and on names that are there twice: a mistake in the program.
func (e *Engine) Register(kinds ...Kind) {
	for _, k := range kinds {
		if err := k.check(); err != nil {
			panic(err)
		}
		if _, ok := e.kinds[k.name]; ok {
			panic(fmt.Errorf("operation kind %q is registered twice", k.name))
		}
		e.kinds[k.name] = k
	}
}

// Observe has f told of each operation that has ended, in the operation's own
// goroutine. It is called before Resume; f may be nil.
func (e *Engine) Observe(f func(pgbough.Operation)) { e.observe = f }

// Resume goes on with every operation that an earlier Engine left unfinished. It
// is called once, before the first Start. An operation whose kind or steps this
// program does not know stays as it is, keeps its locks, and is in the error,
// which is then an ErrStuck; all others go on nevertheless.
func (e *Engine) Resume(ctx context.Context) error {
	ops, err := e.store.Unfinished(ctx)
	if err != nil {
		return fmt.Errorf("read the unfinished operations: %w", err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ctx.Err() != nil {
		return ErrClosing
	}
	var stuck []error
	for _, op := range ops {
		k, ok := e.kinds[op.Kind]
		if !ok || !k.runs(op) {
			err = pgbough.Errorf(pgbough.EInternal, "operation %s (%s) cannot go on: this version of pgbough has no such operation", op.Kind, op.ID).
				WithHint("start the version that began it and let it finish")
		} else if _, err = k.decode(op.State); err != nil {
			err = fmt.Errorf("operation %s (%s) cannot go on: read its state: %w", op.Kind, op.ID, err)
		}
		j := e.newJob(k, op)
		e.jobs[op.ID] = j
		if err != nil {
			j.stuck = err
			stuck = append(stuck, err)
			close(j.ended)
			continue
		}
		e.log.InfoContext(ctx, "operation resumed", "operation", op.ID, "kind", op.Kind, "project", op.ProjectID, "branch", op.BranchID, "status", op.Status, "step", op.Step)
		e.wg.Go(j.run)
	}
	e.resumed = true
	if len(stuck) > 0 {
		return fmt.Errorf("%w: %w", ErrStuck, errors.Join(stuck...))
	}
	return nil
}

// Start begins an operation and returns when it is durable. It runs on its own:
// the end of ctx does not end it. The error has the code ELocked while another
// unfinished operation excludes it.
func (e *Engine) Start(ctx context.Context, kind string, req Request) (pgbough.Operation, error) {
	k, ok := e.kinds[kind]
	if !ok {
		return pgbough.Operation{}, pgbough.Errorf(pgbough.EInternal, "there is no operation %q", kind)
	}
	state, err := k.encode(req.State)
	if err != nil {
		return pgbough.Operation{}, fmt.Errorf("start %s: %w", kind, err)
	}
	now := time.Now().UTC()
	op := pgbough.Operation{
		ID: pgbough.NewOperationID(), ProjectID: req.ProjectID, BranchID: req.BranchID, Kind: kind,
		Status: pgbough.OperationRunning, State: state, CreatedAt: now, UpdatedAt: now,
	}
	for _, s := range k.steps {
		op.Steps = append(op.Steps, pgbough.StepRecord{Name: s.name})
	}
	j := e.newJob(k, op)
	if err := e.admit(j); err != nil {
		return pgbough.Operation{}, err
	}
	save := req.Save
	if save == nil {
		save = e.store.SaveOperation
	}
	// Once begun the write must not be broken off: its outcome would be unknown.
	if err := save(context.WithoutCancel(ctx), op); err != nil {
		e.leave(j)
		e.wg.Done()
		return pgbough.Operation{}, fmt.Errorf("start %s: %w", kind, err)
	}
	e.log.InfoContext(ctx, "operation started", "operation", op.ID, "kind", kind, "project", op.ProjectID, "branch", op.BranchID)
	go func() {
		defer e.wg.Done()
		j.run()
	}()
	return op, nil
}

// admit takes the locks of j and counts its goroutine.
func (e *Engine) admit(j *job) error {
	op := j.now()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ctx.Err() != nil {
		return ErrClosing
	}
	if !e.resumed {
		return pgbough.Errorf(pgbough.EInternal, "operations cannot start before those of the last run are resumed")
	}
	for _, other := range e.jobs {
		if held := other.now(); !held.Status.Done() && j.excludes(other) {
			what := "branch " + held.BranchID
			if held.BranchID == "" {
				what = "project " + held.ProjectID
			}
			return pgbough.Errorf(pgbough.ELocked, "%s is busy: operation %s (%s) is not finished", what, held.Kind, held.ID).
				WithHint("pgbough ops %s shows how far it is; try again when it is finished", held.ID)
		}
	}
	e.jobs[op.ID] = j
	e.wg.Add(1)
	return nil
}

// leave gives up the locks of j.
func (e *Engine) leave(j *job) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.jobs, j.now().ID)
}

// job is the unfinished operation id, if it is one.
func (e *Engine) job(id string) (*job, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	j, ok := e.jobs[id]
	return j, ok
}

// Cancel has an operation undone that has not reached its point of no return. It
// returns when that is durable; Wait tells when it is done. Cancelling again
// does nothing.
func (e *Engine) Cancel(ctx context.Context, id string) error {
	j, ok := e.job(id)
	if !ok {
		op, err := e.store.Operation(ctx, id)
		if err != nil {
			return err
		}
		return refuseCancel(op)
	}
	return j.stop(ctx)
}

func refuseCancel(op pgbough.Operation) error {
	if op.Status == pgbough.OperationCancelled {
		return nil
	}
	return pgbough.Errorf(pgbough.EConflict, "operation %s (%s) is %s and cannot be cancelled any more", op.Kind, op.ID, op.Status)
}

// Close ends all steps that run, with the cause ErrClosing, and waits for them.
// Their operations stay unfinished.
func (e *Engine) Close() {
	e.mu.Lock()
	e.close(ErrClosing)
	e.mu.Unlock()
	e.wg.Wait()
}
