package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pgbough/pgbough/client"
)

// refills are measured on their own, each after a branch that was taken and
// deleted again.
const refills = 5

// refill measures how long a new spare takes, and what it replays.
func (g *rig) refill(ctx context.Context) error {
	var took, rate, normal, replayed sample
	profile := steps{}
	for range min(refills, g.samples) {
		if err := g.server.spare(ctx); err != nil {
			return err
		}
		if err := pause(ctx, quiet); err != nil {
			return err
		}
		since := time.Now()
		b, err := g.newBranch(ctx)
		if err != nil {
			return err
		}
		if err := errors.Join(g.server.remove(ctx, b.name), g.server.spare(ctx)); err != nil {
			return err
		}
		st, _, err := g.server.status(ctx)
		if err != nil {
			return err
		}
		op, err := g.refillSince(ctx, since)
		if err != nil {
			return err
		}
		profile.count(op)
		// The spare had replayed a little less when it was ready than the follower has now.
		bytes := float64(st.Follower.ReplayLSN.Sub(st.Spares.List[0].RedoLSN))
		ms := float64(op.TotalDurationMS)
		took, replayed = append(took, ms), append(replayed, bytes)
		rate = append(rate, bytes/(1<<20)/(ms/1000))
		normal = append(normal, ms*877*(1<<20)/bytes)
	}
	g.report.add(
		newRow("refill", "refill of a spare, clone to ready", g.size, unitMS, took).noted("it replays %s", show(replayed.median(), unitBytes)),
		newRow("refill_rate", "refill: WAL replayed a second", g.size, unitMBps, rate),
		newRow("refill_877", "refill, if it were 877 MB of WAL", g.size, unitMS, normal).
			barred(bar{Text: "<= half of 19-29 s, so of 24 s", Limit: 12000, Of: "p50"}))
	g.report.Steps = append(g.report.Steps, profile.summary(g.size)...)
	return nil
}

// refillSince is the newest refill that began after a time and is finished.
func (g *rig) refillSince(ctx context.Context, since time.Time) (client.Operation, error) {
	ops, err := g.server.client.Operations(ctx, project)
	if err != nil {
		return client.Operation{}, err
	}
	for _, op := range ops.Operations {
		if op.Action == "refill_spare" && op.Status == "finished" && op.CreatedAt.After(since) {
			return op, nil
		}
	}
	return client.Operation{}, fmt.Errorf("no refill since %s is finished", since.Format(time.TimeOnly))
}
