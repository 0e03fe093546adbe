package pgproxy

import (
	"testing"

	"github.com/pgbough/pgbough/internal/pgtest"
)

type proxyTest struct {
	name string
	run  func(*testing.T, *pgtest.Server)
}

// TestProxy runs what needs a Postgres that nobody stops.
func TestProxy(t *testing.T) {
	server := pgtest.Start(t, pgtest.Options{Conf: map[string]string{"wal_level": "logical", "max_connections": "60"}})
	for _, tests := range [][]proxyTest{loginTests(), tlsTests(), sessionTests(), holdTests(), clientTests()} {
		for _, test := range tests {
			t.Run(test.name, func(t *testing.T) { test.run(t, server) })
		}
	}
	testMajor(t, server)
}

// TestProxy18 runs what a newer Postgres does in another way.
func TestProxy18(t *testing.T) {
	server := pgtest.Start(t, pgtest.Options{Major: 18})
	testMajor(t, server)
}

func testMajor(t *testing.T, server *pgtest.Server) {
	for _, test := range wireTests() {
		t.Run(test.name, func(t *testing.T) { test.run(t, server) })
	}
}
