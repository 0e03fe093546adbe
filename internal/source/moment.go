package source

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/postgres"
)

// Moment is where production was when it was asked.
type Moment struct {
	// LSN is at or after the end of every record that production had written for anything it had acknowledged, and is on
	// its disk: commits, also those of synchronous_commit=off, and what nextval returned. (Position: the flush position.)
	LSN      pgbough.LSN
	Time     time.Time // production's clock, right after
	SystemID uint64
	// Timeline is the one that production writes now. It must be the follower's, or LSN means nothing there.
	Timeline uint32
	// Settings are all that the role may see, with the values a session of any other role starts from (no ALTER ROLE or
	// ALTER DATABASE settings of this connection's). Without pg_read_all_settings some are missing. Nil in a Position.
	Settings []postgres.Setting
}

// flight is one answer for all callers who arrived before it was asked for.
type flight struct {
	done   chan struct{} // closed when moment and err are there
	moment Moment
	err    error
}

// Now asks production where it is. Everything that production had acknowledged
// to anyone when Now was called is at or before the Moment's LSN.
//
// Callers that wait at the same time share one answer, but never one that was
// asked for before they called. When production does not answer within the
// Source's timeout, the error has the code EUnreachable.
func (s *Source) Now(ctx context.Context) (Moment, error) {
	f, err := s.join()
	if err != nil {
		return Moment{}, err
	}
	select {
	case <-f.done:
		return f.moment, f.err
	case <-ctx.Done():
		return Moment{}, unreachable(s.currentConfig(), ctx.Err())
	}
}

// join returns the flight that has not been sent yet, or a new one.
func (s *Source) join() (*flight, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, unreachable(s.config, ErrClosed)
	}
	if s.next == nil {
		f := &flight{done: make(chan struct{})}
		s.next = f
		s.wg.Go(func() {
			defer close(f.done)
			f.err = s.do(s.ctx, func(ctx context.Context, pg *pgconn.PgConn) error {
				s.depart(f)
				var err error
				f.moment, err = ask(ctx, pg, true)
				return s.check(f.moment, err)
			})
			s.depart(f) // also when it could not even be sent
			if f.err != nil {
				f.moment = Moment{}
			}
		})
	}
	return s.next, nil
}

// depart lets nobody else share f.
func (s *Source) depart(f *flight) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next == f {
		s.next = nil
	}
}

// Position asks for production's flush position without writing anything there:
// what the lag is measured against. Acknowledged commits may be after it.
func (s *Source) Position(ctx context.Context) (Moment, error) {
	var m Moment
	err := s.do(ctx, func(ctx context.Context, pg *pgconn.PgConn) error {
		var err error
		m, err = ask(ctx, pg, false)
		return s.check(m, err)
	})
	if err != nil {
		return Moment{}, err
	}
	return m, nil
}

// check refuses an answer of a server that is not the primary we follow.
func (s *Source) check(m Moment, err error) error {
	where := s.currentConfig()
	switch {
	case errors.Is(err, ErrStandby):
		return (&pgbough.Error{Code: pgbough.EUnreachable, Err: err, Message: fmt.Sprintf("production cannot be asked: %s is a standby now, not the primary", hostPort(where))}).
			WithHint("name the new primary: pgbough source set NAME --source CONNSTR")
	case err != nil:
		return err
	case s.systemID != 0 && m.SystemID != s.systemID:
		return (&pgbough.Error{Code: pgbough.EConflict, Err: ErrOtherSystem, Message: fmt.Sprintf("the server at %s is another database cluster (system identifier %d, not %d)", hostPort(where), m.SystemID, s.systemID)}).
			WithHint("name the right server: pgbough source set NAME --source CONNSTR; if production was restored from a dump, delete the project and attach it anew")
	}
	return nil
}

// markSQL writes a transaction of its own whose commit is flushed, which flushes
// everything that was written to the WAL before it, whoever wrote it. The prefix
// is what logical decoding on production would see. (Postgres: xact.c,
// RecordTransactionCommit: a transaction with an id waits for its flush unless
// synchronous_commit is off.)
const markSQL = `SELECT pg_logical_emit_message(true, 'pgbough', '')`

// positionSQL has to run in a transaction after that of markSQL. The timeline is
// that of the WAL being written; pg_control_checkpoint would still tell the old one
// until the first checkpoint after a promotion.
const positionSQL = `SELECT r.standby,
	CASE WHEN NOT r.standby THEN pg_current_wal_flush_lsn() END,
	CASE WHEN NOT r.standby THEN pg_walfile_name(pg_current_wal_flush_lsn()) END,
	to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US'),
	(SELECT system_identifier FROM pg_control_system())
FROM (SELECT pg_is_in_recovery() AS standby OFFSET 0) r`

