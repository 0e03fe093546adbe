package client_test

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/client"
	"github.com/pgbough/pgbough/internal/credential"
	"github.com/pgbough/pgbough/internal/httpapi"
	"github.com/pgbough/pgbough/internal/httpapi/httpapitest"
)

// authority makes a certificate authority, and the file that clients get of it.
func authority(t *testing.T) (*credential.CA, string) {
	t.Helper()
	dir := t.TempDir()
	ca, err := credential.EnsureCA(filepath.Join(dir, "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, client.CAFile)
	if err := os.WriteFile(file, ca.PEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	return ca, file
}

// secure serves the API as the server does, with a certificate that is valid from
// some time on and for a name, and returns the port.
func secure(t *testing.T, ca *credential.CA, from time.Time, name string) string {
	t.Helper()
	cert, err := ca.Issue(from, name)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	log, s := slog.New(slog.DiscardHandler), httpapitest.New()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- httpapi.Serve(ctx, l, httpapi.New(httpapi.Options{Service: s, Keys: s, Log: log}), func(context.Context) *tls.Certificate { return cert }, log)
	}()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func TestTLS(t *testing.T) {
	ca, file := authority(t)
	_, other := authority(t)
	good := secure(t, ca, time.Now(), "127.0.0.1")
	elsewhere := secure(t, ca, time.Now(), "db-branches")
	old := secure(t, ca, time.Now().Add(-2*365*24*time.Hour), "127.0.0.1")
	foreign := httptest.NewServer(nil) // speaks no TLS
	defer foreign.Close()
	nothing := filepath.Join(t.TempDir(), "nothing.crt")
	if err := os.WriteFile(nothing, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		api, ca   string
		code      pgbough.Code
		says, fix string
	}{
		"all is right":        {"https://127.0.0.1:" + good, file, "", "", ""},
		"plain, on loopback":  {"http://127.0.0.1:" + good, "", "", "", ""},
		"no scheme":           {"127.0.0.1:" + good, file, "", "", ""},
		"no authority":        {"https://127.0.0.1:" + good, "", pgbough.EUnreachable, "cannot be trusted", "PGBOUGH_CA"},
		"another authority":   {"https://127.0.0.1:" + good, other, pgbough.EUnreachable, "cannot be trusted", "PGBOUGH_CA"},
		"another name":        {"https://127.0.0.1:" + elsewhere, file, pgbough.EUnreachable, "127.0.0.1", "--tls-cert"},
		"run out":             {"https://127.0.0.1:" + old, file, pgbough.EUnreachable, "expired", "clocks"},
		"no TLS there":        {strings.Replace(foreign.URL, "http:", "https:", 1), file, pgbough.EUnreachable, "does not speak TLS", "http://"},
		"no file":             {"https://127.0.0.1:" + good, nothing + "x", pgbough.EInvalid, "cannot be read", "ca.crt"},
		"no certificate":      {"https://127.0.0.1:" + good, nothing, pgbough.EInvalid, "holds no certificate", "ca.crt"},
		"another machine":     {"db-branches.invalid:7420", file, pgbough.EUnreachable, "https://db-branches.invalid:7420", "PGBOUGH_API"},
		"another, in clear":   {"http://db-branches.invalid:7420", file, pgbough.EUnreachable, "http://db-branches.invalid:7420", "PGBOUGH_API"},
		"this one, by a name": {"localhost:1", "", pgbough.EUnreachable, "http://localhost:1", "PGBOUGH_API"},
	} {
		t.Run(name, func(t *testing.T) {
			env := map[string]string{"PGBOUGH_API": c.api, "PGBOUGH_CA": c.ca, "PGBOUGH_API_KEY": httpapitest.Admin}
			cl, err := client.FromEnvironment(func(name string) string { return env[name] })
			if err == nil {
				_, err = cl.Status(t.Context())
			}
			if got := pgbough.ErrorCode(err); got != c.code {
				t.Fatalf("got %v (%s), want %s", err, got, c.code)
			}
			var told *pgbough.Error
			if c.code != "" && (!errors.As(err, &told) || !strings.Contains(told.Message, c.says) || !strings.Contains(told.Hint, c.fix)) {
				t.Errorf("got %v, want %q and what to do, with %q", err, c.says, c.fix)
			}
		})
	}
}

func TestKeys(t *testing.T) {
	c, s := newClient(t)
	ctx := t.Context()
	made, err := c.CreateKey(ctx, client.CreateKeyRequest{KeyName: "a/key", ProjectID: "shop"})
	if err != nil || made.Key == "" {
		t.Fatalf("%+v, %v", made, err)
	}
	if k, ok, err := s.Authenticate(ctx, made.Key); !ok || err != nil || k.ID != made.ID || k.ProjectID != made.ProjectID {
		t.Errorf("the key that was made is %+v, %v", k, err)
	}
	list, err := c.Keys(ctx)
	if err != nil || len(list) != 1 || list[0].LastUsedAt.IsZero() || list[0].ID != made.ID || list[0].Name != "a/key" {
		t.Errorf("list: %+v, %v", list, err)
	}
	if gone, err := c.RevokeKey(ctx, "a/key"); err != nil || !gone.Revoked || gone.ID != made.ID {
		t.Errorf("revoked: %+v, %v", gone, err)
	}
	if _, err := c.RevokeKey(ctx, "a/key"); pgbough.ErrorCode(err) != pgbough.ENotFound {
		t.Errorf("again: %v", err)
	}
}
