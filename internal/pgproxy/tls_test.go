package pgproxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbough/pgbough/internal/credential"
	"github.com/pgbough/pgbough/internal/pgtest"
)

func tlsTests() []proxyTest {
	return []proxyTest{
		{"TLS", testTLS},
		{"the host name names the branch", testSNI},
		{"direct TLS", testDirect},
		{"channel binding", testBinding},
		{"certificates of files", testFiles},
		{"what comes before TLS", testBefore},
	}
}

func testTLS(t *testing.T, server *pgtest.Server) {
	r := newRig(t, server, nil)
	for _, extra := range []string{"sslmode=require", "host=localhost sslmode=verify-full sslrootcert=" + r.ca, "sslmode=verify-full sslrootcert=" + r.ca} {
		r.worksWith(t, extra)
	}
	r = newRig(t, server, func(o *Options) { o.TLS = nil })
	if _, err := r.try(t, "sslmode=require"); err == nil || !strings.Contains(err.Error(), "refused TLS") {
		t.Errorf("without certificates: %v", err)
	}
	if _, err := tls.Dial("tcp", r.addr.String(), &tls.Config{NextProtos: []string{alpn}}); err == nil {
		t.Error("direct TLS without certificates works")
	}
	r.worksWith(t, "sslmode=prefer")
}

// named connects to the proxy under a name that no resolver knows.
func (r *rig) named(t *testing.T, host, database string) (*pgx.Conn, error) {
	t.Helper()
	config, err := pgx.ParseConfig(r.uri(fmt.Sprintf("host=%s options='' dbname=%s sslmode=verify-full sslrootcert=%s", host, database, r.ca)))
	must(t, err)
	config.LookupFunc = func(context.Context, string) ([]string, error) { return []string{"127.0.0.1"}, nil }
	conn, err := pgx.ConnectConfig(t.Context(), config)
	if err == nil {
		t.Cleanup(func() { _ = conn.Close(context.Background()) })
	}
	return conn, err
}

func testSNI(t *testing.T, server *pgtest.Server) {
	r := newRig(t, server, nil)
	conn, err := r.named(t, endpoint+"."+domain, "postgres")
	must(t, err)
	if got := value[string](t, conn, "SELECT current_database()"); got != "postgres" {
		t.Errorf("database %q", got)
	}
	// A database with an '@' in its name, behind which no branch's name is.
	conn, err = r.named(t, endpoint+"."+domain, "at@home")
	must(t, err)
	if got := value[string](t, conn, "SELECT current_database()"); got != "at@home" {
		t.Errorf("database %q", got)
	}
	_, err = r.named(t, "ep-other-oak-1."+domain, "postgres")
	wants(t, err, "3D000", `branch "ep-other-oak-1" does not exist`)
	conn, err = r.named(t, "ep-other-oak-1."+domain, "postgres@fix-login")
	must(t, err)
	_ = value[int](t, conn, "SELECT 1")
	_, err = r.named(t, "www."+domain, "postgres")
	wants(t, err, "08004", "does not say")
}

func testDirect(t *testing.T, server *pgtest.Server) {
	r := newRig(t, server, nil)
	r.worksWith(t, "sslmode=require sslnegotiation=direct")
	conn, err := tls.Dial("tcp", r.addr.String(), &tls.Config{InsecureSkipVerify: true})
	must(t, err)
	w := over(t, conn)
	if said := string(w.message(t)); !strings.Contains(said, "ALPN") {
		t.Errorf("without ALPN: %q", said)
	}
	if _, err := tls.Dial("tcp", r.addr.String(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}}); err == nil {
		t.Error("a client of another protocol was let in")
	}
}

// testBinding has libpq, whose channel binding we do not share, insist on it.
func testBinding(t *testing.T, server *pgtest.Server) {
	r := newRig(t, server, nil)
	out, err := r.psql(t, "sslmode=verify-full sslrootcert="+r.ca+" channel_binding=require", "SELECT 42")
	if err != nil || strings.TrimSpace(out) != "42" {
		t.Errorf("got %q, %v", out, err)
	}
	if out, err = r.psql(t, "channel_binding=require sslmode=disable", "SELECT 42"); err == nil {
		t.Errorf("without TLS: %q", out)
	}
}