const settingsSQL = `SELECT name, coalesce(CASE WHEN source IN ('session', 'interactive') THEN reset_val ELSE setting END, ''),
	coalesce(unit, ''), category, context,
	CASE WHEN source NOT IN ('session', 'interactive') OR name = 'client_encoding' THEN source
	     WHEN reset_val IS DISTINCT FROM boot_val THEN 'configuration file' ELSE 'default' END,
	vartype, coalesce(boot_val, '') FROM pg_settings`

// ask sends everything in one round trip. Each Sync of the extended protocol ends
// a transaction, so the position is read after the mark has been committed.
func ask(ctx context.Context, pg *pgconn.PgConn, mark bool) (Moment, error) {
	statements := []string{positionSQL}
	if mark {
		statements = []string{markSQL, positionSQL, settingsSQL}
	}
	results, err := pipeline(ctx, pg, statements)
	if err != nil {
		return Moment{}, fmt.Errorf("ask production for its position: %w", err)
	}
	position := results[0]
	if mark {
		position = results[1]
	}
	// On a standby the mark fails too, but this says why.
	m, err := readPosition(position)
	if err != nil {
		return Moment{}, err
	}
	if mark {
		if err := results[0].Err; err != nil {
			return Moment{}, fmt.Errorf("write a marker into production's WAL: %w", err)
		}
		if m.Settings, err = readSettings(ctx, pg, results[2]); err != nil {
			return Moment{}, err
		}
	}
	return m, nil
}

// pipeline runs statements without parameters, each in its own transaction, in
// one round trip. An error of a statement is in its result.
func pipeline(ctx context.Context, pg *pgconn.PgConn, statements []string) ([]*pgconn.Result, error) {
	p := pg.StartPipeline(ctx)
	for _, sql := range statements {
		p.SendQueryParams(sql, nil, nil, nil, nil)
		p.SendPipelineSync()
	}
	if err := p.Flush(); err != nil {
		_ = p.Close() // the flush says why
		return nil, err
	}
	var results []*pgconn.Result
	for synced := 0; synced < len(statements); {
		got, err := p.GetResults()
		var refused *pgconn.PgError
		switch r := got.(type) {
		case *pgconn.ResultReader:
			results = append(results, r.Read())
		case *pgconn.PipelineSync:
			synced++
			if len(results) < synced {
				return nil, errors.Join(errors.New("production answered out of order"), p.Close())
			}
		default:
			if !errors.As(err, &refused) || refused.SeverityUnlocalized == "FATAL" {
				_ = p.Close() // err says why
				return nil, errors.Join(err, ctx.Err())
			}
			results = append(results, &pgconn.Result{Err: err})
		}
	}
	if err := p.Close(); err != nil {
		var refused *pgconn.PgError
		if !errors.As(err, &refused) { // those are in their results
			return nil, err
		}
	}
	return results, nil
}

func readPosition(r *pgconn.Result) (Moment, error) {
	if r.Err != nil {
		return Moment{}, fmt.Errorf("read production's position: %w", r.Err)
	}
	if len(r.Rows) != 1 || len(r.Rows[0]) != 5 {
		return Moment{}, errors.New("read production's position: unexpected answer")
	}
	row := r.Rows[0]
	if string(row[0]) == "t" {
		return Moment{}, ErrStandby
	}
	lsn, errLSN := pgbough.ParseLSN(string(row[1]))
	timeline, errTimeline := walFileTimeline(string(row[2]))
	at, errTime := time.Parse("2006-01-02T15:04:05.999999", string(row[3]))
	id, errID := systemID(string(row[4]))
	if err := errors.Join(errLSN, errTimeline, errTime, errID); err != nil {
		return Moment{}, fmt.Errorf("read production's position: %w", err)
	}
	return Moment{LSN: lsn, Time: at, SystemID: id, Timeline: timeline}, nil
}

// walFileTimeline is the timeline in the name of a WAL segment: its first eight
// hexadecimal digits.
func walFileTimeline(name string) (uint32, error) {
	if len(name) != 24 {
		return 0, fmt.Errorf("%q is no name of a WAL segment", name)
	}
	v, err := strconv.ParseUint(name[:8], 16, 32)
	if err != nil {
		return 0, fmt.Errorf("%q is no name of a WAL segment: %w", name, err)
	}
	return uint32(v), nil
}

// systemID reads the bigint that SQL shows of an unsigned number.
func systemID(s string) (uint64, error) {
	v, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is no system identifier: %w", s, err)
	}
	return uint64(v), nil
}
