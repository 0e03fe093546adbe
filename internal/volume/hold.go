package volume

import (
	"context"
	"sync"

	"golang.org/x/sync/semaphore"
)

// readers is how many may share a hold: practically everybody.
const readers = 1 << 20

// holds keep calls on the same volume apart: those that change it one by one,
// those that read it (clones of it) together.
type holds struct {
	mu sync.Mutex
	of map[string]*hold // guarded by mu
}

type hold struct {
	semaphore *semaphore.Weighted
	users     int // that have it or wait for it, guarded by holds.mu
}

// exclusive waits until nobody else holds id. The caller calls release.
func (h *holds) exclusive(ctx context.Context, id string) (release func(), err error) {
	return h.acquire(ctx, id, readers)
}

// shared waits until nobody holds id exclusively. The caller calls release.
func (h *holds) shared(ctx context.Context, id string) (release func(), err error) {
	return h.acquire(ctx, id, 1)
}

func (h *holds) acquire(ctx context.Context, id string, weight int64) (func(), error) {
	h.mu.Lock()
	one := h.of[id]
	if one == nil {
		one = &hold{semaphore: semaphore.NewWeighted(readers)}
		h.of[id] = one
	}
	one.users++
	h.mu.Unlock()

	if err := one.semaphore.Acquire(ctx, weight); err != nil {
		h.leave(id, one)
		return nil, err
	}
	return func() {
		one.semaphore.Release(weight)
		h.leave(id, one)
	}, nil
}

func (h *holds) leave(id string, one *hold) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if one.users--; one.users == 0 {
		delete(h.of, id)
	}
}
