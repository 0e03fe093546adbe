package quarantine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbough/pgbough"
)

const (
	rewriteTries    = 10
	rewritePause    = 25 * time.Millisecond
	maxRewritePause = time.Second
)

// rewrite makes the files of catalogs anew: what was cut, and what production
// had changed or dropped before, is still in them as old versions of rows,
// until VACUUM FULL copies the live ones.
func (q *Quarantine) rewrite(ctx context.Context, databases map[string][]string) error {
	all := maps.Clone(databases)
	all[q.main.database] = append(q.sharedCatalogs(), all[q.main.database]...)
	return q.each(ctx, sortedKeys(all), func(ctx context.Context, s *session) error {
		return s.vacuumFull(ctx, all[s.database])
	})
}

func (q *Quarantine) sharedCatalogs() []string {
	if q.seen.SubscriptionPages {
		return []string{"pg_authid", "pg_subscription"}
	}
	return []string{"pg_authid"}
}

// vacuumFull rewrites tables and makes sure that no old version of a row stayed
// because some transaction might still see it.
func (s *session) vacuumFull(ctx context.Context, tables []string) error {
	if len(tables) == 0 {
		return nil
	}
	what := strings.Join(tables, ", ")
	wait, kept, locked := rewritePause, 0, error(nil)
	for try := range rewriteTries {
		if try > 0 {
			if err := pause(ctx, wait); err != nil {
				return err
			}
			wait = min(2*wait, maxRewritePause)
		}
		s.notices = nil
		_, err := s.conn.Exec(ctx, "VACUUM (FULL, VERBOSE) "+what)
		if locked = err; hasState(err, lockNotAvailable) {
			continue
		}
		if err != nil {
			return fmt.Errorf("rewrite %s in database %q: %w", what, s.database, err)
		}
		told := 0
		if told, kept = keptVersions(s.notices); told < len(tables) {
			return pgbough.Errorf(pgbough.EInternal, "Postgres did not tell what it removed when it rewrote %s in database %q", what, s.database)
		}
		if kept == 0 {
			return nil
		}
	}
	if locked != nil {
		return pgbough.Errorf(pgbough.ELocked, "a session of the branch keeps %s in database %q locked: %w", what, s.database, locked)
	}
	return pgbough.Errorf(pgbough.ELocked, "%d old versions of rows with credentials stay in database %q: a transaction may still see them", kept, s.database)
}

var cannotRemove = regexp.MustCompile(`^(\d+) dead row versions cannot be removed yet`)

// keptVersions reads VACUUM FULL's notices (cluster.c: copy_table_data): of how
// many tables they tell, and how many old versions stayed in all.
func keptVersions(notices []*pgconn.Notice) (tables, kept int) {
	for _, n := range notices {
		if m := cannotRemove.FindStringSubmatch(n.Detail); m != nil {
			tables++
			v, _ := strconv.Atoi(m[1]) // digits
			kept += v
		}
	}
	return tables, kept
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}

// Purge takes the rest of production's credentials out of the files: what Run
// left with RewriteLater, the values that ANALYZE copied into pg_statistic, and
// the WAL up to now. It ends with the checkpoint that makes a crash of the
// branch cheap. It may take seconds: run it in the background, after Run; the
// branch can be used meanwhile. It fails with ELocked when users keep a catalog
// locked; run it again later.
func Purge(ctx context.Context, o Options) error {
	began := time.Now()
	q, err := open(ctx, o, purgeLockTimeout)
	if err != nil {
		return err
	}
	// First, and not only at the end: until then a crash of the branch replays from production's last checkpoint (facts 17).
	_, err = q.main.conn.Exec(ctx, "CHECKPOINT")
	if err == nil {
		err = q.purgeCatalogs(ctx)
	}
	if err == nil {
		err = q.main.purgeWAL(ctx)
	}
	o.Log.DebugContext(ctx, "quarantine has purged", "took", time.Since(began), "err", err)
	return errors.Join(err, q.Close(ctx))
}

// purgeCatalogs connects to a database only while it works there, since users
// may want to drop it or to copy it.
func (q *Quarantine) purgeCatalogs(ctx context.Context) error {
	var err error
	if q.seen, err = q.main.cluster(ctx); err != nil {
		return err
	}
	for _, name := range q.names() {
		err := q.in(ctx, name, func(s *session) error {
			c, err := s.contents(ctx)
			if err != nil {
				return err
			}
			var tables []string
			if q.o.RewriteLater {
				tables = c.rewrite()
				if s == q.main {
					tables = append(tables, q.sharedCatalogs()...)
				}
			}
			if c.Analyzed {
				tables = append(tables, "pg_statistic")
			}
			return s.vacuumFull(ctx, tables)
		})
		if err != nil && !hasState(err, invalidCatalogName) { // dropped meanwhile
			return err
		}
	}
	return nil
}

// purgeWAL lets go of all WAL before now. With wal_recycle=off (see Settings)
// a checkpoint removes the files instead of using them again, and only the
// segment that the checkpoint stands in stays.
func (s *session) purgeWAL(ctx context.Context) error {
	var recycle string
	if err := s.conn.QueryRow(ctx, "SHOW wal_recycle").Scan(&recycle); err != nil {
		return fmt.Errorf("look how WAL is removed: %w", err)
	}
	if recycle != "off" {
		return pgbough.Errorf(pgbough.EInternal, "WAL cannot be purged: wal_recycle is %s", recycle)
	}
	for _, sql := range []string{"SELECT pg_switch_wal()", "CHECKPOINT"} {
		if _, err := s.conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("purge WAL: %w", err)
		}
	}
	var old []string
	rows, err := s.conn.Query(ctx, `SELECT name FROM pg_ls_waldir()
		WHERE name ~ '^[0-9A-F]{24}$' AND substr(name, 9) < substr((SELECT redo_wal_file FROM pg_control_checkpoint()), 9)`)
	if err == nil {
		old, err = pgx.CollectRows(rows, pgx.RowTo[string])
	}
	if err != nil {
		return fmt.Errorf("look for old WAL: %w", err)
	}
	if len(old) > 0 {
		return pgbough.Errorf(pgbough.EInternal, "%d old WAL segments stay after a checkpoint, from %s on", len(old), old[0]).
			WithHint("look for replication slots and wal_keep_size on the branch")
	}
	return nil
}
