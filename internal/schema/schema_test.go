package schema_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbough/pgbough/internal/pgtest"
	"github.com/pgbough/pgbough/internal/schema"
)

// later is what only some major versions have.
var later = map[int]string{
	15: `
		DROP EVENT TRIGGER "no change";
		CREATE VIEW shop.invoker WITH (security_invoker = true) AS SELECT 1 AS one;
		CREATE UNLOGGED SEQUENCE shop.quick;
		CREATE TABLE shop.nulls (a int UNIQUE NULLS NOT DISTINCT);
		CREATE PUBLICATION parts FOR TABLE shop.husband (id) WHERE (id > 5);
		CREATE PUBLICATION whole FOR TABLE shop.husband, TABLES IN SCHEMA "select";`,
	17: `
		CREATE COLLATION shop.builtin (provider = builtin, locale = 'C.UTF-8');
		GRANT MAINTAIN ON shop.husband TO reader;`,
	18: `
		CREATE TABLE shop.computed (a int, b int GENERATED ALWAYS AS (a + 1));
		CREATE TABLE shop.named (a int CONSTRAINT must NOT NULL NO INHERIT, b int, c int, CONSTRAINT soft CHECK (b > 0) NOT ENFORCED);
		ALTER TABLE shop.named ADD CONSTRAINT some_day NOT NULL c NOT VALID;
		CREATE TABLE shop.heir (d int) INHERITS (shop.animal);
		CREATE TABLE shop.spans_of_time (id int4range, span tstzrange, PRIMARY KEY (id, span WITHOUT OVERLAPS));
		CREATE PUBLICATION computed FOR TABLE shop.computed WITH (publish_generated_columns = stored);`,
}

func TestItsDDLMakesTheSameAgain(t *testing.T) {
	for _, major := range []int{14, 15, 16, 17, 18} {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			first, second := cluster(t, major), cluster(t, major)
			replay(t, first, "hostile", hostile(t, major))
			want := read(t, first, "hostile")
			ddl := want.DDL()
			if strings.Contains(ddl, "production-secret") {
				t.Error("the DDL shows a password")
			}
			replay(t, second, "hostile", ddl)
			got := read(t, second, "hostile")
			if d := schema.Diff(want, got, "first", "second"); len(d.Changes) > 0 || d.Unified != "" {
				t.Errorf("%d objects differ once it was made again:\n%s", len(d.Changes), d.Unified)
				for _, c := range d.Changes {
					t.Logf("%s %s %s", c.Change, c.Kind, c.Name)
				}
			}
			if again := got.DDL(); again != ddl {
				t.Error("the DDL of what it made is another")
			}
		})
	}
}

// cluster is a server with the roles and the empty database of the tests.
func cluster(t *testing.T, major int) *pgtest.Server {
	t.Helper()
	s := pgtest.Start(t, pgtest.Options{Major: major})
	s.Exec(t, "postgres", file(t, "roles.sql"))
	s.Exec(t, "postgres", "CREATE DATABASE hostile")
	return s
}

func hostile(t *testing.T, major int) string {
	t.Helper()
	sql := file(t, "hostile.sql")
	for _, since := range []int{15, 17, 18} {
		if major >= since {
			sql += later[since]
		}
	}
	return sql
}

func file(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func read(t *testing.T, s *pgtest.Server, database string) *schema.Database {
	t.Helper()
	db, err := schema.Read(context.Background(), s.Conn(t, database))
	if err != nil {
		t.Fatal(err)
	}
	return db
}

// replay runs DDL, and shows where it failed.
func replay(t *testing.T, s *pgtest.Server, database, ddl string) {
	t.Helper()
	if err := run(s.Conn(t, database), ddl); err != nil {
		t.Fatalf("the DDL cannot be run: %v\n%s\n%s", err, at(err, ddl), number(ddl))
	}
}

// at is where an error says that it is.
func at(err error, sql string) string {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || pg.Position == 0 {
		return ""
	}
	text := []rune(sql)[pg.Position-1:]
	return "at: " + string(text[:min(200, len(text))])
}

func run(conn *pgx.Conn, sql string) error {
	_, err := conn.Exec(context.Background(), sql)
	return err
}

func number(text string) string {
	var b strings.Builder
	n := 0
	for line := range strings.Lines(text) {
		n++
		fmt.Fprintf(&b, "%4d %s", n, line)
	}
	return b.String()
}
