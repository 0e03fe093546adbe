package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/pgbough/pgbough/internal/postgres"
	"github.com/pgbough/pgbough/internal/sandbox"
	"github.com/pgbough/pgbough/internal/volume"
	"github.com/pgbough/pgbough/internal/volume/storage"
)

// quiet is waited before each measured start, so that what came before is over.
const quiet = 2 * time.Second

// rig is one production with a server attached to it, and the controls.
type rig struct {
	options
	size    float64
	dir     string
	report  *report
	in      postgres.Installation
	prod    *production
	server  *server
	driver  volume.Driver
	sandbox *sandbox.Launcher
	root    string // the follower's volume
	onHost  *plain // bare, on the host's file system
	onPool  *plain // bare, on the pool's
	bulk    int64  // bytes of production's debt that are not of pgbench
	made    int    // branches
}

// measure runs all rows of one size and removes everything.
func measure(ctx context.Context, o options, size float64, r *report) (err error) {
	say("%s: setting up", gigabytes(size))
	g := &rig{options: o, size: size, report: r}
	defer func() { err = errors.Join(err, g.close()) }()
	if err := g.open(ctx); err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	var errs []error
	for _, m := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"create", g.create},
		{"burst", g.burst},
		{"arrivals", g.arrive},
		{"refill", g.refill},
		{"bytes", g.bytes},
		{"lag", g.lag},
		{"production", g.pays},
		{"pgbench", g.throughput},
		{"pools", g.pools},
		{"proxy", g.proxied},
		{"compare", g.compare},
		{"wake", g.wake},
		{"depth", g.depth},
		{"awake", g.awake},
		{"rest", g.rest},
	} {
		if !o.measures(m.name, size) {
			continue
		}
		say("%s: %s", gigabytes(size), m.name)
		if err := m.run(ctx); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", m.name, err))
		}
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(errs...)
}

func (g *rig) open(ctx context.Context) (err error) {
	if g.dir, err = os.MkdirTemp(g.options.dir, "bough"); err != nil {
		return err
	}
	// Every Postgres finds its way through it.
	if err := os.Chmod(g.dir, 0o711); err != nil {
		return err
	}
	if g.in, err = postgres.FindInstallation(ctx, 15); err != nil {
		return err
	}
	if g.prod, err = startProduction(ctx, g.in, g.path("p"), g.size); err != nil {
		return fmt.Errorf("production: %w", err)
	}
	if err := g.prod.run(g.rate); err != nil {
		return err
	}
	if g.server, err = startServer(ctx, g.options, g.path("b"), g.size); err != nil {
		return fmt.Errorf("server: %w", err)
	}
	began := time.Now()
	if _, err := g.server.cli(ctx, "attach", project, "--source", source(g.prod.port), "--role", app); err != nil {
		return err
	}
	g.report.note("attach of %s, until it streams and a spare is ready: %.1f s", gigabytes(g.size), time.Since(began).Seconds())
	if err := g.tools(ctx); err != nil {
		return err
	}
	debt := g.debt
	if !g.any("create", "burst", "arrivals", "refill", "bytes", "pgbench", "compare") {
		debt = 0 // nothing that is measured depends on it
	}
	say("  writing %d MB of WAL on production", debt>>20)
	began = time.Now()
	if g.bulk, err = g.prod.steady(ctx, debt); err != nil {
		return fmt.Errorf("production: %w", err)
	}
	g.report.note("%s: production's WAL since its checkpoint was written in %.0f s; %d MB of it are pgbench's updates of accounts in bulk", gigabytes(g.size), time.Since(began).Seconds(), g.bulk>>20)
	if err := g.server.spare(ctx); err != nil {
		return err
	}
	if !g.any("create", "burst", "arrivals", "pgbench", "pools", "proxy", "compare", "wake", "depth") {
		return nil
	}
	return g.controls(ctx)
}

