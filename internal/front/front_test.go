package front_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/credential"
	"github.com/pgbough/pgbough/internal/front"
	"github.com/pgbough/pgbough/internal/httpapi"
	"github.com/pgbough/pgbough/internal/httpapi/httpapitest"
)

// TestFront: whatever a client does comes to the engine and back.
func TestFront(t *testing.T) {
	var asked sync.Map
	follow := make(chan string)
	left := make(chan struct{})
	api := http.NewServeMux()
	api.HandleFunc("/api/v2/echo", func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		asked.Store(r.URL.Query().Get("n"), r)
		w.Header().Set("X-Request-Id", "engine's")
		w.WriteHeader(http.StatusTeapot)
		_, _ = fmt.Fprintf(w, "%s %v", b, err)
	})
	api.HandleFunc("/api/v2/follow", func(w http.ResponseWriter, r *http.Request) {
		defer close(left)
		for {
			select {
			case line := <-follow:
				_, _ = io.WriteString(w, line)
				_ = http.NewResponseController(w).Flush()
			case <-r.Context().Done():
				return
			}
		}
	})
	r := newRig(t, api)

	t.Run("Confined", func(t *testing.T) { confined(t, r) })
	t.Run("Clients", func(t *testing.T) {
		conn := r.connect(t)
		var two int
		must(t, conn.QueryRow(t.Context(), "SELECT 1 + 1").Scan(&two))
		if n := r.Clients(branchID); two != 2 || n != 1 {
			t.Errorf("%d, and %d clients", two, n)
		}
		ca := filepath.Join(t.TempDir(), "ca.crt")
		must(t, os.WriteFile(ca, r.ca, 0o600))
		secure, err := r.try(t, "host=localhost sslmode=verify-full sslrootcert="+ca)
		must(t, err)
		must(t, secure.Close(t.Context()))
		_, err = r.try(t, "password=wrong")
		wants(t, err, "28P01", "password authentication failed")
		_, err = r.try(t, "user=nobody")
		wants(t, err, "28P01", "password authentication failed")
		_, err = r.try(t, "dbname=postgres@nosuch")
		wants(t, err, "3D000", "does not exist")
		r.world.failure.Store(pgbough.Errorf(pgbough.ENoSpace, "there is no room").WithHint("make some"))
		_, err = r.try(t, "")
		wants(t, err, "53100", "there is no room make some")
		r.world.failure.Store(nil)
		must(t, cancelled(t, conn))
		if s := r.Stats(); s.AuthFailures != 3 || s.Cancels != 1 || s.Open != 1 {
			t.Errorf("counted: %+v", s)
		}
	})
	t.Run("API", func(t *testing.T) {
		for i, scheme := range []string{"http", "https"} {
			n := fmt.Sprint(i)
			a := r.request(t, http.MethodPost, scheme, "/api/v2/echo?n="+n, goodKey, strings.NewReader("a body"))
			if a.status != http.StatusTeapot || a.text != "a body <nil>" || a.header.Get("X-Request-Id") != "engine's" || len(a.header.Values("X-Request-Id")) != 1 {
				t.Errorf("%s: %d %q %v", scheme, a.status, a.text, a.header)
			}
			v, _ := asked.Load(n)
			if got := v.(*http.Request); got.Host != r.api || !strings.HasPrefix(got.RemoteAddr, "127.0.0.1:") || (got.TLS != nil) != (scheme == "https") || got.Header.Get("Pgbough-Peer") != "" {
				t.Errorf("%s came as %s from %s, TLS %v, %v", scheme, got.Host, got.RemoteAddr, got.TLS, got.Header)
			}
			for _, key := range []string{"", "bad", strings.Repeat("x", 5000)} {
				a := r.request(t, http.MethodPost, scheme, "/api/v2/echo?n=never", key, strings.NewReader("a body"))
				if a.status != http.StatusUnauthorized || !strings.Contains(a.text, "admin.key") || a.header.Get("X-Request-Id") == "" {
					t.Errorf("%s with key %.9q: %d %q", scheme, key, a.status, a.text)
				}
			}
		}
		if _, ok := asked.Load("never"); ok {
			t.Error("a request without a good key has reached the engine")
		}
		if a := r.request(t, http.MethodPost, "http", "/api/v2/echo", goodKey, strings.NewReader(strings.Repeat("x", 2<<20))); a.status != http.StatusBadRequest || !strings.Contains(a.text, "larger than") {
			t.Errorf("a large body: %d %q", a.status, a.text)
		}
		if a := r.request(t, http.MethodGet, "http", "/healthz", "", nil); a.status != http.StatusOK || a.text != "ok\n" {
			t.Errorf("health: %d %q", a.status, a.text)
		}
		r.world.sick.Store(true)
		if a := r.request(t, http.MethodGet, "http", "/healthz", "", nil); a.status != http.StatusServiceUnavailable {
			t.Errorf("health of a sick one: %d", a.status)
		}
		r.world.sick.Store(false)
	})
	t.Run("Follow", func(t *testing.T) {
		ctx, leave := context.WithCancel(t.Context())
		defer leave()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+r.api+"/api/v2/follow", nil)
		must(t, err)
		req.Header.Set("Authorization", "Bearer "+goodKey)
		follow := func(line string) { follow <- line }
		go follow("first\n")
		res, err := http.DefaultTransport.RoundTrip(req)
		must(t, err)
		defer func() { _ = res.Body.Close() }()
		for _, want := range []string{"first\n", "second\n"} { // each is there before the next is written
			b := make([]byte, len(want))
			if _, err := io.ReadFull(res.Body, b); err != nil || string(b) != want {
				t.Fatalf("%q, %v", b, err)
			}
			if want == "first\n" {
				go follow("second\n")
			}
		}
		leave()
		select {
		case <-left:
		case <-time.After(10 * time.Second):
			t.Error("the engine goes on for a client that has left")
		}
	})
	t.Run("Hold", func(t *testing.T) { hold(t, r) })
	t.Run("Sessions", func(t *testing.T) { sessions(t, r) })
}

