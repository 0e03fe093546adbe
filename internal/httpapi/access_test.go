package httpapi_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/httpapi"
)

// asked is how a route is tried, and what each kind of key gets from it.
type asked struct {
	body  string
	query string
	// own and other are the status for the key of the project that the request is
	// about, and for that of another; whatever they get, everybody who has no good
	// key gets 401.
	own, other int
}

const (
	refused = 403 // the whole server's
	hidden  = 404 // another's project, which does not exist
)

// routes is every route of the API. A new one has to be added, with who may ask it.
func routes() map[string]asked {
	const branch, endpoint = "/projects/{project}/branches/{branch}", "/projects/{project}/endpoints/{endpoint}"
	return map[string]asked{
		"GET /auth":                   {own: 200, other: 200},
		"GET /users/me":               {own: 200, other: 200},
		"GET /users/me/organizations": {own: 200, other: 200},
		"GET /regions":                {own: 200, other: 200},

		"GET /projects":                     {own: 200, other: 200},
		"GET /projects/shared":              {own: 200, other: 200},
		"POST /projects":                    {own: refused, other: refused, body: `{"project":{"name":"new","source":{"connection_string":"host=x"}}}`},
		"GET /projects/{project}":           {own: 200, other: hidden},
		"DELETE /projects/{project}":        {own: refused, other: refused},
		"PATCH /projects/{project}":         {own: refused, other: refused, body: `{"project":{"history_retention_seconds":3600}}`},
		"GET /projects/{project}/history":   {own: 200, other: hidden},
		"PATCH /projects/{project}/source":  {own: refused, other: refused, body: `{"source":{"connection_string":"host=x"}}`},
		"GET /projects/{project}/branches":  {own: 200, other: hidden},
		"POST /projects/{project}/branches": {own: 201, other: hidden, body: `{"branch":{"name":"new"}}`},

		"GET " + branch:                                   {own: 200, other: hidden},
		"PATCH " + branch:                                 {own: 200, other: hidden, body: `{"branch":{"name":"renamed"}}`},
		"DELETE " + branch:                                {own: 200, other: hidden},
		"GET " + branch + "/endpoints":                    {own: 200, other: hidden},
		"GET " + branch + "/roles":                        {own: 200, other: hidden},
		"GET " + branch + "/roles/{role}":                 {own: 200, other: hidden},
		"GET " + branch + "/roles/{role}/reveal_password": {own: 200, other: hidden},
		"GET " + branch + "/logs":                         {own: 200, other: hidden},
		"GET " + branch + "/schema":                       {own: 200, other: hidden},
		"GET " + branch + "/compare_schema":               {own: 200, other: hidden},
		"GET /projects/{project}/connection_uri":          {own: 200, other: hidden, query: "?branch_id=br-calm-fox-a1b2c3d4"},

		"GET /projects/{project}/endpoints": {own: 200, other: hidden},
		"GET " + endpoint:                   {own: 200, other: hidden},
		"PATCH " + endpoint:                 {own: 200, other: hidden, body: `{"endpoint":{"suspend_timeout_seconds":60}}`},
		"POST " + endpoint + "/start":       {own: 200, other: hidden},
		"POST " + endpoint + "/suspend":     {own: 200, other: hidden},

		"GET /projects/{project}/operations":             {own: 200, other: hidden},
		"GET /projects/{project}/operations/{operation}": {own: 200, other: hidden},
		"GET /operations":                                {own: 200, other: 200},
		"GET /operations/{operation}":                    {own: 200, other: hidden},

		"GET /api_keys":          {own: refused, other: refused},
		"POST /api_keys":         {own: refused, other: refused, body: `{"key_name":"more"}`},
		"DELETE /api_keys/{key}": {own: refused, other: refused},

		"POST /check":       {own: refused, other: refused, body: `{"source":{"connection_string":"host=x"}}`},
		"GET /status":       {own: 200, other: 200},
		"GET /pool":         {own: refused, other: refused},
		"POST /pool/prune":  {own: refused, other: refused},
		"POST /pool/resize": {own: refused, other: refused, body: `{"size_bytes":60000000000}`},
		"GET /metrics":      {own: refused, other: refused},
	}
}

// keyring is a server with two projects and one key of each kind.
type keyring struct {
	*server
	admin, own, other, metrics, revoked string
	operation, revocable                string
}

const otherProject = "/projects/loud-rain-87654321"

func newKeyring(t *testing.T) *keyring {
	t.Helper()
	k := &keyring{server: withShop(t), admin: key}
	k.AddProject("loud-rain-87654321", "bank")
	k.AddBranch("bank", "br-dark-elm-b1b2b3b4", "ledger")
	k.own, _ = k.create(t, `{"key_name":"own","project_id":"shop"}`)
	k.other, _ = k.create(t, `{"key_name":"other","project_id":"loud-rain-87654321"}`)
	k.metrics, _ = k.create(t, `{"key_name":"metrics","metrics_only":true}`)
	k.revoked, _ = k.create(t, `{"key_name":"revoked"}`)
	_, k.revocable = k.create(t, `{"key_name":"revocable"}`)
	k.call(t, "DELETE", "/api_keys/revoked", "", 200)
	made := k.call(t, "POST", shop+"/branches", `{"branch":{"name":"made"}}`, 201)
	k.operation = at(made, "operations", 0, "id").(string)
	return k
}

