package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

const (
	crowd   = 16               // branches that are asked for at once
	maxLag  = time.Minute      // how old a state the creates of a clean point accept
	between = 30 * time.Second // the mean time between two creates that come at random
)

// burst measures many creates at once with one spare ready, which share one clean
// point, then creates that are content with the state of a point, and what such
// a branch holds of its own.
func (g *rig) burst(ctx context.Context) error {
	var one, all, lagged, own, bareHost, barePool sample
	for i := range max(1, g.samples/5) {
		took, err := g.crowd(ctx)
		if err != nil {
			return err
		}
		all = append(all, took...)
		if err := errors.Join(g.server.spare(ctx), pause(ctx, quiet)); err != nil {
			return err
		}
		b, _, err := g.branch(ctx, g.name(), 0)
		if err = errors.Join(err, g.server.remove(ctx, b.name)); err != nil {
			return err
		}
		one.add(b.total)
		if err := errors.Join(g.server.spare(ctx), g.bare(ctx, &bareHost, &barePool)); err != nil {
			return err
		}
		say("  %d: %d at once took %s, one %s, bare %s", i+1, crowd, show(took.quantile(0.95), unitMS), show(one[i], unitMS), show(bareHost[i], unitMS))
	}
	for range g.samples {
		took, bytes, err := g.lagging(ctx)
		if err != nil {
			return err
		}
		lagged.add(took)
		own = append(own, bytes)
		if err := g.bare(ctx, &bareHost, &barePool); err != nil {
			return err
		}
	}
	bare := bareHost.median()
	tail := newRow("burst_p95", fmt.Sprintf("%d creates at once with one spare, request to first answered query, their p95", crowd), g.size, unitMS, all)
	tail.P50 = tail.P95
	tail = tail.against(fmt.Sprintf("one create + %d bare", crowd), one.median()+crowd*bare).barred(bar{Text: "<= one create + 16 x bare", Limit: 1, Of: "ratio"}).
		noted("the first %s, the median %s", show(all.quantile(0), unitMS), show(all.median(), unitMS))
	g.report.add(tail,
		newRow("max_lag", "create with --max-lag 60s from a clean point", g.size, unitMS, lagged).against("bare", bare).barred(bar{Text: "p50 <= 1.5 x bare", Limit: 1.5, Of: "ratio"}),
		newRow("point_bytes", "own bytes of a branch from a clean point", g.size, unitBytes, own).barred(bar{Text: "p50 <= 20 MB", Limit: 20 << 20, Of: "p50"}))
	return nil
}

// crowd asks for many branches at once and removes them.
func (g *rig) crowd(ctx context.Context) (sample, error) {
	if err := errors.Join(g.bound(ctx), g.server.spare(ctx), pause(ctx, quiet)); err != nil {
		return nil, err
	}
	names := make([]string, crowd)
	for i := range names {
		names[i] = g.name()
	}
	took, errs := make(sample, crowd), make([]error, crowd)
	var wg sync.WaitGroup
	for i, name := range names {
		wg.Go(func() {
			b, _, err := g.branch(ctx, name, 0)
			took[i], errs[i] = float64(b.total)/float64(time.Millisecond), err
		})
	}
	wg.Wait()
	for _, name := range names {
		errs = append(errs, g.server.remove(ctx, name))
	}
	return took, errors.Join(errs...)
}

// lagging makes a branch of a clean point, and one before it, so that there is a point.
func (g *rig) lagging(ctx context.Context) (took time.Duration, own float64, err error) {
	if err := g.server.spare(ctx); err != nil {
		return 0, 0, err
	}
	first, _, err := g.branch(ctx, g.name(), maxLag)
	if err = errors.Join(err, g.server.remove(ctx, first.name), g.server.spare(ctx), pause(ctx, quiet)); err != nil {
		return 0, 0, err
	}
	b, _, err := g.branch(ctx, g.name(), maxLag)
	if err != nil {
		return 0, 0, err
	}
	if err := pause(ctx, quiet); err != nil {
		return 0, 0, err
	}
	got, err := g.server.client.Branch(ctx, project, b.name)
	return b.total, float64(got.Branch.OwnBytes), errors.Join(err, g.server.remove(ctx, b.name))
}

// arrive asks for branches at random times, as people and tests do, and removes
// each soon after.
func (g *rig) arrive(ctx context.Context) error {
	if err := errors.Join(g.bound(ctx), g.server.spare(ctx)); err != nil {
		return err
	}
	random := rand.New(rand.NewPCG(1, 2)) // the same times in every run
	began := time.Now()
	var mu sync.Mutex
	var took sample
	var errs []error
	var wg sync.WaitGroup
	for at := time.Duration(0); at < g.arrivals; at += time.Duration(random.ExpFloat64() * float64(between)) {
		if err := pause(ctx, time.Until(began.Add(at))); err != nil {
			return err
		}
		name := g.name()
		wg.Go(func() {
			b, _, err := g.branch(ctx, name, 0)
			err = errors.Join(err, g.server.remove(ctx, name))
			mu.Lock()
			defer mu.Unlock()
			took.add(b.total)
			errs = append(errs, err)
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	refill, err := g.refillsSince(ctx, began)
	if err != nil {
		return err
	}
	var bareHost, barePool sample
	if err := errors.Join(g.server.spare(ctx), g.bare(ctx, &bareHost, &barePool)); err != nil {
		return err
	}
	arrived := newRow("arrivals", "creates at random, every 30 s in the mean", g.size, unitMS, took).against("bare", bareHost.median()).barred(bar{Text: "p50 <= 2 x bare", Limit: 2, Of: "ratio"})
	late := newRow("arrivals_p95", "of these the p95", g.size, unitMS, took)
	late.P50, late.Values = late.P95, nil
	g.report.add(arrived, late.against("refill", refill.median()).barred(bar{Text: "<= 2 x refill", Limit: 2, Of: "ratio"}).
		noted("%d refills meanwhile, %s to %s", len(refill), show(refill.quantile(0), unitMS), show(slices.Max(refill), unitMS)))
	return nil
}

// refillsSince is how long the refills took that began after a time.
func (g *rig) refillsSince(ctx context.Context, since time.Time) (sample, error) {
	if err := g.server.spare(ctx); err != nil {
		return nil, err
	}
	ops, err := g.server.client.Operations(ctx, project)
	if err != nil {
		return nil, err
	}
	var took sample
	for _, op := range ops.Operations {
		if op.Action == "refill_spare" && op.Status == "finished" && op.CreatedAt.After(since) {
			took = append(took, float64(op.TotalDurationMS))
		}
	}
	if len(took) == 0 {
		return nil, errors.New("no spare was filled meanwhile")
	}
	return took, nil
}
