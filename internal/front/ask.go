package front

import (
	"context"
	"crypto/tls"
	"net"
	"time"

	"github.com/pgbough/pgbough"
)

const (
	// maxKey is far longer than an API key.
	maxKey = 1024
	// certificateLimit is for the engine to tell which certificate it is.
	certificateLimit = 5 * time.Second
)

// Login implements pgproxy.Service.
func (f *front) Login(ctx context.Context, branch, role string) (l pgbough.Login, err error) {
	err = f.engine.Call(ctx, verbLogin, loginRequest{branch, role}, &l)
	return l, err
}

// Connect implements pgproxy.Service.
func (f *front) Connect(ctx context.Context, branchID string) (net.Conn, error) {
	conn, err := f.engine.Fetch(ctx, verbConnect, branchID, nil)
	if err != nil {
		return nil, err
	}
	return conn, nil
}

// Authenticate implements httpapi.Keys. Whose key it is, only the engine knows.
func (f *front) Authenticate(ctx context.Context, shown string) (key pgbough.APIKey, ok bool, err error) {
	if shown == "" || len(shown) > maxKey {
		return key, false, nil
	}
	err = f.engine.Call(ctx, verbKey, shown, &ok)
	return key, ok, err
}

func (f *front) healthy(ctx context.Context) error {
	return f.engine.Call(ctx, verbHealthy, nil, nil)
}

// certificates asks the engine for one that was not known before.
func (f *front) certificates(ctx context.Context) func() (*tls.Certificate, error) {
	var known []byte
	return func() (*tls.Certificate, error) {
		ctx, cancel := context.WithTimeout(ctx, certificateLimit)
		defer cancel()
		var c *certificate
		if err := f.engine.Call(ctx, verbCertificate, known, &c); err != nil || c == nil {
			return nil, err
		}
		cert, err := c.Certificate()
		if err == nil {
			known = c.ID
		}
		return cert, err
	}
}
