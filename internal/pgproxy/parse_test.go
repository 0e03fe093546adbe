package pgproxy

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestTargets(t *testing.T) {
	for name, try := range map[string]struct {
		options, database, sni, domain string
		want                           []target
		rest                           string
	}{
		"options":               {options: "endpoint=ep-a", database: "db", want: []target{{"ep-a", "db"}}},
		"options count first":   {options: "endpoint=ep-a", database: "db@b", sni: "ep-c.x", want: []target{{"ep-a", "db@b"}}},
		"options with others":   {options: "-c a=b endpoint=ep-a  -c c=d", database: "db", want: []target{{"ep-a", "db"}}, rest: "-c a=b   -c c=d"},
		"escaped blanks":        {options: `-c a=x\ endpoint=ep-b endpoint=ep-a`, want: []target{{"ep-a", ""}}, rest: `-c a=x\ endpoint=ep-b`},
		"part of a word":        {options: "-c endpoint=ep-b2", database: "d@e", want: []target{{"ep-b2", "d@e"}}, rest: "-c"},
		"longer word":           {options: "xendpoint=ep-b", database: "d@e", want: []target{{"e", "d"}}, rest: "xendpoint=ep-b"},
		"twice the same":        {options: "endpoint=a --endpoint=a", want: []target{{"a", ""}}},
		"last at":               {database: "a@b@c", want: []target{{"c", "a@b"}}},
		"project":               {database: "db@shop/fix", want: []target{{"shop/fix", "db"}}},
		"no database":           {database: "@c", want: []target{{"c", ""}}},
		"no branch":             {database: "a@"},
		"host":                  {database: "db", sni: "ep-a.example.com", want: []target{{"ep-a", "db"}}},
		"host in domain":        {sni: "EP-a.Example.com", domain: "example.com", want: []target{{"ep-a", ""}}},
		"host in other domain":  {sni: "ep-a.example.org", domain: "example.com"},
		"host that is no such":  {sni: "www.example.com"},
		"host without domain":   {sni: "ep-a"},
		"database, then host":   {database: "a@b", sni: "ep-c.x", want: []target{{"b", "a"}, {"ep-c", "a@b"}}},
		"nothing":               {database: "db"},
		"options say other ":    {options: "-c geqo=off", database: "db"},
		"backslash at the end":  {options: `endpoint=a \`, want: []target{{"a", ""}}, rest: `\`},
		"two different options": {options: "endpoint=a endpoint=b"},
	} {
		s := &startup{}
		s.set("options", try.options)
		s.set("database", try.database)
		got, err := s.targets(try.sni, try.domain)
		if (err != nil) != (try.want == nil) {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(try.want, got, cmp.AllowUnexported(target{})); diff != "" {
			t.Errorf("%s:\n%s", name, diff)
		}
		if try.want != nil && strings.Contains(try.options, "endpoint") && s.get("options") != try.rest {
			t.Errorf("%s: the rest is %q", name, s.get("options"))
		}
	}
}

func TestStartupKeepsOrder(t *testing.T) {
	in := &startup{version: protocol3, parameters: []parameter{{"b", "1"}, {"a", "2"}, {"b", "3"}, {"c", ""}}}
	packet := in.encode()
	got, err := parseStartup(protocol3, packet[8:])
	must(t, err)
	if diff := cmp.Diff(in, got, cmp.AllowUnexported(startup{}, parameter{})); diff != "" {
		t.Error(diff)
	}
	got.set("b", "x")
	if want := []parameter{{"b", "x"}, {"a", "2"}, {"c", ""}}; !cmp.Equal(got.parameters, want, cmp.AllowUnexported(parameter{})) {
		t.Errorf("got %v", got.parameters)
	}
}

// TestFraming cuts a stream of messages in all ways.
func TestFraming(t *testing.T) {
	var stream []byte
	ends := map[int]bool{}
	for _, body := range []string{"", "a", "Z\x00\x00\x00\x05I", strings.Repeat("x", 40)} {
		stream = append(stream, 'D', 0, 0, 0, byte(4+len(body)))
		stream = append(stream, body...)
		ends[len(stream)] = true
	}
	for size := 1; size <= len(stream); size++ {
		var f framing
		for at := 0; at < len(stream); at += size {
			piece := stream[at:min(at+size, len(stream))]
			end, want := f.advance(piece), -1
			for e := range ends {
				if e > at && e <= at+len(piece) {
					want = max(want, e-at)
				}
			}
			if end != want || f.whole() != ends[at+len(piece)] {
				t.Fatalf("pieces of %d, at %d: end %d, want %d; whole %v", size, at, end, want, f.whole())
			}
		}
	}
	for _, bad := range []string{"D\x00\x00\x00\x03", "D\xff\xff\xff\xff"} {
		var f framing
		if f.advance([]byte(bad)); f.whole() {
			t.Errorf("%q: a message has ended", bad)
		}
	}
}

func FuzzStartup(f *testing.F) {
	f.Add(uint32(protocol3), []byte("user\x00app\x00database\x00db@b\x00options\x00-c a=b endpoint=ep-a\x00_pq_.x\x001\x00\x00"), "ep-a.example.com", 18)
	f.Add(uint32(protocol32), []byte("\x00"), "", 15)
	f.Add(uint32(2<<16), []byte("user\x00"), "x", 14)
	f.Fuzz(func(t *testing.T, version uint32, body []byte, sni string, major int) {
		s, err := parseStartup(version, body)
		if err != nil {
			return
		}
		if packet := s.encode(); !bytes.Equal(packet[8:], body) {
			t.Errorf("%q became %q", body, packet[8:])
		}
		all, err := s.targets(sni, "")
		for _, target := range all {
			if target.branch == "" && !strings.Contains(string(body), "endpoint=") {
				t.Errorf("%q names a branch without a name", body)
			}
		}
		if (err == nil) != (len(all) > 0) {
			t.Errorf("%v, %v", all, err)
		}
		s.negotiate(major)
		if again := s.negotiate(major); again != nil {
			t.Errorf("%q had to be negotiated twice", body)
		}
	})
}

func FuzzOptions(f *testing.F) {
	f.Add("-c a=b endpoint=ep-a")
	f.Add(`\ endpoint= --endpoint=x\`)
	f.Fuzz(func(t *testing.T, options string) {
		rest, named := cutEndpoint(options)
		if len(named) == 0 && rest != options {
			t.Errorf("%q became %q", options, rest)
		}
		if _, again := cutEndpoint(rest); len(again) > 0 {
			t.Errorf("%q leaves %q", options, rest)
		}
	})
}

func FuzzFraming(f *testing.F) {
	f.Add([]byte("Z\x00\x00\x00\x05I"), 3)
	f.Fuzz(func(t *testing.T, stream []byte, cut int) {
		cut = min(max(cut, 0), len(stream))
		var whole, parts framing
		end := whole.advance(stream)
		first, second := parts.advance(stream[:cut]), parts.advance(stream[cut:])
		if second >= 0 {
			first = cut + second
		}
		if end != first || whole != parts {
			t.Errorf("%q cut at %d: %d and %+v, in one piece %d and %+v", stream, cut, first, parts, end, whole)
		}
	})
}

// FuzzConversation lets a client say anything to a proxy without a branch.
func FuzzConversation(f *testing.F) {
	s := &startup{version: protocol3, parameters: []parameter{{"user", "a"}, {"options", "endpoint=x"}}}
	f.Add(s.encode())
	f.Add([]byte{0, 0, 0, 8, 4, 210, 22, 47})
	f.Add([]byte{0, 0, 0, 16, 4, 210, 22, 46, 1, 2, 3, 4, 5, 6, 7, 8})
	f.Fuzz(func(t *testing.T, said []byte) { converse(t, said) })
}
