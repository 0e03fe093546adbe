package httpapi_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/httpapi"
	"github.com/pgbough/pgbough/internal/httpapi/httpapitest"
)

const key = httpapitest.Admin

// server is the API over a Service in memory.
type server struct {
	*httpapitest.Service
	url string
	log *bytes.Buffer
}

func newServer(t *testing.T) *server {
	t.Helper()
	s := &server{Service: httpapitest.New(), log: &bytes.Buffer{}}
	s.At(time.Date(2026, 9, 1, 2, 0, 0, 123456000, time.FixedZone("elsewhere", 2*60*60)))
	web := httptest.NewServer(httpapi.New(httpapi.Options{
		Service: s, Keys: s.Service, Metrics: http.HandlerFunc(metrics), Log: slog.New(slog.NewTextHandler(s.log, nil)),
	}))
	t.Cleanup(func() {
		web.CloseClientConnections()
		web.Close()
		s.Close()
	})
	s.url = web.URL
	return s
}

func metrics(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "pgbough_up 1\n") }

// withShop is a server with one project and one branch.
func withShop(t *testing.T) *server {
	t.Helper()
	s := newServer(t)
	s.AddProject("quiet-sun-12345678", "shop")
	s.AddBranch("shop", "br-calm-fox-a1b2c3d4", "fix/login")
	return s
}

const (
	shop   = "/projects/quiet-sun-12345678"
	fix    = shop + "/branches/br-calm-fox-a1b2c3d4"
	fixKey = "br-calm-fox-a1b2c3d4"
)

// answer is an answer that was read to its end.
type answer struct {
	status int
	header http.Header
	body   []byte
}

func (s *server) request(t *testing.T, method, path, body string, header ...string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.url+"/api/v2"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+key)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	return send(t, req)
}

func send(t *testing.T, req *http.Request) answer {
	t.Helper()
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{res.StatusCode, res.Header, b}
}

// call makes a request, checks its status and returns its JSON.
func (s *server) call(t *testing.T, method, path, body string, want int) map[string]any {
	t.Helper()
	res := s.request(t, method, path, body)
	if res.status != want {
		t.Fatalf("%s %s: got %d, want %d: %s", method, path, res.status, want, res.body)
	}
	var out map[string]any
	if err := json.Unmarshal(res.body, &out); err != nil {
		t.Fatalf("%s %s: %v: %s", method, path, err, res.body)
	}
	return out
}

// at walks into JSON: at(v, "branches", 0, "name").
func at(v any, path ...any) any {
	for _, step := range path {
		switch s := step.(type) {
		case string:
			m, _ := v.(map[string]any)
			v = m[s]
		case int:
			l, _ := v.([]any)
			if s >= len(l) {
				return nil
			}
			v = l[s]
		}
	}
	return v
}

// walk calls f with every value of a JSON document.
func walk(path string, v any, f func(path string, v any)) {
	f(path, v)
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			walk(path+"."+k, e, f)
		}
	case []any:
		for i, e := range v {
			walk(fmt.Sprintf("%s[%d]", path, i), e, f)
		}
	}
}

// everything is what can be asked without changing anything.
var everything = []string{
	"/auth", "/users/me", "/users/me/organizations", "/regions", "/status", "/pool",
	"/projects", "/projects?limit=2", "/projects/shared", shop, shop + "/branches", shop + "/branches?limit=1", fix,
	shop + "/endpoints", fix + "/endpoints", fix + "/roles", fix + "/roles/app",
	fix + "/schema", fix + "/compare_schema", shop + "/branches/main", shop + "/operations", "/operations",
}

func TestEveryAnswerKeepsTheRulesOfNeonsClients(t *testing.T) {
	s := withShop(t)
	s.call(t, "POST", shop+"/branches", `{"branch":{"name":"x"}}`, 201)
	lsn := regexp.MustCompile(`^[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}$`)
	for _, path := range everything {
		walk(path, s.call(t, "GET", path, "", 200), func(where string, v any) {
			text, _ := v.(string)
			switch {
			case v == nil:
				t.Errorf("%s is null", where)
			case strings.HasSuffix(where, "_at") || strings.HasSuffix(where, "_timestamp"):
				if when, err := time.Parse(time.RFC3339, text); err != nil || when.IsZero() || !strings.HasSuffix(text, "Z") {
					t.Errorf("%s is %v: not a time in UTC", where, v)
				}
			case strings.HasSuffix(where, "_lsn"):
				if !lsn.MatchString(text) {
					t.Errorf("%s is %v: not an LSN", where, v)
				}
			case strings.Contains(text, "production-secret"):
				t.Errorf("%s shows the password of production", where)
			case strings.Contains(text, "branch-secret"):
				t.Errorf("%s shows the password of a branch", where)
			}
		})
	}
}

