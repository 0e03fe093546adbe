package credential

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
)

const (
	// SCRAMIterations is Postgres's own default (scram_iterations; a constant
	// before version 16).
	SCRAMIterations = 4096
	scramSaltSize   = 16 // SCRAM_DEFAULT_SALT_LEN in src/include/common/scram-common.h
)

// NewSCRAM makes the verifier of password that ALTER ROLE ... PASSWORD takes in
// the place of a password (scram_build_secret in src/common/scram-common.c):
// SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey. A statement with a verifier
// leaves no password in the server's log. The password must be printable ASCII,
// for which SASLprep changes nothing.
func NewSCRAM(password string, iterations int) (string, error) {
	if password == "" || iterations < 1 {
		return "", fmt.Errorf("make a SCRAM verifier: want a password and at least one iteration, got %d iterations", iterations)
	}
	for _, c := range []byte(password) {
		if c < ' ' || c > '~' {
			return "", fmt.Errorf("make a SCRAM verifier: the password is not printable ASCII")
		}
	}
	salt := make([]byte, scramSaltSize)
	_, _ = rand.Read(salt) // never fails (crypto/rand)
	return verifierOf(password, iterations, salt)
}

// verifierOf computes the verifier (RFC 5802, section 3).
func verifierOf(password string, iterations int, salt []byte) (string, error) {
	salted, err := pbkdf2.Key(sha256.New, password, salt, iterations, sha256.Size)
	if err != nil {
		return "", fmt.Errorf("make a SCRAM verifier: %w", err)
	}
	stored := sha256.Sum256(mac(salted, "Client Key"))
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("SCRAM-SHA-256$%d:%s$%s:%s", iterations, b64(salt), b64(stored[:]), b64(mac(salted, "Server Key"))), nil
}

func mac(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}
