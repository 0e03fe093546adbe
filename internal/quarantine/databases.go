package quarantine

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/pgbough/pgbough"
)

// invalidDatabase is the datconnlimit of a database whose removal was
// interrupted (pg_database.h: DATCONNLIMIT_INVALID_DB). Nobody can connect to it.
const invalidDatabase = -2

// openedBase marks a database that production allows nobody to connect to while
// quarantine does: its datconnlimit is openedBase minus production's. All
// negative limits but -2 mean no limit to Postgres. The mark survives a crash,
// so that a second run knows what to put back.
const openedBase = -1000

// openAll makes every database connectable, and drops what is left of
// databases whose removal was interrupted. template0 stays closed: nobody but
// initdb has ever written to it.
func (q *Quarantine) openAll(ctx context.Context) ([]pgbough.Difference, error) {
	var diffs []pgbough.Difference
	closed := false
	for _, d := range q.seen.Databases {
		switch {
		case d.Limit == invalidDatabase:
			if _, err := q.main.conn.Exec(ctx, "DROP DATABASE "+pgx.Identifier{d.Name}.Sanitize()); err != nil {
				return nil, fmt.Errorf("drop database %q, whose removal was interrupted in production: %w", d.Name, err)
			}
			diffs = append(diffs, pgbough.Difference{
				Kind: "database", Object: d.Name, Action: "dropped", Reason: "its removal was interrupted in production; nobody can connect to it",
			})
			closed = true
		case !d.Allow && d.Name != "template0":
			closed = true
		}
	}
	if !closed {
		return nil, nil
	}
	_, err := q.main.conn.Exec(ctx, `UPDATE pg_database SET datallowconn = true, datconnlimit = $1::text::int - datconnlimit
		WHERE NOT datallowconn AND datname <> 'template0'`, fmt.Sprint(openedBase))
	if err != nil {
		return nil, fmt.Errorf("open the databases that allow no connections: %w", err)
	}
	q.seen, err = q.main.cluster(ctx)
	return diffs, err
}

// closeAll puts back what openAll did, and makes everything so far durable
// with one flush: sessions commit without one.
func (q *Quarantine) closeAll(ctx context.Context) error {
	var b pgx.Batch
	b.Queue("SELECT set_config('synchronous_commit', 'local', true)")
	for _, d := range q.seen.Databases {
		if q.opened(d.Name) {
			b.Queue("UPDATE pg_database SET datallowconn = false, datconnlimit = $1::text::int - datconnlimit WHERE datname = $2::text::name", fmt.Sprint(openedBase), d.Name)
		}
	}
	b.Queue("SELECT pg_logical_emit_message(true, 'pgbough', 'quarantine')")
	if err := q.main.batch(ctx, &b); err != nil {
		return fmt.Errorf("make the quarantine durable: %w", err)
	}
	return nil
}

// opened tells whether openAll made a database connectable.
func (q *Quarantine) opened(name string) bool {
	i := slices.IndexFunc(q.seen.Databases, func(d database) bool { return d.Name == name })
	return i >= 0 && q.seen.Databases[i].Limit < openedBase/2
}
