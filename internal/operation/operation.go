// Package operation runs durable, stepwise jobs.
//
// A Kind is a list of Steps over one state. An operation is one run of a Kind:
// its row is in the Store before Start returns, and its state and position are
// saved after each step, so that a new Engine goes on with it where the last one
// ended, however that ended. A step Does its part; an error of it makes the
// Engine Undo that step and those before it, the last one first, until the
// operation has failed without a trace. A step that is Final is the point of no
// return: it and the steps after it are tried again until they succeed.
//
// What steps must keep to:
//   - Do may run again after it was broken off anywhere, or succeeded and the
//     process died before that was saved: after a Lazy step, when the next has ended.
//   - Undo may run again too, and must cope with a Do that did a part, all or
//     nothing of its work.
//   - What Undo needs to know (the id of a volume that Do makes) is in the state
//     before Do makes it: given to Start, put there by an earlier step, or kept
//     by Run.Save.
//   - The context of Do ends when the operation is cancelled or the Engine is
//     closed. A nil error means that all is done, whatever the context says.
//
// An Engine that closes undoes nothing: its operations stay unfinished, and the
// next Engine resumes them.
package operation

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"

	"github.com/pgbough/pgbough"
)

// Step is one part of a Kind whose state is an S.
type Step[S any] struct {
	Name string
	Do   func(context.Context, *Run[S]) error
	Undo func(context.Context, *Run[S]) error // nil: there is nothing to undo
	// Final makes this step the point of no return: once it has begun, the
	// operation can be neither undone nor cancelled, and errors of it and of the
	// steps after it are tried again.
	Final bool
	// Lazy steps are saved with the next one, which is quicker: when the process
	// dies before, both run again. One before a Final step is saved in any case. The
	// last step is saved without waiting for the disk: it may run again after a power cut.
	Lazy bool
}

// Run is one operation as its steps see it.
type Run[S any] struct {
	ID        string
	ProjectID string
	BranchID  string
	// State belongs to the step that runs. It is saved when the step ends (a Lazy
	// one: with the next), also when it fails, and by Save. It is stored as JSON in clear, so it may hold no secret.
	State *S
	Log   *slog.Logger

	job *job
}

// Progress tells people how far the running step is. It may be called often, from
// any goroutine: those who watch see it at once, the Store at most twice a second.
func (r *Run[S]) Progress(p pgbough.Progress) { r.job.progress(p) }

// Note durably keeps with the running step what a person has to do, since the
// step cannot; it does not fail for that.
func (r *Run[S]) Note(ctx context.Context, text string) error {
	return r.job.save(ctx, r.job.engine.store.SaveOperation, func(op *pgbough.Operation) { op.Steps[op.Step].Note = text })
}

// Save makes State durable in the middle of a step.
func (r *Run[S]) Save(ctx context.Context) error {
	raw, err := json.Marshal(r.State)
	if err != nil {
		return fmt.Errorf("save the state of operation %s: %w", r.ID, err)
	}
	return r.job.save(ctx, r.job.engine.store.SaveOperation, func(op *pgbough.Operation) { op.State = raw })
}

// SaveIn makes State durable in the middle of a step together with what write
// writes. It calls now, once State is what it should be, and writes the operation
// that it gets; where it does not call it, nothing is to be saved.
func (r *Run[S]) SaveIn(ctx context.Context, write func(ctx context.Context, now func() (pgbough.Operation, error)) error) error {
	return r.job.saveIn(ctx, write)
}

// Finish ends the operation within a step that has done all that there is to do:
// the steps after it are left out. save makes op durable in the place of
// Store.SaveOperation, together with what must be there exactly when it has ended.
// Whoever waits for it goes on from here, so nothing but the return of the step may
// follow. With an error nothing has changed; there is one if it was cancelled.
func (r *Run[S]) Finish(ctx context.Context, save func(context.Context, pgbough.Operation) error) error {
	return r.job.finish(ctx, save)
}

// Kind is what an Engine knows of one kind of operation.
type Kind struct {
	name   string
	wide   bool
	final  int // index of the first final step, or how many steps there are
	steps  []step
	encode func(state any) ([]byte, error)
	decode func(raw []byte) (any, error)
}

// step is a Step that has forgotten its state's type.
type step struct {
	name     string
	lazy     bool
	do, undo func(context.Context, *job) error
}

// Define makes a Kind. Its name and those of its steps are stored, so they stay
// as they are once released.
func Define[S any](name string, steps ...Step[S]) Kind {
	k := Kind{name: name, final: len(steps)}
	for i, s := range steps {
		if s.Final {
			k.final = min(k.final, i)
		}
		k.steps = append(k.steps, step{
			name: s.Name, lazy: s.Lazy && (i+1 == len(steps) || !steps[i+1].Final), do: forget(s.Do), undo: forget(s.Undo),
		})
	}
	k.encode = func(state any) ([]byte, error) {
		switch state := state.(type) {
		case nil:
			return json.Marshal(new(S))
		case S, *S:
			return json.Marshal(state)
		}
		return nil, fmt.Errorf("the state of %s is a %T, not a %T", name, new(S), state)
	}
	k.decode = func(raw []byte) (any, error) {
		state := new(S)
		return state, json.Unmarshal(raw, state)
	}
	return k
}

func forget[S any](f func(context.Context, *Run[S]) error) func(context.Context, *job) error {
	if f == nil {
		return nil
	}
	return func(ctx context.Context, j *job) error {
		op := j.now()
		return f(ctx, &Run[S]{ID: op.ID, ProjectID: op.ProjectID, BranchID: op.BranchID, State: j.state.(*S), Log: j.log, job: j})
	}
}

// ProjectWide makes operations of the kind exclude, in their project, each other
// and all operations on branches.
func (k Kind) ProjectWide() Kind {
	k.wide = true
	return k
}

// Name is what Start calls the kind.
func (k Kind) Name() string { return k.name }

// Failpoints lists the names of all places where an operation of this kind calls
// the failpoint: those on the way forward in their order, then those of undoing.
func (k Kind) Failpoints() []string {
	var names []string
	for _, s := range k.steps {
		for _, at := range []string{"before", "done", "saved"} {
			names = append(names, k.name+"/"+s.name+"/"+at)
		}
	}
	for i := min(k.final, len(k.steps)) - 1; i >= 0; i-- {
		for _, at := range []string{"before", "done", "saved"} {
			names = append(names, k.name+"/"+k.steps[i].name+"/undo/"+at)
		}
	}
	return names
}

// check tells what is wrong with the definition.
func (k Kind) check() error {
	if k.name == "" || len(k.steps) == 0 {
		return fmt.Errorf("operation kind %q needs a name and steps", k.name)
	}
	seen := map[string]bool{}
	for _, s := range k.steps {
		if s.name == "" || seen[s.name] || s.do == nil {
			return fmt.Errorf("step %q of operation kind %q needs a name of its own and a Do", s.name, k.name)
		}
		seen[s.name] = true
	}
	return nil
}

// runs tells whether the steps of op, as they were stored, are those of the kind.
func (k Kind) runs(op pgbough.Operation) bool {
	if len(op.Steps) != len(k.steps) || op.Step < -1 || op.Step > len(k.steps) {
		return false
	}
	for i, s := range k.steps {
		if op.Steps[i].Name != s.name {
			return false
		}
	}
	return true
}
