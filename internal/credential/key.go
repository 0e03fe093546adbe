package credential

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"log/slog"

	"github.com/pgbough/pgbough"
)

// KeySize is the size of a key file, in bytes.
const KeySize = 32

// Key is the root of everything that is sealed. It is used only to derive Boxes.
type Key struct{ secret [KeySize]byte }

// String keeps the key out of texts that are made by accident.
func (*Key) String() string { return "[key]" }

// GoString keeps the key out of %#v.
func (*Key) GoString() string { return "[key]" }

// LogValue keeps the key out of logs.
func (k *Key) LogValue() slog.Value { return slog.StringValue(k.String()) }

// EnsureKey reads the key in the file at path, and makes one if there is no such
// file. A file that others may read, or that has another size, is refused.
func EnsureKey(path string) (*Key, error) {
	b, err := ensureFile(path, "a secret key", func() []byte {
		b := make([]byte, KeySize)
		_, _ = rand.Read(b) // never fails (crypto/rand)
		return b
	})
	if err != nil {
		return nil, err
	}
	if len(b) != KeySize {
		return nil, pgbough.Errorf(pgbough.EInvalid, "%s has %d bytes, a secret key has %d", path, len(b), KeySize).
			WithHint("restore it from a backup; without it the stored passwords are lost, and only then remove it")
	}
	k := new(Key)
	copy(k.secret[:], b)
	return k, nil
}

// Box derives the box for purpose. The same key and purpose make the same box;
// what one box sealed, a box of another purpose cannot open.
func (k *Key) Box(purpose string) (*Box, error) {
	sub, err := hkdf.Key(sha256.New, k.secret[:], nil, "pgbough box: "+purpose, KeySize)
	if err != nil {
		return nil, fmt.Errorf("derive a key: %w", err)
	}
	block, err := aes.NewCipher(sub)
	if err != nil {
		return nil, fmt.Errorf("derive a key: %w", err)
	}
	// A random nonce of 96 bits is safe for 2^32 secrets under one key (NIST SP
	// 800-38D, 8.3); a server seals a handful for each branch.
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("derive a key: %w", err)
	}
	return &Box{aead: aead}, nil
}

// Place is where a secret is stored.
type Place struct{ Table, Row, Column string }

// bytes is the place as associated data; lengths go first, so that no two places
// look the same.
func (p Place) bytes() []byte {
	var b []byte
	for _, s := range []string{p.Table, p.Row, p.Column} {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	return b
}

// sealVersion is the first byte of what Seal makes: AES-256-GCM, nonce first.
const sealVersion = 1

// Box seals and opens secrets. It is safe for concurrent use.
type Box struct{ aead cipher.AEAD }

// Seal encrypts secret for place. Twice the same gives two different results.
func (b *Box) Seal(place Place, secret string) []byte {
	return b.aead.Seal([]byte{sealVersion}, nil, []byte(secret), place.bytes())
}

// Open is the secret in sealed, which Seal made for the same place.
func (b *Box) Open(place Place, sealed []byte) (string, error) {
	if len(sealed) == 0 || sealed[0] != sealVersion {
		return "", fmt.Errorf("open %s.%s: not a sealed secret, or one of a newer pgbough", place.Table, place.Column)
	}
	secret, err := b.aead.Open(nil, nil, sealed[1:], place.bytes())
	if err != nil {
		return "", fmt.Errorf("open %s.%s: the key or the place is not the one it was sealed with: %w", place.Table, place.Column, err)
	}
	return string(secret), nil
}