func TestBranchList(t *testing.T) {
	s := withShop(t)
	list := s.call(t, "GET", shop+"/branches", "", 200)
	if _, ok := list["annotations"].(map[string]any); !ok {
		t.Errorf("annotations is no object: %v", list["annotations"])
	}
	var defaults []any
	for _, b := range list["branches"].([]any) {
		if at(b, "default") == true {
			defaults = append(defaults, at(b, "name"))
		}
		for _, only := range []string{"path", "differences"} {
			if at(b, only) != nil {
				t.Errorf("list shows %s", only)
			}
		}
	}
	if len(defaults) != 1 || defaults[0] != "main" {
		t.Errorf("default branches: %v", defaults)
	}
	if got := at(s.call(t, "GET", shop+"/branches?search=login", "", 200), "branches").([]any); len(got) != 1 {
		t.Errorf("search finds %d branches", len(got))
	}
}

func TestPages(t *testing.T) {
	s := withShop(t)
	for i := range 150 {
		s.AddBranch("shop", fmt.Sprintf("br-old-oak-%08d", i), fmt.Sprintf("b%d", i))
	}
	if n := len(s.call(t, "GET", shop+"/branches", "", 200)["branches"].([]any)); n != 152 {
		t.Errorf("without a limit there are %d branches, want all 152", n)
	}
	var names []string
	path := shop + "/branches?limit=100"
	for pages := 0; path != ""; pages++ {
		list := s.call(t, "GET", path, "", 200)
		for _, b := range list["branches"].([]any) {
			names = append(names, at(b, "name").(string))
		}
		path = ""
		if next, ok := at(list, "pagination", "next").(string); ok {
			path = shop + "/branches?limit=100&cursor=" + next
			s.call(t, "DELETE", shop+"/branches/b3", "", 200) // what comes and goes between pages moves none
		}
		if pages > 2 {
			t.Fatal("pages do not end")
		}
	}
	sorted := slices.Clone(names)
	slices.Sort(sorted)
	if len(names) != 152 || len(slices.Compact(sorted)) != 152 {
		t.Errorf("pages hold %d branches, %d different", len(names), len(slices.Compact(sorted)))
	}
	if next := at(s.call(t, "GET", shop+"/branches?limit=10000", "", 200), "pagination", "next"); next != nil {
		t.Errorf("there is a next page after the last: %v", next)
	}
	if next := at(s.call(t, "GET", shop+"/operations?limit=1", "", 200), "pagination", "cursor"); next != nil {
		t.Errorf("there is a next page after a full last one: %v", next)
	}
	for _, limit := range []string{"0", "10001", "x"} {
		s.call(t, "GET", shop+"/branches?limit="+limit, "", 400)
	}
}

func TestIdentifiersAndHosts(t *testing.T) {
	s := withShop(t)
	made := s.call(t, "POST", shop+"/branches", "", 201) // no body at all: Neon's clients may
	id, host := at(made, "endpoints", 0, "id").(string), at(made, "endpoints", 0, "host").(string)
	if !strings.Contains(host, id) || !strings.Contains(host, ".") {
		t.Errorf("host %q does not contain %q and a dot", host, id)
	}
	if at(made, "connection_uris", 0, "connection_parameters", "host") != host {
		t.Errorf("host of the connection differs from %s", host)
	}
	branch := at(made, "branch", "id").(string)
	if !regexp.MustCompile(`^br-[a-z]+-[a-z]+-[a-z0-9]+$`).MatchString(branch) {
		t.Errorf("branch id %q", branch)
	}
	for _, ref := range []string{"fix%2Flogin", fixKey} { // a name in place of an id
		if got := at(s.call(t, "GET", shop+"/branches/"+ref, "", 200), "branch", "id"); got != fixKey {
			t.Errorf("%s is %v", ref, got)
		}
	}
	if n := len(s.call(t, "GET", shop+"/branches/main/endpoints", "", 200)["endpoints"].([]any)); n != 0 {
		t.Errorf("the root branch has %d endpoints", n)
	}
}

