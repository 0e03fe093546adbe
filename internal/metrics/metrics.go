// Package metrics tells a Prometheus how the server is. What is known at any
// moment is asked for at each scrape; only how long operations took is kept here.
package metrics

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/pgbough/pgbough"
)

// scrapeTimeout is how long one look at the server may take.
const scrapeTimeout = 5 * time.Second

// Server is what is measured.
type Server interface {
	Figures(ctx context.Context) (pgbough.Figures, error)
}

// Clients counts who is, or was, connected to branches.
type Clients struct {
	Open         int64 // now
	Goroutines   int64 // of the process that serves them, now
	Accepted     int64
	AuthFailures int64
	Cancels      int64
}

// Metrics are those of one server.
type Metrics struct {
	registry   *prometheus.Registry
	operations *prometheus.CounterVec
	durations  *prometheus.HistogramVec
}

// New makes the metrics of a server of some version that has done nothing yet.
func New(version string) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		operations: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pgbough_operations_total", Help: "Operations that have ended, by what they did and how they ended.",
		}, []string{"action", "status"}),
		durations: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "pgbough_operation_duration_seconds", Help: "How long operations took that finished, from the request on; action create_branch is making a branch.",
			// A create takes some tenths of a second, an attach may take hours.
			Buckets: []float64{.05, .1, .2, .3, .5, .75, 1, 1.5, 2, 3, 5, 10, 30, 60, 300, 1800, 7200},
		}, []string{"action"}),
	}
	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "pgbough_build_info", Help: "Always 1; the label is the version of the server.",
	}, []string{"version"})
	build.WithLabelValues(version).Set(1)
	m.registry.MustRegister(m.operations, m.durations, build,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Observe counts an operation that has ended.
func (m *Metrics) Observe(op pgbough.Operation) {
	m.operations.WithLabelValues(op.Kind, string(op.Status)).Inc()
	if op.Status == pgbough.OperationFinished {
		m.durations.WithLabelValues(op.Kind).Observe(op.UpdatedAt.Sub(op.CreatedAt).Seconds())
	}
}

// Handler answers with all metrics, those of server and clients as they are then.
// It may be called once. A scrape at which the server cannot be asked fails whole:
// a figure that is missing would look as one that is zero.
func (m *Metrics) Handler(server Server, clients func() Clients, log *slog.Logger) http.Handler {
	m.registry.MustRegister(&scrape{server, clients})
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		ErrorLog: printer{log}, ErrorHandling: promhttp.HTTPErrorOnError,
	})
}

// printer logs what promhttp prints.
type printer struct{ log *slog.Logger }

func (p printer) Println(v ...any) {
	p.log.Error("the metrics cannot be told", "error", fmt.Sprint(v...))
}