// confined looks at what the front's process can do.
func confined(t *testing.T, r *rig) {
	pid := r.pid(t)
	of := func(name string) string { return fmt.Sprintf("/proc/%d/%s", pid, name) }
	b, err := os.ReadFile(of("status"))
	must(t, err)
	status := map[string]string{}
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(line, ":")
		status[name] = strings.Join(strings.Fields(value), " ")
	}
	id := fmt.Sprintf("%d %d %d %d", unused, unused, unused, unused)
	for name, want := range map[string]string{
		"Uid": id, "Gid": id, "Groups": "", "NoNewPrivs": "1",
		"CapInh": "0000000000000000", "CapPrm": "0000000000000000", "CapEff": "0000000000000000", "CapAmb": "0000000000000000",
	} {
		if status[name] != want {
			t.Errorf("%s: %q, want %q", name, status[name], want)
		}
	}
	// No thread is another user.
	tasks, err := filepath.Glob(of("task/*/status"))
	must(t, err)
	for _, task := range tasks {
		b, _ := os.ReadFile(task)
		if s := string(b); s != "" && (!strings.Contains(s, "NoNewPrivs:\t1") || !strings.Contains(s, "CapEff:\t0000000000000000") || !strings.Contains(s, fmt.Sprintf("Uid:\t%d", unused))) {
			t.Errorf("a thread:\n%s", s)
		}
	}
	if all, err := os.ReadDir(of("root")); err != nil || len(all) != 0 {
		t.Errorf("it sees files: %v, %v", all, err)
	}
	if err := os.WriteFile(of("root/x"), nil, 0o600); !errors.Is(err, syscall.EROFS) {
		t.Errorf("even root may write where it is: %v", err)
	}
	for _, ns := range []string{"mnt", "net", "pid", "ipc", "uts"} {
		theirs, err := os.Readlink(of("ns/" + ns))
		must(t, err)
		ours, err := os.Readlink("/proc/self/ns/" + ns)
		must(t, err)
		if ours == theirs {
			t.Errorf("it shares %s", theirs)
		}
	}
	files, err := os.ReadDir(of("fd"))
	must(t, err)
	for _, f := range files {
		to, _ := os.Readlink(of("fd/" + f.Name()))
		if !strings.HasPrefix(to, "socket:") && !strings.HasPrefix(to, "pipe:") && !strings.HasPrefix(to, "anon_inode:") && to != "/dev/null" && !strings.HasPrefix(filepath.Base(to), "cpu.") { // of its cgroup, by Go's runtime
			t.Errorf("it has %s open", to)
		}
	}
	if b, err := os.ReadFile(of("environ")); err != nil || len(b) > 200 {
		t.Errorf("its environment: %q, %v", b, err)
	}
}

