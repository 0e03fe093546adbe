// Package credential makes and keeps the secrets of a server.
//
// A Key is 32 random bytes in a file that only its owner can read. A Box seals
// short secrets (connection strings, passwords) with a key derived from it for
// one purpose, so that they can be stored in a file that is backed up and
// copied around. A sealed secret opens only at the Place it was sealed for. An
// APIKey is what a client shows to be let in. A verifier is what Postgres
// stores instead of a password.
package credential

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"log/slog"
	"strings"

	"github.com/pgbough/pgbough"
)

// NewPassword makes a fresh password: letters and digits only, so that it needs
// no quoting in a URL, a shell or a connection string, of at least 128 random
// bits.
func NewPassword() string { return rand.Text() }

// apiKeyPrefix tells a person, and a scanner for leaked secrets, what it is.
const apiKeyPrefix = "pgbough_"

// APIKey lets a client of the API in. It shows itself only through Reveal.
type APIKey struct{ text string }

// Reveal is the key in clear, for the header of a request.
func (k APIKey) Reveal() string { return k.text }

// Matches tells whether shown is the key, in a time that does not depend on how
// much of it is right. The zero APIKey matches nothing.
func (k APIKey) Matches(shown string) bool {
	want, got := sha256.Sum256([]byte(k.text)), sha256.Sum256([]byte(shown))
	return subtle.ConstantTimeCompare(want[:], got[:]) == 1 && k.text != ""
}

// HashAPIKey is what is kept of the key that was shown, to know it again. One
// round of SHA-256 is enough for a secret of 128 random bits: nobody can try them.
func HashAPIKey(shown string) []byte {
	sum := sha256.Sum256([]byte(shown))
	return sum[:]
}

// String keeps the key out of texts that are made by accident.
func (APIKey) String() string { return "[api key]" }

// GoString keeps the key out of %#v.
func (APIKey) GoString() string { return "[api key]" }

// LogValue keeps the key out of logs.
func (k APIKey) LogValue() slog.Value { return slog.StringValue(k.String()) }

// NewAPIKey makes a fresh key.
func NewAPIKey() APIKey { return APIKey{apiKeyPrefix + rand.Text()} }

// EnsureAPIKey reads the API key in the file at path, and makes one if there is
// no such file.
func EnsureAPIKey(path string) (APIKey, error) {
	text, err := ensureFile(path, "an API key", func() []byte { return []byte(NewAPIKey().text + "\n") })
	if err != nil {
		return APIKey{}, err
	}
	return parseAPIKey(path, text)
}

// ReadAPIKey reads the API key in the file at path. A missing file is an error
// that matches fs.ErrNotExist.
func ReadAPIKey(path string) (APIKey, error) {
	text, err := readFile(path, "an API key")
	if err != nil {
		return APIKey{}, err
	}
	return parseAPIKey(path, text)
}

func parseAPIKey(path string, b []byte) (APIKey, error) {
	text := strings.TrimSpace(string(b))
	if !strings.HasPrefix(text, apiKeyPrefix) || len(text) < len(apiKeyPrefix)+26 || strings.ContainsAny(text, " \t\r\n") {
		return APIKey{}, pgbough.Errorf(pgbough.EInvalid, "%s holds no API key", path).
			WithHint("restore it from a backup, or remove it and restart the server, which makes a new one; clients then need the new key")
	}
	return APIKey{text}, nil
}
