package operation

import (
	"context"
	"iter"

	"github.com/pgbough/pgbough"
)

// Get is the operation as it is now, with its newest progress.
func (e *Engine) Get(ctx context.Context, id string) (pgbough.Operation, error) {
	if j, ok := e.job(id); ok {
		return j.now(), nil
	}
	return e.store.Operation(ctx, id)
}

// Wait returns the operation when it is done. The error is then its Failure.
// When ctx ends before, or the Engine closes, it returns the operation as it is
// with the cause of ctx, or with ErrClosing.
func (e *Engine) Wait(ctx context.Context, id string) (pgbough.Operation, error) {
	var last pgbough.Operation
	for op, err := range e.Watch(ctx, id) {
		if err != nil {
			return last, err
		}
		last = op
	}
	return last, Failure(last)
}

// Watch yields the operation as it is, then again whenever it has changed, until
// it is done. Who is slow misses what lies between, never the end. An error is
// the last that it yields, as for Wait.
func (e *Engine) Watch(ctx context.Context, id string) iter.Seq2[pgbough.Operation, error] {
	return func(yield func(pgbough.Operation, error) bool) {
		j, ok := e.job(id)
		if !ok {
			yield(e.store.Operation(ctx, id))
			return
		}
		for {
			op, changed := j.look()
			if !yield(op, nil) || op.Status.Done() {
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				yield(op, context.Cause(ctx))
				return
			case <-j.ended:
				if op = j.now(); op.Status.Done() {
					yield(op, nil)
					return
				}
				err := ErrClosing
				if j.stuck != nil {
					err = j.stuck
				}
				yield(op, err)
				return
			}
		}
	}
}
