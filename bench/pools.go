package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/pgbough/pgbough/internal/volume"
	"github.com/pgbough/pgbough/internal/volume/disk"
	"github.com/pgbough/pgbough/internal/volume/image"
	"github.com/pgbough/pgbough/internal/volume/storage"
)

// pool is an image file as the server makes one, with the cleanly stopped copy
// of production's data in it.
type pool struct {
	kind   string
	image  *image.Image
	driver volume.Driver
}

// pools compares what the server's choice auto chooses between: the same data,
// settings and work on a clone in an image with XFS and in one with btrfs, by
// turns.
func (g *rig) pools(ctx context.Context) (err error) {
	if err := g.server.spare(ctx); err != nil {
		return err
	}
	var both []pool
	defer func() {
		for _, p := range both {
			err = errors.Join(err, p.image.Remove(context.WithoutCancel(ctx)))
		}
	}()
	for _, kind := range []string{volume.KindReflink, volume.KindBtrfs} {
		p, err := g.newPool(ctx, kind)
		if p.image != nil {
			both = append(both, p)
		}
		if err != nil {
			return fmt.Errorf("a pool of kind %s: %w", kind, err)
		}
	}
	names := []string{"clone", "start", "first", "steady_4", "steady_16"}
	found := map[string][]sample{}
	for _, name := range names {
		found[name] = make([]sample, len(both))
	}
	for range g.repeats {
		for i, p := range both {
			values, err := g.onClone(ctx, p)
			if err != nil {
				return fmt.Errorf("a pool of kind %s: %w", p.kind, err)
			}
			for name, v := range values {
				found[name][i] = append(found[name][i], v)
			}
		}
	}
	writes := bar{Text: ">= 1 x btrfs, since auto prefers XFS", Limit: 1, Least: true, Of: "ratio"}
	r := func(name, measure, unit string) row {
		return newRow("pools_"+name, "pool of XFS: "+measure, g.size, unit, found[name][0]).against("btrfs", found[name][1].median())
	}
	g.report.add(
		r("clone", "clone of a stopped Postgres", unitMS),
		r("start", "exec to first answered query on it", unitMS),
		r("first", "pgbench -N first touch, 4 clients", unitTPS),
		r("steady_4", "pgbench -N steady, 4 clients", unitTPS).barred(writes),
		r("steady_16", "pgbench -N steady, 16 clients", unitTPS).barred(writes))
	return nil
}

// newPool makes an image and copies the control's data into it.
func (g *rig) newPool(ctx context.Context, kind string) (p pool, err error) {
	p.kind = kind
	if p.driver, err = storage.Driver(kind); err != nil {
		return p, err
	}
	fs := image.XFS
	if kind == volume.KindBtrfs {
		fs = image.Btrfs
	}
	size := 4*disk.GiB + disk.Bytes(2.5*g.size*1e9)
	p.image, err = image.Open(ctx, image.Config{
		File: g.path("pool-" + kind + ".img"), Mount: g.path("pool-" + kind), FS: fs, Size: size, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return p, err
	}
	if err := errors.Join(os.Chmod(p.image.Mount, 0o711), p.driver.Create(ctx, p.path("origin"))); err != nil {
		return p, err
	}
	_, err = output(ctx, nil, nil, "cp", "-a", "--reflink=never", g.onHost.data+"/.", p.path("origin"))
	return p, err
}

func (p pool) path(name string) string { return filepath.Join(p.image.Mount, name) }

// onClone clones, starts a Postgres on the clone, and lets pgbench write there.
func (g *rig) onClone(ctx context.Context, p pool) (values map[string]float64, err error) {
	data := p.path("clone")
	conf, err := os.ReadFile(filepath.Join(g.onHost.dir, "postgresql.conf"))
	if err != nil {
		return nil, err
	}
	pg, err := newPlain(g.in, g.path("cc"), data, string(conf))
	if err != nil {
		return nil, err
	}
	defer func() {
		if pg.pg != nil {
			err = errors.Join(err, pg.kill())
		}
		err = errors.Join(err, p.driver.Destroy(context.WithoutCancel(ctx), data), os.RemoveAll(pg.dir))
	}()
	if _, err := output(ctx, nil, nil, "sync"); err != nil {
		return nil, err
	}
	if err := pause(ctx, quiet); err != nil {
		return nil, err
	}
	began := time.Now()
	if err := p.driver.Clone(ctx, p.path("origin"), data); err != nil {
		return nil, err
	}
	var clone, start sample
	clone.add(time.Since(began))
	took, err := pg.start(ctx)
	if err != nil {
		return nil, err
	}
	start.add(took)
	at := side{p.kind, pg.socket()}
	first := make([]sample, 1)
	if err := g.firstTouch(ctx, []side{at}, first); err != nil {
		return nil, err
	}
	values = map[string]float64{"clone": clone[0], "start": start[0], "first": first[0][0]}
	for _, clients := range []int{4, 16} {
		tps, err := g.tps(ctx, at, "-N", clients)
		if err != nil {
			return nil, err
		}
		values[fmt.Sprintf("steady_%d", clients)] = tps
	}
	return values, nil
}
