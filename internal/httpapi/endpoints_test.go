package httpapi_test

import "testing"

func TestEndpoint(t *testing.T) {
	s := withShop(t)
	const ep = shop + "/endpoints/ep-calm-fox-a1b2c3d4"
	if got := at(s.call(t, "GET", ep, "", 200), "endpoint"); at(got, "current_state") != "active" || at(got, "suspend_timeout_seconds") != 0.0 || at(got, "last_active") == nil {
		t.Errorf("endpoint: %v", got)
	}
	for _, c := range []struct{ verb, state, action string }{{"suspend", "idle", "suspend_compute"}, {"start", "active", "start_compute"}} {
		got := s.call(t, "POST", ep+"/"+c.verb, "", 200)
		if at(got, "endpoint", "current_state") != c.state || at(got, "operations", 0, "action") != c.action {
			t.Errorf("%s: %v", c.verb, got)
		}
		if again := s.call(t, "POST", ep+"/"+c.verb, "", 200); len(at(again, "operations").([]any)) != 0 {
			t.Errorf("%s again: %v", c.verb, again)
		}
	}
	for _, c := range []struct {
		send         string
		shown, force float64 // on the endpoint, and in force on the branch
	}{{"60", 60, 60}, {"-1", -1, -1}, {"0", 0, 300}, {"1.5", 1.5, 1.5}} {
		got := s.call(t, "PATCH", ep, `{"endpoint":{"suspend_timeout_seconds":`+c.send+`}}`, 200)
		if at(got, "endpoint", "suspend_timeout_seconds") != c.shown {
			t.Errorf("%s: endpoint %v", c.send, got)
		}
		if got := at(s.call(t, "GET", fix, "", 200), "branch", "suspend_timeout_seconds"); got != c.force {
			t.Errorf("%s: branch %v", c.send, got)
		}
	}
	s.call(t, "PATCH", ep, `{"endpoint":{"suspend_timeout_seconds":-2}}`, 400)
	s.call(t, "PATCH", ep, `{}`, 200)
	s.call(t, "GET", shop+"/endpoints/ep-none", "", 404)
	s.call(t, "GET", shop+"/endpoints/main", "", 404)
	s.call(t, "POST", shop+"/endpoints/main/suspend", "", 409)

	made := s.call(t, "POST", shop+"/branches", `{"branch":{"name":"quick"},"endpoints":[{"type":"read_write","suspend_timeout_seconds":60}]}`, 201)
	if got := at(made, "endpoints", 0, "suspend_timeout_seconds"); got != 60.0 {
		t.Errorf("a new branch: %v", got)
	}
	renamed := s.call(t, "PATCH", fix, `{"branch":{"name":"other","suspend_timeout_seconds":-1,"expires_at":"2099-01-01T00:00:00Z"}}`, 200)
	if b := at(renamed, "branch"); at(b, "name") != "other" || at(b, "suspend_timeout_seconds") != -1.0 || at(b, "expires_at") != "2099-01-01T00:00:00Z" {
		t.Errorf("all at once: %v", b)
	}
	s.call(t, "PATCH", fix, `{"branch":{"name":"quick"}}`, 409)
}
