package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/credential"
	"github.com/pgbough/pgbough/internal/pgproxy"
)

// behind is the plain Postgres as the only branch of a proxy.
type behind struct {
	login  pgbough.Login
	socket string
}

func (b behind) Login(context.Context, string, string) (pgbough.Login, error) { return b.login, nil }

func (b behind) Connect(ctx context.Context, _ string) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "unix", b.socket)
}

// endpoint is how pgbench names the branch.
const endpoint = "ep-bench"

// door is a way for pgbench to reach the plain Postgres.
type door struct {
	name, host string
	port       int
	env        []string
}

// proxied compares the ways to one Postgres, by turns: its own socket, through
// the proxy, and through PgBouncer. The proxy runs in this process, which does
// nothing else meanwhile. A PgBouncer in session mode keeps the server's
// connections and gives them to the next client; one with a server_lifetime of 0
// makes a new one for each client, as the proxy must: only that is the same work.
func (g *rig) proxied(ctx context.Context) (err error) {
	if _, err := g.onHost.start(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.onHost.stop()) }()
	password := credential.NewPassword()
	verifier, err := credential.NewSCRAM(password, credential.SCRAMIterations)
	if err != nil {
		return err
	}
	if err := g.admin(ctx, fmt.Sprintf("ALTER ROLE %s PASSWORD '%s'", app, verifier)); err != nil {
		return err
	}
	dir := g.path("proxy")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	port, stop, err := g.startProxy(ctx, dir, verifier)
	if err != nil {
		return fmt.Errorf("proxy: %w", err)
	}
	defer func() { err = errors.Join(err, stop()) }()
	env := []string{"PGPASSWORD=" + password, "PGSSLMODE=disable"}
	option := "PGOPTIONS=endpoint=" + endpoint
	doors := []door{
		{"the Postgres's own socket", g.onHost.socket(), plainPort, nil},
		{"proxy", "127.0.0.1", port, append(env, option)},
		{"proxy with TLS", "127.0.0.1", port, []string{env[0], "PGSSLMODE=require", option}},
	}
	for _, lifetime := range []string{"3600", "0"} {
		port, pool, perr := g.startPgBouncer(ctx, dir, lifetime, verifier)
		if pool != nil {
			defer func() { err = errors.Join(err, pool.stop(syscall.SIGTERM, time.Minute)) }()
		}
		if perr != nil {
			return fmt.Errorf("pgbouncer: %w", perr)
		}
		doors = append(doors, door{"PgBouncer", "127.0.0.1", port, env})
	}
	if err := g.proxyStatements(ctx, doors); err != nil {
		return err
	}
	return g.proxyConnections(ctx, doors)
}

func (g *rig) startProxy(ctx context.Context, dir, verifier string) (port int, stop func() error, err error) {
	key, err := credential.EnsureKey(filepath.Join(dir, "secret.key"))
	if err != nil {
		return 0, nil, err
	}
	decoys, err := key.Decoys()
	if err != nil {
		return 0, nil, err
	}
	ca, err := credential.EnsureCA(filepath.Join(dir, "ca.pem"))
	if err != nil {
		return 0, nil, err
	}
	log := slog.New(slog.DiscardHandler)
	certificates, err := credential.OwnCertificates(ca, log, "127.0.0.1")
	if err != nil {
		return 0, nil, err
	}
	p := pgproxy.New(pgproxy.Options{
		Service: behind{
			pgbough.Login{BranchID: endpoint, Role: app, Major: g.in.Major, Verifier: verifier},
			filepath.Join(g.onHost.socket(), fmt.Sprintf(".s.PGSQL.%d", plainPort)),
		},
		Decoys: decoys, Log: log, TLS: certificates,
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- p.Serve(ctx, l) }()
	return l.Addr().(*net.TCPAddr).Port, func() error { cancel(); return <-done }, nil
}

func (g *rig) startPgBouncer(ctx context.Context, dir, lifetime, verifier string) (port int, _ *daemon, err error) {
	if port, err = freePort(); err != nil {
		return 0, nil, err
	}
	file := func(name string) string { return filepath.Join(dir, "pgbouncer-"+lifetime+"."+name) }
	conf := strings.Join([]string{
		"[databases]", fmt.Sprintf("%s = host=%s port=%d", database, g.onHost.socket(), plainPort),
		"[pgbouncer]", "listen_addr = 127.0.0.1", fmt.Sprintf("listen_port = %d", port), "unix_socket_dir =", "pool_mode = session",
		"auth_type = scram-sha-256", "auth_file = " + file("users"), "server_lifetime = " + lifetime, "default_pool_size = 50", "",
	}, "\n")
	err = errors.Join(os.WriteFile(file("ini"), []byte(conf), 0o644), os.WriteFile(file("users"), fmt.Appendf(nil, "%q %q\n", app, verifier), 0o644))
	if err != nil {
		return 0, nil, err
	}
	pool, err := launch(nobody(), file("log"), "/usr/sbin/pgbouncer", file("ini"))
	if err != nil {
		return 0, nil, err
	}
	err = until(ctx, time.Minute, 10*time.Millisecond, "PgBouncer listens", func() (bool, error) {
		if !pool.running() {
			return false, fmt.Errorf("it ended: %s", pool.tail(5))
		}
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			return false, nil
		}
		return true, conn.Close()
	})
	return port, pool, err
}

// proxyClients is the number of pgbench's clients.
const proxyClients = 8

// through runs pgbench through each door, by turns.
func (g *rig) through(ctx context.Context, doors []door, args ...string) ([]sample, error) {
	found := make([]sample, len(doors))
	for range g.repeats {
		for i, d := range doors {
			tps, err := g.pgbench(ctx, d, args...)
			if err != nil {
				return nil, fmt.Errorf("through %s: %w", d.name, err)
			}
			found[i] = append(found[i], tps)
		}
	}
	return found, nil
}

func (g *rig) proxyStatements(ctx context.Context, doors []door) error {
	found, err := g.through(ctx, doors[:4], "-S")
	if err != nil {
		return err
	}
	what := fmt.Sprintf("pgbench -S, %d clients, through the proxy", proxyClients)
	g.report.add(
		newRow("proxy_socket", what, g.size, unitTPS, found[1]).against(doors[0].name, found[0].median()).
			barred(bar{Text: ">= 0.85", Limit: 0.85, Least: true, Of: "ratio"}),
		newRow("proxy_pgbouncer", what, g.size, unitTPS, found[1]).against("PgBouncer, session mode", found[3].median()).
			barred(bar{Text: ">= 1.0", Limit: 1, Least: true, Of: "ratio"}).
			noted("PgBouncer against %s: %.2f", doors[0].name, found[3].median()/found[0].median()),
		newRow("proxy_tls", what+" with TLS", g.size, unitTPS, found[2]).against("without TLS", found[1].median()),
	)
	return nil
}

func (g *rig) proxyConnections(ctx context.Context, doors []door) error {
	found, err := g.through(ctx, doors, "-S", "-C")
	if err != nil {
		return err
	}
	g.report.add(newRow("proxy_connections", "new connections/s with SCRAM, through the proxy", g.size, unitTPS, found[1]).
		against("PgBouncer, a backend for each", found[4].median()).
		barred(bar{Text: ">= 1.0", Limit: 1, Least: true, Of: "ratio"}).
		noted("%.0f with TLS; PgBouncer that gives backends to the next client: %.0f; the Postgres's own socket, without a password: %.0f",
			found[2].median(), found[3].median(), found[0].median()))
	return nil
}
