// Package schema reads the schema of one database from its catalogs, writes it
// as DDL, and compares it with another's.
//
// The terms: an object is what a change can be told of: a table, but also each of
// its columns, defaults, constraints and grants. It has a kind and a name that no
// other object of its kind has, and may be of another object: a column is of its
// table, a comment of what it is about. Its SQL is written from the catalogs and
// by Postgres's own pg_get_*def functions, with every name qualified, so that
// equal schemas have equal texts.
//
// Members of extensions are the extension's and are left out, and so is what
// holds secrets: options of user mappings, subscriptions. What else is left out
// is listed in docs/diff.md.
package schema