func (r *rig) psql(t *testing.T, extra string, commands ...string) (string, error) {
	t.Helper()
	return psql(t, r.uri(extra), commands...)
}

// psql runs statements.
func psql(t *testing.T, uri string, commands ...string) (string, error) {
	t.Helper()
	args := []string{"-XAtq", "-v", "ON_ERROR_STOP=1", "-d", uri}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	cmd := exec.CommandContext(t.Context(), "psql", args...)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C.UTF-8", "HOME=" + t.TempDir()}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func testFiles(t *testing.T, server *pgtest.Server) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "server.crt"), filepath.Join(dir, "server.key")
	ca, err := credential.EnsureCA(filepath.Join(dir, "ca.pem"))
	must(t, err)
	write := func(name string, age time.Duration) {
		issued, err := ca.Issue(time.Now(), name)
		must(t, err)
		secret, err := x509.MarshalPKCS8PrivateKey(issued.PrivateKey)
		must(t, err)
		must(t, os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: issued.Certificate[0]}), 0o600))
		must(t, os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), 0o600))
		must(t, os.Chtimes(cert, time.Now(), time.Now().Add(-age)))
	}
	if _, err := credential.NewCertificates(cert, key, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "cannot be used") {
		t.Errorf("no files: %v", err)
	}
	write("127.0.0.1", time.Hour)
	r := newRig(t, server, func(o *Options) {
		if o.TLS, err = credential.NewCertificates(cert, key, o.Log); err != nil {
			t.Fatal(err)
		}
	})
	must(t, os.WriteFile(r.ca, ca.PEM(), 0o600))
	verify := "sslmode=verify-full sslrootcert=" + r.ca
	r.worksWith(t, verify)
	// The certificate changes; its clients see the new one without a restart.
	write("elsewhere.example.com", time.Minute)
	r.TLS.LookAgain()
	if _, err := r.try(t, verify); err == nil || !strings.Contains(err.Error(), "127.0.0.1") {
		t.Errorf("the new certificate is not used: %v", err)
	}
	if out, err := r.psql(t, "sslmode=require channel_binding=require", "SELECT 1"); err != nil {
		t.Errorf("bound to the new certificate: %s", out)
	}
	// Nonsense leaves the old one.
	must(t, os.WriteFile(cert, []byte("nonsense"), 0o600))
	r.TLS.LookAgain()
	r.worksWith(t, "sslmode=require")
	if !strings.Contains(r.log.String(), "the new certificate cannot be used") {
		t.Error("nobody is told")
	}
}

// testBefore sends what somebody in the middle would, before TLS begins.
func testBefore(t *testing.T, server *pgtest.Server) {
	r := newRig(t, server, nil)
	w := dial(t, r.addr.String())
	ask := []byte{0, 0, 0, 8, 4, 210, 22, 47}
	w.write(t, append(ask, "evil"...))
	if said := string(w.message(t)); !strings.Contains(said, "unencrypted data") {
		t.Errorf("got %q", said)
	}
	// GSS is answered, and TLS still possible.
	w = dial(t, r.addr.String())
	w.code(t, codeGSS)
	if got := w.byte(t); got != 'N' {
		t.Errorf("GSS is answered with %q", got)
	}
	w.code(t, codeSSL)
	if got := w.byte(t); got != 'S' {
		t.Errorf("SSL is answered with %q", got)
	}
	inside := tls.Client(w.Conn, &tls.Config{InsecureSkipVerify: true})
	must(t, inside.Handshake())
	x := over(t, inside)
	x.code(t, codeSSL)
	if said := string(x.message(t)); !strings.Contains(said, "C0A000") {
		t.Errorf("TLS in TLS: %q", said)
	}
	// The same request twice.
	w = dial(t, r.addr.String())
	w.code(t, codeGSS)
	w.byte(t)
	w.code(t, codeGSS)
	if said := string(w.message(t)); !strings.Contains(said, "C0A000") {
		t.Errorf("GSS twice: %q", said)
	}
}
