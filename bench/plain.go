package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbough/pgbough/internal/postgres"
)

// plain is a Postgres as anybody would run it: exec of postgres as an
// unprivileged user, without a sandbox, listening on a unix socket only.
type plain struct {
	in   postgres.Installation
	dir  string // its configuration, socket and log
	data string // PGDATA
	pg   *daemon
}

const plainPort = 5432 // part of its socket's name

// newPlain gives the data directory data the settings of a configuration file.
func newPlain(in postgres.Installation, dir, data, settings string) (*plain, error) {
	p := &plain{in: in, dir: dir, data: data}
	if err := errors.Join(os.Mkdir(dir, 0o755), os.Mkdir(p.socket(), 0o755), computes().own(p.socket())); err != nil {
		return nil, err
	}
	return p, p.configure(settings)
}

// ownSettings matches what of a branch's or a spare's settings belongs to its
// place, which a plain Postgres does not have.
var ownSettings = regexp.MustCompile(`(?m)^(primary_conninfo|primary_slot_name|recovery_target_timeline|local_preload_libraries) = .*\n`)

func (p *plain) configure(settings string) error {
	return errors.Join(
		os.WriteFile(filepath.Join(p.dir, "postgresql.conf"), []byte(ownSettings.ReplaceAllString(settings, "")), 0o644),
		os.WriteFile(filepath.Join(p.dir, "pg_hba.conf"), []byte("local all all trust\n"), 0o644),
		os.WriteFile(filepath.Join(p.dir, "pg_ident.conf"), nil, 0o644),
	)
}

// follow lets it stream from a production, with the rest of its settings as they are.
func (p *plain) follow(from *production) error {
	f, err := os.OpenFile(filepath.Join(p.dir, "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "primary_conninfo = 'host=%s port=%d user=postgres'\n", from.socket(), from.port)
	return errors.Join(err, f.Close())
}

func (p *plain) socket() string { return filepath.Join(p.dir, "s") }

// start starts it and returns how long it took from the exec to the answer of
// the first query.
func (p *plain) start(ctx context.Context) (time.Duration, error) {
	began := time.Now()
	if err := p.exec(); err != nil {
		return 0, err
	}
	err := p.answers(ctx)
	return time.Since(began), err
}

func (p *plain) exec() (err error) {
	conf := func(name, file string) string { return name + "=" + filepath.Join(p.dir, file) }
	p.pg, err = launch(computes(), filepath.Join(p.dir, "postgres.log"), filepath.Join(p.in.BinDir, "postgres"), "-D", p.data,
		"-c", conf("config_file", "postgresql.conf"), "-c", conf("hba_file", "pg_hba.conf"), "-c", conf("ident_file", "pg_ident.conf"),
		"-c", "unix_socket_directories="+p.socket(), "-c", fmt.Sprintf("port=%d", plainPort), "-c", "listen_addresses=")
	return err
}

// answers waits for the first answered query.
func (p *plain) answers(ctx context.Context) error {
	return until(ctx, 10*time.Minute, time.Millisecond, "Postgres answers", func() (bool, error) {
		if !p.pg.running() {
			return false, fmt.Errorf("postgres ended: %s", p.pg.tail(5))
		}
		conn, err := connect(ctx, p.socket(), plainPort, app, database)
		if err != nil {
			return false, nil
		}
		defer func() { _ = conn.Close(ctx) }() // it has answered
		return true, query(ctx, conn)
	})
}

// query asks the first query.
func query(ctx context.Context, conn *pgx.Conn) error {
	var balance int
	if err := conn.QueryRow(ctx, firstQuery).Scan(&balance); err != nil {
		return fmt.Errorf("first query: %w", err)
	}
	return nil
}

// super connects as the superuser.
func (p *plain) super(ctx context.Context, db string) (*pgx.Conn, error) {
	return connect(ctx, p.socket(), plainPort, "postgres", db)
}

// stop shuts it down cleanly, kill as a crash would.
func (p *plain) stop() error { return p.pg.stop(syscall.SIGINT, 2*time.Minute) }
func (p *plain) kill() error { return p.pg.stop(syscall.SIGQUIT, time.Minute) }
