package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
)

// side is a Postgres that pgbench runs against.
type side struct {
	name, socket string
}

var tpsLine = regexp.MustCompile(`(?m)^tps = ([0-9.]+) `)

// throughput compares pgbench on branches with a plain Postgres on the host's
// file system with the same settings, by turns.
func (g *rig) throughput(ctx context.Context) (err error) {
	var b made
	var sides []side
	first := make([]sample, 2)
	for i := range g.repeats {
		if i > 0 {
			err = g.server.remove(ctx, b.name)
		}
		if err = errors.Join(err, g.server.spare(ctx)); err != nil {
			return err
		}
		if b, err = g.newBranch(ctx); err != nil {
			return err
		}
		if err := errors.Join(g.settled(ctx, b), g.server.spare(ctx)); err != nil {
			return err
		}
		if i == 0 {
			if err := g.startLike(ctx, b); err != nil {
				return err
			}
			defer func() { err = errors.Join(err, g.onHost.stop()) }()
		}
		sides = []side{{"branch", filepath.Join(g.server.runDir(b.volume), "socket")}, {"plain", g.onHost.socket()}}
		if err := g.firstTouch(ctx, sides, first); err != nil {
			return err
		}
	}
	g.report.add(newRow("pgbench_first", "pgbench -N first touch, 4 clients, on a branch", g.size, unitTPS, first[0]).against("plain Postgres", first[1].median()))
	for _, kind := range []struct {
		flag, measure string
		least         float64
	}{{"-S", "pgbench -S warm", 0.95}, {"-N", "pgbench -N steady", 0.85}} {
		for _, clients := range []int{4, 16} {
			found, err := g.turns(ctx, sides, kind.flag, clients)
			if err != nil {
				return err
			}
			g.report.add(newRow(fmt.Sprintf("pgbench%s_%d", kind.flag, clients), fmt.Sprintf("%s, %d clients, on a branch", kind.measure, clients), g.size, unitTPS, found[0]).
				against("plain Postgres", found[1].median()).
				barred(bar{Text: fmt.Sprintf(">= %.2f", kind.least), Limit: kind.least, Least: true, Of: "ratio"}))
		}
	}
	return g.server.remove(ctx, b.name)
}

// startLike starts the plain Postgres on the host with the settings of a branch.
func (g *rig) startLike(ctx context.Context, b made) error {
	settings, err := os.ReadFile(filepath.Join(g.server.runDir(b.volume), "etc", "postgresql.conf"))
	if err != nil {
		return err
	}
	if err := g.onHost.configure(string(settings)); err != nil {
		return err
	}
	_, err = g.onHost.start(ctx)
	return err
}

// turns runs pgbench on all sides by turns.
func (g *rig) turns(ctx context.Context, sides []side, flag string, clients int) ([]sample, error) {
	found := make([]sample, len(sides))
	for range g.repeats {
		for i, s := range sides {
			tps, err := g.tps(ctx, s, flag, clients)
			if err != nil {
				return nil, err
			}
			found[i] = append(found[i], tps)
		}
	}
	return found, nil
}

// firstTouch warms each side and measures its first writing: on a branch the
// pages are still shared with its parent.
func (g *rig) firstTouch(ctx context.Context, sides []side, found []sample) error {
	for i, s := range sides {
		conn, err := connect(ctx, s.socket, plainPort, "postgres", database)
		if err != nil {
			return err
		}
		for _, sql := range []string{"SELECT count(*) FROM pgbench_accounts", "SELECT count(abalance) FROM (SELECT abalance FROM pgbench_accounts ORDER BY aid) a", "CHECKPOINT"} {
			if _, err := conn.Exec(ctx, sql); err != nil {
				return errors.Join(err, conn.Close(ctx))
			}
		}
		if err := conn.Close(ctx); err != nil {
			return err
		}
		tps, err := g.tps(ctx, s, "-N", 4)
		if err != nil {
			return err
		}
		found[i] = append(found[i], tps)
	}
	return nil
}

// tps runs pgbench once on a Postgres's own socket.
func (g *rig) tps(ctx context.Context, s side, kind string, clients int) (float64, error) {
	tps, err := g.pgbench(ctx, door{s.name, s.socket, plainPort, nil}, kind, "-c", strconv.Itoa(clients))
	if err != nil {
		return 0, fmt.Errorf("on the %s: %w", s.name, err)
	}
	return tps, nil
}

// pgbench runs it once, with proxyClients clients if args do not say otherwise.
func (g *rig) pgbench(ctx context.Context, d door, args ...string) (float64, error) {
	args = append([]string{
		"-n", "-c", strconv.Itoa(proxyClients), "-j", "2", "-T", fmt.Sprintf("%.0f", g.slice.Seconds()),
		"-h", d.host, "-p", strconv.Itoa(d.port), "-U", app,
	}, args...)
	out, err := output(ctx, nil, d.env, g.prod.tool("pgbench"), append(args, database)...)
	if err != nil {
		return 0, err
	}
	m := tpsLine.FindStringSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("pgbench printed no tps: %s", last(out, 3))
	}
	return strconv.ParseFloat(m[1], 64)
}
