package source

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbough/pgbough"
)

// ApplicationName is what production sees of us in pg_stat_activity and
// pg_stat_replication, and what synchronous_standby_names would have to match.
const ApplicationName = "pgbough"

// DefaultTimeout is how long production may take to answer one question,
// connecting included.
const DefaultTimeout = 5 * time.Second

// Conditions of production under which it cannot be asked, although it answers.
// They are found with errors.Is in the errors of Source's methods.
var (
	// ErrStandby: the server is in recovery, so it is not (or no longer) the primary.
	ErrStandby = errors.New("the server is a standby")
	// ErrOtherSystem: the server has another system identifier than the one we follow.
	ErrOtherSystem = errors.New("the server is another database cluster")
	// ErrClosed: the Source was closed.
	ErrClosed = errors.New("the connection to production is closed for good")
)

// Config of a Source.
type Config struct {
	ConnString      string // libpq form or URI, with its password
	ApplicationName string // ApplicationName when empty
	// SystemID is the only cluster that may answer; 0 takes any.
	SystemID uint64
	Timeout  time.Duration // of one question; DefaultTimeout when 0
	Log      *slog.Logger
}

// Source asks one production over at most one ordinary connection, which is
// made when it is first needed and made anew when it is lost. Between questions
// the connection holds no transaction, snapshot or lock. Methods are safe for
// concurrent use; questions go one after the other.
type Source struct {
	log      *slog.Logger
	app      string
	systemID uint64
	timeout  time.Duration

	ctx    context.Context //nolint:containedctx // the lifetime of the Source: Close ends it
	cancel context.CancelFunc
	wg     sync.WaitGroup // flights

	turn chan struct{} // holds one token; who has it may use conn
	conn *session

	mu     sync.Mutex // guards what follows
	config *pgconn.Config
	closed bool
	next   *flight // a Now that nobody has sent yet; later callers may still share it
}

// session is one connection with what is known of it.
type session struct {
	pg       *pgconn.PgConn
	config   *pgconn.Config // it was made with
	lastUsed time.Time
}

// Open makes a Source. It does not connect.
func Open(c Config) (*Source, error) {
	if c.ApplicationName == "" {
		c.ApplicationName = ApplicationName
	}
	if c.Timeout == 0 {
		c.Timeout = DefaultTimeout
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	config, err := parseConfig(c.ConnString, c.ApplicationName)
	if err != nil {
		return nil, err
	}
	s := &Source{
		log: c.Log, app: c.ApplicationName, systemID: c.SystemID, timeout: c.Timeout,
		turn: make(chan struct{}, 1), config: config,
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.turn <- struct{}{}
	return s, nil
}

// SetConnString makes the next question go to where connString says. A question
// that is under way still gets its answer from the old place.
func (s *Source) SetConnString(connString string) error {
	config, err := parseConfig(connString, s.app)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.config = config
	return nil
}

// Address tells where production is, without secrets: "role@host:port/database".
func (s *Source) Address() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return address(s.config)
}

// Close ends the questions under way and closes the connection.
func (s *Source) Close() error {
	s.mu.Lock()
	again := s.closed
	s.closed = true
	s.mu.Unlock()
	if again {
		return nil
	}
	s.cancel()
	s.wg.Wait()
	<-s.turn // for good: whoever waits for it sees ctx instead
	s.drop()
	return nil
}

// parseConfig reads a connection string into the configuration of our
// connection. The error never shows the string.
func parseConfig(connString, app string) (*pgconn.Config, error) {
	config, err := pgconn.ParseConfig(connString)
	if err != nil {
		// pgconn masks passwords in its text on a best-effort basis only, so neither it nor err is kept.
		return nil, pgbough.Errorf(pgbough.EInvalid, "the connection string of production cannot be read").
			WithHint(`want "host=... port=5432 user=... password=... dbname=..." or postgresql://user:password@host:5432/database (encode special characters in the password, like %%40 for @)`)
	}
	// What else the string or the environment sets for the session (PGTZ, PGOPTIONS' own variables) would stand in for
	// production's own values in pg_settings. A pooler may need its options, and Moment knows their source.
	params := map[string]string{"application_name": app}
	if options := config.RuntimeParams["options"]; options != "" {
		params["options"] = options
	}
	config.RuntimeParams = params
	// Firewalls forget idle connections, often after some minutes; keepalives keep them open and find dead peers.
	dialer := &net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 3}}
	config.DialFunc = dialer.DialContext
	return config, nil
}

