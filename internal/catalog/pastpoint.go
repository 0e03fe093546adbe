package catalog

import (
	"context"
	"fmt"

	"github.com/pgbough/pgbough"
)

const pastPointColumns = `volume_id, project_id, lineage, redo, lsn, timeline, time, settings, created_at`

func scanPastPoint(_ *Tx, scan func(...any) error) (pgbough.PastPoint, error) {
	var p pgbough.PastPoint
	err := scan(&p.VolumeID, &p.ProjectID, &p.Lineage, unsigned[pgbough.LSN]{&p.Redo}, unsigned[pgbough.LSN]{&p.LSN}, &p.Timeline,
		timeColumn{&p.Time}, jsonColumn{&p.Settings}, timeColumn{&p.CreatedAt})
	return p, err
}

// PutPastPoint adds a point of the past; one that is there already stays as it is.
func (tx *Tx) PutPastPoint(p pgbough.PastPoint) error {
	settings, err := list(p.Settings)
	if err != nil {
		return fmt.Errorf("write point %s: %w", p.VolumeID, err)
	}
	_, err = tx.exec("INSERT INTO past_points ("+pastPointColumns+") VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (volume_id) DO NOTHING",
		p.VolumeID, p.ProjectID, p.Lineage, int64(p.Redo), int64(p.LSN), p.Timeline, nanos(p.Time), settings, nanos(p.CreatedAt))
	if isForeignKey(err) {
		return noProject(p.ProjectID)
	}
	if err != nil {
		return fmt.Errorf("write point %s: %w", p.VolumeID, err)
	}
	return nil
}

// PastPoints are the points of the past of a project, the oldest first.
func (tx *Tx) PastPoints(projectID string) ([]pgbough.PastPoint, error) {
	list, err := all(tx, scanPastPoint, "SELECT "+pastPointColumns+" FROM past_points WHERE project_id = ? ORDER BY lsn, volume_id", projectID)
	if err != nil {
		return nil, fmt.Errorf("read the points of the past: %w", err)
	}
	return list, nil
}

// DeletePastPoint forgets a point of the past. It does nothing if there is no such one.
func (tx *Tx) DeletePastPoint(volumeID string) error {
	if _, err := tx.exec("DELETE FROM past_points WHERE volume_id = ?", volumeID); err != nil {
		return fmt.Errorf("delete point %s: %w", volumeID, err)
	}
	return nil
}

// PutPastPoint is Tx.PutPastPoint in a transaction of its own.
func (c *Catalog) PutPastPoint(ctx context.Context, p pgbough.PastPoint) error {
	return c.Tx(ctx, func(tx *Tx) error { return tx.PutPastPoint(p) })
}

// PastPoints are the points of the past of a project, the oldest first.
func (c *Catalog) PastPoints(ctx context.Context, projectID string) ([]pgbough.PastPoint, error) {
	return c.read(ctx).PastPoints(projectID)
}

// DeletePastPoint is Tx.DeletePastPoint in a transaction of its own.
func (c *Catalog) DeletePastPoint(ctx context.Context, volumeID string) error {
	return c.Tx(ctx, func(tx *Tx) error { return tx.DeletePastPoint(volumeID) })
}
