package metrics

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/pgbough/pgbough"
)

// scrape collects what the server is at the moment of a scrape.
type scrape struct {
	server  Server
	clients func() Clients
}

// Describe tells nothing: which series there are depends on the projects.
func (*scrape) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (s *scrape) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	f, err := s.server.Figures(ctx)
	if err != nil {
		out <- prometheus.NewInvalidMetric(describe("pgbough_up", "The server can be asked."), err)
		return
	}
	for _, p := range f.Projects {
		project(p, out)
	}
	server(f, s.clients(), out)
}

func project(p pgbough.ProjectFigures, out chan<- prometheus.Metric) {
	gauge := func(name, help string, v float64) {
		out <- prometheus.MustNewConstMetric(describe(name, help, "project"), prometheus.GaugeValue, v, p.Name)
	}
	streaming := 0.0
	if p.Follower.State == pgbough.FollowerStreaming {
		streaming = 1
	}
	gauge("pgbough_follower_streaming", "1 while the follower streams from production.", streaming)
	gauge("pgbough_follower_lag_bytes", "WAL that production has and the follower has not replayed.", float64(p.Follower.LagBytes))
	gauge("pgbough_follower_lag_seconds", "How old the newest transaction is that the follower has replayed, while it lacks any.", p.Follower.LagSeconds)
	gauge("pgbough_spares_ready", "Spares that can be made branches at once.", float64(p.Ready))
	gauge("pgbough_spares_wanted", "Spares that should be ready.", float64(p.Wanted))
	branches := describe("pgbough_branches", "Branches that can be used, by whether their Postgres should run.", "project", "state")
	for state, n := range map[string]int{"awake": p.Awake, "asleep": p.Asleep} {
		out <- prometheus.MustNewConstMetric(branches, prometheus.GaugeValue, float64(n), p.Name, state)
	}
}

func server(f pgbough.Figures, c Clients, out chan<- prometheus.Metric) {
	tell := func(kind prometheus.ValueType, name, help string, v int64) {
		out <- prometheus.MustNewConstMetric(describe(name, help), kind, float64(v))
	}
	const gauge, counter = prometheus.GaugeValue, prometheus.CounterValue
	tell(counter, "pgbough_wakes_total", "Branches that were woken.", f.Wakes)
	tell(gauge, "pgbough_proxy_connections", "Clients that are connected to the port of all branches.", c.Open)
	tell(gauge, "pgbough_proxy_goroutines", "Goroutines of the process that serves them.", c.Goroutines)
	tell(counter, "pgbough_proxy_connections_total", "Clients that have connected to it.", c.Accepted)
	tell(counter, "pgbough_proxy_auth_failures_total", "Clients that were refused for a wrong password, role or branch.", c.AuthFailures)
	tell(counter, "pgbough_proxy_cancels_total", "Cancel requests that were forwarded.", c.Cancels)
	tell(gauge, "pgbough_pool_size_bytes", "Size of the pool.", f.Pool.Size)
	tell(gauge, "pgbough_pool_used_bytes", "What is used of it.", f.Pool.Used)
	tell(gauge, "pgbough_pool_free_bytes", "What branches may still use of it.", f.Pool.Free)
	tell(gauge, "pgbough_pool_reserve_bytes", "What is kept of it for the followers.", f.Pool.Reserve)
}

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}
