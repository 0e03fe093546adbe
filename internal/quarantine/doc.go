// Package quarantine cuts a branch off from everything that production is
// connected to, before any user can connect to it. A compute has no network;
// quarantine is the second wall, and it takes production's credentials out of
// the branch's files.
//
// It works in three stages. Settings and Plan are what a spare must be started
// with, since background workers begin their work the moment it is promoted.
// Run cuts, on the promoted spare, what stands in catalogs: prepared
// transactions, subscriptions, replication slots, foreign servers and user
// mappings, scheduled jobs, passwords. Purge afterwards, in the background,
// takes the old versions of what was cut out of the files: it rewrites those
// catalogs that it may take longer with, and lets go of old WAL.
//
// Everything in catalogs is changed with UPDATE and DELETE on the catalogs
// themselves rather than with DDL. That needs only a superuser, fires no event
// trigger (ENABLE ALWAYS ones of production would abort or act on our DDL),
// calls no utility hook of a library, never speaks to a publisher, and changes
// a thousand objects in one statement.
package quarantine
