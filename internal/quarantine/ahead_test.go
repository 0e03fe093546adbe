package quarantine_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pgbough/pgbough/internal/pgtest"
	"github.com/pgbough/pgbough/internal/postgres"
	"github.com/pgbough/pgbough/internal/quarantine"
)

// A spare that a create hands on to a point is looked at twice, and a session can
// do one thing at a time.
func TestLookAheadAgain(t *testing.T) {
	p := pgtest.Start(t, pgtest.Options{})
	p.Exec(t, "postgres", "CREATE DATABASE other")
	p.Stop(t)
	s := startSpare(t, p)
	o := s.options(t)
	var log bytes.Buffer
	o.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	q, err := quarantine.Open(t.Context(), o)
	must(t, err)
	for range 5 {
		q.LookAhead(t.Context())
	}
	must(t, q.Close(t.Context()))
	if strings.Contains(log.String(), "a look ahead failed") {
		t.Errorf("its log says:\n%s", log.String())
	}
}

// What was seen ahead on the standby is cut after its promotion, with no further
// look; a prepared transaction, which a standby does not show, is found all the same.
func TestLookAhead(t *testing.T) {
	for _, prepared := range []bool{false, true} {
		t.Run(fmt.Sprint("prepared ", prepared), func(t *testing.T) {
			p := pgtest.Start(t, pgtest.Options{Conf: map[string]string{"max_prepared_transactions": "2"}})
			p.Exec(t, "postgres", "CREATE DATABASE shop")
			p.Exec(t, "postgres", "CREATE ROLE app LOGIN PASSWORD 'sekret'")
			p.Exec(t, "shop", `CREATE EXTENSION postgres_fdw; CREATE SERVER s FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host 'h');
				CREATE USER MAPPING FOR postgres SERVER s OPTIONS (password 'sekret'); CREATE SEQUENCE q`)
			p.Exec(t, "template1", "CREATE UNLOGGED TABLE u (n int)")
			if prepared {
				conn := p.Conn(t, "shop")
				_, err := conn.Exec(t.Context(), "BEGIN; CREATE TABLE t (); PREPARE TRANSACTION 'x'")
				must(t, err)
			}
			p.Stop(t)
			s := startSpare(t, p, []postgres.Param{{Name: "max_prepared_transactions", Value: "2"}})
			q, err := quarantine.Open(t.Context(), s.options(t))
			must(t, err)
			q.LookAhead(t.Context())
			s.promote(t)
			must(t, s.exec(t, "shop", "CREATE USER MAPPING FOR app SERVER s OPTIONS (password 'later')"))
			report, err := q.Run(t.Context())
			must(t, errors.Join(err, q.Close(t.Context())))
			got := map[string]int{}
			for _, d := range report.Differences {
				got[d.Kind+" "+d.DB]++
			}
			want := map[string]int{"foreign_server shop": 1, "user_mapping shop": 1, "unlogged_table template1": 1, "password ": 1, "sequence ": 1}
			later := "{password=later}" // which no look has seen
			if prepared {
				want["prepared_transaction shop"], want["user_mapping shop"], later = 1, 2, ""
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("differences (-want +got):\n%s", diff)
			}
			if left := s.value(t, "shop", "SELECT coalesce(string_agg(umoptions::text, ' ' ORDER BY umuser), '') FROM pg_user_mapping WHERE umoptions::text ~ 'sekret|later'"); left != later {
				t.Errorf("credentials that are left: %s", left)
			}
			if n := s.value(t, "postgres", "SELECT count(*) FROM pg_authid WHERE rolname = 'app' AND rolpassword LIKE 'SCRAM%'"); n != "1" || len(report.Roles) != 2 {
				t.Errorf("%s passwords of app, %d new ones", n, len(report.Roles))
			}
		})
	}
}