// cancelled has a statement of conn cancelled by its client.
func cancelled(t *testing.T, conn *pgx.Conn) error {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		_, err := conn.Exec(context.Background(), "SELECT pg_sleep(60)")
		done <- err
	}()
	for {
		must(t, conn.PgConn().CancelRequest(t.Context()))
		select {
		case err := <-done:
			wants(t, err, "57014", "canceling statement")
			return nil
		case <-time.After(50 * time.Millisecond): // it came before the statement
		}
	}
}

func hold(t *testing.T, r *rig) {
	conn := r.connect(t)
	r.Hold(branchID)
	done := make(chan error, 2)
	go func() { _, err := conn.Exec(context.Background(), "SELECT 1"); done <- err }()
	go func() {
		later, err := r.try(t, "application_name=later")
		if err == nil {
			err = later.Close(context.Background())
		}
		done <- err
	}()
	eventually(t, "the second has logged in", func() bool { return r.Clients(branchID) == 2 })
	select {
	case err := <-done:
		t.Fatalf("a branch that is held has answered: %v", err)
	default:
	}
	if n := r.world.server.Value(t, "postgres", "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'later'"); n != "0" {
		t.Error("a client has come through")
	}
	r.Release(branchID)
	for range 2 {
		must(t, <-done)
	}
	r.Hold(branchID)
	r.End(branchID, "57P01", "it goes to sleep")
	_, err := conn.Exec(t.Context(), "SELECT 1")
	wants(t, err, "57P01", "it goes to sleep")
	r.Release(branchID)
	eventually(t, "no client is left", func() bool { return r.Clients(branchID) == 0 })
}

// sessions has many open at once, and looks that nothing of them stays.
func sessions(t *testing.T, r *rig) {
	pid := r.pid(t)
	round := func() {
		conns := make([]*pgx.Conn, 200)
		var all errgroup.Group
		all.SetLimit(20) // logins at a time
		for i := range conns {
			all.Go(func() (err error) {
				conns[i], err = pgx.ConnectConfig(t.Context(), r.config(t, ""))
				return err
			})
		}
		must(t, all.Wait())
		if n := r.Clients(branchID); n != len(conns) {
			t.Errorf("%d clients, want %d", n, len(conns))
		}
		for _, conn := range conns {
			must(t, conn.Ping(t.Context()))
			must(t, conn.Close(t.Context()))
		}
		eventually(t, "all are gone", func() bool { return r.Stats().Open == 0 })
	}
	round() // streams that are kept for the next calls are there now
	ours, theirs := openFiles(t, os.Getpid()), openFiles(t, pid)
	round()
	const kept = 64 // streams
	eventually(t, fmt.Sprintf("files are given back: %d and %d", ours, theirs), func() bool {
		return openFiles(t, os.Getpid()) <= ours+kept && openFiles(t, pid) <= theirs+kept
	})
}

