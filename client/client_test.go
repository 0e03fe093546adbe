package client_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/client"
	"github.com/pgbough/pgbough/internal/httpapi"
	"github.com/pgbough/pgbough/internal/httpapi/httpapitest"
)

func newClient(t *testing.T) (*client.Client, *httpapitest.Service) {
	t.Helper()
	s := httpapitest.New()
	s.AddProject("quiet-sun-12345678", "shop")
	web := httptest.NewServer(httpapi.New(httpapi.Options{Service: s, Keys: s, Log: slog.New(slog.DiscardHandler)}))
	t.Cleanup(func() {
		web.Close()
		s.Close()
	})
	c, err := client.New(web.URL, "k", nil)
	if err != nil {
		t.Fatal(err)
	}
	return c, s
}

func named(name string) client.CreateBranchRequest {
	return client.CreateBranchRequest{Branch: client.CreateBranch{Name: name}}
}

func TestCreateBranchThatTakesLong(t *testing.T) {
	c, s := newClient(t)
	quick, err := c.CreateBranch(t.Context(), "shop", named("quick"), nil)
	if err != nil {
		t.Fatal(err)
	}
	s.Delay = 1500 * time.Millisecond // longer than one request waits
	watched := 0
	slow, err := c.CreateBranch(t.Context(), "shop", named("a/slow"), func(op client.Operation) {
		watched++
		if op.Progress == nil || op.Progress.Total != 1_000_000_000 {
			t.Errorf("progress: %+v", op.Progress)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if watched == 0 || slow.Branch.CurrentState != "ready" || !slow.Operations[0].Done() {
		t.Errorf("watched %d times: %+v", watched, slow)
	}
	// Who waited long gets what the others get.
	if len(slow.ConnectionURIs) != 1 || len(slow.Endpoints) != 1 || len(slow.Roles) != len(quick.Roles) {
		t.Fatalf("answer: %+v", slow)
	}
	got, want := slow.ConnectionURIs[0].ConnectionParameters, quick.ConnectionURIs[0].ConnectionParameters
	got.Host, got.PoolerHost, want.Host, want.PoolerHost = "", "", "", ""
	if got != want || slow.Roles[0].Password != "branch-secret" {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if slow.ConnectionURIs[0].ConnectionParameters.Host != slow.Endpoints[0].Host {
		t.Errorf("host: %+v", slow)
	}
	if _, err := c.DeleteBranch(t.Context(), "shop", "a/slow", false, nil); err != nil {
		t.Error(err)
	}
	_, err = c.Branch(t.Context(), "shop", "a/slow")
	if pgbough.ErrorCode(err) != pgbough.ENotFound {
		t.Errorf("after delete: %v", err)
	}
}

func TestFailures(t *testing.T) {
	c, s := newClient(t)
	s.Fail["Status"] = pgbough.Errorf(pgbough.ELocked, "busy").WithHint("wait")
	_, err := c.Status(t.Context())
	var told *pgbough.Error
	if !errors.As(err, &told) || told.Code != pgbough.ELocked || told.Message != "busy" || told.Hint != "wait" {
		t.Errorf("error: %#v", err)
	}
	s.Delay = 1200 * time.Millisecond
	s.OperationError = pgbough.Errorf(pgbough.EUnreachable, "production does not answer")
	_, err = c.CreateBranch(t.Context(), "shop", named("x"), nil)
	if !errors.As(err, &told) || told.Code != pgbough.EUnreachable || told.Message != "production does not answer" || !strings.Contains(told.Hint, "pgbough ops") {
		t.Errorf("error of an operation: %#v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err = c.CreateBranch(ctx, "shop", named("y"), nil); !errors.Is(err, context.DeadlineExceeded) || pgbough.ErrorCode(err) == pgbough.EUnreachable {
		t.Errorf("error after the end of the context: %v", err)
	}
}

func TestNoServer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	for name, api := range map[string]string{"nobody": l.Addr().String(), "another": other.URL} {
		c, err := client.New(api, "k", nil)
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.Status(t.Context())
		var told *pgbough.Error
		if !errors.As(err, &told) || told.Code != pgbough.EUnreachable || told.Hint == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestFromEnvironment(t *testing.T) {
	good, _ := newClient(t)
	if _, err := good.Status(t.Context()); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var asked string
	web := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		asked = r.URL.Path + " " + r.Header.Get("Authorization")
	}))
	defer web.Close()
	if err := os.WriteFile(filepath.Join(dir, client.KeyFile), []byte("from-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		env  map[string]string
		want string
	}{
		"key":    {map[string]string{"PGBOUGH_API_KEY": "given", "PGBOUGH_DATA": dir}, "/api/v2/status Bearer given"},
		"file":   {map[string]string{"PGBOUGH_DATA": dir}, "/api/v2/status Bearer from-file"},
		"prefix": {map[string]string{"PGBOUGH_DATA": dir, "PGBOUGH_API": web.URL + "/api/v2/"}, "/api/v2/status Bearer from-file"},
	} {
		t.Run(name, func(t *testing.T) {
			c, want := c, c.want
			if c.env["PGBOUGH_API"] == "" {
				c.env["PGBOUGH_API"] = web.URL
			}
			cl, err := client.FromEnvironment(func(name string) string { return c.env[name] })
			if err != nil {
				t.Fatal(err)
			}
			_, _ = cl.Status(t.Context()) // it answers nothing
			if asked != want {
				t.Errorf("asked %q, want %q", asked, want)
			}
		})
	}
	_, err := client.FromEnvironment(func(name string) string {
		return map[string]string{"PGBOUGH_DATA": filepath.Join(dir, "none")}[name]
	})
	if pgbough.ErrorCode(err) != pgbough.EDenied {
		t.Errorf("without a key: %v", err)
	}
	if _, err := client.New("ftp://x", "", nil); pgbough.ErrorCode(err) != pgbough.EInvalid {
		t.Errorf("address: %v", err)
	}
}
