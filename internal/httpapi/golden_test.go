package httpapi_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew")

// random are parts of answers that differ every time.
var random = []struct {
	re *regexp.Regexp
	as string
}{
	{regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}`), "00000000-0000-4000-8000-000000000000"},
	{regexp.MustCompile(`(br|ep)-[a-z]+-[a-z]+-[a-z0-9]{8}`), "$1-word-word-12345678"},
}

// TestGolden shows the whole JSON of the main answers, so that a change of what
// clients see is seen in review.
func TestGolden(t *testing.T) {
	s := withShop(t)
	for _, c := range []struct{ name, method, path, body string }{
		{"create_branch", "POST", shop + "/branches", `{"branch":{"name":"new"}}`},
		{"branches", "GET", shop + "/branches", ""},
		{"branch", "GET", fix, ""},
		{"endpoints", "GET", fix + "/endpoints", ""},
		{"roles", "GET", fix + "/roles", ""},
		{"connection_uri", "GET", shop + "/connection_uri?branch_id=" + fixKey, ""},
		{"projects", "GET", "/projects", ""},
		{"operations", "GET", shop + "/operations", ""},
		{"status", "GET", "/status", ""},
		{"pool", "GET", "/pool", ""},
		{"delete_branch", "DELETE", fix, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			raw := s.request(t, c.method, c.path, c.body).body
			var got bytes.Buffer
			if err := json.Indent(&got, raw, "", "  "); err != nil {
				t.Fatalf("%v: %s", err, raw)
			}
			text := got.String()
			for _, r := range random {
				text = r.re.ReplaceAllString(text, r.as)
			}
			file := filepath.Join("testdata", c.name+".json")
			if *update {
				if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), text); diff != "" {
				t.Errorf("answer differs (-want +got; go test -update writes it anew):\n%s", diff)
			}
		})
	}
}
