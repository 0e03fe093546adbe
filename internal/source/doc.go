// Package source talks to production over ordinary SQL. It has two parts.
//
// Check is the preflight: it looks at production and at this machine, changes
// nothing on either, and says for each thing that following production would
// need whether it is there and, where it is not, which statement or line mends
// it.
//
// A Source asks production where it is. Its answer, a Moment, is a WAL position
// at or after everything that production had acknowledged to anybody when it
// was asked, with production's clock, identity and settings at that position.
//
// The source is production's primary. The system identifier is the number that
// initdb gave the cluster; all physical copies share it. A slot is a physical
// replication slot, which keeps WAL on production until we have it. Preflight
// findings are named for scripts; the names are stable.
package source