// Sizes take longer to measure than all else to look up: a client may leave them out.
func TestBranchWithoutSizes(t *testing.T) {
	s := withShop(t)
	for query, want := range map[string]bool{"": true, "?sizes=true": true, "?sizes=false": false} {
		own, _ := at(s.call(t, "GET", shop+"/branches/main"+query, "", 200), "branch", "own_bytes").(float64)
		if (own > 0) != want {
			t.Errorf("with %q it owns %v bytes", query, own)
		}
	}
}

func TestCreateWaitsForTheBranch(t *testing.T) {
	s := withShop(t)
	s.Delay = 200 * time.Millisecond
	early := s.call(t, "POST", shop+"/branches?wait=0s", `{"branch":{"name":"early"}}`, 201)
	if at(early, "branch", "current_state") != "init" || at(early, "operations", 0, "status") != "running" {
		t.Errorf("early answer: %v", early)
	}
	for _, list := range []string{"connection_uris", "roles", "databases", "endpoints"} {
		if _, ok := early[list].([]any); !ok {
			t.Errorf("early answer has no list %s", list)
		}
	}
	op := at(early, "operations", 0, "id").(string)
	for _, path := range []string{shop + "/operations/", "/projects/shop/operations/", "/operations/"} {
		if got := at(s.call(t, "GET", path+op+"?wait=10s", "", 200), "operation", "status"); got != "finished" {
			t.Errorf("%s after waiting: %v", path, got)
		}
	}
	made := s.call(t, "POST", shop+"/branches", `{"branch":{"name":"made"},"endpoints":[{"type":"read_write"}],"annotation_value":{"a":"b"}}`, 201)
	if at(made, "branch", "current_state") != "ready" || at(made, "roles", 0, "password") != "branch-secret" {
		t.Errorf("answer: %v", made)
	}
	if uri, _ := at(made, "connection_uris", 0, "connection_uri").(string); !strings.HasPrefix(uri, "postgresql://app:branch-secret@/shop?") {
		t.Errorf("uri: %q", uri)
	}
	same := s.call(t, "POST", shop+"/branches", `{"branch":{"name":"made"},"reuse":true}`, 200)
	if at(same, "branch", "id") != at(made, "branch", "id") || at(same, "connection_uris", 0, "connection_uri") == nil {
		t.Errorf("reused: %v", same)
	}
	s.call(t, "POST", shop+"/branches?wait=x", `{"branch":{"name":"y"}}`, 400)
}

func TestExpiry(t *testing.T) {
	s := withShop(t)
	until := func(path string) time.Duration {
		text, _ := at(s.call(t, "GET", path, "", 200), "branch", "expires_at").(string)
		when, err := time.Parse(time.RFC3339, text)
		if err != nil {
			t.Fatalf("expires_at %q", text)
		}
		return time.Until(when)
	}
	s.call(t, "PATCH", fix, `{"branch":{"ttl_interval_seconds":120}}`, 200)
	if d := until(fix); d < 110*time.Second || d > 120*time.Second {
		t.Errorf("expires in %s", d)
	}
	s.call(t, "PATCH", fix, `{"branch":{"expires_at":"2099-01-01T02:00:00.000+02:00"}}`, 200)
	if got := at(s.call(t, "GET", fix, "", 200), "branch", "expires_at"); got != "2099-01-01T00:00:00Z" {
		t.Errorf("expires_at %v", got)
	}
	s.call(t, "PATCH", fix, `{"branch":{}}`, 200)
	until(fix) // still there
	if got := at(s.call(t, "PATCH", fix, `{"branch":{"expires_at":null}}`, 200), "branch"); at(got, "expires_at") != nil {
		t.Errorf("expiry is still there: %v", got)
	}
	s.call(t, "PATCH", fix, `{"branch":{"expires_at":"2001-01-01T00:00:00Z"}}`, 400)
	s.call(t, "PATCH", fix, `{"branch":{"expires_at":"tomorrow"}}`, 400)
	s.call(t, "POST", shop+"/branches", `{"branch":{"name":"old","expires_at":"2001-01-01T00:00:00Z"}}`, 400)
}

