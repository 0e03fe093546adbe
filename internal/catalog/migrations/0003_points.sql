-- A point names a volume, so its project cannot be forgotten before it.
CREATE TABLE points (
  volume_id   TEXT PRIMARY KEY,
  project_id  TEXT NOT NULL REFERENCES projects (id) ON DELETE RESTRICT,
  lsn         INTEGER NOT NULL,
  time        INTEGER NOT NULL,
  timeline    INTEGER NOT NULL,
  asked_at    INTEGER NOT NULL,
  settings    TEXT NOT NULL,
  differences TEXT NOT NULL,
  created_at  INTEGER NOT NULL
) STRICT;

CREATE INDEX points_project ON points (project_id);
