package metrics_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/metrics"
)

type figures struct {
	are pgbough.Figures
	err error
}

func (f figures) Figures(context.Context) (pgbough.Figures, error) { return f.are, f.err }

func scrape(h http.Handler) (int, string) {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	return w.Code, w.Body.String()
}

func TestMetrics(t *testing.T) {
	m := metrics.New("v1.2.3")
	began := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	op := func(kind string, status pgbough.OperationStatus, took time.Duration) {
		m.Observe(pgbough.Operation{Kind: kind, Status: status, CreatedAt: began, UpdatedAt: began.Add(took)})
	}
	op("create_branch", pgbough.OperationFinished, 250*time.Millisecond)
	op("create_branch", pgbough.OperationFinished, 4*time.Second)
	op("create_branch", pgbough.OperationFailed, time.Hour)
	f := figures{are: pgbough.Figures{
		Wakes: 17,
		Pool:  pgbough.PoolStatus{Size: 5000, Used: 1000, Free: 3500, Reserve: 500},
		Projects: []pgbough.ProjectFigures{
			{Name: "shop", Ready: 1, Wanted: 2, Awake: 3, Asleep: 4, Follower: pgbough.FollowerStatus{State: pgbough.FollowerStreaming, LagBytes: 4096, LagSeconds: .25}},
			{Name: "bank", Follower: pgbough.FollowerStatus{State: pgbough.FollowerDisconnected}},
		},
	}}
	status, text := scrape(m.Handler(f, func() metrics.Clients {
		return metrics.Clients{Open: 5, Goroutines: 17, Accepted: 6, AuthFailures: 7, Cancels: 8}
	}, slog.New(slog.DiscardHandler)))
	if status != 200 {
		t.Fatalf("%d %s", status, text)
	}
	for want := range strings.Lines(`pgbough_build_info{version="v1.2.3"} 1
pgbough_operations_total{action="create_branch",status="finished"} 2
pgbough_operations_total{action="create_branch",status="failed"} 1
pgbough_operation_duration_seconds_bucket{action="create_branch",le="0.2"} 0
pgbough_operation_duration_seconds_bucket{action="create_branch",le="0.3"} 1
pgbough_operation_duration_seconds_count{action="create_branch"} 2
pgbough_operation_duration_seconds_sum{action="create_branch"} 4.25
pgbough_follower_streaming{project="shop"} 1
pgbough_follower_streaming{project="bank"} 0
pgbough_follower_lag_bytes{project="shop"} 4096
pgbough_follower_lag_seconds{project="shop"} 0.25
pgbough_spares_ready{project="shop"} 1
pgbough_spares_wanted{project="shop"} 2
pgbough_branches{project="shop",state="awake"} 3
pgbough_branches{project="shop",state="asleep"} 4
pgbough_wakes_total 17
pgbough_proxy_connections 5
pgbough_proxy_goroutines 17
pgbough_proxy_connections_total 6
pgbough_proxy_auth_failures_total 7
pgbough_proxy_cancels_total 8
pgbough_pool_size_bytes 5000
pgbough_pool_used_bytes 1000
pgbough_pool_free_bytes 3500
pgbough_pool_reserve_bytes 500
`) {
		if !strings.Contains(text, "\n"+want) {
			t.Errorf("there is no line %q", want)
		}
	}
	if !strings.Contains(text, "\ngo_goroutines ") || !strings.Contains(text, "\nprocess_open_fds ") {
		t.Error("nothing is said about the process")
	}
	if t.Failed() {
		t.Log(text)
	}
}

func TestServerThatCannotBeAsked(t *testing.T) {
	var log bytes.Buffer
	h := metrics.New("dev").Handler(figures{err: errors.New("disk I/O error")}, func() metrics.Clients { return metrics.Clients{} },
		slog.New(slog.NewTextHandler(&log, nil)))
	if status, text := scrape(h); status != 500 || !strings.Contains(log.String(), "disk I/O error") {
		t.Errorf("%d %s; log %s", status, text, log.String())
	}
}
