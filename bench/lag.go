package main

import (
	"context"
	"path/filepath"
	"time"
)

// beat is how often the lag is sampled.
const beat = 100 * time.Millisecond

// lag watches how far the follower is behind, as the server says and as an
// observer sees it who asks both Postgres.
func (g *rig) lag(ctx context.Context) error {
	if err := g.server.spare(ctx); err != nil {
		return err
	}
	follower, err := connect(ctx, filepath.Join(g.server.runDir(filepath.Base(g.root)), "socket"), plainPort, "postgres", "template1")
	if err != nil {
		return err
	}
	defer func() { _ = follower.Close(context.WithoutCancel(ctx)) }() // only read
	var said, seen sample
	ticker := time.NewTicker(beat)
	defer ticker.Stop()
	for end := time.Now().Add(g.window); time.Now().Before(end); {
		st, _, err := g.server.status(ctx)
		if err != nil {
			return err
		}
		said = append(said, st.Follower.LagSeconds*1000)
		began := time.Now()
		at, err := g.prod.text(ctx, "SELECT pg_current_wal_flush_lsn()")
		if err != nil {
			return err
		}
		err = until(ctx, time.Minute, time.Millisecond, "the follower replays "+at, func() (there bool, err error) {
			err = follower.QueryRow(ctx, "SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn", at).Scan(&there)
			return there, err
		})
		if err != nil {
			return err
		}
		seen.add(time.Since(began))
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-ticker.C:
		}
	}
	second := bar{Text: "p99 <= 1 s", Limit: 1000, Of: "p99"}
	a := newRow("lag_said", "follower lag, as pgbough status says", g.size, unitMS, said).barred(second)
	b := newRow("lag_seen", "follower lag: a position flushed on production is replayed", g.size, unitMS, seen).barred(second)
	a, b = a.noted("p99 %s", show(float64(a.P99), unitMS)), b.noted("p99 %s", show(float64(b.P99), unitMS))
	a.Values, b.Values = nil, nil
	g.report.add(a, b)
	return nil
}
