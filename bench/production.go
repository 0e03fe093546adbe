package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbough/pgbough/internal/postgres"
)

const (
	database = "bench"
	app      = "app"
	secret   = "secret-of-the-bench" // of role follower, on loopback only
	// firstQuery is what every way to a branch has to answer.
	firstQuery = "SELECT abalance FROM pgbench_accounts WHERE aid = 4711"
	// perScale is what one unit of pgbench's scale takes with its index.
	perScale = 15_000_000
)

// production is the Postgres that is followed: durable (fsync and full page
// writes on), written to all the time.
type production struct {
	dir  string
	port int
	in   postgres.Installation
	pg   *daemon
	load *daemon
	conn *pgx.Conn // superuser, in database
}

// startProduction makes a cluster with size GB of pgbench's data.
func startProduction(ctx context.Context, in postgres.Installation, dir string, size float64) (_ *production, err error) {
	p := &production{dir: dir, in: in}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.stop())
		}
	}()
	for _, d := range []string{dir, p.socket()} {
		if err := errors.Join(os.Mkdir(d, 0o755), nobody().own(d)); err != nil {
			return p, err
		}
	}
	_, err = output(ctx, nobody(), nil, filepath.Join(in.BinDir, "initdb"), "-D", p.data(), "-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale", "C.UTF-8", "--data-checksums")
	if err != nil {
		return p, err
	}
	if p.port, err = freePort(); err != nil {
		return p, err
	}
	if err := p.configure(); err != nil {
		return p, err
	}
	if p.pg, err = launch(nobody(), filepath.Join(dir, "postgres.log"), filepath.Join(in.BinDir, "postgres"), "-D", p.data()); err != nil {
		return p, err
	}
	if err := p.ready(ctx); err != nil {
		return p, err
	}
	return p, p.fill(ctx, size)
}

func (p *production) data() string   { return filepath.Join(p.dir, "data") }
func (p *production) socket() string { return filepath.Join(p.dir, "s") }
func (p *production) tool(name string) string {
	return filepath.Join(p.in.BinDir, name)
}

// source is how pgbough reaches it at a port.
func source(port int) string {
	return fmt.Sprintf("host=127.0.0.1 port=%d user=follower password=%s dbname=%s", port, secret, database)
}

