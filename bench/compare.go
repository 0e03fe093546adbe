package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

// compare measures what people use instead of branches, each until its first
// answered query, and how many times as long as a create that takes.
func (g *rig) compare(ctx context.Context) error {
	create, ok := g.report.find("create", g.size)
	if !ok {
		var s sample
		if err := g.server.spare(ctx); err != nil {
			return err
		}
		b, err := g.newBranch(ctx)
		if err != nil {
			return err
		}
		s.add(b.total)
		create = newRow("create", "", g.size, unitMS, s)
		if err := g.server.remove(ctx, b.name); err != nil {
			return err
		}
	}
	if err := g.server.spare(ctx); err != nil {
		return err
	}
	for _, way := range []struct {
		key, measure string
		run          func(context.Context) (time.Duration, error)
		note         string
	}{
		{"instead_template", "instead: CREATE DATABASE ... TEMPLATE", g.template("wal_log"), "on a quiet copy: the template may have no connections"},
		{"instead_template_copy", "instead: the same with STRATEGY file_copy", g.template("file_copy"), "on a quiet copy"},
		{"instead_dump", "instead: pg_dump | pg_restore, both -j 2", g.dump, "into a server that runs already"},
		{"instead_basebackup", "instead: pg_basebackup and start", g.basebackup, "with an immediate checkpoint"},
	} {
		took, err := way.run(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", way.measure, err)
		}
		var s sample
		s.add(took)
		r := newRow(way.key, way.measure, g.size, unitMS, s).against("create now", float64(create.P50))
		g.report.add(r.noted("%.1f times a create; %s", float64(r.Ratio), way.note))
	}
	return nil
}

// restored is the database that a way makes.
const restored = "restored"

// onPlain runs f while the plain Postgres on the host runs, and asks the
// database that it made the first query.
func (g *rig) onPlain(ctx context.Context, f func() error) (took time.Duration, err error) {
	if _, err := g.onHost.start(ctx); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, g.onHost.stop()) }()
	began := time.Now()
	if err := f(); err != nil {
		return 0, err
	}
	conn, err := g.onHost.super(ctx, restored)
	if err != nil {
		return 0, err
	}
	err = query(ctx, conn)
	took = time.Since(began)
	return took, errors.Join(err, conn.Close(ctx), g.admin(ctx, "DROP DATABASE "+restored))
}

// admin runs a statement on the plain Postgres on the host.
func (g *rig) admin(ctx context.Context, sql string) error {
	conn, err := g.onHost.super(ctx, "postgres")
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, sql)
	return errors.Join(err, conn.Close(ctx))
}

func (g *rig) template(strategy string) func(context.Context) (time.Duration, error) {
	return func(ctx context.Context) (time.Duration, error) {
		return g.onPlain(ctx, func() error {
			return g.admin(ctx, fmt.Sprintf("CREATE DATABASE %s TEMPLATE %s STRATEGY %s", restored, database, strategy))
		})
	}
}

func (g *rig) dump(ctx context.Context) (time.Duration, error) {
	dir := g.path("dump")
	took, err := g.onPlain(ctx, func() error {
		if err := g.admin(ctx, "CREATE DATABASE "+restored); err != nil {
			return err
		}
		// A directory, since only that can be written and read by two jobs.
		_, err := output(ctx, nil, nil, g.prod.tool("pg_dump"), "-Fd", "-j", "2", "-f", dir, "-h", g.prod.socket(), "-p", fmt.Sprint(g.prod.port), "-U", "postgres", database)
		if err != nil {
			return err
		}
		_, err = output(ctx, nil, nil, g.prod.tool("pg_restore"), "-j", "2", "-d", restored, "-h", g.onHost.socket(), "-p", fmt.Sprint(plainPort), "-U", "postgres", dir)
		return err
	})
	return took, errors.Join(err, os.RemoveAll(dir))
}

func (g *rig) basebackup(ctx context.Context) (took time.Duration, err error) {
	data := g.path("backup")
	conf, err := os.ReadFile(g.onHost.dir + "/postgresql.conf")
	if err != nil {
		return 0, err
	}
	p, err := newPlain(g.in, g.path("cb"), data, string(conf))
	if err != nil {
		return 0, err
	}
	if err := errors.Join(os.Mkdir(data, 0o700), computes().own(data)); err != nil {
		return 0, err
	}
	began := time.Now()
	_, err = output(ctx, computes(), []string{"PGPASSWORD=" + secret}, g.prod.tool("pg_basebackup"), "-D", data, "-c", "fast", "-X", "stream",
		"-h", "127.0.0.1", "-p", fmt.Sprint(g.prod.port), "-U", "follower")
	if err != nil {
		return 0, err
	}
	_, err = p.start(ctx)
	took = time.Since(began)
	return took, errors.Join(err, p.kill(), os.RemoveAll(data), os.RemoveAll(p.dir))
}