func TestProtected(t *testing.T) {
	s := withShop(t)
	protected := func() any { return at(s.call(t, "GET", fix, "", 200), "branch", "protected") }
	if protected() != false {
		t.Error("a branch that nobody protected is protected")
	}
	s.call(t, "PATCH", fix, `{"branch":{"protected":true}}`, 200)
	s.call(t, "PATCH", fix, `{"branch":{}}`, 200)
	if protected() != true {
		t.Error("the branch is not protected")
	}
	s.call(t, "PATCH", fix, `{"branch":{"protected":false}}`, 200)
	if protected() != false {
		t.Error("the branch is still protected")
	}
	made := s.call(t, "POST", shop+"/branches", `{"branch":{"name":"kept","protected":true}}`, 201)
	if at(made, "branch", "protected") != true {
		t.Errorf("a branch that was asked for as protected: %v", made)
	}
}

func TestWhatThisVersionCannotDoIsRefused(t *testing.T) {
	s := withShop(t)
	for _, body := range []string{
		`{"branch":{"parent_lsn":"yesterday"}}`, `{"branch":{"parent_lsn":"0/1","parent_timestamp":"2026-01-01T00:00:00Z"}}`, `{"branch":{"init_source":"schema-only"}}`,
		`{"endpoints":[{"type":"read_only"}]}`, `{"branch":{"name":"-x"}}`, `{`, `{"max_lag_seconds":-1}`,
	} {
		if code := s.call(t, "POST", shop+"/branches", body, 400)["code"]; code != "INVALID" {
			t.Errorf("%s: code %v", body, code)
		}
	}
	s.call(t, "POST", "/projects", `{"project":{"name":"x"}}`, 400)
	s.call(t, "GET", shop+"/snapshots", "", 404)
	if s.Calls["CreateBranch"]+s.Calls["Attach"]+s.Calls["UpdateBranch"] != 0 {
		t.Errorf("the service was asked: %v", s.Calls)
	}
}

func TestDelete(t *testing.T) {
	s := withShop(t)
	s.Delay = 50 * time.Millisecond
	gone := s.call(t, "DELETE", fix, "", 200)
	op, _ := at(gone, "operations", 0, "id").(string)
	s.call(t, "GET", fix, "", 404)
	s.call(t, "DELETE", fix, "", 404)
	s.call(t, "DELETE", shop+"/branches/main", "", 409)
	s.call(t, "DELETE", shop, "", 200)
	s.call(t, "GET", shop, "", 404)
	if got := at(s.call(t, "GET", shop+"/operations/"+op, "", 200), "operation", "status"); got != "finished" {
		t.Errorf("operation of a project that is gone: %v", got)
	}
}

func TestDeleteOfWhatIsStillBeingMade(t *testing.T) {
	s := withShop(t)
	s.Cancel = true
	s.Delay = time.Hour
	s.call(t, "POST", shop+"/branches?wait=0s", `{"branch":{"name":"half"}}`, 201)
	gone := s.call(t, "DELETE", shop+"/branches/half", "", 200)
	if at(gone, "operations", 0, "action") != "create_branch" || at(gone, "operations", 0, "status") != "cancelled" {
		t.Errorf("answer: %v", gone)
	}
}

