package main

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
)

// wake measures connecting to a branch that sleeps, by turns with bare: what a
// client sees, from its first byte to the answer of its first query.
func (g *rig) wake(ctx context.Context) error {
	if err := g.server.spare(ctx); err != nil {
		return err
	}
	b, answer, err := g.branch(ctx, g.name(), 0)
	if err != nil {
		return err
	}
	if err := errors.Join(g.settled(ctx, b), g.server.spare(ctx)); err != nil {
		return err
	}
	uri := answer.ConnectionURIs[0].ConnectionURI
	var plain, withTLS, again, bareHost, barePool sample
	for i := range g.samples {
		for _, way := range []struct {
			uri string
			to  *sample
		}{{uri + "&sslmode=disable", &plain}, {uri + "&sslmode=require", &withTLS}} {
			took, err := g.wakeOnce(ctx, b, way.uri)
			if err != nil {
				return err
			}
			way.to.add(took)
		}
		took, err := ask(ctx, uri+"&sslmode=disable")
		if err = errors.Join(err, g.bare(ctx, &bareHost, &barePool)); err != nil {
			return err
		}
		again.add(took)
		say("  %d of %d: wake %s, bare %s", i+1, g.samples, show(plain[i], unitMS), show(bareHost[i], unitMS))
	}
	bare := bareHost.median()
	g.report.add(
		newRow("wake", "wake on connect, request to first answered query", g.size, unitMS, plain).against("bare", bare).
			barred(bar{Text: "p50 <= 1.3 x bare", Limit: 1.3, Of: "ratio"}).noted("on the pool's file system bare is %s", show(barePool.median(), unitMS)),
		newRow("wake_tls", "the same with TLS", g.size, unitMS, withTLS).against("bare", bare),
		newRow("wake_awake", "connect and first query when it is awake", g.size, unitMS, again).against("bare", bare))
	return g.server.remove(ctx, b.name)
}

// wakeOnce has a branch sleep, and connects to it.
func (g *rig) wakeOnce(ctx context.Context, b made, uri string) (time.Duration, error) {
	if _, err := g.server.client.Suspend(ctx, project, b.name, nil); err != nil {
		return 0, err
	}
	if err := pause(ctx, quiet); err != nil {
		return 0, err
	}
	return ask(ctx, uri)
}

// ask connects, asks the first query, and returns how long both took.
func ask(ctx context.Context, uri string) (time.Duration, error) {
	began := time.Now()
	conn, err := pgx.Connect(ctx, uri)
	if err != nil {
		return 0, err
	}
	err = query(ctx, conn)
	took := time.Since(began)
	return took, errors.Join(err, conn.Close(ctx))
}
