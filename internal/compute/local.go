package compute

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/postgres"
)

const (
	// readerIdle is how long the session that answers logins outlives the last
	// one: between two of them it saves the cost of connecting.
	readerIdle = 2 * time.Second
	endPoll    = 5 * time.Millisecond

	// maxLogins is far more than a create has the time to make new passwords for.
	maxLogins = 20_000

	invalidCatalogName = "3D000"
	cannotConnectNow   = "55000" // the database does not allow connections
)

// local is a Postgres on this machine.
type local struct {
	server *postgres.Server

	asking  chan struct{} // holds a token while nobody uses reader, which answers one question at a time
	reader  *pgx.Conn
	closing *time.Timer // of reader
}

func newLocal(server *postgres.Server) *local {
	p := &local{server: server, asking: make(chan struct{}, 1)}
	p.asking <- struct{}{}
	return p
}

// startLocal starts a Postgres on a volume, or adopts the one that runs there, if
// there may be one: to look for it takes longer than to start.
func startLocal(ctx context.Context, l postgres.Launcher, s Spec, adopt bool, log *slog.Logger) (instance, error) {
	cfg, err := s.Config(ctx)
	if err != nil {
		return nil, err
	}
	var server *postgres.Server
	var ok bool
	if adopt {
		server, ok, err = postgres.Adopt(ctx, l, cfg, log)
	}
	if ok {
		if lerr := server.Process().SetLimits(cfg.Limits); lerr != nil {
			log.WarnContext(ctx, "a Postgres that was taken over keeps its limits", "volume", cfg.ID, "err", lerr)
		}
	}
	if err == nil && !ok {
		server, err = postgres.Start(ctx, l, cfg, log)
	}
	if err != nil {
		return nil, err
	}
	return newLocal(server), nil
}

func (p *local) PID() int                     { return p.server.Process().PID() }
func (p *local) MemoryKills() int             { return p.server.Process().MemoryKills() }
func (p *local) Refusals() int                { return p.server.Process().Refusals() }
func (p *local) Done() <-chan struct{}        { return p.server.Done() }
func (p *local) Server() *postgres.Server     { return p.server }
func (p *local) Reload(settings string) error { return p.server.Reload(settings) }
func (p *local) LogTail() string              { return postgres.LogTail(p.server.Config().LogFile(), 3) }

func (p *local) Kill(ctx context.Context) error { return p.server.Kill(ctx) }

func (p *local) Ready(ctx context.Context) (net.Conn, error) { return p.server.Ready(ctx) }
func (p *local) Dial(ctx context.Context) (net.Conn, error)  { return p.server.Dial(ctx) }

// connect opens a session as the bootstrap superuser in a database that users
// seldom drop or copy, both of which wait for our session.
func (p *local) connect(ctx context.Context) (*pgx.Conn, error) {
	conn, err := p.connectTo(ctx, "postgres")
	var refused *pgconn.PgError
	if errors.As(err, &refused) && (refused.Code == invalidCatalogName || refused.Code == cannotConnectNow) {
		return p.connectTo(ctx, "template1")
	}
	return conn, err
}

func (p *local) connectTo(ctx context.Context, database string) (*pgx.Conn, error) {
	cfg, err := p.server.ConnConfig(database)
	if err != nil {
		return nil, err
	}
	// A superuser of the branch may have locked what is asked for.
	cfg.RuntimeParams["lock_timeout"], cfg.RuntimeParams["statement_timeout"] = "2s", "10s"
	if p.server.Config().Install.Major >= 17 {
		cfg.RuntimeParams["event_triggers"] = "off" // a login trigger of the branch is not for us
	}
	return pgx.ConnectConfig(ctx, cfg)
}

// question asks in a session of its own.
func (p *local) question(ctx context.Context, f func(*pgx.Conn) error) error {
	if err := p.closeReader(ctx); err != nil {
		return err
	}
	conn, err := p.connect(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }() // the answer is what counts
	return f(conn)
}

// Activity implements instance. An idle session's state_change is the end of its
// last statement.
func (p *local) Activity(ctx context.Context) (Activity, error) {
	var a Activity
	var idle float64
	err := p.question(ctx, func(conn *pgx.Conn) error {
		return conn.QueryRow(ctx, `
			SELECT count(*) FILTER (WHERE backend_type = 'client backend'),
				count(*) FILTER (WHERE backend_type <> 'client backend' OR state IS DISTINCT FROM 'idle'),
				coalesce(extract(epoch FROM clock_timestamp() - max(coalesce(state_change, backend_start)) FILTER (WHERE backend_type = 'client backend')), 0)::float8
			FROM pg_stat_activity
			WHERE pid <> pg_backend_pid() AND NOT (usesysid = 10 AND application_name = 'pgbough') AND backend_type IN ('client backend', 'walsender', 'autovacuum worker')`).Scan(&a.Sessions, &a.Busy, &idle)
	})
	a.Idle = time.Duration(idle * float64(time.Second))
	return a, err
}

