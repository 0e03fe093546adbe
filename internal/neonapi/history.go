package neonapi

import (
	"time"

	"github.com/pgbough/pgbough"
)

// History answers GET /projects/{p}/history: how far back a project can be
// branched. It is pgbough's own.
type History struct {
	ProjectID        string         `json:"project_id"`
	Project          string         `json:"project"`
	RetentionSeconds int64          `json:"history_retention_seconds"` // what is wanted
	FromLSN          pgbough.LSN    `json:"from_lsn,omitzero"`
	FromTimestamp    time.Time      `json:"from_timestamp,omitzero"`
	ToLSN            pgbough.LSN    `json:"to_lsn,omitzero"`
	ToTimestamp      time.Time      `json:"to_timestamp,omitzero"`
	Points           []HistoryPoint `json:"points"`
	WALBytes         int64          `json:"wal_bytes"`     // on the disk
	WALRawBytes      int64          `json:"wal_raw_bytes"` // before it was compressed
	Gaps             []Gap          `json:"gaps"`
	Notes            []string       `json:"notes"`
}

// HistoryPoint is a clone of the follower as it once was.
type HistoryPoint struct {
	VolumeID  string      `json:"volume_id"`
	LSN       pgbough.LSN `json:"lsn"`      // the first position that it can be used for
	RedoLSN   pgbough.LSN `json:"redo_lsn"` // where a replay from it begins
	Timeline  uint32      `json:"timeline"`
	Timestamp time.Time   `json:"timestamp,omitzero"`
	CreatedAt time.Time   `json:"created_at"`
}

// Gap is WAL that was lost before it could be kept.
type Gap struct {
	FromLSN pgbough.LSN `json:"from_lsn"`
	ToLSN   pgbough.LSN `json:"to_lsn"`
}
