-- history is how far back a project can be branched, in nanoseconds; 0 is not at all.
ALTER TABLE projects ADD COLUMN history INTEGER NOT NULL DEFAULT 86400000000000;

-- A point of the past is a clone of a follower as it once was, with what a replay from it
-- needs to know. Its WAL is in the archive of the lineage, which a volume's id names.
CREATE TABLE past_points (
  volume_id  TEXT PRIMARY KEY,
  project_id TEXT NOT NULL REFERENCES projects (id) ON DELETE RESTRICT,
  lineage    TEXT NOT NULL,
  redo       INTEGER NOT NULL,
  lsn        INTEGER NOT NULL,
  timeline   INTEGER NOT NULL,
  time       INTEGER NOT NULL,
  settings   TEXT NOT NULL,
  created_at INTEGER NOT NULL
) STRICT;

CREATE INDEX past_points_lineage ON past_points (lineage, lsn);