// configure lets it checkpoint often until steady is called, so that the base
// backup need not wait for an hour's spread checkpoint.
func (p *production) configure() error {
	lines := []string{
		"listen_addresses = '127.0.0.1'", fmt.Sprintf("port = %d", p.port), fmt.Sprintf("unix_socket_directories = '%s'", p.socket()),
		"fsync = on", "full_page_writes = on", "wal_level = replica", "max_wal_senders = 10", "max_slot_wal_keep_size = '24GB'",
		"shared_buffers = '256MB'", "checkpoint_timeout = '30s'", "log_checkpoints = on",
	}
	f, err := os.OpenFile(filepath.Join(p.data(), "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString("\n" + strings.Join(lines, "\n") + "\n")
	hba := "local all all trust\nlocal replication all trust\nhost all follower 127.0.0.1/32 scram-sha-256\nhost replication follower 127.0.0.1/32 scram-sha-256\n"
	return errors.Join(err, f.Close(), os.WriteFile(filepath.Join(p.data(), "pg_hba.conf"), []byte(hba), 0o600))
}

func (p *production) ready(ctx context.Context) error {
	return until(ctx, time.Minute, 20*time.Millisecond, "production accepts connections", func() (bool, error) {
		if !p.pg.running() {
			return false, fmt.Errorf("production ended: %s", p.pg.tail(5))
		}
		conn, err := connect(ctx, p.socket(), p.port, "postgres", "postgres")
		if err != nil {
			return false, nil
		}
		defer func() { _ = conn.Close(ctx) }()
		for _, sql := range []string{
			"CREATE ROLE follower LOGIN REPLICATION PASSWORD '" + secret + "'", "GRANT pg_read_all_settings TO follower",
			"CREATE ROLE " + app + " LOGIN", "CREATE DATABASE " + database + " OWNER " + app,
		} {
			if _, err := conn.Exec(ctx, sql); err != nil {
				return false, err
			}
		}
		p.conn, err = connect(ctx, p.socket(), p.port, "postgres", database)
		return true, err
	})
}

func (p *production) fill(ctx context.Context, size float64) error {
	scale := max(1, int(size*1e9/perScale+0.5))
	say("  filling production: pgbench scale %d", scale)
	_, err := p.pgbench(ctx, "-i", "-q", "-s", fmt.Sprint(scale))
	return err
}

// pgbench runs it to its end.
func (p *production) pgbench(ctx context.Context, args ...string) (string, error) {
	return output(ctx, nobody(), nil, p.tool("pgbench"), append(args, "-h", p.socket(), "-p", fmt.Sprint(p.port), "-U", app, database)...)
}

// run starts the load that goes on through all measurements.
func (p *production) run(rate int) (err error) {
	p.load, err = launch(nobody(), filepath.Join(p.dir, "load.log"), p.tool("pgbench"),
		"-n", "-c", "4", "-R", fmt.Sprint(rate), "-T", "864000", "-h", p.socket(), "-p", fmt.Sprint(p.port), "-U", app, database)
	return err
}

// steady checkpoints it for the last time and lets it write debt bytes of WAL.
// At small sizes pgbench alone would take long, since a page is logged whole
// only once after a checkpoint and then each transaction is small: then the rest
// is the same updates without the commits between them, a row of each page at a
// time. bulk is how much they wrote.
func (p *production) steady(ctx context.Context, debt int64) (bulk int64, err error) {
	for _, sql := range []string{"ALTER SYSTEM SET checkpoint_timeout = '1d'", "ALTER SYSTEM SET max_wal_size = '20GB'", "SELECT pg_reload_conf()", "CHECKPOINT"} {
		if _, err := p.conn.Exec(ctx, sql); err != nil {
			return 0, err
		}
	}
	const burst, slow = 5, 3 << 19 // seconds; bytes a second
	have, err := p.debt(ctx)
	for err == nil && have < debt {
		before := have
		if _, err := p.pgbench(ctx, "-n", "-c", "8", "-j", "2", "-T", fmt.Sprint(burst)); err != nil {
			return 0, err
		}
		if have, err = p.debt(ctx); have-before < burst*slow {
			break
		}
	}
	const rowsOfPage = 61 // of pgbench_accounts
	for i := 0; err == nil && have < debt; i++ {
		before := have
		if _, err = p.conn.Exec(ctx, "UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid % $1 = $2", rowsOfPage, i%rowsOfPage); err == nil {
			have, err = p.debt(ctx)
			bulk += have - before
		}
	}
	return bulk, err
}

// debt is the WAL since the redo point of its last checkpoint.
func (p *production) debt(ctx context.Context) (n int64, err error) {
	err = p.conn.QueryRow(ctx, "SELECT (pg_current_wal_insert_lsn() - redo_lsn)::bigint FROM pg_control_checkpoint()").Scan(&n)
	return n, err
}

// text asks for one value.
func (p *production) text(ctx context.Context, sql string) (v string, err error) {
	err = p.conn.QueryRow(ctx, "SELECT ("+sql+")::text").Scan(&v)
	return v, err
}

func (p *production) stop() error {
	var errs []error
	if p.load != nil {
		errs = append(errs, p.load.stop(syscall.SIGTERM, 10*time.Second))
	}
	if p.conn != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		_ = p.conn.Close(ctx) // its server ends next
		cancel()
	}
	if p.pg != nil {
		errs = append(errs, p.pg.stop(syscall.SIGQUIT, time.Minute))
	}
	return errors.Join(errs...)
}

// connect connects over a unix socket without a password.
func connect(ctx context.Context, socket string, port int, role, db string) (*pgx.Conn, error) {
	return pgx.Connect(ctx, fmt.Sprintf("host=%s port=%d user=%s dbname=%s sslmode=disable connect_timeout=10", socket, port, role, db))
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}
