package catalog

import (
	"context"
	"fmt"

	"github.com/pgbough/pgbough"
)

const spareColumns = `volume_id, project_id, state, redo, created_at, ready_at`

func scanSpare(_ *Tx, scan func(...any) error) (pgbough.Spare, error) {
	var s pgbough.Spare
	err := scan(&s.VolumeID, &s.ProjectID, &s.State, unsigned[pgbough.LSN]{&s.Redo}, timeColumn{&s.CreatedAt}, timeColumn{&s.ReadyAt})
	return s, err
}

// PutSpare adds a spare or replaces what is stored of it. A spare that is put in
// another state than taken is nobody's.
func (tx *Tx) PutSpare(s pgbough.Spare) error {
	_, err := tx.exec(`INSERT INTO spares (`+spareColumns+`, taken_by) VALUES (?, ?, ?, ?, ?, ?, '')
		ON CONFLICT (volume_id) DO UPDATE SET project_id = excluded.project_id, state = excluded.state, redo = excluded.redo,
			created_at = excluded.created_at, ready_at = excluded.ready_at,
			taken_by = CASE excluded.state WHEN 'taken' THEN taken_by ELSE '' END`,
		s.VolumeID, s.ProjectID, s.State, int64(s.Redo), nanos(s.CreatedAt), nanos(s.ReadyAt))
	if isForeignKey(err) {
		return noProject(s.ProjectID)
	}
	if err != nil {
		return fmt.Errorf("write spare %s: %w", s.VolumeID, err)
	}
	return nil
}

// Spares are all spares of a project, the oldest first.
func (tx *Tx) Spares(projectID string) ([]pgbough.Spare, error) {
	list, err := all(tx, scanSpare, "SELECT "+spareColumns+" FROM spares WHERE project_id = ? ORDER BY created_at, volume_id", projectID)
	if err != nil {
		return nil, fmt.Errorf("read the spares: %w", err)
	}
	return list, nil
}

// TakeSpare gives a ready spare of a project to by, an operation's id: the one
// whose replay began last, which owns the least. Asked again, it gives the same
// by the spare that it has. It returns false if none is ready.
func (tx *Tx) TakeSpare(projectID, by string) (pgbough.Spare, bool, error) {
	return tx.take(by, `SELECT volume_id FROM spares WHERE project_id = ?2
		AND (state = 'ready' OR state = 'taken' AND taken_by = ?1) ORDER BY state = 'taken' DESC, redo DESC, created_at LIMIT 1`, projectID)
}

// TakeSpareVolume gives the spare on one volume to by, if it is ready or by has
// it already; else it returns false.
func (tx *Tx) TakeSpareVolume(volumeID, by string) (bool, error) {
	_, ok, err := tx.take(by, `SELECT volume_id FROM spares WHERE volume_id = ?2 AND (state = 'ready' OR state = 'taken' AND taken_by = ?1)`, volumeID)
	return ok, err
}

// TakenSpare is the spare that by has taken, or false.
func (tx *Tx) TakenSpare(by string) (pgbough.Spare, bool, error) {
	s, err := scanSpare(tx, tx.q.QueryRowContext(tx.ctx, "SELECT "+spareColumns+" FROM spares WHERE state = 'taken' AND taken_by = ?", by).Scan)
	if isNoRows(err) {
		return pgbough.Spare{}, false, nil
	}
	if err != nil {
		return pgbough.Spare{}, false, fmt.Errorf("find the spare that %s has taken: %w", by, err)
	}
	return s, true, nil
}

// take gives the spare that which selects (?1 is by, ?2 is arg).
func (tx *Tx) take(by, which, arg string) (pgbough.Spare, bool, error) {
	if by == "" {
		return pgbough.Spare{}, false, pgbough.Errorf(pgbough.EInternal, "a spare cannot be taken by nobody")
	}
	row := tx.q.QueryRowContext(tx.ctx, "UPDATE spares SET state = 'taken', taken_by = ?1 WHERE volume_id = ("+which+") RETURNING "+spareColumns, by, arg)
	s, err := scanSpare(tx, row.Scan)
	if isNoRows(err) {
		return pgbough.Spare{}, false, nil
	}
	if err != nil {
		return pgbough.Spare{}, false, fmt.Errorf("take a spare: %w", err)
	}
	return s, true, nil
}

// GiveSpare gives a spare that from has taken to another operation. Giving it
// again does nothing; a spare that neither has is an EInternal.
func (tx *Tx) GiveSpare(volumeID, from, to string) error {
	return tx.change("spare "+volumeID, pgbough.Errorf(pgbough.EInternal, "the spare %s is not %s's to give away", volumeID, from),
		"UPDATE spares SET taken_by = ?1 WHERE volume_id = ?2 AND state = 'taken' AND taken_by IN (?1, ?3)", to, volumeID, from)
}

// DeleteSpare forgets a spare. It does nothing if there is no such spare.
func (tx *Tx) DeleteSpare(volumeID string) error {
	if _, err := tx.exec("DELETE FROM spares WHERE volume_id = ?", volumeID); err != nil {
		return fmt.Errorf("delete spare %s: %w", volumeID, err)
	}
	return nil
}

// PutSpare is Tx.PutSpare in a transaction of its own.
func (c *Catalog) PutSpare(ctx context.Context, s pgbough.Spare) error {
	return c.Tx(ctx, func(tx *Tx) error { return tx.PutSpare(s) })
}

// Spares are all spares of a project, the oldest first.
func (c *Catalog) Spares(ctx context.Context, projectID string) ([]pgbough.Spare, error) {
	return c.read(ctx).Spares(projectID)
}

// TakeSpare is Tx.TakeSpare in a transaction of its own.
func (c *Catalog) TakeSpare(ctx context.Context, projectID, by string) (s pgbough.Spare, ok bool, err error) {
	err = c.Tx(ctx, func(tx *Tx) error { s, ok, err = tx.TakeSpare(projectID, by); return err })
	return s, ok && err == nil, err
}

// TakenSpare is the spare that by has taken, or false.
func (c *Catalog) TakenSpare(ctx context.Context, by string) (pgbough.Spare, bool, error) {
	return c.read(ctx).TakenSpare(by)
}

// TakeSpareVolume is Tx.TakeSpareVolume in a transaction of its own.
func (c *Catalog) TakeSpareVolume(ctx context.Context, volumeID, by string) (ok bool, err error) {
	err = c.Tx(ctx, func(tx *Tx) error { ok, err = tx.TakeSpareVolume(volumeID, by); return err })
	return ok && err == nil, err
}

// DeleteSpare is Tx.DeleteSpare in a transaction of its own.
func (c *Catalog) DeleteSpare(ctx context.Context, volumeID string) error {
	return c.Tx(ctx, func(tx *Tx) error { return tx.DeleteSpare(volumeID) })
}