func (k *keyring) create(t *testing.T, body string) (shown, id string) {
	t.Helper()
	made := k.call(t, "POST", "/api_keys", body, 200)
	return made["key"].(string), fmt.Sprint(made["id"])
}

// as makes a request with a key; an empty one sends none.
func (k *keyring) as(t *testing.T, shown, pattern string, a asked) answer {
	t.Helper()
	method, path, _ := strings.Cut(pattern, " ")
	path = strings.NewReplacer("{project}", "quiet-sun-12345678", "{branch}", fixKey, "{endpoint}", "ep-calm-fox-a1b2c3d4",
		"{role}", "app", "{operation}", k.operation, "{key}", k.revocable).Replace(path)
	if path != "/metrics" {
		path = "/api/v2" + path
	}
	req, err := http.NewRequestWithContext(t.Context(), method, k.url+path+a.query, strings.NewReader(a.body))
	if err != nil {
		t.Fatal(err)
	}
	if shown != "" {
		req.Header.Set("Authorization", "Bearer "+shown)
	}
	return send(t, req)
}

func TestEveryRouteWithEveryKindOfKey(t *testing.T) {
	table := routes()
	if diff := cmp.Diff(httpapi.Patterns(), slices.Sorted(maps.Keys(table))); diff != "" {
		t.Fatalf("routes (-) and what is known of who may ask them (+):\n%s", diff)
	}
	for pattern, a := range table {
		t.Run(pattern, func(t *testing.T) {
			k := newKeyring(t)
			calls := maps.Clone(k.Calls)
			for kind, shown := range map[string]string{
				"none": "", "garbage": "pgbough_AAAAAAAAAAAAAAAAAAAAAAAAAA", "revoked": k.revoked, "own with more": k.own + "x", "blank": " ",
			} {
				if res := k.as(t, shown, pattern, a); res.status != 401 || codeOf(res) != "DENIED" || res.header.Get("WWW-Authenticate") == "" {
					t.Errorf("%s: %d %s", kind, res.status, res.body)
				}
			}
			k.tell(t, "metrics", k.as(t, k.metrics, pattern, a), map[bool]int{true: 200, false: refused}[pattern == "GET /metrics"])
			if diff := cmp.Diff(calls, k.Calls); diff != "" {
				t.Errorf("the service was asked for keys that open nothing:\n%s", diff)
			}
			other := k.as(t, k.other, pattern, a)
			k.tell(t, "other", other, a.other)
			for _, secret := range []string{`"name":"shop"`, "fix/", "quiet-sun", "calm-fox", "branch-secret"} {
				if a.other != hidden && strings.Contains(string(other.body), secret) {
					t.Errorf("the key of another project is told about %s: %s", secret, other.body)
				}
			}
			k.tell(t, "own", k.as(t, k.own, pattern, a), a.own)
			k.tell(t, "admin", newKeyring(t).as(t, k.admin, pattern, a), 0)
		})
	}
}

// tell checks a status; 0 is any that is good.
func (k *keyring) tell(t *testing.T, kind string, res answer, want int) {
	t.Helper()
	code := codeOf(res)
	switch {
	case want == 0 && res.status/100 == 2:
	case res.status != want, want == refused && code != "FORBIDDEN", want == hidden && code != "NOT_FOUND":
		t.Errorf("%s: got %d, want %d: %s", kind, res.status, want, res.body)
	}
}

func codeOf(res answer) string {
	var told struct{ Code string }
	_ = json.Unmarshal(res.body, &told) // not every answer is JSON
	return told.Code
}

// Another's project, and one that does not exist, are told in the same words, by
// id and by name; so are operations.
func TestWhatIsAnothersDoesNotExist(t *testing.T) {
	k := newKeyring(t)
	same := func(is, isNot string) {
		t.Helper()
		words := func(id string) string {
			res := k.as(t, k.other, "GET "+strings.Replace(is, "ID", id, 1), asked{})
			var told struct{ Code, Message, Hint string }
			if err := json.Unmarshal(res.body, &told); err != nil || res.status != 404 {
				t.Errorf("%s: %d %s", id, res.status, res.body)
			}
			return strings.ReplaceAll(fmt.Sprint(told), id, "ID")
		}
		for _, id := range strings.Fields(isNot)[1:] {
			if one, two := words(strings.Fields(isNot)[0]), words(id); one != two {
				t.Errorf("%s: %q for one that does not exist, %q for another's", is, one, two)
			}
		}
	}
	same("/projects/ID", "none quiet-sun-12345678 shop")
	same("/projects/ID/branches/"+fixKey, "none quiet-sun-12345678 shop")
	missing := "00000000-0000-4000-8000-000000000000 "
	same("/operations/ID", missing+k.operation)
	same(otherProject+"/operations/ID", missing+k.operation)
	// Its own project it finds, by name too, and nothing of another's in it.
	for path, want := range map[string]int{
		"/projects/bank/branches/ledger": 200, "/projects/bank/branches/" + fixKey: 404, "/projects/bank/branches/fix%2Flogin": 404,
		"/projects/bank/endpoints/ep-calm-fox-a1b2c3d4": 404, "/projects/bank/connection_uri?branch_id=" + fixKey: 404,
	} {
		if res := k.as(t, k.other, "GET "+path, asked{}); res.status != want {
			t.Errorf("%s: %d %s", path, res.status, res.body)
		}
	}
}