func TestErrors(t *testing.T) {
	cause := errors.New("private cause")
	for _, c := range []struct {
		code   pgbough.Code
		status int
	}{
		{pgbough.EInvalid, 400},
		{pgbough.EDenied, 401},
		{pgbough.EForbidden, 403},
		{pgbough.ENotFound, 404},
		{pgbough.EConflict, 409},
		{pgbough.ELocked, 423},
		{pgbough.EUnreachable, 503},
		{pgbough.ENoSpace, 507},
		{pgbough.EInternal, 500},
		{"", 500},
	} {
		t.Run(string(c.code), func(t *testing.T) {
			s := withShop(t)
			told := &pgbough.Error{Code: c.code, Message: "what happened", Hint: "what to do", Err: cause}
			s.Fail["Branches"] = fmt.Errorf("list branches: %w", told)
			if c.code == "" {
				s.Fail["Branches"] = cause
			}
			res := s.request(t, "GET", shop+"/branches", "")
			b := res.body
			var got struct {
				RequestID string `json:"request_id"`
				Code      string
				Message   string
				Hint      string
			}
			if err := json.Unmarshal(b, &got); err != nil {
				t.Fatal(err)
			}
			if res.status != c.status || got.RequestID == "" || got.RequestID != res.header.Get("X-Request-Id") {
				t.Errorf("%d: %s", res.status, b)
			}
			if c.code != "" && (got.Message != "what happened" || got.Hint != "what to do" || got.Code != string(c.code)) {
				t.Errorf("%s", b)
			}
			if strings.Contains(string(b), "private") {
				t.Errorf("the cause is shown: %s", b)
			}
			if c.status == 500 && (!strings.Contains(s.log.String(), "private cause") || !strings.Contains(s.log.String(), got.RequestID)) {
				t.Errorf("the cause is not logged: %s", s.log)
			}
			if retry := res.header.Get("Retry-After"); (retry != "") != (c.status == 423 || c.status == 503) {
				t.Errorf("Retry-After %q", retry)
			}
		})
	}
}

func TestFailedOperation(t *testing.T) {
	s := withShop(t)
	s.Delay = 100 * time.Millisecond
	s.OperationError = pgbough.Errorf(pgbough.ENoSpace, "the pool is full").WithHint("delete a branch")
	full := s.call(t, "POST", shop+"/branches", `{"branch":{"name":"a"}}`, 507)
	if full["message"] != "the pool is full" || full["hint"] != "delete a branch" {
		t.Errorf("answer: %v", full)
	}
	early := s.call(t, "POST", shop+"/branches?wait=0s", `{"branch":{"name":"b"}}`, 201)
	path := "/operations/" + at(early, "operations", 0, "id").(string)
	for _, wait := range []string{"?wait=10s", ""} { // also when it has failed before
		op := at(s.call(t, "GET", path+wait, "", 200), "operation")
		if at(op, "status") != "failed" || at(op, "error_code") != "NO_SPACE" || at(op, "hint") != "delete a branch" {
			t.Errorf("operation%s: %v", wait, op)
		}
	}
}

func TestWhoMayAsk(t *testing.T) {
	s := withShop(t)
	for name, header := range map[string]string{"none": "", "wrong": "Bearer wrong", "basic": "Basic " + key, "bare": key} {
		if res := s.request(t, "GET", "/projects", "", "Authorization", header); res.status != 401 {
			t.Errorf("%s: %d", name, res.status)
		}
		if res := s.request(t, "GET", "/nothing", "", "Authorization", header); res.status != 401 {
			t.Errorf("%s: a route that is not there: %d", name, res.status)
		}
	}
	if res := s.request(t, "GET", "/projects", "", "Authorization", "bearer  "+key); res.status != 200 {
		t.Errorf("scheme in lower case: %d", res.status)
	}
	if res := s.request(t, "DELETE", fix, "", "Origin", "https://elsewhere.test"); res.status != 400 {
		t.Errorf("a page of another site may delete: %d", res.status)
	}
	if s.Calls["DeleteBranch"] != 0 {
		t.Error("the service was asked")
	}
}

func TestRequestsThatCannotBe(t *testing.T) {
	s := withShop(t)
	large := `{"branch":{"name":"` + strings.Repeat("x", 2<<20) + `"}}`
	if got := s.call(t, "POST", shop+"/branches", large, 400)["message"]; !strings.Contains(got.(string), "larger than") {
		t.Errorf("message: %v", got)
	}
	if got := s.call(t, "GET", "/nothing", "", 404); got["code"] != "NOT_FOUND" {
		t.Errorf("answer: %v", got)
	}
	s.Panic = "Status"
	got := s.call(t, "GET", "/status", "", 500)
	if !strings.Contains(s.log.String(), "boom") || strings.Contains(got["message"].(string), "boom") {
		t.Errorf("answer: %v\nlog: %s", got, s.log)
	}
}

