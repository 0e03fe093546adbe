package httpapi_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pgbough/pgbough/internal/credential"
	"github.com/pgbough/pgbough/internal/httpapi"
	"github.com/pgbough/pgbough/internal/httpapi/httpapitest"
)

// served is the API on a port of its own, as the server serves it.
type served struct {
	addr  string
	roots *x509.CertPool
	stop  context.CancelFunc
	done  chan error
}

func serve(t *testing.T, h http.Handler) *served {
	t.Helper()
	ca, err := credential.EnsureCA(filepath.Join(t.TempDir(), "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	certificates, err := credential.OwnCertificates(ca, log, "127.0.0.1", "db-branches")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &served{addr: l.Addr().String(), roots: x509.NewCertPool(), done: make(chan error, 1)}
	s.roots.AppendCertsFromPEM(ca.PEM())
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	go func() {
		s.done <- httpapi.Serve(ctx, l, h, func(ctx context.Context) *tls.Certificate { return certificates.Current(ctx).TLS }, log)
	}()
	t.Cleanup(func() { s.end(t) })
	return s
}

// end stops it, as often as it is called.
func (s *served) end(t *testing.T) {
	t.Helper()
	s.stop()
	select {
	case err := <-s.done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("it does not end")
	}
	s.done <- nil
}

func (s *served) get(t *testing.T, scheme string, config *tls.Config) (int, int, error) {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, scheme+"://"+s.addr+"/api/v2/projects", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+httpapitest.Admin)
	res, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = res.Body.Close() }()
	_, err = io.Copy(io.Discard, res.Body)
	return res.StatusCode, res.ProtoMajor, err
}

func TestOnePortForTLSAndPlain(t *testing.T) {
	service := httpapitest.New()
	s := serve(t, httpapi.New(httpapi.Options{Service: service, Keys: service, Log: slog.New(slog.DiscardHandler)}))
	for range 2 {
		if status, _, err := s.get(t, "http", nil); status != 200 || err != nil {
			t.Errorf("plain: %d, %v", status, err)
		}
		if status, version, err := s.get(t, "https", &tls.Config{RootCAs: s.roots}); status != 200 || version != 2 || err != nil {
			t.Errorf("TLS: %d by HTTP/%d, %v", status, version, err)
		}
	}
	if status, _, err := s.get(t, "https", &tls.Config{RootCAs: s.roots, ServerName: "db-branches"}); status != 200 || err != nil {
		t.Errorf("by name: %d, %v", status, err)
	}
	var unknown x509.UnknownAuthorityError
	if _, _, err := s.get(t, "https", &tls.Config{RootCAs: x509.NewCertPool()}); !errors.As(err, &unknown) {
		t.Errorf("a client that does not know the authority: %v", err)
	}
	// Who says nothing, or breaks off, keeps nobody else waiting, and not the end either.
	for _, say := range []string{"", "\x16", "\x16\x03\x01", "GET /", "nonsense\r\n\r\n"} {
		conn, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		if _, err := io.WriteString(conn, say); err != nil {
			t.Fatal(err)
		}
	}
	if status, _, err := s.get(t, "http", nil); status != 200 || err != nil {
		t.Errorf("with silent ones beside: %d, %v", status, err)
	}
	began := time.Now()
	s.end(t)
	if took := time.Since(began); took > 8*time.Second {
		t.Errorf("the end took %s", took)
	}
	if _, err := net.Dial("tcp", s.addr); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("after the end: %v", err)
	}
}

func TestEndOfTheListener(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	log := slog.New(slog.DiscardHandler)
	if err := httpapi.Serve(t.Context(), l, http.NotFoundHandler(), nil, log); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a listener that is closed: %v", err)
	}
}

// A key that comes from another machine in clear is not even looked at.
func TestOtherMachinesNeedTLS(t *testing.T) {
	service := httpapitest.New()
	h := httpapi.New(httpapi.Options{Service: service, Keys: service, Log: slog.New(slog.DiscardHandler)})
	for from, want := range map[string]int{
		"127.0.0.1:5": 200, "127.3.2.1:5": 200, "[::1]:5": 200, "[::ffff:127.0.0.1]:5": 200,
		"10.0.0.7:5": 400, "[fe80::1]:5": 400, "[::ffff:10.0.0.7]:5": 400, "": 400, "@": 400, "localhost:5": 400,
	} {
		for _, secure := range []bool{false, true} {
			r := httptest.NewRequest(http.MethodGet, "/api/v2/projects", nil)
			r.RemoteAddr = from
			r.Header.Set("Authorization", "Bearer "+httpapitest.Admin)
			want := want
			if secure {
				r.TLS, want = &tls.ConnectionState{}, 200
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if w.Code != want || want == 400 && !strings.Contains(w.Body.String(), "PGBOUGH_CA") {
				t.Errorf("from %q, TLS %t: %d, want %d: %s", from, secure, w.Code, want, w.Body)
			}
			health := httptest.NewRecorder()
			h.ServeHTTP(health, httptest.NewRequest(http.MethodGet, "/healthz", nil))
			if health.Code != 200 {
				t.Errorf("health: %d", health.Code)
			}
		}
	}
}
