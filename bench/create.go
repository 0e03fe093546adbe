package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/client"
)

// made is a branch that was created, and how long that took.
type made struct {
	name, volume string // its volume's id
	dir          string // of the volume
	cut          pgbough.LSN
	answered     time.Duration // from the request to the server's answer
	total        time.Duration // from the request to the first answered query, over the Postgres's own socket
	proxied      time.Duration // the same with the connection URI: through the proxy, with TLS and SCRAM
	operation    string
}

// name is one that no branch has had.
func (g *rig) name() string {
	g.made++
	return fmt.Sprintf("b%d", g.made)
}

// branch makes a branch as a client of the API does, which accepts a state as old
// as lag, and asks it the first query.
func (g *rig) branch(ctx context.Context, name string, lag time.Duration) (b made, answer client.CreatedBranch, err error) {
	b.name = name
	req := client.CreateBranchRequest{MaxLagSeconds: lag.Seconds()}
	req.Branch.Name = name
	began := time.Now()
	if answer, err = g.server.client.CreateBranch(ctx, project, req, nil); err != nil {
		return b, answer, err
	}
	b.answered = time.Since(began)
	b.dir, b.volume = answer.Branch.Path, filepath.Base(answer.Branch.Path)
	conn, err := connect(ctx, filepath.Join(g.server.runDir(b.volume), "socket"), plainPort, app, database)
	if err != nil {
		return b, answer, fmt.Errorf("connect to the new branch: %w", err)
	}
	err = query(ctx, conn)
	b.total = time.Since(began)
	return b, answer, errors.Join(err, conn.Close(ctx))
}

// newBranch makes a branch of exactly now, and measures it over the proxy too.
func (g *rig) newBranch(ctx context.Context) (made, error) {
	b, answer, err := g.branch(ctx, g.name(), 0)
	if err != nil {
		return b, err
	}
	began := time.Now()
	conn, err := pgx.Connect(ctx, answer.ConnectionURIs[0].ConnectionURI)
	if err != nil {
		return b, fmt.Errorf("connect to the new branch through the proxy: %w", err)
	}
	err = query(ctx, conn)
	b.proxied = b.answered + time.Since(began)
	if err = errors.Join(err, conn.Close(ctx)); err != nil {
		return b, err
	}
	for _, op := range answer.Operations {
		b.operation = op.ID
	}
	got, err := g.server.client.Branch(ctx, project, b.name)
	if err != nil {
		return b, err
	}
	b.cut, err = pgbough.ParseLSN(got.Branch.ParentLSN)
	return b, err
}

// settled waits until the WAL of before its promotion is gone from a branch.
func (g *rig) settled(ctx context.Context, b made) error {
	const enough = 128 << 20
	return until(ctx, 3*time.Minute, 200*time.Millisecond, "the WAL of the new branch is trimmed", func() (bool, error) {
		n, err := walBytes(b.dir)
		return n <= enough, err
	})
}

// walBytes is the size of the WAL in a volume.
func walBytes(volume string) (n int64, err error) {
	entries, err := os.ReadDir(filepath.Join(volume, "data", "pg_wal"))
	for _, e := range entries {
		if fi, ierr := e.Info(); ierr == nil && fi.Mode().IsRegular() {
			n += fi.Size()
		}
	}
	return n, err
}