// tools opens what the controls clone the follower with: the server's driver,
// and its way to hold a sandbox still.
func (g *rig) tools(ctx context.Context) (err error) {
	_, st, err := g.server.status(ctx)
	if err != nil {
		return err
	}
	if g.driver, err = storage.Driver(st.Pool.Kind); err != nil {
		return err
	}
	if g.root, err = g.server.root(ctx); err != nil {
		return err
	}
	g.sandbox, err = sandbox.New(sandbox.Options{Credential: postgres.Credential{UID: computes().uid, GID: computes().gid}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	m := &g.report.Machine
	m.Postgres, m.Pgbough = g.in.Version, st.Version
	m.Pool = st.Pool.Kind
	if st.Pool.Image != "" {
		m.Pool += " in an image file"
	}
	return errors.Join(os.Mkdir(g.poolPath(), 0o711), os.Chmod(filepath.Dir(g.poolPath()), 0o711))
}

// any tells whether one of the rows is measured at the rig's size.
func (g *rig) any(rows ...string) bool {
	return slices.ContainsFunc(rows, func(row string) bool { return g.measures(row, g.size) })
}

func (g *rig) path(name string) string { return filepath.Join(g.dir, name) }

// poolPath is a place of ours on the pool's file system.
func (g *rig) poolPath(names ...string) string {
	return filepath.Join(append([]string{filepath.Dir(filepath.Dir(g.root)), "bench"}, names...)...)
}

// cloneFollower clones the running follower and makes the clone startable as a
// primary.
func (g *rig) cloneFollower(ctx context.Context, to string) error {
	if err := g.cloneStandby(ctx, to); err != nil {
		return err
	}
	return os.Remove(filepath.Join(to, "standby.signal"))
}

// cloneStandby clones the running follower, held still meanwhile, and makes the
// clone startable.
func (g *rig) cloneStandby(ctx context.Context, to string) error {
	follower, ok, err := g.sandbox.Find(ctx, filepath.Base(g.root))
	if err != nil || !ok {
		return errors.Join(err, errors.New("the follower's Postgres is not found"))
	}
	if err := follower.Freeze(ctx); err != nil {
		return err
	}
	err = g.driver.Clone(ctx, filepath.Join(g.root, "data"), to)
	if err = errors.Join(err, follower.Thaw()); err != nil {
		return err
	}
	for _, name := range []string{"postmaster.pid", "postmaster.opts"} {
		if err := os.Remove(filepath.Join(to, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	slots, err := filepath.Glob(filepath.Join(to, "pg_replslot", "*"))
	for _, slot := range slots {
		err = errors.Join(err, os.RemoveAll(slot))
	}
	return err
}

// controls makes the two bare copies: a clone of the follower is recovered once
// and stopped, and copied to the host's file system. Their settings are those
// of a settled branch.
func (g *rig) controls(ctx context.Context) error {
	b, err := g.newBranch(ctx)
	if err != nil {
		return fmt.Errorf("first branch: %w", err)
	}
	if err := g.settled(ctx, b); err != nil {
		return err
	}
	settings, err := os.ReadFile(filepath.Join(g.server.runDir(b.volume), "etc", "postgresql.conf"))
	if err != nil {
		return err
	}
	if err := g.server.remove(ctx, b.name); err != nil {
		return err
	}
	say("  making the controls")
	data := g.poolPath("bare")
	if err := g.cloneFollower(ctx, data); err != nil {
		return fmt.Errorf("clone the follower: %w", err)
	}
	if g.onPool, err = newPlain(g.in, g.path("cp"), data, string(settings)); err != nil {
		return err
	}
	if _, err := g.onPool.start(ctx); err != nil {
		return fmt.Errorf("recover the control: %w", err)
	}
	if err := g.onPool.stop(); err != nil {
		return err
	}
	host := g.path("bare")
	if _, err := output(ctx, nil, nil, "cp", "-a", "--reflink=never", data, host); err != nil {
		return err
	}
	if g.onHost, err = newPlain(g.in, g.path("ch"), host, string(settings)); err != nil {
		return err
	}
	_, err = output(ctx, nil, nil, "sync")
	return err
}

// close removes everything; what it cannot remove it tells.
func (g *rig) close() error {
	say("%s: removing everything", gigabytes(g.size))
	var errs []error
	for _, p := range []*plain{g.onHost, g.onPool} {
		if p != nil && p.pg != nil {
			errs = append(errs, p.kill())
		}
	}
	if g.sandbox != nil {
		errs = append(errs, g.sandbox.Close())
	}
	if g.server != nil {
		errs = append(errs, g.server.stop())
	}
	if g.prod != nil {
		errs = append(errs, g.prod.stop())
	}
	if g.keep {
		say("kept: %s", g.dir)
	} else if g.dir != "" {
		errs = append(errs, os.RemoveAll(g.dir))
	}
	return errors.Join(errs...)
}
