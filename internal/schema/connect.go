package schema

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgbough/pgbough"
)

const (
	// maxMessage bounds what one message of a Postgres may take of our memory: who
	// uses a branch decides what its catalogs hold.
	maxMessage = 64 << 20
	// attempts is how often a standby is read that ends a session because it is in
	// the way of what it replays, with a pause before each.
	attempts     = 50
	pause        = 100 * time.Millisecond
	closeTimeout = time.Second
)

// Dial connects to a Postgres on which nothing was said yet.
type Dial func(ctx context.Context) (net.Conn, error)

// Load reads the schema of a database over a connection of its own. The role must
// be a superuser: others do not see everything.
func Load(ctx context.Context, dial Dial, role, database string) (*Database, error) {
	for left := attempts; ; left-- {
		db, err := load(ctx, dial, role, database)
		if !inTheWay(err) {
			return db, err
		}
		if left == 0 {
			return nil, pgbough.Errorf(pgbough.ELocked, "the schema of database %s cannot be read while production changes so much: %w", database, err).
				WithHint("try again")
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func load(ctx context.Context, dial Dial, role, database string) (*Database, error) {
	cfg, err := pgx.ParseConfig("sslmode=disable connect_timeout=30 host=branch")
	if err != nil {
		return nil, err
	}
	cfg.User, cfg.Database, cfg.Password, cfg.Fallbacks = role, database, "", nil
	cfg.LookupFunc = func(context.Context, string) ([]string, error) { return []string{"branch"}, nil }
	cfg.DialFunc = func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) }
	cfg.BuildFrontend = func(r io.Reader, w io.Writer) *pgproto3.Frontend {
		f := pgproto3.NewFrontend(r, w)
		f.SetMaxBodyLen(maxMessage)
		return f
	}
	cfg.RuntimeParams = sessionParams()
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		_ = conn.Close(ctx) // all was read
	}()
	return Read(ctx, conn)
}

// sessionParams are what the catalogs' functions write by, and what a database or
// role may have set that would end or change a reader. Given at connection start
// they beat every ALTER DATABASE SET and ALTER ROLE SET.
func sessionParams() map[string]string {
	p := map[string]string{
		"application_name":                    "pgbough",
		"role":                                "none",
		"client_encoding":                     "UTF8",
		"statement_timeout":                   "60s",
		"lock_timeout":                        "20s",
		"idle_in_transaction_session_timeout": "0",
		"session_preload_libraries":           "",
		"local_preload_libraries":             "",
		"log_statement":                       "none",
		"jit":                                 "off",
	}
	for name, value := range writing() {
		p[name] = value
	}
	return p
}

// writing are the settings that decide how Postgres writes definitions.
func writing() map[string]string {
	return map[string]string{
		"search_path":                 "pg_catalog",
		"quote_all_identifiers":       "off",
		"DateStyle":                   "ISO, YMD",
		"IntervalStyle":               "postgres",
		"TimeZone":                    "UTC",
		"extra_float_digits":          "1",
		"bytea_output":                "hex",
		"xmloption":                   "content",
		"lc_monetary":                 "C",
		"standard_conforming_strings": "on",
	}
}

// Read reads the schema of the database that conn is connected to, as it was at
// one moment. It changes nothing in the session.
func Read(ctx context.Context, conn *pgx.Conn) (*Database, error) {
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return nil, fmt.Errorf("begin to read a schema: %w", err)
	}
	defer func() { _ = tx.Rollback(ctx) }() // it has only read
	return readIn(ctx, tx)
}

func readIn(ctx context.Context, tx pgx.Tx) (*Database, error) {
	for name, value := range writing() {
		if _, err := tx.Exec(ctx, "SELECT pg_catalog.set_config($1, $2, true)", name, value); err != nil {
			return nil, fmt.Errorf("set %s: %w", name, err)
		}
	}
	return read(ctx, tx)
}

// inTheWay tells whether a standby has ended the statement for what it replays.
func inTheWay(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == "40001" || pg.Code == "40P01")
}
