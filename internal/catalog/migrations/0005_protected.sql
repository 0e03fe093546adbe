-- A protected branch is neither deleted nor does it expire.
ALTER TABLE branches ADD COLUMN protected INTEGER NOT NULL DEFAULT 0;
