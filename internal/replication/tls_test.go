package replication

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/pgtest"
)

// Over TLS with a certificate that is checked: the base backup, and a relay,
// whose cut does not wait for a farewell.
func TestTLS(t *testing.T) {
	dir := shortDir(t)
	certFile, keyFile := selfSigned(t, dir)
	s := pgtest.Start(t, pgtest.Options{
		Conf: map[string]string{"ssl": "on", "ssl_cert_file": certFile, "ssl_key_file": keyFile},
		HBA:  []string{"hostssl replication all 127.0.0.1/32 trust", "hostnossl replication all 127.0.0.1/32 reject"},
	})
	conn := func(ca string) string {
		return fmt.Sprintf("host=127.0.0.1 port=%d user=postgres sslmode=verify-full sslrootcert=%s", s.Port, ca)
	}
	backup := func(connString string) error {
		_, err := BaseBackup(testContext(t), BackupOptions{ConnString: connString, Dir: openRoot(t, shortDir(t)), UID: -1, GID: -1, FastCheckpoint: true})
		return err
	}
	must(t, backup(conn(certFile)))
	other, _ := selfSigned(t, shortDir(t))
	if err := backup(conn(other)); pgbough.ErrorCode(err) != pgbough.EUnreachable || !strings.Contains(err.Error(), "sslrootcert") {
		t.Errorf("with another CA: got %v, want a hint about sslrootcert", err)
	}

	relayDir := shortDir(t)
	r := relayTo(t, relayDir, conn(certFile))
	through, err := Connect(testContext(t), "host="+relayDir+" user=x sslmode=disable", "x")
	must(t, err)
	defer closeSoon(context.Background(), through)
	if system, err := IdentifySystem(testContext(t), through); err != nil || system.Timeline != 1 {
		t.Errorf("through the relay: got %+v, %v", system, err)
	}
	if ssl := s.Value(t, "postgres", "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_replication USING (pid)"); ssl != "true" {
		t.Errorf("the relay's connection is encrypted: got %q, want true", ssl)
	}
	cutQuickly(t, r)
}

func selfSigned(t *testing.T, dir string) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "production"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	must(t, err)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: cert}, keyFile: {Type: "PRIVATE KEY", Bytes: der}} {
		must(t, os.WriteFile(file, pem.EncodeToMemory(block), 0o600))
		must(t, os.Chown(file, owner(), owner()))
	}
	return certFile, keyFile
}
