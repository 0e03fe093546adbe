package pgproxy

import (
	"crypto/tls"
	"sync"

	"github.com/pgbough/pgbough/internal/credential"
)

const alpn = "postgresql"

// shown is the TLS of the certificate that was shown last. It is kept as long as
// that is the current one, since resumed sessions need the same tls.Config.
type shown struct {
	mu   sync.Mutex
	cert *credential.Certificate
	tls  *tls.Config
}

// config is the TLS of a certificate, and what a login over it is bound to.
func (s *shown) config(cert *credential.Certificate) (*tls.Config, []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cert != cert {
		s.cert = cert
		s.tls = &tls.Config{Certificates: []tls.Certificate{*cert.TLS}, MinVersion: tls.VersionTLS12, NextProtos: []string{alpn}}
	}
	return s.tls, cert.Binding
}
