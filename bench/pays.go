package main

import (
	"context"
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
	err = until(ctx, time.Minute, beat, "the follower streams through the meter", func() (bool, error) {
		st, _, err := g.server.status(ctx)
		return st.Follower.State == "streaming" && st.Follower.LagBytes < 1<<20 && m.down.Load() > 1<<20, err
	})
	if err != nil {
		return err
	}
	return g.watch(ctx, m)
}

// watch asks production at every beat what the follower's role holds.
func (g *rig) watch(ctx context.Context, m *meter) error {
	const question = `
		SELECT (SELECT count(*) FROM pg_stat_activity WHERE usename = 'follower' AND backend_type <> 'walsender'),
		       (SELECT count(*) FROM pg_stat_replication),
		       (SELECT count(*) FROM pg_stat_activity WHERE usename = 'follower' AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL))
		     + (SELECT count(*) FROM pg_replication_slots WHERE xmin IS NOT NULL OR catalog_xmin IS NOT NULL),
		       (SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE a.usename = 'follower'),
		       (pg_current_wal_flush_lsn() - '0/0')::bigint`
	var sessions, walsenders, xmin, locks sample
	var first, wal, sentFirst, sent int64
	ticker := time.NewTicker(beat)
	defer ticker.Stop()
	for end := time.Now().Add(g.window); time.Now().Before(end); {
		var s, w, x, l float64
		if err := g.prod.conn.QueryRow(ctx, question).Scan(&s, &w, &x, &l, &wal); err != nil {
			return err
		}
		sent = m.down.Load()
		if len(sessions) == 0 {
			first, sentFirst = wal, sent
		}
		sessions, walsenders, xmin, locks = append(sessions, s), append(walsenders, w), append(xmin, x), append(locks, l)
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-ticker.C:
		}
	}
	held := func(key, measure string, s sample, limit float64, text string) row {
		r := newRow(key, measure, g.size, unitCount, sample{s.quantile(1)})
		r.N, r.P95 = len(s), number(s.quantile(0.95))
		return r.barred(bar{Text: text, Limit: limit, Of: "p50"}).noted("p50 is the most that was seen")
	}
	g.report.add(
		held("pays_sessions", "production pays: sessions", sessions, 1, "<= 1"),
		held("pays_walsenders", "production pays: walsenders", walsenders, 1, "<= 1"),
		held("pays_xmin", "production pays: xmin or xid held", xmin, 0, "0"),
		held("pays_locks", "production pays: locks held", locks, 0, "0"),
		newRow("pays_bytes", "production pays: bytes sent", g.size, unitBytes, sample{float64(sent - sentFirst)}).
			against("its WAL", float64(wal-first)).barred(bar{Text: "<= 1.05 x its WAL", Limit: 1.05, Of: "ratio"}).noted("over %s", g.window))
	return nil
}
