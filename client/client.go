// Package client is a Go client of pgbough's HTTP API.
//
// Failures are *pgbough.Error with the code, message and hint that the server
// gave, or EUnreachable where there is no server to ask; a call whose context
// ends returns the context's error. Projects and branches are named by id or by
// name.
package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/neonapi"
)

const (
	// DefaultAPI is where a server listens if it is not told otherwise.
	DefaultAPI = "http://127.0.0.1:7420"
	// DefaultData is where a server keeps its data if it is not told otherwise.
	DefaultData = "/var/lib/pgbough"
	// KeyFile is the name of the file in a server's data directory that holds
	// the API key.
	KeyFile = "admin.key"
	// CAFile is the name of the file beside it with which other machines verify
	// the server.
	CAFile = "ca.crt"
)

// Client talks to one server. It may be used by many goroutines.
type Client struct {
	base string // without a slash at the end, with neonapi.Prefix
	key  string
	http *http.Client
}

// New makes a client of the server at api, such as DefaultAPI, with an API key.
// An address without a scheme is one with TLS, unless it is of this machine.
// roots are the only authorities whose certificates it trusts; nil: the system's.
func New(api, key string, roots *x509.CertPool) (*Client, error) {
	u, err := address(api)
	if err != nil {
		return nil, err
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	base := strings.TrimSuffix(strings.TrimRight(u.String(), "/"), neonapi.Prefix)
	return &Client{base: base + neonapi.Prefix, key: key, http: &http.Client{Transport: transport}}, nil
}

func address(api string) (*url.URL, error) {
	full := api
	if !strings.Contains(api, "://") {
		full = "https://" + api
	}
	u, err := url.Parse(full)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, pgbough.Errorf(pgbough.EInvalid, "%q is not the address of a server", api).
			WithHint("set PGBOUGH_API to one such as %s or https://db-branches:7420", DefaultAPI)
	}
	if host := u.Hostname(); full != api && (host == "localhost" || net.ParseIP(host).IsLoopback()) {
		u.Scheme = "http"
	}
	return u, nil
}

// FromEnvironment makes a client of the server that the environment names:
// PGBOUGH_API, by default DefaultAPI, with the key PGBOUGH_API_KEY, by default
// the content of the key file in PGBOUGH_DATA, by default DefaultData. The file
// PGBOUGH_CA, if there is one, holds the authorities that are trusted.
func FromEnvironment(getenv func(string) string) (*Client, error) {
	api := getenv("PGBOUGH_API")
	if api == "" {
		api = DefaultAPI
	}
	key := getenv("PGBOUGH_API_KEY")
	var err error
	if key == "" {
		if key, err = readKey(getenv("PGBOUGH_DATA")); err != nil {
			return nil, err
		}
	}
	roots, err := readRoots(getenv("PGBOUGH_CA"))
	if err != nil {
		return nil, err
	}
	return New(api, key, roots)
}

// readRoots reads certificates of authorities; without a file it is nil.
func readRoots(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, pgbough.Errorf(pgbough.EInvalid, "the file that PGBOUGH_CA names cannot be read: %w", err).
			WithHint("copy %s from the server's data directory; it is no secret", CAFile)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(b) {
		return nil, pgbough.Errorf(pgbough.EInvalid, "%s, which PGBOUGH_CA names, holds no certificate", file).
			WithHint("copy %s from the server's data directory; it is no secret", CAFile)
	}
	return roots, nil
}

func readKey(data string) (string, error) {
	if data == "" {
		data = DefaultData
	}
	file := filepath.Join(data, KeyFile)
	b, err := os.ReadFile(file)
	switch {
	case err == nil:
		return strings.TrimSpace(string(b)), nil
	case errors.Is(err, fs.ErrNotExist):
		return "", pgbough.Errorf(pgbough.EDenied, "there is no API key: %s does not exist", file).
			WithHint("on the server's machine set PGBOUGH_DATA to the directory that `pgbough server --data DIR` was started with; elsewhere set PGBOUGH_API and PGBOUGH_API_KEY")
	default:
		return "", pgbough.Errorf(pgbough.EDenied, "the API key cannot be read: %w", err).
			WithHint("run the command as the user of the server (sudo), or set PGBOUGH_API_KEY")
	}
}

