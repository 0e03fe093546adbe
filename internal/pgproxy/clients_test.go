package pgproxy

import (
	"fmt"
	"net/url"
	"testing"

	"github.com/pgbough/pgbough/internal/pgtest"
	"github.com/pgbough/pgbough/test/clients"
)

func clientTests() []proxyTest {
	return []proxyTest{
		{"psql", testPsql},
		{"JDBC", testJDBC},
		{"node-postgres", testNode},
	}
}

func testPsql(t *testing.T, server *pgtest.Server) {
	r := newRig(t, server, nil)
	both(t, func(t *testing.T, mode string) {
		out, err := r.psql(t, mode, "CREATE TEMP TABLE p AS SELECT 2", `\copy p TO STDOUT`)
		if err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	uri := fmt.Sprintf("postgresql://app:%s@%s/postgres?sslmode=verify-full&sslrootcert=%s&options=endpoint%%3D%s",
		url.PathEscape(password), r.addr, r.ca, endpoint)
	if out, err := psql(t, uri, "SELECT 1"); err != nil {
		t.Errorf("%s: %v: %s", uri, err, out)
	}
}

// query is the part of a URI after the '?', for drivers that take libpq's names.
func (r *rig) query(extra ...string) string {
	q := url.Values{"options": {"endpoint=" + endpoint}, "sslmode": {"disable"}}
	for i := 0; i < len(extra); i += 2 {
		q.Set(extra[i], extra[i+1])
	}
	return q.Encode()
}

func testJDBC(t *testing.T, server *pgtest.Server) {
	r := newRig(t, server, nil)
	at := func(database string, extra ...string) string {
		return fmt.Sprintf("jdbc:postgresql://%s/%s?%s", r.addr, database, r.query(append([]string{"user", "app", "password", password}, extra...)...))
	}
	clients.JDBC(t, at("postgres"))
	clients.JDBC(t, at("postgres%40fix-login", "options", "", "sslmode", "verify-full", "sslrootcert", r.ca))
	clients.JDBC(t, at("postgres", "password", "wrong"), "28P01")
	clients.JDBC(t, at("postgres%40nosuch", "options", ""), "3D000")
}

func testNode(t *testing.T, server *pgtest.Server) {
	r := newRig(t, server, nil)
	at := func(database, password string, extra ...string) string {
		return fmt.Sprintf("postgresql://app:%s@%s/%s?%s", url.PathEscape(password), r.addr, database, r.query(extra...))
	}
	clients.Node(t, at("postgres", password))
	clients.Node(t, at("postgres@fix-login", password, "options", "", "sslmode", "verify-full", "sslrootcert", r.ca))
	clients.Node(t, at("postgres", "wrong"), "28P01")
	clients.Node(t, at("postgres@nosuch", password, "options", ""), "3D000")
}
