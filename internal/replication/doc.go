// Package replication speaks Postgres's streaming replication protocol, as a
// client and, as far as one standby needs it, as a server.
//
// The upstream is the server that WAL comes from: production for a follower,
// the follower for a spare. A base backup is a copy of the upstream's data
// directory, taken over the protocol and checked against the manifest that the
// upstream sends with it. A slot is a physical replication slot: the upstream
// keeps the WAL that its user has not received yet. A timeline history tells at
// which LSN each timeline left the one before it.
//
// A Relay stands between one standby and its upstream. The standby reaches it
// over a socket in a directory of its own and needs no network, no address and
// no password: the relay logs in to the upstream and then copies bytes. When it
// is cut, nothing of the upstream can reach the standby any more.
//
// The protocol is described in the chapter "Frontend/Backend Protocol" of the
// Postgres documentation, section "Streaming Replication Protocol". Servers from
// version 13 on, which send a manifest, are understood.
package replication
