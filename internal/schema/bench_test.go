package schema_test

import (
	"context"
	"fmt"
	"net"
	"slices"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/pgtest"
	"github.com/pgbough/pgbough/internal/schema"
)

const manyTables = `DO $$ BEGIN FOR i IN 1..2000 LOOP
	EXECUTE format('CREATE TABLE t%s (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a text NOT NULL DEFAULT ''x'', b numeric(10,2) CHECK (b > 0), c timestamptz DEFAULT now(),
		d jsonb, e int REFERENCES t%s, f uuid, g text COLLATE "C", h boolean, i int[])', i, i - 1);
	EXECUTE format('CREATE INDEX ON t%s (e, c)', i);
	EXECUTE format('COMMENT ON TABLE t%s IS ''%s''', i, i);
END LOOP; END $$`

// BenchmarkDiff compares two databases with 2,000 tables, of which one differs.
func BenchmarkDiff(b *testing.B) {
	s := pgtest.Start(b, pgtest.Options{Conf: map[string]string{"max_locks_per_transaction": "4096"}})
	s.Exec(b, "postgres", "CREATE TABLE t0 (id bigint PRIMARY KEY)")
	s.Exec(b, "postgres", manyTables)
	s.Exec(b, "template1", "CREATE DATABASE other TEMPLATE postgres")
	s.Exec(b, "other", "ALTER TABLE t1000 ADD COLUMN note text")
	dial := func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", s.Port))
	}
	for b.Loop() {
		var dbs [2]*schema.Database
		both, ctx := errgroup.WithContext(b.Context())
		for i, name := range []string{"postgres", "other"} {
			both.Go(func() (err error) { dbs[i], err = schema.Load(ctx, dial, "postgres", name); return err })
		}
		if err := both.Wait(); err != nil {
			b.Fatal(err)
		}
		// Beside it they have other names.
		d := schema.Diff(dbs[0], dbs[1], "a", "b")
		if !slices.ContainsFunc(d.Changes, func(c pgbough.SchemaChange) bool { return c.Name == "public.t1000.note" }) || len(d.Changes) > 5 {
			b.Fatalf("not the changes that were made: %+v", d.Changes)
		}
	}
}
