package credential

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	_ "crypto/sha512" // EndPoint of certificates that are signed with it
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"time"

	"github.com/pgbough/pgbough"
)

const (
	caLife      = 10 * 365 * 24 * time.Hour
	serverLife  = 365 * 24 * time.Hour
	clockMargin = time.Hour // a client's clock may be behind
)

// CA is the authority that signs the certificate of a server that was given
// none. It and its key live in one file.
type CA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// EnsureCA reads the authority in the file at path, and makes one if there is no
// such file.
func EnsureCA(path string) (*CA, error) {
	text, err := newCA(time.Now())
	if err != nil {
		return nil, fmt.Errorf("make a certificate authority: %w", err)
	}
	text, err = ensureFile(path, "the key of a certificate authority", func() []byte { return text })
	if err != nil {
		return nil, err
	}
	ca, err := parseCA(text)
	if err != nil {
		return nil, pgbough.Errorf(pgbough.EInvalid, "%s holds no certificate authority: %w", path, err).
			WithHint("restore it from a backup, or remove it and restart the server, which makes a new one; clients that verify then need the new certificate")
	}
	return ca, nil
}

// PEM is the authority's certificate, for clients that verify the server's.
func (c *CA) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.cert.Raw})
}

// String keeps the key out of texts that are made by accident.
func (*CA) String() string { return "[certificate authority]" }

// GoString keeps the key out of %#v.
func (*CA) GoString() string { return "[certificate authority]" }

func newCA(now time.Time) ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "pgbough"},
		NotBefore: now.Add(-clockMargin), NotAfter: now.Add(caLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
	}
	cert, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})...), nil
}

func parseCA(text []byte) (*CA, error) {
	pair, err := tls.X509KeyPair(text, text)
	if err != nil {
		return nil, err
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok || !pair.Leaf.IsCA {
		return nil, errors.New("it is another kind of certificate")
	}
	return &CA{pair.Leaf, key}, nil
}

// Issue makes a certificate for a server that is reached under names: DNS names,
// also with a leading "*.", and IP addresses.
func (c *CA) Issue(now time.Time, names ...string) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("issue a certificate: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, fmt.Errorf("issue a certificate: %w", err)
	}
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "pgbough server"},
		NotBefore: now.Add(-clockMargin), NotAfter: now.Add(serverLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, name)
		}
	}
	raw, err := x509.CreateCertificate(rand.Reader, t, c.cert, &key.PublicKey, c.key)
	if err != nil {
		return nil, fmt.Errorf("issue a certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(raw)
	if err != nil {
		return nil, fmt.Errorf("issue a certificate: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{raw, c.cert.Raw}, PrivateKey: key, Leaf: leaf}, nil
}

func newSerial() (*big.Int, error) {
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
}
