package catalog

import (
	"context"
	"fmt"

	"github.com/pgbough/pgbough"
)

const pointColumns = `volume_id, project_id, lsn, time, timeline, asked_at, settings, differences, created_at`

func scanPoint(_ *Tx, scan func(...any) error) (pgbough.Point, error) {
	var p pgbough.Point
	err := scan(&p.VolumeID, &p.ProjectID, unsigned[pgbough.LSN]{&p.LSN}, timeColumn{&p.Time}, &p.Timeline, timeColumn{&p.AskedAt},
		jsonColumn{&p.Settings}, jsonColumn{&p.Differences}, timeColumn{&p.CreatedAt})
	return p, err
}

// PutPoint adds a clean point; one that is there already stays as it is.
func (tx *Tx) PutPoint(p pgbough.Point) error {
	settings, err := list(p.Settings)
	if err != nil {
		return fmt.Errorf("write point %s: %w", p.VolumeID, err)
	}
	differences, err := list(p.Differences)
	if err != nil {
		return fmt.Errorf("write point %s: %w", p.VolumeID, err)
	}
	_, err = tx.exec("INSERT INTO points ("+pointColumns+") VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (volume_id) DO NOTHING",
		p.VolumeID, p.ProjectID, int64(p.LSN), nanos(p.Time), p.Timeline, nanos(p.AskedAt), settings, differences, nanos(p.CreatedAt))
	if isForeignKey(err) {
		return noProject(p.ProjectID)
	}
	if err != nil {
		return fmt.Errorf("write point %s: %w", p.VolumeID, err)
	}
	return nil
}

// Points are the clean points of a project, the one with the newest state first.
func (tx *Tx) Points(projectID string) ([]pgbough.Point, error) {
	list, err := all(tx, scanPoint, "SELECT "+pointColumns+" FROM points WHERE project_id = ? ORDER BY asked_at DESC, volume_id", projectID)
	if err != nil {
		return nil, fmt.Errorf("read the points: %w", err)
	}
	return list, nil
}

// DeletePoint forgets a point. It does nothing if there is no such point.
func (tx *Tx) DeletePoint(volumeID string) error {
	if _, err := tx.exec("DELETE FROM points WHERE volume_id = ?", volumeID); err != nil {
		return fmt.Errorf("delete point %s: %w", volumeID, err)
	}
	return nil
}

// Points are the clean points of a project, the one with the newest state first.
func (c *Catalog) Points(ctx context.Context, projectID string) ([]pgbough.Point, error) {
	return c.read(ctx).Points(projectID)
}

// DeletePoint is Tx.DeletePoint in a transaction of its own.
func (c *Catalog) DeletePoint(ctx context.Context, volumeID string) error {
	return c.Tx(ctx, func(tx *Tx) error { return tx.DeletePoint(volumeID) })
}
