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
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
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
)

// Client talks to one server. It may be used by many goroutines.
type Client struct {
	base string // without a slash at the end, with neonapi.Prefix
	key  string
	http *http.Client
}

// New makes a client of the server at api, such as DefaultAPI, with an API key.
func New(api, key string) (*Client, error) {
	if !strings.Contains(api, "://") {
		api = "http://" + api
	}
	u, err := url.Parse(api)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, pgbough.Errorf(pgbough.EInvalid, "%q is not the address of a server", api).
			WithHint("set PGBOUGH_API to one such as %s", DefaultAPI)
	}
	base := strings.TrimSuffix(strings.TrimRight(u.String(), "/"), neonapi.Prefix)
	return &Client{base: base + neonapi.Prefix, key: key, http: &http.Client{}}, nil
}

// FromEnvironment makes a client of the server that the environment names:
// PGBOUGH_API, by default DefaultAPI, with the key PGBOUGH_API_KEY, by default
// the content of the key file in PGBOUGH_DATA, by default DefaultData.
func FromEnvironment(getenv func(string) string) (*Client, error) {
	api := getenv("PGBOUGH_API")
	if api == "" {
		api = DefaultAPI
	}
	key := getenv("PGBOUGH_API_KEY")
	if key == "" {
		var err error
		if key, err = readKey(getenv("PGBOUGH_DATA")); err != nil {
			return nil, err
		}
	}
	return New(api, key)
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
