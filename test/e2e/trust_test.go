package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/pgbough/pgbough/internal/pgtest"
)

// outward is an address of this machine that other machines could use.
func outward(t *testing.T) string {
	t.Helper()
	all, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && !n.IP.IsLoopback() {
			return n.IP.String()
		}
	}
	t.Fatal("this test needs an IPv4 address beside loopback")
	return ""
}

// elsewhere runs a command as on another machine: it has no data directory.
func (s *server) elsewhere(env []string, args ...string) result {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Env = append(os.Environ(), append([]string{"PGBOUGH_DATA=/nonexistent"}, env...)...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	_ = cmd.Run()
	return result{out.String(), errOut.String(), cmd.ProcessState.ExitCode()}
}

// TestTrustOfTheAPI: from another machine the API is used with TLS, a key that
// was made for it, and what that key opens.
func TestTrustOfTheAPI(t *testing.T) {
	p := calmProduction(t, pgtest.Options{})
	s := startServer(t)
	s.stop()
	_, port, err := net.SplitHostPort(s.api)
	if err != nil {
		t.Fatal(err)
	}
	s.args = append(s.args, "--api", "0.0.0.0:"+port)
	s.start()
	s.attach(p) // over http://127.0.0.1, as ever
	s.must("branch", "create", "mine")

	ca := filepath.Join(s.data(), "ca.crt")
	at := "https://" + net.JoinHostPort(outward(t), port)
	env := func(api, key string) []string {
		return []string{"PGBOUGH_API=" + api, "PGBOUGH_CA=" + ca, "PGBOUGH_API_KEY=" + key}
	}
	key := s.must("key", "create", "ci", "--project", "shop")
	if r := s.elsewhere(env(at, key), "branch", "create", "theirs"); r.code != 0 || !strings.HasPrefix(r.out, "postgresql://") {
		t.Errorf("a create with the key of the project: exit %d\n%s%s", r.code, r.out, r.err)
	}
	for name, c := range map[string]struct {
		env  []string
		args []string
		code int
		says string
	}{
		"the pool":                       {env(at, key), []string{"pool"}, 4, "opens only project shop"},
		"another project":                {env(at, key), []string{"branch", "list", "--project", "bank"}, 3, "there is no project"},
		"no key at all":                  {env(at, key)[:1:1], []string{"status"}, 1, "there is no API key"},
		"a wrong key":                    {env(at, key+"x"), []string{"status"}, 1, "missing, wrong or revoked"},
		"in clear":                       {env(strings.Replace(at, "https", "http", 1), key), []string{"status"}, 2, "with TLS only"},
		"an authority that is not known": {append(env(at, key), "PGBOUGH_CA="), []string{"status"}, 5, "cannot be trusted"},
	} {
		if r := s.elsewhere(c.env, c.args...); r.code != c.code || !strings.Contains(r.err, c.says) || !strings.Contains(r.err, "hint:") {
			t.Errorf("%s: exit %d, want %d and %q\n%s%s", name, r.code, c.code, c.says, r.out, r.err)
		}
	}

	s.metrics(t, at, ca)
	s.kill() // what was made and revoked is durable
	s.start()
	if r := s.elsewhere(env(at, key), "status"); r.code != 0 {
		t.Errorf("after a crash: exit %d\n%s%s", r.code, r.out, r.err)
	}
	s.must("key", "revoke", "ci")
	if r := s.elsewhere(env(at, key), "status"); r.code != 1 || !strings.Contains(r.err, "revoked") {
		t.Errorf("a revoked key: exit %d\n%s%s", r.code, r.out, r.err)
	}
}

// metrics looks at what monitoring sees.
func (s *server) metrics(t *testing.T, at, ca string) {
	t.Helper()
	key := s.must("key", "create", "prometheus", "--metrics-only")
	pem, err := os.ReadFile(ca)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
	defer transport.CloseIdleConnections()
	get := func(url string) (int, string) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+key)
		res, err := (&http.Client{Transport: transport}).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = res.Body.Close() }()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(b)
	}
	if status, text := get(strings.Replace(at, "https", "http", 1) + "/healthz"); status != 200 {
		t.Errorf("health, in clear: %d %s", status, text)
	}
	status, text := get(at + "/metrics")
	if status != 200 {
		t.Fatalf("metrics: %d %s", status, text)
	}
	for _, want := range []string{
		`pgbough_follower_streaming\{project="shop"\} 1`, `pgbough_spares_wanted\{project="shop"\} 1`, `pgbough_branches\{project="shop",state="awake"\} 2`,
		`pgbough_operations_total\{action="create_branch",status="finished"\} 2`, `pgbough_operation_duration_seconds_sum\{action="create_branch"\} \d`,
		`pgbough_pool_size_bytes [1-9]`, `pgbough_build_info\{version=".+"\} 1`, `pgbough_wakes_total 0`,
	} {
		if !regexp.MustCompile("(?m)^" + want).MatchString(text) {
			t.Errorf("metrics have no %s", want)
		}
	}
	if status, text := get(at + "/api/v2/status"); status != 403 {
		t.Errorf("status with the key of the metrics: %d %s", status, text)
	}
}
