package quarantine_test

import (
	"context"
	"fmt"
	"log/slog"
	"testing"

	"github.com/pgbough/pgbough/internal/pgtest"
	"github.com/pgbough/pgbough/internal/quarantine"
)

// BenchmarkRun is a cluster of three databases and 20 roles, with one foreign
// server. What runs before promotion (Open) is not measured in "run".
func BenchmarkRun(b *testing.B) {
	production := pgtest.Start(b, pgtest.Options{})
	production.Exec(b, "postgres", "CREATE DATABASE shop")
	for i := range 20 {
		production.Exec(b, "postgres", fmt.Sprintf("CREATE ROLE r%d LOGIN PASSWORD 'x'", i))
	}
	production.Exec(b, "shop", "CREATE EXTENSION postgres_fdw; CREATE SERVER s FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host 'h'); CREATE USER MAPPING FOR postgres SERVER s OPTIONS (password 'p')")
	production.Stop(b)
	s := startSpare(b, production, quarantine.Settings(15), quarantine.UntilRun())
	s.promote(b)
	o := s.options(b)
	var secrets []quarantine.Secret
	for range 21 {
		secret, err := newSecret()
		must(b, err)
		secrets = append(secrets, secret)
	}
	next := 0
	o.Secret = func() (quarantine.Secret, error) { next++; return secrets[next%len(secrets)], nil }
	ctx := context.Background()
	b.Run("open", func(b *testing.B) {
		o.Log = slog.New(slog.DiscardHandler)
		for b.Loop() {
			q, err := quarantine.Open(ctx, o)
			must(b, err)
			must(b, q.Close(ctx))
		}
	})
	b.Run("run", func(b *testing.B) {
		o.Log = slog.New(slog.NewTextHandler(writer{b}, nil))
		q, err := quarantine.Open(ctx, o)
		must(b, err)
		for b.Loop() {
			_, err := q.Run(ctx)
			must(b, err)
		}
		must(b, q.Close(ctx))
	})
	b.Run("purge", func(b *testing.B) {
		o.Log = slog.New(slog.DiscardHandler)
		for b.Loop() {
			must(b, quarantine.Purge(ctx, o))
		}
	})
}
