package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// meter is a TCP relay to production that counts what production sends.
type meter struct {
	listener net.Listener
	target   string
	down     atomic.Int64 // bytes from production
	stopping context.CancelFunc
	wg       sync.WaitGroup
}

func startMeter(ctx context.Context, port int) (*meter, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	m := &meter{listener: l, target: fmt.Sprintf("127.0.0.1:%d", port), stopping: cancel}
	m.wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return // closed
			}
			m.wg.Go(func() { m.relay(ctx, conn) })
		}
	})
	return m, nil
}

func (m *meter) port() int { return m.listener.Addr().(*net.TCPAddr).Port }

// relay copies both ways until one side or the meter ends. What a connection
// ends with is of no matter here.
func (m *meter) relay(ctx context.Context, client net.Conn) {
	defer func() { _ = client.Close() }()
	server, err := net.Dial("tcp", m.target)
	if err != nil {
		return
	}
	defer func() { _ = server.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = client.Close(); _ = server.Close() })
	defer stop()
	var both sync.WaitGroup
	both.Go(func() { _, _ = io.Copy(server, client); _ = server.Close(); _ = client.Close() })
	both.Go(func() { _, _ = io.Copy(counted{client, &m.down}, server); _ = server.Close(); _ = client.Close() })
	both.Wait()
}

type counted struct {
	io.Writer
	n *atomic.Int64
}

func (c counted) Write(b []byte) (int, error) {
	n, err := c.Writer.Write(b)
	c.n.Add(int64(n))
	return n, err
}

func (m *meter) close() error {
	err := m.listener.Close()
	m.stopping()
	m.wg.Wait()
	return err
}

// pays watches what following costs production.
func (g *rig) pays(ctx context.Context) (err error) {
	m, err := startMeter(ctx, g.prod.port)
	if err != nil {
		return err
	}
	defer func() {
		// The server is led back first, so that it does not lose production.
		back, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		if _, serr := g.server.cli(back, "source", "set", project, "--source", source(g.prod.port)); err == nil {
			err = serr
		}
		if cerr := m.close(); err == nil {
			err = cerr
		}
	}()
	if _, err := g.server.cli(ctx, "source", "set", project, "--source", source(m.port())); err != nil {
		return err
	}
	// A walreceiver begins with the segment that it is in (walreceiverfuncs.c,
	// RequestXLogStreaming), which is sent again once and is not what is measured.
	err = until(ctx, 2*time.Minute, beat, "the follower streams through the meter", func() (there bool, err error) {
		err = g.prod.conn.QueryRow(ctx, `
			SELECT count(*) > 0 AND coalesce(bool_and(state = 'streaming' AND pg_current_wal_flush_lsn() - flush_lsn < 1000000), false)
			FROM pg_stat_replication`).Scan(&there)
		return there && m.down.Load() > 1<<16, err
	})
	if err = errors.Join(err, pause(ctx, quiet)); err != nil {
		return err
	}
	return g.watch(ctx, m)
}

// watch asks production at every beat what the follower's role holds.
func (g *rig) watch(ctx context.Context, m *meter) error {
	// A query has a snapshot and locks while it runs. What counts as held is what
	// a transaction keeps for longer than a second.
	const question = `
		WITH ours AS (SELECT *, xact_start < clock_timestamp() - interval '1 s' AS long FROM pg_stat_activity WHERE usename = 'follower')
		SELECT (SELECT count(*) FROM ours WHERE backend_type <> 'walsender'),
		       (SELECT count(*) FROM pg_stat_replication),
		       (SELECT count(*) FROM ours WHERE long AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL))
		     + (SELECT count(*) FROM pg_replication_slots WHERE xmin IS NOT NULL OR catalog_xmin IS NOT NULL),
		       (SELECT count(*) FROM pg_locks JOIN ours USING (pid) WHERE long),
		       (SELECT count(*) FROM ours WHERE backend_xmin IS NOT NULL OR backend_xid IS NOT NULL),
		       (pg_current_wal_flush_lsn() - '0/0')::bigint`
	var sessions, walsenders, xmin, locks, brief sample
	var first, wal, sentFirst, sent int64
	ticker := time.NewTicker(beat)
	defer ticker.Stop()
	for end := time.Now().Add(g.window); time.Now().Before(end); {
		var s, w, x, l, b float64
		if err := g.prod.conn.QueryRow(ctx, question).Scan(&s, &w, &x, &l, &b, &wal); err != nil {
			return err
		}
		sent = m.down.Load()
		if len(sessions) == 0 {
			first, sentFirst = wal, sent
		}
		sessions, walsenders, xmin, locks, brief = append(sessions, s), append(walsenders, w), append(xmin, x), append(locks, l), append(brief, min(b, 1))
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-ticker.C:
		}
	}
	momentary := 0.
	for _, b := range brief {
		momentary += b
	}
	held := func(key, measure string, s sample, limit float64, text string) row {
		r := newRow(key, measure, g.size, unitCount, sample{s.quantile(1)})
		r.N, r.P95 = len(s), number(s.quantile(0.95))
		return r.barred(bar{Text: text, Limit: limit, Of: "p50"}).noted("p50 is the most that was seen")
	}
	g.report.add(
		held("pays_sessions", "production pays: sessions", sessions, 1, "<= 1"),
		held("pays_walsenders", "production pays: walsenders", walsenders, 1, "<= 1"),
		held("pays_xmin", "production pays: xmin or xid held for more than 1 s", xmin, 0, "0"),
		held("pays_locks", "production pays: locks held for more than 1 s", locks, 0, "0"),
		newRow("pays_brief", "production pays: moments in which a query of ours has a snapshot", g.size, unitPercent, sample{100 * momentary / float64(len(brief))}).
			noted("of %d moments", len(brief)),
		newRow("pays_bytes", "production pays: bytes sent", g.size, unitBytes, sample{float64(sent - sentFirst)}).
			against("its WAL", float64(wal-first)).barred(bar{Text: "<= 1.05 x its WAL", Limit: 1.05, Of: "ratio"}).noted("over %s", g.window))
	return nil
}
