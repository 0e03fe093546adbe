package operation

import (
	"context"
	"slices"
	"sync"

	"github.com/pgbough/pgbough"
)

// memory is a Store that counts writes and can fail. What it holds outlives
// Engines, as a catalog does.
type memory struct {
	mu       sync.Mutex
	rows     map[string]pgbough.Operation
	order    []string
	saves    int
	progress int
	soon     int
	fail     error // of saves
	onSave   func(pgbough.Operation)
}

func newMemory() *memory { return &memory{rows: map[string]pgbough.Operation{}} }

func (m *memory) SaveOperation(ctx context.Context, op pgbough.Operation) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return m.fail
	}
	m.saves++
	m.put(op)
	if m.onSave != nil {
		m.onSave(op)
	}
	return ctx.Err()
}

func (m *memory) SaveSoon(_ context.Context, op pgbough.Operation) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.soon++
	m.put(op)
	return nil
}

func (m *memory) SaveProgress(_ context.Context, op pgbough.Operation) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.progress++
	m.put(op)
	return nil
}

func (m *memory) put(op pgbough.Operation) {
	if _, ok := m.rows[op.ID]; !ok {
		m.order = append(m.order, op.ID)
	}
	op.Steps, op.State = slices.Clone(op.Steps), slices.Clone(op.State)
	m.rows[op.ID] = op
}

func (m *memory) Operation(_ context.Context, id string) (pgbough.Operation, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	op, ok := m.rows[id]
	if !ok {
		return op, pgbough.Errorf(pgbough.ENotFound, "no operation %s", id)
	}
	return op, nil
}

func (m *memory) Unfinished(context.Context) ([]pgbough.Operation, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var ops []pgbough.Operation
	for _, id := range m.order {
		if op := m.rows[id]; !op.Status.Done() {
			ops = append(ops, op)
		}
	}
	return ops, nil
}

func (m *memory) setFail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail = err
}

func (m *memory) counts() (saves, progress int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.saves, m.progress
}
