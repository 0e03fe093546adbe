package source

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/postgres"
)

// CheckOptions say what would be attached, and how.
type CheckOptions struct {
	ConnString string // with its password
	// Database and Role are what the connection URIs of branches shall name; empty leaves them out.
	Database, Role string
	SlotName       string // the slot we would make; empty when it is not known yet
	// AcceptUnlimitedSlot lets a slot be without max_slot_wal_keep_size.
	AcceptUnlimitedSlot bool
	RestoreCommand      string // reads production's WAL archive; then no slot is needed
	PoolFree            *int64 // bytes free in the pool beyond its reserve; nil when not known
	PoolCopies          bool   // the pool cannot clone: a spare takes as much again as the data
	Spare               int64  // bytes that a spare takes beside what it is cloned from
	Timeout             time.Duration
	Log                 *slog.Logger
}

// checkTimeout bounds a whole Check, connectTimeout one connection of it.
const (
	checkTimeout   = 9 * time.Second
	connectTimeout = 4 * time.Second
)

// Report is what Check found.
type Report struct {
	Findings []pgbough.Finding
	// Code tells why nothing could be looked at: EInvalid for a connection string that cannot be read, EUnreachable
	// where nobody answers; empty when production answered, also when it refused us.
	Code  pgbough.Code
	Facts Facts
}

// OK tells whether nothing keeps attach from going on.
func (r Report) OK() bool {
	for _, f := range r.Findings {
		if f.Status == pgbough.FindingFail {
			return false
		}
	}
	return true
}

// Facts are what Check learned of production. What could not be learned is zero.
type Facts struct {
	SystemID            uint64
	Version             string // "15.18"
	Major, Minor        int
	Timeline            uint32
	DataBytes           int64 // of all databases that the role may measure
	BootstrapSuperuser  string
	Encoding            string // of the database connected to
	DataChecksums       bool
	WALSegmentSize      int64 // bytes
	Databases           []Database
	Extensions          []Extension
	Settings            []postgres.Setting
	Installation        postgres.Installation // that would run branches; zero without one
	LibcVersion         string                // production's glibc, "2.36"; empty when it does not tell
	MachineLibcVersion  string                // this machine's
	SynchronousStandbys string
}

// Database is one database of production.
type Database struct {
	Name, Owner, Encoding string
	Collate, CType        string // libc locales
	Provider              string // "libc", "icu" or "builtin"
	Locale                string // the ICU or builtin locale
	CollVersion           string // recorded when it was made (Postgres 15 and newer)
	ActualVersion         string // of the library production runs now
	Connectable           bool   // datallowconn, and the role may CONNECT
	Template              bool
	Bytes                 int64 // -1 when the role may not measure it
}

// Extension is one extension in one database of production.
type Extension struct{ Database, Name, Version string }

// Check looks whether production can be followed from this machine. It changes
// nothing, uses at most two connections at a time, and takes less than ten
// seconds. Its findings are in the order in which a person would mend them; when
// an early one makes the rest unknowable, the rest is left out.
func Check(ctx context.Context, o CheckOptions) Report {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Timeout == 0 {
		o.Timeout = checkTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	c := &checker{o: o}
	began := time.Now()
	c.run(ctx)
	o.Log.DebugContext(ctx, "production checked", "findings", len(c.report.Findings), "ok", c.report.OK(), "duration", time.Since(began))
	return c.report
}

// checker is one run of Check.
type checker struct {
	o      CheckOptions
	config *pgconn.Config
	pg     *pgconn.PgConn
	local  string // our address of the ordinary connection, as far as this machine knows
	facts  serverFacts
	// refusal is why no replication connection came about, once one was tried.
	tried   bool
	refusal error
	set     map[string]postgres.Setting
	machine machine      // empty without an Installation
	depends []dependency // collations that something uses
	report  Report
}

func (c *checker) run(ctx context.Context) {
	config, err := parseConfig(c.o.ConnString, ApplicationName)
	if err != nil {
		c.fail("connection", err.Error(), "")
		c.report.Code = pgbough.EInvalid
		return
	}
	c.config = config
	if !c.connect(ctx) {
		return
	}
	defer func() { discard(c.pg) }()
	if err := c.learn(ctx); err != nil {
		t := diagnose(config, err, false)
		c.fail("server", t.reason, t.fix)
		return
	}
	c.checkServer()
	c.checkManaged(ctx)
	c.checkRole()
	c.checkReplication(ctx)
	c.checkNames()
	c.checkWAL()
	c.checkSlots(ctx)
	c.checkSync()
	c.checkMachine(ctx)
	c.checkDatabases(ctx)
	c.checkCollations(ctx)
	c.checkTablespaces()
	c.checkPool()
	c.checkNotes()
}

// connect opens the ordinary connection.
func (c *checker) connect(ctx context.Context) bool {
	pg, err := c.dial(ctx, c.config)
	if err != nil {
		t := diagnose(c.config, err, false)
		c.fail("connection", t.reason, t.fix)
		if refused := (*pgconn.PgError)(nil); !errors.As(err, &refused) {
			c.report.Code = pgbough.EUnreachable
		}
		return false
	}
	c.pg = pg
	if tcp, ok := pg.Conn().LocalAddr().(*net.TCPAddr); ok {
		c.local = tcp.IP.String()
	}
	c.ok("connection", "connected to %s", address(c.config))
	return true
}

// readOnly makes a session of Check unable to change anything, or to wait.
const readOnly = `SET default_transaction_read_only = on; SET statement_timeout = '3s'; SET lock_timeout = '500ms';
SET search_path = 'pg_catalog'; SET client_encoding = 'UTF8'; SET DateStyle = 'ISO'; SET TimeZone = 'UTC'; SET bytea_output = 'hex'`

func (c *checker) dial(ctx context.Context, config *pgconn.Config) (*pgconn.PgConn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	pg, err := pgconn.ConnectConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	if _, err := pg.Exec(ctx, readOnly).ReadAll(); err != nil {
		discard(pg)
		return nil, err
	}
	return pg, nil
}

// query runs one statement and returns its rows; NULL is nil.
func query(ctx context.Context, pg *pgconn.PgConn, sql string, args ...string) ([][][]byte, error) {
	params := make([][]byte, len(args))
	for i, a := range args {
		params[i] = []byte(a)
	}
	r := pg.ExecParams(ctx, sql, params, nil, nil, nil).Read()
	return r.Rows, r.Err
}

func (c *checker) add(status pgbough.FindingStatus, name, detail, fix string) {
	c.report.Findings = append(c.report.Findings, pgbough.Finding{Name: name, Status: status, Detail: detail, Fix: fix})
}

func (c *checker) ok(name, format string, args ...any) {
	c.add(pgbough.FindingOK, name, fmt.Sprintf(format, args...), "")
}
func (c *checker) fail(name, detail, fix string) { c.add(pgbough.FindingFail, name, detail, fix) }
func (c *checker) warn(name, detail, fix string) { c.add(pgbough.FindingWarn, name, detail, fix) }
func (c *checker) skip(name, detail string)      { c.add(pgbough.FindingSkip, name, detail, "") }

// setting is production's value, empty when it is hidden from the role.
func (c *checker) setting(name string) string { return c.set[name].Value }
