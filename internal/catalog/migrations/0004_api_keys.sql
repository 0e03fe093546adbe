-- Who may use the API, beside who can read admin.key. Of the keys themselves only
-- the SHA-256 is here. AUTOINCREMENT: an id that was revoked never names another
-- key. A key goes with its project.
CREATE TABLE api_keys (
  id           INTEGER PRIMARY KEY AUTOINCREMENT,
  name         TEXT NOT NULL UNIQUE,
  hash         BLOB NOT NULL UNIQUE,
  project_id   TEXT REFERENCES projects (id) ON DELETE CASCADE,
  metrics_only INTEGER NOT NULL,
  created_at   INTEGER NOT NULL,
  last_used_at INTEGER NOT NULL
) STRICT;

CREATE INDEX api_keys_project ON api_keys (project_id);
