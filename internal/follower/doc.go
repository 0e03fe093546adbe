// Package follower keeps a project's root branch current. A Follower is a
// standby of production; spares are clones of it that stream from it, ready to
// be promoted. Both are Standbys: a Postgres in recovery in a sandbox without
// network, whose only way out is a relay that we hold and can cut.
package follower