// path joins the segments of a path, each escaped: names may hold slashes.
func path(segments ...string) string {
	var b strings.Builder
	for _, s := range segments {
		b.WriteByte('/')
		b.WriteString(url.PathEscape(s))
	}
	return b.String()
}

// ask makes one request and reads its answer.
func ask[T any](ctx context.Context, c *Client, method, path string, query url.Values, in any) (T, error) {
	var out T
	res, err := c.send(ctx, method, path, query, in)
	if err != nil {
		return out, err
	}
	defer func() { _ = res.Body.Close() }() // it was only read
	if err := json.NewDecoder(res.Body).Decode(&out); err != nil {
		return out, c.broken(ctx, err)
	}
	return out, nil
}

// send makes one request. Its error holds what an answer that is not 2xx says.
func (c *Client) send(ctx context.Context, method, path string, query url.Values, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("write request: %w", err)
		}
		body = bytes.NewReader(b)
	}
	target := c.base + path
	if len(query) > 0 {
		target += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, target, body)
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+c.key)
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, c.broken(ctx, err)
	}
	if res.StatusCode/100 != 2 {
		defer func() { _ = res.Body.Close() }() // it was only read
		return nil, c.refusal(res)
	}
	return res, nil
}

// broken is the failure to get an answer at all.
func (c *Client) broken(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		err = wrapped.Err // without the method and the address
	}
	server := strings.TrimSuffix(c.base, neonapi.Prefix)
	if told := distrusted(server, err); told != nil {
		return told
	}
	return pgbough.Errorf(pgbough.EUnreachable, "no pgbough server answers at %s: %w", server, err).
		WithHint("start it with `pgbough server --data DIR`, or set PGBOUGH_API to where it listens")
}

// refusal is the error that an answer describes.
func (c *Client) refusal(res *http.Response) error {
	const enough = 64 << 10
	b, err := io.ReadAll(io.LimitReader(res.Body, enough))
	var body neonapi.Error
	if err != nil || json.Unmarshal(b, &body) != nil || body.Code == "" {
		return pgbough.Errorf(pgbough.EUnreachable, "what answers at %s is no pgbough server: it says %s", c.base, res.Status).
			WithHint("set PGBOUGH_API to where the server listens")
	}
	return &pgbough.Error{Code: pgbough.Code(body.Code), Message: body.Message, Hint: body.Hint}
}

// distrusted tells what to do about a failure of TLS; nil if it is another one.
func distrusted(server string, err error) *pgbough.Error {
	var (
		unknown x509.UnknownAuthorityError
		name    x509.HostnameError
		invalid x509.CertificateInvalidError
		plain   tls.RecordHeaderError
	)
	switch {
	case errors.As(err, &unknown):
		return pgbough.Errorf(pgbough.EUnreachable, "the server at %s cannot be trusted: no known authority has signed its certificate", server).
			WithHint("set PGBOUGH_CA to a copy of %s from the server's data directory; if it is, another server answers there, or that one has a new authority", CAFile)
	case errors.As(err, &name):
		return pgbough.Errorf(pgbough.EUnreachable, "the server at %s cannot be trusted: %w", server, err).
			WithHint("let PGBOUGH_API name it as its certificate does, or give the server a certificate for that name with --tls-cert and --tls-key")
	case errors.As(err, &invalid):
		return pgbough.Errorf(pgbough.EUnreachable, "the certificate of the server at %s is not valid: %w", server, err).
			WithHint("compare the clocks of both machines, and renew the server's certificate if it has run out")
	case errors.As(err, &plain), errors.Is(err, http.ErrSchemeMismatch):
		return pgbough.Errorf(pgbough.EUnreachable, "what answers at %s does not speak TLS", server).
			WithHint("let the address in PGBOUGH_API begin with http:// if the server is on this machine, or is reached through ssh")
	}
	return nil
}
