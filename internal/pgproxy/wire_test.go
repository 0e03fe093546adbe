package pgproxy

import (
	"bytes"
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pgbough/pgbough/internal/pgtest"
)

// wireTests run against each major version.
func wireTests() []proxyTest {
	return []proxyTest{
		{"negotiation", testNegotiation},
		{"startup is the Postgres's own", testSameStartup},
		{"cancel keys", testCancelKeys},
		{"bad packets", testBadPackets},
	}
}

func md5Answer(user, password string, salt []byte) string {
	sum := func(b []byte) []byte { d := md5.Sum(b); return []byte(hex.EncodeToString(d[:])) }
	return "md5" + string(sum(append(sum([]byte(password+user)), salt...)))
}

// begin logs in with an MD5 password, and returns all messages up to the
// first ReadyForQuery but those of the login.
func begin(t *testing.T, w *wire, version uint32, pairs ...string) (all [][]byte) {
	t.Helper()
	w.startup(t, version, append([]string{"user", "five", "database", "postgres"}, pairs...)...)
	for {
		m := w.message(t)
		switch {
		case m[0] == 'R' && m[8] == 5:
			w.send(t, 'p', md5Answer("five", "five", m[9:])+"\x00")
			continue
		case m[0] == 'E':
			t.Fatalf("refused: %q", m)
		}
		if all = append(all, m); m[0] == 'Z' {
			return all
		}
	}
}

// testNegotiation holds what the proxy says of versions and options against
// what the branch's Postgres would.
func testNegotiation(t *testing.T, server *pgtest.Server) {
	r := newRig(t, server, nil)
	for _, try := range []struct {
		version uint32
		pairs   []string
	}{
		{protocol3, nil},
		{protocol32, nil},
		{protocol3 | 9999, nil},
		{protocol3, []string{"_pq_.a", "1"}},
		{protocol32, []string{"_pq_.a", "1", "application_name", "x", "_pq_.b", "2"}},
	} {
		theirs := negotiated(begin(t, dial(t, fmt.Sprintf("127.0.0.1:%d", server.Port)), try.version, try.pairs...))
		ours := negotiated(begin(t, dial(t, r.addr.String()), try.version, append(try.pairs, "options", "endpoint="+endpoint)...))
		if diff := cmp.Diff(theirs, ours); diff != "" {
			t.Errorf("version %x, %v:\n%s", try.version, try.pairs, diff)
		}
	}
}

func negotiated(all [][]byte) string {
	for _, m := range all {
		if m[0] == 'v' {
			return fmt.Sprintf("%q", m)
		}
	}
	return ""
}

// testSameStartup compares what a client hears with and without the proxy.
func testSameStartup(t *testing.T, server *pgtest.Server) {
	r := newRig(t, server, nil)
	pairs := []string{"application_name", "x", "client_encoding", "LATIN1", "DateStyle", "German"}
	theirs := heard(begin(t, dial(t, fmt.Sprintf("127.0.0.1:%d", server.Port)), protocol32, pairs...))
	ours := heard(begin(t, dial(t, r.addr.String()), protocol32, append(pairs, "options", "endpoint="+endpoint)...))
	if diff := cmp.Diff(theirs, ours); diff != "" {
		t.Error(diff)
	}
}

func heard(all [][]byte) string {
	var b strings.Builder
	for _, m := range all {
		if m[0] == 'K' {
			m = fmt.Appendf(nil, "a key of %d bytes", len(m)) // it is random
		}
		fmt.Fprintf(&b, "%q\n", m)
	}
	return b.String()
}

// testCancelKeys lets two sessions have the same key, as those of two branches
// may: each is cancelled by the key that its client was told.
func testCancelKeys(t *testing.T, server *pgtest.Server) {
	r := newRig(t, server, nil)
	for _, version := range []uint32{protocol3, protocol32} {
		w := dial(t, r.addr.String())
		var key []byte
		for _, m := range begin(t, w, version, "options", "endpoint="+endpoint) {
			if m[0] == 'K' {
				key = m[5:]
			}
		}
		other := &session{key: bytes.Clone(key)}
		shown := r.cancels.add(other)
		if bytes.Equal(shown, key) || len(shown) != len(key) || !bytes.Equal(shown[:4], key[:4]) {
			t.Errorf("a second session with the key %x is told %x", key, shown)
		}
		if r.cancels.find(shown) != other || r.cancels.find(key) == other || r.cancels.find(key) == nil {
			t.Error("the keys do not find their sessions")
		}
		r.cancels.remove(other)
		w.send(t, 'Q', "SELECT pg_sleep(60)\x00")
		eventually(t, "it runs", func() bool {
			return server.Value(t, "postgres", "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'") == "1"
		})
		c := dial(t, r.addr.String())
		c.code(t, codeCancel, key...)
		c.end(t)
		var m []byte
		for m = w.message(t); m[0] != 'E'; m = w.message(t) {
		}
		if !bytes.Contains(m, []byte("C57014")) {
			t.Errorf("got %q", m)
		}
		w.close(t)
	}
}

func testBadPackets(t *testing.T, server *pgtest.Server) {
	r := newRig(t, server, nil)
	for name, try := range map[string]struct {
		packet []byte
		want   string
	}{
		"too long":    {[]byte{0, 1, 0, 0, 0, 3, 0, 0}, "08P01"},
		"too short":   {[]byte{0, 0, 0, 7, 0, 3, 0, 0}, "08P01"},
		"version 2":   {[]byte{0, 0, 0, 9, 0, 2, 0, 0, 0}, "0A000"},
		"no end":      {[]byte{0, 0, 0, 12, 0, 3, 0, 0, 'u', 's', 'e', 'r'}, "08P01"},
		"no user":     {[]byte{0, 0, 0, 9, 0, 3, 0, 0, 0}, "28000"},
		"after end":   {[]byte{0, 0, 0, 10, 0, 3, 0, 0, 0, 'x'}, "08P01"},
		"http":        {[]byte("GET / HTTP/1.1\r\n\r\n"), "08P01"},
		"half a pair": {[]byte{0, 0, 0, 10, 0, 3, 0, 0, 'u', 0}, "08P01"},
	} {
		w := dial(t, r.addr.String())
		w.write(t, try.packet)
		if said := string(w.message(t)); !strings.Contains(said, "C"+try.want) {
			t.Errorf("%s: got %q", name, said)
		}
		w.end(t)
	}
	for name, answer := range map[string]string{
		"no SCRAM":        "nonsense",
		"other mechanism": "PLAIN\x00\x00\x00\x00\x01x",
		"empty":           "",
		"bad first":       "SCRAM-SHA-256\x00\x00\x00\x00\x03n,,",
		"plus":            "SCRAM-SHA-256-PLUS\x00\x00\x00\x00\x20p=tls-server-end-point,,n=,r=aaaa",
	} {
		w := dial(t, r.addr.String())
		w.startup(t, protocol3, "user", "app", "database", "postgres", "options", "endpoint="+endpoint)
		w.message(t)
		w.send(t, 'p', answer)
		if said := string(w.message(t)); !strings.Contains(said, "C08P01") {
			t.Errorf("%s: got %q", name, said)
		}
	}
	w := dial(t, r.addr.String())
	w.startup(t, protocol3, "user", "app", "database", "postgres", "options", "endpoint="+endpoint)
	w.message(t)
	w.send(t, 'Q', "SELECT 1\x00")
	if said := string(w.message(t)); !strings.Contains(said, "expected a password or SASL response") {
		t.Errorf("a query before the login: %q", said)
	}
}
