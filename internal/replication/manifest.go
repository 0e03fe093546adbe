package replication

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"path/filepath"
	"unicode/utf8"

	"github.com/pgbough/pgbough"
)

// Manifest is the list of what a base backup must hold, which the server sends
// after it ("Backup Manifest Format" in the Postgres documentation).
type Manifest struct {
	Version  int
	SystemID uint64 // version 2 (Postgres 17) and later, else 0
	Files    map[string]ManifestFile
	// WAL is what must be replayed to make the backup consistent.
	WAL []WALRange
}

// ManifestFile is what the server says of one file.
type ManifestFile struct {
	Size      int64
	Algorithm string // of the checksum: NONE, CRC32C, SHA224, SHA256, SHA384, SHA512
	Checksum  []byte
}

// WALRange is a stretch of WAL on one timeline.
type WALRange struct {
	Timeline   uint32
	Start, End pgbough.LSN
}

type manifestJSON struct {
	Version  int    `json:"PostgreSQL-Backup-Manifest-Version"`
	SystemID uint64 `json:"System-Identifier"`
	Files    []struct {
		Path        *string `json:"Path"`
		EncodedPath *string `json:"Encoded-Path"` // hexadecimal, of names that are not UTF-8
		Size        *int64  `json:"Size"`
		Algorithm   string  `json:"Checksum-Algorithm"`
		Checksum    string  `json:"Checksum"`
	} `json:"Files"`
	WAL []struct {
		Timeline uint32      `json:"Timeline"`
		Start    pgbough.LSN `json:"Start-LSN"`
		End      pgbough.LSN `json:"End-LSN"`
	} `json:"WAL-Ranges"`
	Checksum string `json:"Manifest-Checksum"`
}

// ParseManifest reads a backup manifest and checks it against the checksum at
// its end.
func ParseManifest(text []byte) (*Manifest, error) {
	var in manifestJSON
	if err := json.Unmarshal(text, &in); err != nil {
		return nil, fmt.Errorf("read the backup manifest: %w", err)
	}
	if err := checkManifestSum(text, in.Checksum); err != nil {
		return nil, err
	}
	if in.Version != 1 && in.Version != 2 {
		return nil, fmt.Errorf("read the backup manifest: version %d is not known", in.Version)
	}
	m := &Manifest{Version: in.Version, SystemID: in.SystemID, Files: make(map[string]ManifestFile, len(in.Files))}
	for _, f := range in.Files {
		path, err := manifestPath(f.Path, f.EncodedPath)
		if err != nil {
			return nil, err
		}
		if _, twice := m.Files[path]; twice {
			return nil, fmt.Errorf("read the backup manifest: %q is in it twice", path)
		}
		sum, err := hex.DecodeString(f.Checksum)
		if err != nil || f.Size == nil || *f.Size < 0 {
			return nil, fmt.Errorf("read the backup manifest: no size or no checksum of %q", path)
		}
		m.Files[path] = ManifestFile{Size: *f.Size, Algorithm: f.Algorithm, Checksum: sum}
	}
	for _, r := range in.WAL {
		if r.End < r.Start || r.Timeline == 0 {
			return nil, errors.New("read the backup manifest: a WAL range makes no sense")
		}
		m.WAL = append(m.WAL, WALRange{Timeline: r.Timeline, Start: r.Start, End: r.End})
	}
	return m, nil
}

// checkManifestSum compares sum with the SHA-256 of all lines but the last, in
// which it stands itself.
func checkManifestSum(text []byte, sum string) error {
	body := bytes.TrimSuffix(text, []byte("\n"))
	end := bytes.LastIndexByte(body, '\n') + 1
	want, err := hex.DecodeString(sum)
	if err != nil || len(want) != sha256.Size {
		return errors.New("read the backup manifest: it has no checksum")
	}
	if got := sha256.Sum256(text[:end]); !bytes.Equal(got[:], want) {
		return errors.New("the backup manifest does not match its own checksum")
	}
	return nil
}

func manifestPath(plain, encoded *string) (string, error) {
	var path string
	switch {
	case plain != nil && encoded == nil:
		path = *plain
	case encoded != nil && plain == nil:
		raw, err := hex.DecodeString(*encoded)
		if err != nil {
			return "", fmt.Errorf("read the backup manifest: decode a path: %w", err)
		}
		path = string(raw)
	default:
		return "", errors.New("read the backup manifest: a file without exactly one path")
	}
	if !safePath(path) {
		return "", fmt.Errorf("read the backup manifest: the path %q leads out of the data directory", path)
	}
	return path, nil
}

// safePath tells whether path stays below the directory that it is relative
// to, and is written in the one shortest way.
func safePath(path string) bool {
	return path != "." && filepath.IsLocal(path) && filepath.Clean(path) == path && !bytes.ContainsRune([]byte(path), 0)
}

// printable is path as messages may show it.
func printable(path string) string {
	if utf8.ValidString(path) {
		return path
	}
	return fmt.Sprintf("%q", path)
}

// newChecksum makes the running checksum that manifests call algorithm.
func newChecksum(algorithm string) (hash.Hash, error) {
	switch algorithm {
	case "CRC32C":
		return littleEndian{crc32.New(crc32.MakeTable(crc32.Castagnoli))}, nil
	case "SHA224":
		return sha256.New224(), nil
	case "SHA256":
		return sha256.New(), nil
	case "SHA384":
		return sha512.New384(), nil
	case "SHA512":
		return sha512.New(), nil
	}
	return nil, fmt.Errorf("the checksum algorithm %q of a backup manifest is not known", algorithm)
}

// littleEndian turns the bytes of a checksum round: the manifest has a CRC as
// it lies in the memory of an x86 or ARM server (pg_checksum_final).
type littleEndian struct{ hash.Hash }

func (h littleEndian) Sum(b []byte) []byte {
	sum := h.Hash.Sum(nil)
	for i := len(sum) - 1; i >= 0; i-- {
		b = append(b, sum[i])
	}
	return b
}