// create measures creating with a ready spare, and by turns the controls.
func (g *rig) create(ctx context.Context) error {
	var total, answered, proxied, bareHost, barePool, recovered, debt sample
	profile := steps{}
	for i := range g.samples {
		if err := errors.Join(g.bound(ctx), g.server.spare(ctx)); err != nil {
			return err
		}
		if err := pause(ctx, quiet); err != nil {
			return err
		}
		b, err := g.newBranch(ctx)
		if err != nil {
			return err
		}
		total.add(b.total)
		answered.add(b.answered)
		proxied.add(b.proxied)
		have, err := g.prod.debt(ctx)
		if err != nil {
			return err
		}
		debt = append(debt, float64(have))
		if err := errors.Join(profile.add(ctx, g.server.client, b.operation), g.server.remove(ctx, b.name)); err != nil {
			return err
		}
		if err := g.server.spare(ctx); err != nil {
			return err
		}
		if err := g.bare(ctx, &bareHost, &barePool); err != nil {
			return fmt.Errorf("control bare: %w", err)
		}
		if i < g.recovers {
			d, err := g.recover(ctx)
			if err != nil {
				return fmt.Errorf("control recover: %w", err)
			}
			recovered.add(d)
		}
		say("  %d of %d: create %s, bare %s", i+1, g.samples, show(total[i], unitMS), show(bareHost[i], unitMS))
	}
	bare := bareHost.median()
	create := newRow("create", "create now, request to first answered query", g.size, unitMS, total).against("bare", bare).
		barred(bar{Text: "p50 <= 2 x bare", Limit: 2, Of: "ratio"}).noted("debt %s to %s", show(debt.quantile(0), unitBytes), show(debt.quantile(1), unitBytes))
	tail := create
	tail.Key, tail.Measure, tail.Note, tail.Values = "create_p95", "create now, its p95", "", nil
	tail.P50 = tail.P95
	tail = tail.against("bare", bare).barred(bar{Text: "p95 <= 4 x bare", Limit: 4, Of: "ratio"})
	slow := create
	slow.Key, slow.Measure, slow.Note, slow.Values = "create_recover", "create now, against recover", "", nil
	slow = slow.against("recover", recovered.median()).barred(bar{Text: "<= 1/20 of recover", Limit: 1. / 20, Of: "ratio"})
	if g.bulk > 0 {
		slow = slow.noted("of the debt %s are updates in bulk", show(float64(g.bulk), unitBytes))
	}
	g.report.add(create, tail, slow,
		newRow("create_answer", "of that, until the server answers", g.size, unitMS, answered),
		newRow("create_proxied", "the same with the connection URI: through the proxy, TLS, SCRAM", g.size, unitMS, proxied).against("bare", bare),
		newRow("bare", "control bare: exec to first answered query, host file system", g.size, unitMS, bareHost),
		newRow("bare_pool", "the same on the pool's file system", g.size, unitMS, barePool),
		newRow("recover", "control recover: clone the follower, recover it, first query", g.size, unitMS, recovered))
	g.report.Steps = append(g.report.Steps, profile.summary(g.size)...)
	return nil
}

// bound keeps the debt from growing without end at large sizes, where each
// refill takes longer than the one before.
func (g *rig) bound(ctx context.Context) error {
	const most = 3 // times the wanted debt
	have, err := g.prod.debt(ctx)
	if err != nil || have < most*g.debt {
		return err
	}
	say("  production checkpoints, and writes %d MB of WAL again", g.debt>>20)
	g.bulk, err = g.prod.steady(ctx, g.debt)
	return err
}

// bare starts the cleanly stopped copies once each.
func (g *rig) bare(ctx context.Context, host, pool *sample) error {
	for _, c := range []struct {
		p  *plain
		to *sample
	}{{g.onHost, host}, {g.onPool, pool}} {
		if err := pause(ctx, quiet); err != nil {
			return err
		}
		d, err := c.p.start(ctx)
		if err = errors.Join(err, c.p.stop()); err != nil {
			return err
		}
		c.to.add(d)
	}
	return nil
}

// recover is what most tools do to get a branch.
func (g *rig) recover(ctx context.Context) (time.Duration, error) {
	if err := pause(ctx, quiet); err != nil {
		return 0, err
	}
	data := g.poolPath("recovered")
	conf, err := os.ReadFile(filepath.Join(g.onPool.dir, "postgresql.conf"))
	if err != nil {
		return 0, err
	}
	p, err := newPlain(g.in, g.path("cr"), data, string(conf))
	if err != nil {
		return 0, err
	}
	began := time.Now()
	err = g.cloneFollower(ctx, data)
	if err == nil {
		_, err = p.start(ctx)
	}
	took := time.Since(began)
	if p.pg != nil {
		err = errors.Join(err, p.kill())
	}
	// Destroying goes on also when it was interrupted.
	return took, errors.Join(err, g.driver.Destroy(context.WithoutCancel(ctx), data), os.RemoveAll(p.dir))
}

// steps collects the durations of the steps of operations, in milliseconds.
type steps map[stepName]sample

type stepName struct {
	operation string
	index     int
	name      string
}

func (s steps) add(ctx context.Context, c *client.Client, id string) error {
	answer, err := c.Operation(ctx, id)
	if err != nil {
		return err
	}
	s.count(answer.Operation)
	return nil
}

func (s steps) count(op client.Operation) {
	for i, st := range op.Steps {
		name := stepName{op.Action, i, st.Name}
		s[name] = append(s[name], st.DurationMS)
	}
}

func (s steps) summary(size float64) []step {
	var out []step
	names := make([]stepName, 0, len(s))
	for n := range s {
		names = append(names, n)
	}
	slices.SortFunc(names, func(a, b stepName) int { return a.index - b.index })
	for _, n := range names {
		out = append(out, step{
			Operation: n.operation, Size: gigabytes(size), Name: n.name, N: len(s[n]),
			P50: number(s[n].median()), P95: number(s[n].quantile(0.95)),
		})
	}
	return out
}
