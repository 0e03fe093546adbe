package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// deepest is how many clones of clones the chain has.
const deepest = 8

// depth measures whether a clone of a clone is slower the deeper it is: a chain
// of them, each written to before the next is made, against a single clone with as
// many writes.
func (g *rig) depth(ctx context.Context) (err error) {
	if err := g.server.spare(ctx); err != nil {
		return err
	}
	link := func(i int) string { return g.poolPath(fmt.Sprintf("depth%d", i)) }
	made := []string{link(0)}
	defer func() {
		for _, data := range made {
			err = errors.Join(err, g.driver.Destroy(context.WithoutCancel(ctx), data))
		}
	}()
	// link(0) is the single clone. Both sides have had as many writes.
	if err := g.grow(ctx, g.onPool.data, link(0), deepest); err != nil {
		return err
	}
	for i := range deepest {
		from := g.onPool.data
		if i > 0 {
			from = link(i)
		}
		made = append(made, link(i+1))
		if err := g.grow(ctx, from, link(i+1), 1); err != nil {
			return err
		}
	}
	single, stopSingle, err := g.onData(ctx, link(0))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stopSingle()) }()
	deep, stopDeep, err := g.onData(ctx, link(deepest))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stopDeep()) }()
	return g.compareDepths(ctx, []side{{fmt.Sprintf("clone at depth %d", deepest), deep.socket()}, {"single clone", single.socket()}})
}

func (g *rig) compareDepths(ctx context.Context, sides []side) error {
	first := make([]sample, len(sides))
	if err := g.firstTouch(ctx, sides, first); err != nil {
		return err
	}
	g.report.add(newRow("depth_first", "pgbench -N on a "+sides[0].name+", its first run", g.size, unitTPS, first[0]).against(sides[1].name, first[1].median()))
	for _, flag := range []string{"-S", "-N"} {
		found, err := g.turns(ctx, sides, flag, 4)
		if err != nil {
			return err
		}
		g.report.add(newRow("depth"+flag, fmt.Sprintf("pgbench %s, 4 clients, on a %s", flag, sides[0].name), g.size, unitTPS, found[0]).
			against(sides[1].name, found[1].median()).barred(bar{Text: ">= 0.95", Limit: 0.95, Least: true, Of: "ratio"}))
	}
	return nil
}

// grow makes a clone and writes to it for some time, then stops its Postgres, as
// often as it should have been written to.
func (g *rig) grow(ctx context.Context, from, to string, times int) error {
	if err := g.driver.Clone(ctx, from, to); err != nil {
		return err
	}
	for range times {
		pg, stop, err := g.onData(ctx, to)
		if err != nil {
			return err
		}
		_, err = g.tps(ctx, side{"clone", pg.socket()}, "-N", 4)
		if err = errors.Join(err, stop()); err != nil {
			return err
		}
	}
	return nil
}

// onData runs a plain Postgres on a data directory of the pool, with the settings
// of the control. stop shuts it down.
func (g *rig) onData(ctx context.Context, data string) (_ *plain, stop func() error, err error) {
	conf, err := os.ReadFile(filepath.Join(g.onPool.dir, "postgresql.conf"))
	if err != nil {
		return nil, nil, err
	}
	dir := g.path("c" + filepath.Base(data))
	pg, err := newPlain(g.in, dir, data, string(conf))
	if err != nil {
		return nil, nil, err
	}
	_, err = pg.start(ctx)
	stop = func() error {
		err := pg.stop()
		return errors.Join(err, os.RemoveAll(dir))
	}
	if err != nil {
		return nil, nil, errors.Join(err, stop())
	}
	return pg, stop, nil
}
