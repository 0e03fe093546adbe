-- Times are nanoseconds since 1970 in UTC, 0 for none. LSNs and system
-- identifiers are 64 bits without a sign, kept in SQLite's signed integers.
-- Columns named sealed_* hold what credential.Box makes. Lists are JSON.

CREATE TABLE meta (
  name  TEXT PRIMARY KEY,
  value BLOB NOT NULL
) STRICT;

CREATE TABLE projects (
  id                     TEXT PRIMARY KEY,
  name                   TEXT NOT NULL UNIQUE,
  state                  TEXT NOT NULL,
  root_branch_id         TEXT NOT NULL,
  default_role           TEXT NOT NULL,
  default_database       TEXT NOT NULL,
  sealed_conn_string     BLOB NOT NULL,
  sealed_restore_command BLOB NOT NULL,
  system_id              INTEGER NOT NULL,
  major                  INTEGER NOT NULL,
  version                TEXT NOT NULL,
  timeline               INTEGER NOT NULL,
  superuser              TEXT NOT NULL,
  slot                   TEXT NOT NULL,
  max_rate               INTEGER NOT NULL,
  accept_unlimited_slot  INTEGER NOT NULL,
  settings               TEXT NOT NULL,
  created_at             INTEGER NOT NULL
) STRICT;

CREATE TABLE branches (
  id          TEXT PRIMARY KEY,
  project_id  TEXT NOT NULL REFERENCES projects (id) ON DELETE RESTRICT,
  name        TEXT NOT NULL,
  state       TEXT NOT NULL,
  parent_id   TEXT REFERENCES branches (id) ON DELETE RESTRICT,
  parent_lsn  INTEGER NOT NULL,
  parent_time INTEGER NOT NULL,
  volume_id   TEXT NOT NULL,
  settled     INTEGER NOT NULL,
  settings    TEXT NOT NULL,
  differences TEXT NOT NULL,
  created_at  INTEGER NOT NULL,
  expires_at  INTEGER NOT NULL,
  UNIQUE (project_id, name)
) STRICT;

CREATE INDEX branches_parent ON branches (parent_id);

CREATE TABLE endpoints (
  id        TEXT PRIMARY KEY,
  branch_id TEXT NOT NULL UNIQUE REFERENCES branches (id) ON DELETE CASCADE
) STRICT;

CREATE TABLE roles (
  branch_id       TEXT NOT NULL REFERENCES branches (id) ON DELETE CASCADE,
  name            TEXT NOT NULL,
  sealed_password BLOB NOT NULL,
  PRIMARY KEY (branch_id, name)
) STRICT;

-- A spare names a volume, so its project cannot be forgotten before it.
CREATE TABLE spares (
  volume_id  TEXT PRIMARY KEY,
  project_id TEXT NOT NULL REFERENCES projects (id) ON DELETE RESTRICT,
  state      TEXT NOT NULL,
  redo       INTEGER NOT NULL,
  taken_by   TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  ready_at   INTEGER NOT NULL
) STRICT;

CREATE INDEX spares_project ON spares (project_id);

-- Operations outlive the projects and branches that they are about.
CREATE TABLE operations (
  seq        INTEGER PRIMARY KEY,
  id         TEXT NOT NULL UNIQUE,
  project_id TEXT NOT NULL,
  branch_id  TEXT NOT NULL,
  kind       TEXT NOT NULL,
  status     TEXT NOT NULL,
  done       INTEGER NOT NULL,
  step       INTEGER NOT NULL,
  steps      TEXT NOT NULL,
  state      TEXT NOT NULL,
  progress   TEXT NOT NULL,
  error      TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  updated_at INTEGER NOT NULL
) STRICT;

CREATE INDEX operations_unfinished ON operations (seq) WHERE done = 0;
CREATE INDEX operations_done ON operations (seq) WHERE done = 1;
CREATE INDEX operations_project ON operations (project_id, seq);
