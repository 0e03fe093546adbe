package shop_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/pgbough/pgbough/internal/pgtest"
	"github.com/pgbough/pgbough/test/shop"
)

func load(t *testing.T, s *pgtest.Server, database string, scale float64) {
	t.Helper()
	s.Exec(t, "postgres", "CREATE DATABASE "+database)
	if err := shop.Load(t.Context(), s.Conn(t, database), scale); err != nil {
		t.Fatal(err)
	}
}

// TestLoadIsTheSameEveryTime: tests and measurements compare runs.
func TestLoadIsTheSameEveryTime(t *testing.T) {
	s := pgtest.Start(t, pgtest.Options{})
	load(t, s, "a", 0.01)
	load(t, s, "b", 0.01)
	for _, table := range []string{"customers", "products", "inventory", "orders", "order_items", "payments", "events", "revenue_by_category"} {
		sum := fmt.Sprintf("SELECT count(*) || ' ' || md5(string_agg(t::text, ',' ORDER BY t::text)) FROM %s t", table)
		if a, b := s.Value(t, "a", sum), s.Value(t, "b", sum); a != b || a == "" {
			t.Errorf("%s: %q and %q", table, a, b)
		}
	}
}

// TestWriterOutlivesARestart: every acknowledged order is there with its total,
// also when the server was away in between.
func TestWriterOutlivesARestart(t *testing.T) {
	s := pgtest.Start(t, pgtest.Options{Conf: map[string]string{"fsync": "on"}})
	load(t, s, "shop", 0.01)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	acked := map[int64]bool{}
	fifty, enough := make(chan struct{}), make(chan struct{})
	failures := 0
	w := shop.Writer{
		ConnString: s.ConnString("postgres", "shop"),
		Customers:  3,
		Acknowledged: func(number int64) error {
			acked[number] = true
			switch {
			case len(acked) == 50:
				close(fifty)
			case len(acked) > 150 && failures > 0:
				select {
				case <-enough:
				default:
					close(enough)
				}
			}
			return nil
		},
		Failed: func(error) { failures++ },
	}
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	await(ctx, t, fifty)
	s.Kill(t)
	s.Run(t)
	await(ctx, t, enough)
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	numbers := make([]int64, 0, len(acked))
	for n := range acked {
		numbers = append(numbers, n)
	}
	const kept = `SELECT count(*) FROM orders o WHERE id = ANY($1) AND status = 'paid'
		AND total = (SELECT sum(quantity * price) FROM order_items WHERE order_id = o.id)
		AND total = (SELECT sum(amount) FROM payments WHERE order_id = o.id)
		AND EXISTS (SELECT FROM events WHERE order_id = o.id AND kind = 'order.paid')`
	if got := s.Value(t, "shop", kept, numbers); got != fmt.Sprint(len(numbers)) {
		t.Errorf("%s of %d acknowledged orders are there and whole", got, len(numbers))
	}
}

func TestWriterStopsWhenItCannotRecord(t *testing.T) {
	s := pgtest.Start(t, pgtest.Options{})
	load(t, s, "shop", 0.01)
	full := errors.New("disk full")
	w := shop.Writer{ConnString: s.ConnString("postgres", "shop"), Acknowledged: func(int64) error { return full }}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := w.Run(ctx); !errors.Is(err, full) {
		t.Errorf("Run: %v, want the error of Acknowledged", err)
	}
}

func await(ctx context.Context, t *testing.T, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-ctx.Done():
		t.Fatal("no orders came")
	}
}
