// Package pgbough holds the nouns of pgbough, their states, identifiers and
// error codes. It imports only the standard library, and everything else in
// the module imports it.
//
// A project follows one production server, its source, through a follower: a
// standby whose data directory is the project's root branch. A branch is a
// private, writable Postgres cut from its parent at one exact LSN. A volume is
// the copy-on-write directory that holds a PGDATA. A spare is a clone of the
// follower that keeps streaming and is ready to be promoted into a branch. A
// compute is the Postgres process that serves a branch, if one runs.
package pgbough