// TestKilled: a front that dies takes its clients with it, and nothing else.
func TestKilled(t *testing.T) {
	r := newRig(t, http.NotFoundHandler())
	conn := r.connect(t)
	r.Stats()
	r.Hold(branchID)
	pid := r.pid(t)
	must(t, syscall.Kill(pid, syscall.SIGKILL))
	began := time.Now()
	if _, err := conn.Exec(t.Context(), "SELECT 1"); err == nil {
		t.Error("a client of a front that was killed goes on")
	}
	waits := make(chan error, 1)
	go func() {
		conn, err := r.try(t, "")
		if err == nil {
			err = conn.Close(context.Background())
		}
		waits <- err
	}()
	eventually(t, "the next front serves", func() bool { return r.Clients(branchID) == 1 })
	t.Logf("the next front has a client after %s", time.Since(began))
	select {
	case err := <-waits:
		t.Fatalf("a branch that was held is not in the next front: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	r.Release(branchID)
	must(t, <-waits)
	if now := r.pid(t); now == pid {
		t.Error("there is no other front")
	}
	if s := r.Stats(); s.Accepted < 2 {
		t.Errorf("counts begin anew: %+v", s)
	}
	if a := r.request(t, http.MethodGet, "https", "/", goodKey, nil); a.status != http.StatusNotFound {
		t.Errorf("the API: %d", a.status)
	}
}

// A front that does not answer the engine is as good as dead, and so ends.
func TestStopped(t *testing.T) {
	r := newRig(t, http.NotFoundHandler(), func(o *front.Options) { o.Answer = 300 * time.Millisecond })
	conn := r.connect(t)
	pid := r.pid(t)
	must(t, syscall.Kill(pid, syscall.SIGSTOP))
	r.Hold(branchID) // returns when it is true
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("it still is there: %v", err)
	}
	if _, err := conn.Exec(t.Context(), "SELECT 1"); err == nil {
		t.Error("its client goes on")
	}
	r.Release(branchID)
	must(t, r.connect(t).Ping(t.Context()))
}

// TestStop: the end of the server gives what is under way the time to end.
func TestStop(t *testing.T) {
	service := httpapitest.New()
	service.Delay = time.Minute // longer than anybody waits
	p := service.AddProject("pr-small-oak-12345678", "shop")
	began := make(chan struct{}, 1)
	inner := httpapi.New(httpapi.Options{Service: service, Keys: anyKey{service}, Log: slog.New(slog.DiscardHandler)})
	r := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		began <- struct{}{}
		inner.ServeHTTP(w, req)
	}))
	conn := r.connect(t)
	pid := r.pid(t)
	answered := make(chan string, 1)
	go func() {
		a := r.request(t, http.MethodPost, "http", "/api/v2/projects/"+p.ID+"/branches?wait=1m", goodKey, strings.NewReader(`{"branch":{"name":"fix"}}`))
		answered <- fmt.Sprint(a.status, a.text)
	}()
	<-began
	r.stop()
	if got := <-answered; !strings.HasPrefix(got, "201") || !strings.Contains(got, `"fix"`) {
		t.Errorf("a request that waited: %s", got)
	}
	_, err := conn.Exec(t.Context(), "SELECT 1")
	wants(t, err, "57P01", "the server is shutting down")
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("the front is there: %v", err)
	}
}

type anyKey struct{ *httpapitest.Service }

func (anyKey) Authenticate(context.Context, string) (pgbough.APIKey, bool, error) {
	return pgbough.APIKey{Name: "any"}, true, nil
}

// TestRotation: another certificate is shown without a new front, on both ports.
func TestRotation(t *testing.T) {
	dir := t.TempDir()
	ca, err := credential.EnsureCA(filepath.Join(dir, "ca.pem"))
	must(t, err)
	write := func() {
		cert, err := ca.Issue(time.Now(), "localhost")
		must(t, err)
		key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
		must(t, err)
		must(t, os.WriteFile(filepath.Join(dir, "crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}), 0o600))
		must(t, os.WriteFile(filepath.Join(dir, "key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}), 0o600))
	}
	write()
	r := newRig(t, http.NotFoundHandler(), func(o *front.Options) {
		o.Certificates, err = credential.NewCertificates(filepath.Join(dir, "crt"), filepath.Join(dir, "key"), o.Log)
		must(t, err)
	})
	pid := r.pid(t)
	shown := func(addr string) string {
		conn, err := (&tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"postgresql", "http/1.1"}}}).DialContext(t.Context(), "tcp", addr)
		must(t, err)
		defer func() { _ = conn.Close() }()
		return conn.(*tls.Conn).ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	first := shown(r.api)
	if other := shown(r.proxy); other != first {
		t.Errorf("the ports show %s and %s", first, other)
	}
	write()
	for _, addr := range []string{r.api, r.proxy} {
		eventually(t, "the other certificate is shown on "+addr, func() bool { return shown(addr) != first })
	}
	if now := r.pid(t); now != pid {
		t.Error("there is another front")
	}
}
