package credential

import (
	"crypto/hkdf"
	"crypto/md5"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"log/slog"
	"strconv"
	"strings"

	"github.com/xdg-go/scram"
)

const scramPrefix = "SCRAM-SHA-256$"

// Verifier is what a Postgres stores of a role's password (rolpassword), ready
// to be held against what a client shows.
type Verifier struct {
	scram scram.StoredCredentials
	md5   string // 32 hexadecimal digits; empty for SCRAM
}

// ParseVerifier reads a rolpassword: SCRAM-SHA-256$... or md5....
func ParseVerifier(text string) (Verifier, error) {
	if digest, ok := strings.CutPrefix(text, "md5"); ok {
		if raw, err := hex.DecodeString(digest); err != nil || len(raw) != md5.Size {
			return Verifier{}, fmt.Errorf("read a verifier: not an MD5 sum")
		}
		return Verifier{md5: digest}, nil
	}
	rest, ok := strings.CutPrefix(text, scramPrefix)
	iterations, rest, ok2 := strings.Cut(rest, ":")
	salt, rest, ok3 := strings.Cut(rest, "$")
	stored, server, ok4 := strings.Cut(rest, ":")
	if !ok || !ok2 || !ok3 || !ok4 {
		return Verifier{}, fmt.Errorf("read a verifier: neither SCRAM-SHA-256 nor md5")
	}
	var v Verifier
	var err error
	if v.scram.Iters, err = strconv.Atoi(iterations); err != nil || v.scram.Iters < 1 {
		return Verifier{}, fmt.Errorf("read a verifier: no number of iterations")
	}
	rawSalt, err := base64.StdEncoding.DecodeString(salt)
	if err != nil || len(rawSalt) == 0 {
		return Verifier{}, fmt.Errorf("read a verifier: no salt")
	}
	v.scram.Salt = string(rawSalt)
	if v.scram.StoredKey, err = scramKey(stored); err != nil {
		return Verifier{}, err
	}
	v.scram.ServerKey, err = scramKey(server)
	return v, err
}

func scramKey(text string) ([]byte, error) {
	key, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(key) != sha256.Size {
		return nil, fmt.Errorf("read a verifier: a key is not %d bytes of base64", sha256.Size)
	}
	return key, nil
}

// IsMD5 tells that clients have to log in the old way, with an MD5 sum.
func (v Verifier) IsMD5() bool { return v.md5 != "" }

// MatchesMD5 tells whether answer is what a client that knows the password says
// to salt.
func (v Verifier) MatchesMD5(salt [4]byte, answer string) bool {
	sum := md5.Sum(append([]byte(v.md5), salt[:]...))
	want := "md5" + hex.EncodeToString(sum[:])
	return v.md5 != "" && subtle.ConstantTimeCompare([]byte(want), []byte(answer)) == 1
}

// String keeps the verifier out of texts that are made by accident.
func (Verifier) String() string { return "[verifier]" }

// GoString keeps the verifier out of %#v.
func (Verifier) GoString() string { return "[verifier]" }

// LogValue keeps the verifier out of logs.
func (v Verifier) LogValue() slog.Value { return slog.StringValue(v.String()) }

// Decoys makes the verifiers of roles that have none, so that somebody who
// tries names cannot tell them from roles with another password.
type Decoys struct{ secret []byte }

// Decoys derives the decoys of a server from its key.
func (k *Key) Decoys() (*Decoys, error) {
	secret, err := hkdf.Key(sha256.New, k.secret[:], nil, "pgbough decoys", sha256.Size)
	if err != nil {
		return nil, fmt.Errorf("derive a key: %w", err)
	}
	return &Decoys{secret}, nil
}

// DecoysOf are those whose secret Reveal told, in another process.
func DecoysOf(secret []byte) *Decoys { return &Decoys{secret} }

// Reveal tells the secret, which tells decoys from true verifiers and nothing else.
func (d *Decoys) Reveal() []byte { return d.secret }

// Verifier is one that no password matches. Its salt is always the same for the
// same role of the same branch, as that of a real one would be.
func (d *Decoys) Verifier(branch, role string) Verifier {
	name := strconv.Quote(branch) + strconv.Quote(role)
	var v Verifier
	v.scram.Iters = SCRAMIterations
	v.scram.Salt = string(mac(d.secret, "salt of "+name)[:scramSaltSize])
	v.scram.StoredKey = mac(d.secret, "stored key of "+name)
	v.scram.ServerKey = mac(d.secret, "server key of "+name)
	return v
}
