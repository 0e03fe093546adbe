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

	"github.com/pgbough/pgbough/client"
)

// refills are measured on their own, each after a branch that was taken and
// deleted again.
const refills = 5

// refill measures how long a new spare takes and what it replays, and by turns
// the control stock.
func (g *rig) refill(ctx context.Context) error {
	var took, rate, normal, replayed, stockRate, stockNormal sample
	profile := steps{}
	for range min(refills, g.samples) {
		bytes, op, err := g.oneRefill(ctx)
		if err != nil {
			return err
		}
		profile.count(op)
		ms := float64(op.TotalDurationMS)
		took, replayed = append(took, ms), append(replayed, bytes)
		rate, normal = append(rate, perSecond(bytes, ms)), append(normal, ms*normalWAL/bytes)
		bytes, d, err := g.stock(ctx)
		if err != nil {
			return fmt.Errorf("control stock: %w", err)
		}
		ms = float64(d.Milliseconds())
		stockRate, stockNormal = append(stockRate, perSecond(bytes, ms)), append(stockNormal, ms*normalWAL/bytes)
	}
	g.report.add(
		newRow("refill", "refill of a spare, clone to ready", g.size, unitMS, took).noted("it replays %s", show(replayed.median(), unitBytes)),
		newRow("refill_rate", "refill: WAL replayed a second", g.size, unitMBps, rate).against("stock", stockRate.median()),
		newRow("refill_877", "refill, if it were 877 MB of WAL", g.size, unitMS, normal).against("stock", stockNormal.median()).
			barred(bar{Text: "<= 1/2 of stock", Limit: 0.5, Of: "ratio"}))
	g.report.Steps = append(g.report.Steps, profile.summary(g.size)...)
	return nil
}

// normalWAL is what the durations of refills are scaled to, in bytes.
const normalWAL = 877 << 20

func perSecond(bytes, ms float64) float64 { return bytes / (1 << 20) / (ms / 1000) }

// oneRefill takes the spare and waits for the next one. bytes is what that replayed.
func (g *rig) oneRefill(ctx context.Context) (bytes float64, op client.Operation, err error) {
	if err := errors.Join(g.server.spare(ctx), pause(ctx, quiet)); err != nil {
		return 0, op, err
	}
	since := time.Now()
	b, err := g.newBranch(ctx)
	if err != nil {
		return 0, op, err
	}
	if err := errors.Join(g.server.remove(ctx, b.name), g.server.spare(ctx)); err != nil {
		return 0, op, err
	}
	st, _, err := g.server.status(ctx)
	if err != nil {
		return 0, op, err
	}
	op, err = g.refillSince(ctx, since)
	// The spare had replayed a little less when it was ready than the follower has now.
	return float64(st.Follower.ReplayLSN.Sub(st.Spares.List[0].RedoLSN)), op, err
}

// stock is a refill without pgbough's settings: a clone of the follower, by the
// same driver, that streams from production until it has replayed what the
// follower had when it was asked.
func (g *rig) stock(ctx context.Context) (bytes float64, took time.Duration, err error) {
	follower, err := connect(ctx, filepath.Join(g.server.runDir(filepath.Base(g.root)), "socket"), plainPort, "postgres", "template1")
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = follower.Close(context.WithoutCancel(ctx)) }() // only read
	data := g.poolPath("stock")
	p, err := newPlain(g.in, g.path("cs"), data, "")
	if err != nil {
		return 0, 0, err
	}
	defer func() {
		if p.pg != nil {
			err = errors.Join(err, p.kill())
		}
		err = errors.Join(err, g.driver.Destroy(context.WithoutCancel(ctx), data), os.RemoveAll(p.dir))
	}()
	if err := errors.Join(p.follow(g.prod), pause(ctx, quiet)); err != nil {
		return 0, 0, err
	}
	began := time.Now()
	if err := g.cloneStandby(ctx, data); err != nil {
		return 0, 0, err
	}
	if err := p.exec(); err != nil {
		return 0, 0, err
	}
	var reached string
	if reached, err = p.caughtUp(ctx, follower); err != nil {
		return 0, 0, err
	}
	took = time.Since(began)
	err = follower.QueryRow(ctx, "SELECT ($1::text::pg_lsn - redo_lsn)::float8 FROM pg_control_checkpoint()", reached).Scan(&bytes)
	return bytes, took, err
}

// caughtUp waits until a standby streams and has replayed what the follower had.
func (p *plain) caughtUp(ctx context.Context, follower *pgx.Conn) (reached string, err error) {
	var conn *pgx.Conn
	defer func() {
		if conn != nil {
			_ = conn.Close(context.WithoutCancel(ctx)) // only read
		}
	}()
	err = until(ctx, 10*time.Minute, 50*time.Millisecond, "the clone has caught up", func() (there bool, err error) {
		if !p.pg.running() {
			return false, fmt.Errorf("postgres ended: %s", p.pg.tail(5))
		}
		if conn == nil {
			if conn, err = p.super(ctx, "template1"); err != nil {
				return false, nil // not consistent yet
			}
		}
		if err := follower.QueryRow(ctx, "SELECT pg_last_wal_replay_lsn()::text").Scan(&reached); err != nil {
			return false, err
		}
		err = conn.QueryRow(ctx, `
			SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn AND EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming')`, reached).Scan(&there)
		return there, err
	})
	return reached, err
}

// refillSince is the first refill that began after a time, once it is finished:
// its spare is ready a little earlier.
func (g *rig) refillSince(ctx context.Context, since time.Time) (op client.Operation, err error) {
	err = until(ctx, time.Minute, 20*time.Millisecond, "the refill is finished", func() (bool, error) {
		ops, err := g.server.client.Operations(ctx, project)
		if err != nil {
			return false, err
		}
		for _, o := range slices.Backward(ops.Operations) { // the newest come first
			if o.Action == "refill_spare" && o.CreatedAt.After(since) {
				op = o
				return o.Status == "finished", nil
			}
		}
		return false, nil
	})
	return op, err
}