func TestListsHoldWhatTheKeyOpens(t *testing.T) {
	k := newKeyring(t)
	for path, list := range map[string]string{"/projects": "projects", "/status": "projects", "/operations": "operations"} {
		for shown, want := range map[string]int{k.admin: 2, k.own: 1, k.other: 1} {
			if list == "operations" {
				want = map[string]int{k.admin: 1, k.own: 1, k.other: 0}[shown]
			}
			var got map[string]any
			res := k.as(t, shown, "GET "+path, asked{})
			if err := json.Unmarshal(res.body, &got); err != nil || len(got[list].([]any)) != want {
				t.Errorf("%s: want %d: %s", path, want, res.body)
			}
			if path == "/status" && (len(got["notes"].([]any)) > 0) != (shown == k.admin) {
				t.Errorf("notes: %s", res.body)
			}
		}
	}
}

func TestKeys(t *testing.T) {
	s := withShop(t)
	made := s.call(t, "POST", "/api_keys", `{"key_name":"ci","project_id":"shop"}`, 200)
	shown, _ := made["key"].(string)
	if shown == "" || made["name"] != "ci" || made["project_id"] != "quiet-sun-12345678" || made["project_name"] != "shop" || at(made, "created_by", "id") == nil {
		t.Errorf("created: %v", made)
	}
	list := s.request(t, "GET", "/api_keys", "")
	var keys []map[string]any
	if err := json.Unmarshal(list.body, &keys); err != nil || len(keys) != 1 || keys[0]["id"] != made["id"] || keys[0]["last_used_at"] != nil {
		t.Errorf("list: %v: %s", err, list.body)
	}
	if strings.Contains(string(list.body), shown) {
		t.Error("the key is shown again")
	}
	s.call(t, "POST", "/api_keys", `{"key_name":"ci"}`, 409)
	s.call(t, "POST", "/api_keys", `{"key_name":"x","project_id":"none"}`, 404)
	s.call(t, "POST", "/api_keys", `{}`, 400)
	gone := s.call(t, "DELETE", fmt.Sprintf("/api_keys/%v", made["id"]), "", 200)
	if gone["revoked"] != true || gone["name"] != "ci" {
		t.Errorf("revoked: %v", gone)
	}
	s.call(t, "DELETE", "/api_keys/ci", "", 404)
	if res := s.request(t, "GET", "/api_keys", ""); strings.TrimSpace(string(res.body)) != "[]" {
		t.Errorf("an empty list is %s", res.body)
	}
}

// A log that is followed ends when the key that asked for it is revoked.
func TestRevokedKeyEndsWhatItReads(t *testing.T) {
	k := newKeyring(t)
	k.LogText = "first\n"
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, k.url+"/api/v2"+fix+"/logs?follow=true", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+k.own)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	if _, err := io.ReadFull(res.Body, make([]byte, len("first\n"))); err != nil {
		t.Fatal(err)
	}
	k.call(t, "DELETE", "/api_keys/own", "", 200)
	if rest, err := io.ReadAll(res.Body); err != nil || len(rest) > 0 {
		t.Errorf("it goes on: %q, %v", rest, err)
	}
}

func TestHealth(t *testing.T) {
	s := withShop(t)
	get := func(method string) (int, string) {
		req, err := http.NewRequestWithContext(t.Context(), method, s.url+"/healthz", nil)
		if err != nil {
			t.Fatal(err)
		}
		a := send(t, req)
		return a.status, string(a.body)
	}
	if status, text := get("GET"); status != 200 || text != "ok\n" {
		t.Errorf("%d %q", status, text)
	}
	if status, text := get("HEAD"); status != 200 || text != "" {
		t.Errorf("%d %q", status, text)
	}
	s.Fail["Healthy"] = pgbough.Errorf(pgbough.EInternal, "private cause")
	if status, text := get("GET"); status != 503 || strings.Contains(text, "private") || !strings.Contains(s.log.String(), "private cause") {
		t.Errorf("%d %q; log %s", status, text, s.log)
	}
	if status, _ := get("POST"); status != 401 {
		t.Errorf("POST: %d", status)
	}
}
