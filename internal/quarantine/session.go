package quarantine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// closeTimeout bounds the goodbye to a Postgres that may hang.
const closeTimeout = time.Second

const (
	// Longer than deadlock_timeout, after which autovacuum gives way.
	runLockTimeout = "10s"
	// While a lock on pg_authid is waited for, nobody can log in.
	purgeLockTimeout = "200ms"
)

// sessionParams are given at connection start, where they beat every ALTER
// DATABASE SET and ALTER ROLE SET of production (guc.h: PGC_S_CLIENT is above
// PGC_S_DATABASE_USER).
func sessionParams(major int, lockTimeout string) map[string]string {
	p := map[string]string{
		"application_name": "pgbough quarantine",
		"role":             "none",
		"search_path":      "pg_catalog",
		"client_encoding":  "UTF8",
		// VACUUM's notices are read.
		"lc_messages": "C",
		// Production's defaults that would refuse, delay or end our statements.
		"default_transaction_read_only":       "off",
		"default_transaction_isolation":       "read committed",
		"default_transaction_deferrable":      "off",
		"statement_timeout":                   "0",
		"lock_timeout":                        lockTimeout,
		"idle_in_transaction_session_timeout": "0",
		"row_security":                        "off",
		"vacuum_cost_delay":                   "0",
		"jit":                                 "off",
		"plan_cache_mode":                     "force_generic_plan", // so that prepare leaves a plan
		// Triggers on the tables of job schedulers do not fire.
		"session_replication_role": "replica",
		// No library of production is loaded for us.
		"session_preload_libraries": "",
		"local_preload_libraries":   "",
		// What we do ends with one flush, not with one for each commit.
		"synchronous_commit": "off",
		// Verifiers are in no log and no statistics view.
		"log_statement":                     "none",
		"log_duration":                      "off",
		"log_min_duration_statement":        "-1",
		"log_min_duration_sample":           "-1",
		"log_transaction_sample_rate":       "0",
		"log_min_error_statement":           "panic",
		"log_parameter_max_length":          "0",
		"log_parameter_max_length_on_error": "0",
		"auto_explain.log_min_duration":     "-1",
		"pg_stat_statements.track":          "none",
	}
	if major >= 14 {
		p["idle_session_timeout"] = "0"
	}
	if major >= 17 {
		p["transaction_timeout"] = "0"
		p["event_triggers"] = "off" // also the login ones
	}
	return p
}

// session is a connection to one database. It is used by one goroutine at a time.
type session struct {
	database string
	conn     *pgx.Conn
	notices  []*pgconn.Notice
	prepared bool
}

func (q *Quarantine) connect(ctx context.Context, database string) (*session, error) {
	cfg, err := q.o.Config(database)
	if err != nil {
		return nil, err
	}
	cfg = cfg.Copy()
	cfg.Database = database
	if cfg.RuntimeParams == nil {
		cfg.RuntimeParams = map[string]string{}
	}
	maps.Copy(cfg.RuntimeParams, sessionParams(q.o.Major, q.lockTimeout))
	// Every statement is sent once: preparing it would be one more round trip.
	cfg.DefaultQueryExecMode = pgx.QueryExecModeExec
	cfg.StatementCacheCapacity, cfg.DescriptionCacheCapacity = 0, 0
	s := &session{database: database}
	cfg.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) { s.notices = append(s.notices, n) }
	if s.conn, err = pgx.ConnectConfig(ctx, cfg); err != nil {
		return nil, fmt.Errorf("connect to database %q for quarantine: %w", database, err)
	}
	return s, nil
}

func (s *session) close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	return s.conn.Close(ctx)
}

// The statements that a session prepares ahead, by their names.
const (
	lookAtCluster  = "look_at_cluster"
	lookAtDatabase = "look_at_database"
	forgetSecrets  = "forget_secrets"
)

// prepare parses and plans ahead what Run asks every database: on a promoted
// spare most of its time would be planning. A standby plans also what it could
// not execute.
func (s *session) prepare(ctx context.Context) error {
	for name, sql := range map[string]string{lookAtCluster: clusterSQL, lookAtDatabase: contentsSQL, forgetSecrets: forgetSecretsSQL} {
		if _, err := s.conn.Prepare(ctx, name, sql); err != nil {
			return fmt.Errorf("prepare a look at database %q: %w", s.database, err)
		}
	}
	if _, err := s.conn.Exec(ctx, "EXPLAIN EXECUTE "+forgetSecrets+"('{}', '{}')"); err != nil {
		return fmt.Errorf("plan ahead in database %q: %w", s.database, err)
	}
	s.prepared = true
	return nil
}

// statement is the prepared statement of that name, or its text.
func (s *session) statement(name, sql string) string {
	if s.prepared {
		return name
	}
	return sql
}

// batch runs statements in one transaction and one round trip.
func (s *session) batch(ctx context.Context, b *pgx.Batch) error {
	if b.Len() == 0 {
		return nil
	}
	return s.conn.SendBatch(ctx, b).Close()
}

// SQLSTATE codes of Postgres, errcodes.txt.
const (
	invalidCatalogName = "3D000"
	lockNotAvailable   = "55P03"
)

func hasState(err error, state string) bool {
	var e *pgconn.PgError
	return errors.As(err, &e) && e.Code == state
}
