package credential

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/pgbough/pgbough"
)

const (
	lookEvery   = time.Second         // at the files of a certificate
	renewBefore = 30 * 24 * time.Hour // the end of one that we have issued
)

// Certificates are what a server shows to its clients: from two files, which are
// read again when they change, or issued by the server's own authority. They are
// safe for concurrent use.
type Certificates struct {
	log  *slog.Logger
	load func() (*tls.Certificate, error)
	due  func(now time.Time) bool // whether to load again

	mu      sync.Mutex
	current *Certificate
	looked  time.Time
}

// Certificate is one that a server shows, and what a login over it is bound to.
// It never changes.
type Certificate struct {
	TLS     *tls.Certificate
	Binding []byte // EndPoint of it
}

// NewCertificates are those of a certificate file and a key file.
func NewCertificates(cert, key string, log *slog.Logger) (*Certificates, error) {
	c := &Certificates{log: log}
	c.load = func() (*tls.Certificate, error) {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, pgbough.Errorf(pgbough.EInvalid, "the certificate in %s and the key in %s cannot be used: %w", cert, key, err)
		}
		return &pair, nil
	}
	var seen [2]time.Time
	c.due = func(time.Time) bool {
		now := [2]time.Time{modified(cert), modified(key)}
		changed := now != seen
		seen = now
		return changed
	}
	c.due(time.Time{})
	return c, c.renew()
}

func modified(path string) time.Time {
	info, err := os.Stat(path)
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}

// OwnCertificates are issued by ca, for a server that is reached under names.
func OwnCertificates(ca *CA, log *slog.Logger, names ...string) (*Certificates, error) {
	c := &Certificates{log: log}
	var end time.Time
	c.load = func() (*tls.Certificate, error) {
		cert, err := ca.Issue(time.Now(), names...)
		if err == nil {
			end = cert.Leaf.NotAfter
		}
		return cert, err
	}
	c.due = func(now time.Time) bool { return now.After(end.Add(-renewBefore)) }
	return c, c.renew()
}

// AskedCertificates are those that next returns, which is asked again and again:
// one at first, later only when there is another, else nil.
func AskedCertificates(log *slog.Logger, next func() (*tls.Certificate, error)) (*Certificates, error) {
	c := &Certificates{log: log}
	var cert *tls.Certificate
	var err error
	c.load = func() (*tls.Certificate, error) { return cert, err }
	c.due = func(time.Time) bool {
		cert, err = next()
		return cert != nil || err != nil
	}
	if !c.due(time.Time{}) {
		return nil, errors.New("there is no certificate")
	}
	return c, c.renew()
}

// renew must be called with c.mu held, or by who makes c.
func (c *Certificates) renew() error {
	cert, err := c.load()
	if err != nil {
		return err
	}
	leaf := cert.Leaf
	if leaf == nil {
		if leaf, err = x509.ParseCertificate(cert.Certificate[0]); err != nil {
			return fmt.Errorf("read the server's certificate: %w", err)
		}
	}
	c.current = &Certificate{TLS: cert, Binding: EndPoint(leaf)}
	return nil
}

// Current is what the next client is shown. Files that cannot be used leave what
// there was.
func (c *Certificates) Current(ctx context.Context) *Certificate {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := time.Now(); now.Sub(c.looked) >= lookEvery {
		c.looked = now
		if c.due(now) {
			if err := c.renew(); err != nil {
				c.log.WarnContext(ctx, "the new certificate cannot be used; the old one stays", "error", err)
			}
		}
	}
	return c.current
}

// Portable is a certificate with its key as another process can be told of it.
type Portable struct {
	Chain [][]byte // DER
	Key   []byte   // PKCS #8
}

// Portable is the certificate for another process, which makes it again.
func (c *Certificate) Portable() (Portable, error) {
	key, err := x509.MarshalPKCS8PrivateKey(c.TLS.PrivateKey)
	if err != nil {
		return Portable{}, fmt.Errorf("hand on the server's certificate: %w", err)
	}
	return Portable{c.TLS.Certificate, key}, nil
}

// Certificate makes the certificate again.
func (p Portable) Certificate() (*tls.Certificate, error) {
	key, err := x509.ParsePKCS8PrivateKey(p.Key)
	if err != nil {
		return nil, fmt.Errorf("read the key of the server's certificate: %w", err)
	}
	return &tls.Certificate{Certificate: p.Chain, PrivateKey: key}, nil
}

// LookAgain has the next Current look at the files, however soon it comes.
func (c *Certificates) LookAgain() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.looked = time.Time{}
}