// loginColumns are a role's verifier and the end of its validity, as far as a
// time in nanoseconds can say it.
const loginColumns = `rolname, left(coalesce(rolpassword, ''), 1024), CASE
	WHEN rolvaliduntil >= '2262-01-01 00:00:00+00' THEN NULL
	WHEN rolvaliduntil < '1970-01-02 00:00:00+00' THEN '1970-01-02 00:00:00+00'::timestamptz
	ELSE rolvaliduntil END`

func scanLogin(row pgx.Row) (pgbough.Login, error) {
	var l pgbough.Login
	var until *time.Time
	err := row.Scan(&l.Role, &l.Verifier, &until)
	if until != nil {
		l.ValidUntil = until.UTC()
	}
	return l, err
}

// Login implements instance.
func (p *local) Login(ctx context.Context, role string) (pgbough.Login, error) {
	if err := p.take(ctx); err != nil {
		return pgbough.Login{}, err
	}
	defer p.give()
	for {
		fresh := p.reader == nil
		if fresh {
			conn, err := p.connect(ctx)
			if err != nil {
				return pgbough.Login{}, err
			}
			p.reader = conn
			later := context.WithoutCancel(ctx)
			p.closing = time.AfterFunc(readerIdle, func() { _ = p.closeReader(later) })
		}
		l, err := scanLogin(p.reader.QueryRow(ctx, "SELECT "+loginColumns+" FROM pg_authid WHERE rolname = $1", role))
		switch {
		case err == nil:
			p.closing.Reset(readerIdle)
			return l, nil
		case errors.Is(err, pgx.ErrNoRows):
			return pgbough.Login{}, nil
		}
		p.hangUp(ctx)
		if fresh || ctx.Err() != nil {
			return pgbough.Login{}, fmt.Errorf("read pg_authid: %w", err)
		}
	}
}

// take waits for reader, and give gives it back.
func (p *local) take(ctx context.Context) error {
	select {
	case <-p.asking:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the session that reads pg_authid: %w", context.Cause(ctx))
	}
}

func (p *local) give() { p.asking <- struct{}{} }

func (p *local) closeReader(ctx context.Context) error {
	if err := p.take(ctx); err != nil {
		return err
	}
	defer p.give()
	p.hangUp(ctx)
	return nil
}

// hangUp closes reader; the caller has taken it.
func (p *local) hangUp(ctx context.Context) {
	if p.reader == nil {
		return
	}
	p.closing.Stop()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = p.reader.Close(ctx) // it is given up in any case
	p.reader = nil
}

// Quiet implements instance. Only with the last session gone pg_authid cannot
// change any more.
func (p *local) Quiet(ctx context.Context) (logins []pgbough.Login, err error) {
	err = p.question(ctx, func(conn *pgx.Conn) error {
		if err := endSessions(ctx, conn); err != nil {
			return err
		}
		logins, err = allLogins(ctx, conn)
		return err
	})
	return logins, err
}

// allLogins reads no more than maxLogins: how many there are is up to whoever
// uses the branch, and the memory is the server's.
func allLogins(ctx context.Context, conn *pgx.Conn) (logins []pgbough.Login, err error) {
	rows, err := conn.Query(ctx, "SELECT "+loginColumns+" FROM pg_authid WHERE rolpassword IS NOT NULL")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		l, err := scanLogin(rows)
		if err != nil {
			return nil, err
		}
		if len(logins) == maxLogins {
			return nil, pgbough.Errorf(pgbough.EConflict, "it has more than %d roles with passwords, which cannot all be kept while it sleeps", maxLogins).
				WithHint("drop some of them, or take their passwords away")
		}
		logins = append(logins, l)
	}
	return logins, rows.Err()
}

func endSessions(ctx context.Context, conn *pgx.Conn) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for the end of all sessions: %w", context.Cause(ctx))
		}
		var left int
		err := conn.QueryRow(ctx, `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
			WHERE pid <> pg_backend_pid() AND backend_type IN ('client backend', 'walsender')`).Scan(&left)
		if err != nil || left == 0 {
			return err
		}
		timer.Reset(endPoll)
	}
}

// Stop implements instance. The session that reads pg_authid ends with it.
func (p *local) Stop(ctx context.Context) (bool, error) {
	clean, err := p.server.Stop(ctx)
	if err != nil || !clean {
		return false, err
	}
	return postgres.CleanlyStopped(p.server.Config().DataDir)
}
