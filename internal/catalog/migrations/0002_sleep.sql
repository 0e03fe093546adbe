-- What is remembered of the compute behind an endpoint. awake is 0 only while
-- the volume is cleanly shut down and its verifiers are those of pg_authid.
-- suspend_after is in nanoseconds, 0 for never, -1 for the server's default.
ALTER TABLE endpoints ADD COLUMN awake         INTEGER NOT NULL DEFAULT 1;
ALTER TABLE endpoints ADD COLUMN suspend_after INTEGER NOT NULL DEFAULT -1;
ALTER TABLE endpoints ADD COLUMN last_active   INTEGER NOT NULL DEFAULT 0;
ALTER TABLE endpoints ADD COLUMN restarts      INTEGER NOT NULL DEFAULT 0;
ALTER TABLE endpoints ADD COLUMN failed_at     INTEGER NOT NULL DEFAULT 0;
ALTER TABLE endpoints ADD COLUMN failure       TEXT    NOT NULL DEFAULT '';

-- What clients must prove to log in, kept while no Postgres can be asked.
CREATE TABLE verifiers (
  branch_id       TEXT NOT NULL REFERENCES branches (id) ON DELETE CASCADE,
  role            TEXT NOT NULL,
  sealed_verifier BLOB NOT NULL,
  valid_until     INTEGER NOT NULL,
  PRIMARY KEY (branch_id, role)
) STRICT;