// address is where a connection goes, without secrets.
func address(c *pgconn.Config) string {
	return c.User + "@" + hostPort(c) + "/" + c.Database
}

func hostPort(c *pgconn.Config) string {
	return net.JoinHostPort(c.Host, strconv.Itoa(int(c.Port)))
}

// do gives f the connection for at most the Source's timeout. A connection that
// turns out to be broken is replaced once; so f may run twice.
func (s *Source) do(ctx context.Context, f func(context.Context, *pgconn.PgConn) error) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	stop := context.AfterFunc(s.ctx, cancel)
	defer stop()
	select {
	case <-s.turn:
	case <-ctx.Done():
		if s.ctx.Err() != nil {
			return unreachable(s.currentConfig(), ErrClosed)
		}
		return unreachable(s.currentConfig(), context.Cause(ctx))
	}
	defer func() { s.turn <- struct{}{} }()
	return s.attempt(ctx, f)
}

func (s *Source) currentConfig() *pgconn.Config {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.config
}

// attempt runs f on the connection at hand and, when that is lost, on a new one.
// The caller has the turn.
func (s *Source) attempt(ctx context.Context, f func(context.Context, *pgconn.PgConn) error) error {
	config := s.currentConfig()
	if s.conn != nil && (s.conn.config != config || s.conn.pg.IsClosed()) {
		s.drop()
	}
	if s.conn != nil {
		// A firewall may have forgotten the connection, which looks like silence: keep most of the time for a new one.
		short, cancel := context.WithTimeout(ctx, s.timeout/3)
		err := s.use(short, f)
		cancel()
		if err == nil || s.conn != nil || ctx.Err() != nil {
			return asUnreachable(config, err)
		}
		s.log.InfoContext(ctx, "connection to production lost; connecting again", "source", address(config), "reason", reason(config, err))
	}
	if err := s.connect(ctx, config); err != nil {
		return unreachable(config, err)
	}
	return asUnreachable(config, s.use(ctx, f))
}

// use runs f on the connection and forgets the connection unless it is idle and
// outside any transaction afterwards.
func (s *Source) use(ctx context.Context, f func(context.Context, *pgconn.PgConn) error) error {
	err := f(ctx, s.conn.pg)
	if s.conn.pg.IsClosed() || s.conn.pg.IsBusy() || s.conn.pg.TxStatus() != 'I' || ctx.Err() != nil {
		s.drop()
		return err
	}
	s.conn.lastUsed = time.Now()
	return err
}

// sessionSettings are what our sessions set for themselves. They are set and not
// sent with the startup packet, so that pg_settings.reset_val stays production's
// own value. An acknowledged commit is on production's disk, and does not wait
// for its synchronous standbys; idle connections are not ended; nothing waits.
const sessionSettings = `SET synchronous_commit = 'local'; SET statement_timeout = '10s'; SET lock_timeout = '2s';
SET idle_in_transaction_session_timeout = '10s'; SET search_path = 'pg_catalog'; SET client_encoding = 'UTF8';
SET DateStyle = 'ISO'; SET TimeZone = 'UTC'; SET bytea_output = 'hex'; SET extra_float_digits = 1;
SELECT set_config(name, '0', false) FROM pg_settings WHERE name = 'idle_session_timeout'`

func (s *Source) connect(ctx context.Context, config *pgconn.Config) error {
	pg, err := pgconn.ConnectConfig(ctx, config)
	if err != nil {
		return err
	}
	if _, err := pg.Exec(ctx, sessionSettings).ReadAll(); err != nil {
		discard(pg)
		return err
	}
	s.conn = &session{pg: pg, config: config, lastUsed: time.Now()}
	s.log.DebugContext(ctx, "connected to production", "source", address(config), "backend_pid", pg.PID())
	return nil
}

// drop closes the connection without waiting for its peer.
func (s *Source) drop() {
	if s.conn != nil {
		discard(s.conn.pg)
		s.conn = nil
	}
}

// discard closes a connection at once. Close would otherwise wait for a peer
// that does not take our goodbye.
func discard(pg *pgconn.PgConn) {
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	_ = pg.Close(ctx) // it is given up either way
	_ = pg.Conn().Close()
}