func TestLog(t *testing.T) {
	s := withShop(t)
	s.LogText, s.LogMore = "first\n", "second\n"
	if res := s.request(t, "GET", fix+"/logs", ""); string(res.body) != "first\n" {
		t.Errorf("%q", res.body)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url+"/api/v2"+fix+"/logs?follow=true", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+key)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	got := make([]byte, len("first\nsecond\n"))
	if _, err := io.ReadFull(res.Body, got); err != nil || string(got) != "first\nsecond\n" {
		t.Errorf("%q, %v", got, err)
	}
	s.call(t, "GET", shop+"/branches/nothing/logs", "", 404)
}

func TestRoles(t *testing.T) {
	s := withShop(t)
	if got := s.call(t, "GET", fix+"/roles/report/reveal_password", "", 200)["password"]; got != "other-secret" {
		t.Errorf("password %v", got)
	}
	s.call(t, "GET", fix+"/roles/nobody/reveal_password", "", 404)
	uri := s.call(t, "GET", shop+"/connection_uri?branch_id=fix/login&role_name=report&database_name=stats", "", 200)
	if at(uri, "libpq", "user") != "report" || at(uri, "libpq", "dbname") != "stats" {
		t.Errorf("answer: %v", uri)
	}
	s.call(t, "GET", shop+"/connection_uri", "", 400)
	s.call(t, "GET", shop+"/connection_uri?branch_id=main", "", 409)
}

func TestPrune(t *testing.T) {
	s := withShop(t)
	s.Unknown = []pgbough.VolumeStatus{{ID: "vlost", OwnBytes: 1}}
	for _, body := range []string{`{"dry_run":true}`, `{}`} {
		if got := at(s.call(t, "POST", "/pool/prune", body, 200), "volumes", 0, "id"); got != "vlost" {
			t.Errorf("%s: %v", body, got)
		}
	}
	if got := s.call(t, "POST", "/pool/prune", `{}`, 200)["volumes"].([]any); len(got) != 0 {
		t.Errorf("pruned twice: %v", got)
	}
}

func TestResize(t *testing.T) {
	s := withShop(t)
	if got := at(s.call(t, "POST", "/pool/resize", `{"size_bytes":123456789012}`, 200), "pool", "size_bytes"); got != 123456789012.0 {
		t.Errorf("resized to %v", got)
	}
	for _, body := range []string{`{}`, `{"size_bytes":-1}`, `{"size_bytes":"1GB"}`} {
		s.call(t, "POST", "/pool/resize", body, 400)
	}
}

func TestCheckAndAttach(t *testing.T) {
	s := newServer(t)
	s.Findings = []pgbough.Finding{{Name: "wal_level", Status: pgbough.FindingFail, Detail: "minimal", Fix: "ALTER SYSTEM SET wal_level = replica;"}}
	report := s.call(t, "POST", "/check", `{"source":{"connection_string":"host=x"}}`, 200)
	if report["ok"] != false || at(report, "findings", 0, "fix") == nil {
		t.Errorf("report: %v", report)
	}
	s.call(t, "POST", "/check", `{}`, 400)
	body := `{"project":{"name":"shop","branch":{"role_name":"app"},"source":{"connection_string":"postgresql://u:production-secret@h1:5433,h2/db","max_rate_bytes":1000}}}`
	made := s.call(t, "POST", "/projects", body, 201)
	for _, required := range []string{"project", "connection_uris", "roles", "databases", "operations", "branch", "endpoints"} {
		if made[required] == nil {
			t.Errorf("no %s", required)
		}
	}
	if got := fmt.Sprint(at(made, "project", "source", "hosts")); got != "[h1:5433 h2:5432]" && got != "[h1:5433 h2:5433]" {
		t.Errorf("hosts %s", got)
	}
	s.call(t, "POST", "/projects", body, 409)
	set := s.call(t, "PATCH", "/projects/shop/source", `{"source":{"connection_string":"host=h3 password=production-secret"}}`, 200)
	if got := fmt.Sprint(at(set, "project", "source", "hosts")); got != "[h3:5432]" {
		t.Errorf("hosts %s", got)
	}
}
