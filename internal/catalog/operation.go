package catalog

import (
	"context"
	"fmt"

	"github.com/pgbough/pgbough"
)

// keptOperations is how many finished operations are remembered.
const keptOperations = 1000

const operationColumns = `id, project_id, branch_id, kind, status, done, step, steps, state, progress, error, created_at, updated_at`

func scanOperation(_ *Tx, scan func(...any) error) (pgbough.Operation, error) {
	var op pgbough.Operation
	var done bool
	err := scan(&op.ID, &op.ProjectID, &op.BranchID, &op.Kind, &op.Status, &done, &op.Step, jsonColumn{&op.Steps}, &op.State,
		jsonColumn{&op.Progress}, &op.Error, timeColumn{&op.CreatedAt}, timeColumn{&op.UpdatedAt})
	return op, err
}

// SaveOperation writes an operation, a new or a known one. With one that is
// done, the oldest of many that are done are forgotten.
func (tx *Tx) SaveOperation(op pgbough.Operation) error {
	steps, err := list(op.Steps)
	if err != nil {
		return fmt.Errorf("write operation %s: %w", op.ID, err)
	}
	progress, err := list(op.Progress)
	if err != nil {
		return fmt.Errorf("write operation %s: %w", op.ID, err)
	}
	_, err = tx.exec(`INSERT INTO operations (`+operationColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET status = excluded.status, done = excluded.done, step = excluded.step, steps = excluded.steps,
			state = excluded.state, progress = excluded.progress, error = excluded.error, updated_at = excluded.updated_at`,
		op.ID, op.ProjectID, op.BranchID, op.Kind, op.Status, op.Status.Done(), op.Step, steps, string(op.State), progress, op.Error,
		nanos(op.CreatedAt), nanos(op.UpdatedAt))
	if err == nil && op.Status.Done() {
		_, err = tx.exec("DELETE FROM operations WHERE done = 1 AND seq <= (SELECT seq FROM operations WHERE done = 1 ORDER BY seq DESC LIMIT 1 OFFSET ?)", keptOperations)
	}
	if err != nil {
		return fmt.Errorf("write operation %s: %w", op.ID, err)
	}
	return nil
}

// SaveOperation is Tx.SaveOperation in a transaction of its own.
func (c *Catalog) SaveOperation(ctx context.Context, op pgbough.Operation) error {
	return c.Tx(ctx, func(tx *Tx) error { return tx.SaveOperation(op) })
}

// SaveSoon is SaveOperation without waiting for the disk: the end of the process
// loses nothing. A power cut may, unless something was written durably since, for
// both are in the same log.
func (c *Catalog) SaveSoon(ctx context.Context, op pgbough.Operation) error {
	return c.write(ctx, c.lazy, func(tx *Tx) error { return tx.SaveOperation(op) })
}

// SaveProgress writes the progress of a known operation that is not done. It
// does not wait for the disk: the end of the process loses nothing, a power cut
// may, and nothing depends on it. The next durable write makes it durable too,
// since both are in the same log.
func (c *Catalog) SaveProgress(ctx context.Context, op pgbough.Operation) error {
	progress, err := list(op.Progress)
	if err == nil {
		err = c.write(ctx, c.lazy, func(tx *Tx) error {
			_, err := tx.exec("UPDATE operations SET progress = ?, updated_at = ? WHERE id = ? AND done = 0", progress, nanos(op.UpdatedAt), op.ID)
			return err
		})
	}
	if err != nil {
		return fmt.Errorf("write the progress of operation %s: %w", op.ID, err)
	}
	return nil
}

// Operation finds an operation by its id.
func (c *Catalog) Operation(ctx context.Context, id string) (pgbough.Operation, error) {
	tx := c.read(ctx)
	op, err := scanOperation(tx, tx.q.QueryRowContext(ctx, "SELECT "+operationColumns+" FROM operations WHERE id = ?", id).Scan)
	if isNoRows(err) {
		return pgbough.Operation{}, pgbough.Errorf(pgbough.ENotFound, "there is no operation %q", id).
			WithHint("see: pgbough ops; of those that are done the last %d are kept", keptOperations)
	}
	if err != nil {
		return pgbough.Operation{}, fmt.Errorf("read operation %s: %w", id, err)
	}
	return op, nil
}

// Unfinished are all operations that are not done, the oldest first.
func (c *Catalog) Unfinished(ctx context.Context) ([]pgbough.Operation, error) {
	return c.read(ctx).Unfinished()
}

// Unfinished are all operations that are not done, the oldest first.
func (tx *Tx) Unfinished() ([]pgbough.Operation, error) {
	list, err := all(tx, scanOperation, "SELECT "+operationColumns+" FROM operations WHERE done = 0 ORDER BY seq")
	if err != nil {
		return nil, fmt.Errorf("read the unfinished operations: %w", err)
	}
	return list, nil
}

// Operations are those of a project, or of all for an empty id, the newest first.
func (c *Catalog) Operations(ctx context.Context, projectID string) ([]pgbough.Operation, error) {
	query := "SELECT " + operationColumns + " FROM operations WHERE project_id = ? ORDER BY seq DESC"
	args := []any{projectID}
	if projectID == "" {
		query, args = "SELECT "+operationColumns+" FROM operations ORDER BY seq DESC", nil
	}
	list, err := all(c.read(ctx), scanOperation, query, args...)
	if err != nil {
		return nil, fmt.Errorf("read the operations: %w", err)
	}
	return list, nil
}
