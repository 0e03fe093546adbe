package replication

import (
	"archive/tar"
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgbough/pgbough"
)

// manifestOf writes a manifest as a server does, for the given lines of Files.
func manifestOf(files ...string) []byte {
	text := "{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n" + strings.Join(files, ",\n") +
		"\n],\n\"WAL-Ranges\": [\n{ \"Timeline\": 1, \"Start-LSN\": \"0/2000028\", \"End-LSN\": \"0/2000100\" }\n],\n"
	sum := sha256.Sum256([]byte(text))
	return []byte(text + `"Manifest-Checksum": "` + hex.EncodeToString(sum[:]) + "\"}\n")
}

func manifestFile(path, content string) string {
	sum, _ := newChecksum("CRC32C")
	_, _ = sum.Write([]byte(content))
	return fmt.Sprintf(`{ "Path": %q, "Size": %d, "Last-Modified": "2026-01-01 00:00:00 GMT", "Checksum-Algorithm": "CRC32C", "Checksum": "%x" }`, path, len(content), sum.Sum(nil))
}

func TestParseManifest(t *testing.T) {
	m, err := ParseManifest(manifestOf(manifestFile("base/1/2", "abc"), `{ "Encoded-Path": "62c3ff", "Size": 0, "Checksum-Algorithm": "NONE", "Checksum": "" }`))
	must(t, err)
	if f := m.Files["base/1/2"]; f.Size != 3 || f.Algorithm != "CRC32C" || hex.EncodeToString(f.Checksum) != "b73f4b36" { // CRC-32C of abc is 364b3fb7
		t.Errorf("got %+v", f)
	}
	if _, ok := m.Files["b\xc3\xff"]; !ok || len(m.Files) != 2 {
		t.Errorf("got files %v", m.Files)
	}
	if len(m.WAL) != 1 || m.WAL[0] != (WALRange{Timeline: 1, Start: 0x2000028, End: 0x2000100}) {
		t.Errorf("got %v", m.WAL)
	}
}

func TestParseManifestRefuses(t *testing.T) {
	good := manifestOf(manifestFile("a", "abc"))
	flipped := bytes.Replace(good, []byte(`"Size": 3`), []byte(`"Size": 4`), 1)
	for name, text := range map[string][]byte{
		"empty":                 nil,
		"cut short":             good[:len(good)-3],
		"a changed byte":        flipped,
		"a path that leads out": manifestOf(manifestFile("../a", "")),
		"an absolute path":      manifestOf(manifestFile("/a", "")),
		"a path not clean":      manifestOf(manifestFile("a//b", "")),
		"a file twice":          manifestOf(manifestFile("a", "x"), manifestFile("a", "x")),
		"no size":               manifestOf(`{ "Path": "a", "Checksum": "" }`),
		"no path":               manifestOf(`{ "Size": 1, "Checksum": "" }`),
		"a negative size":       manifestOf(`{ "Path": "a", "Size": -1, "Checksum": "" }`),
		"no own checksum":       []byte(`{ "PostgreSQL-Backup-Manifest-Version": 1 }`),
		"a checksum not in hex": manifestOf(`{ "Path": "a", "Size": 1, "Checksum": "zz" }`),
	} {
		if m, err := ParseManifest(text); err == nil {
			t.Errorf("%s: got %+v, want an error", name, m)
		}
	}
}

type entry struct {
	name, content string
	kind          byte
}

func archiveOf(t testing.TB, entries ...entry) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Typeflag: e.kind, Size: int64(len(e.content)), Mode: 0o777}
		if e.kind == tar.TypeSymlink {
			h.Linkname, h.Size, e.content = e.content, 0, ""
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		_, _ = w.Write([]byte(e.content))
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// The files that every data directory must have, and one that it may.
func minimal() []entry {
	return []entry{
		{"backup_label", "l", tar.TypeReg},
		{"global", "", tar.TypeDir},
		{"PG_VERSION", "15\n", tar.TypeReg},
		{"pg_wal/", "", tar.TypeDir},
		{"global/1260", "roles", tar.TypeReg},
		{"global/pg_control", "c", tar.TypeReg},
	}
}

func manifestFor(entries []entry) []byte {
	var lines []string
	for _, e := range entries {
		if e.kind == tar.TypeReg {
			lines = append(lines, manifestFile(e.name, e.content))
		}
	}
	return manifestOf(lines...)
}

func TestUnpackVerifies(t *testing.T) {
	without := func(name string) []entry {
		return slices.DeleteFunc(minimal(), func(e entry) bool { return e.name == name })
	}
	changed := minimal()
	changed[4].content = "Roles"
	longer := minimal()
	longer[4].content = "roles2"
	for _, c := range []struct {
		name           string
		sent, manifest []entry
		want           string
	}{
		{"all well", minimal(), minimal(), ""},
		{"a file is missing", without("global/1260"), minimal(), "global/1260 is missing"},
		{"a file too many", minimal(), without("global/1260"), "global/1260 is not in the manifest"},
		{"another content", changed, minimal(), "checksum of global/1260"},
		{"another size", longer, minimal(), "global/1260 has 6 bytes, not 5"},
		{"no pg_control at all", without("global/pg_control"), without("global/pg_control"), "global/pg_control is missing, in the manifest too"},
	} {
		u, err := newUnpacker(openRoot(t, shortDir(t)), -1, -1, "CRC32C")
		must(t, err)
		must(t, u.unpack(bytes.NewReader(archiveOf(t, c.sent...))))
		m, err := ParseManifest(manifestFor(c.manifest))
		must(t, err)
		err = u.verify(m)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.want)
		}
	}
}

func TestUnpackStaysInside(t *testing.T) {
	for name, entries := range map[string][]entry{
		"dots":                  {{"../out", "x", tar.TypeReg}},
		"absolute":              {{"/tmp/out", "x", tar.TypeReg}},
		"dots within":           {{"a", "", tar.TypeDir}, {"a/../../out", "x", tar.TypeReg}},
		"through a link":        {{"a", "..", tar.TypeSymlink}, {"a/out", "x", tar.TypeReg}},
		"a hard link":           {{"a", "", tar.TypeLink}},
		"a device":              {{"a", "", tar.TypeChar}},
		"a fifo":                {{"a", "", tar.TypeFifo}},
		"a tablespace":          {{"pg_tblspc", "", tar.TypeDir}, {"pg_tblspc/16400", "/mnt", tar.TypeSymlink}},
		"the same file twice":   {{"a", "x", tar.TypeReg}, {"a", "y", tar.TypeReg}},
		"a directory on a file": {{"a", "x", tar.TypeReg}, {"a", "", tar.TypeDir}},
	} {
		parent := shortDir(t)
		must(t, os.Mkdir(filepath.Join(parent, "data"), 0o700))
		u, err := newUnpacker(openRoot(t, filepath.Join(parent, "data")), -1, -1, "CRC32C")
		must(t, err)
		if err := u.unpack(bytes.NewReader(archiveOf(t, entries...))); err == nil {
			t.Errorf("%s: got no error", name)
		} else if name == "a tablespace" && pgbough.ErrorCode(err) != pgbough.EConflict {
			t.Errorf("%s: got %v, want a conflict", name, err)
		}
		if left, _ := os.ReadDir(parent); len(left) != 1 {
			t.Errorf("%s: something was written outside: %v", name, left)
		}
	}
	// A directory that somebody turned into a link while we unpack.
	parent := shortDir(t)
	must(t, os.MkdirAll(filepath.Join(parent, "data"), 0o700))
	must(t, os.Symlink("..", filepath.Join(parent, "data", "a")))
	u, err := newUnpacker(openRoot(t, filepath.Join(parent, "data")), -1, -1, "CRC32C")
	must(t, err)
	if err := u.unpack(bytes.NewReader(archiveOf(t, entry{"a/out", "x", tar.TypeReg}))); err == nil {
		t.Error("a link was followed")
	}
}

func TestUnpackTruncated(t *testing.T) {
	whole := archiveOf(t, minimal()...)
	u, err := newUnpacker(openRoot(t, shortDir(t)), -1, -1, "CRC32C")
	must(t, err)
	if err := u.unpack(bytes.NewReader(whole[:512])); err == nil {
		t.Error("an archive that ends within a file: got no error")
	}
}

func FuzzParseManifest(f *testing.F) {
	f.Add(manifestFor(minimal()))
	f.Add([]byte("{}\n"))
	f.Add([]byte("{\n\"Manifest-Checksum\": \"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\"}"))
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := ParseManifest(text)
		if (m == nil) == (err == nil) {
			t.Fatalf("got %v and %v", m, err)
		}
		if m == nil {
			return
		}
		for path, file := range m.Files {
			if !safePath(path) || file.Size < 0 {
				t.Errorf("passed: %q %+v", path, file)
			}
		}
	})
}

type readWriter struct{ *bytes.Reader }

func (readWriter) Write(b []byte) (int, error) { return len(b), nil }

func FuzzReadStartup(f *testing.F) {
	f.Add([]byte{0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f, 0, 0, 0, 23, 0, 3, 0, 0, 'u', 's', 'e', 'r', 0, 'x', 0, 'a', 0, 'b', 0, 0, 0})
	f.Add([]byte{0, 0, 0, 9, 0, 3, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := readStartup(readWriter{bytes.NewReader(b)})
		if (s == nil) == (err == nil) {
			t.Fatalf("got %v and %v", s, err)
		}
		if s != nil {
			_ = s.check()
		}
	})
}

func FuzzBackupStream(f *testing.F) {
	f.Add([]byte("nbase.tar\x00\x00"))
	f.Add([]byte("p\x00\x00\x00\x00\x00\x00\x00\x01"))
	f.Add([]byte("dabc"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, part := range []byte{0, 'n', 'm'} {
			s := &stream{framed: true, part: part}
			data, more, err := s.frame(b)
			if more && data != nil && len(data) > 0 || err != nil && data != nil {
				t.Errorf("part %q: got %q, %v, %v", part, data, more, err)
			}
		}
	})
}

// The watch finds errors, and where the WAL ends, however the stream is cut into pieces.
func TestErrorWatch(t *testing.T) {
	var all []byte
	xlog := append([]byte("w\x00\x00\x00\x01\x00\x00\x00\x10"), make([]byte, 16+100)...) // 100 bytes of WAL from 1/10 on
	for _, m := range []pgproto3.BackendMessage{
		&pgproto3.CopyBothResponse{},
		&pgproto3.CopyData{Data: xlog},
		&pgproto3.CopyData{Data: append([]byte("k\xff"), make([]byte, 16)...)}, // a keepalive brings none
		&pgproto3.CopyData{Data: bytes.Repeat([]byte("E\x00\x00\x00\x09"), 1000)},
		&pgproto3.ErrorResponse{Severity: "ERROR", Code: "58P01", Message: "requested WAL segment has already been removed"},
		&pgproto3.CopyDone{},
		&pgproto3.ErrorResponse{Severity: "FATAL", Code: "57P01", Message: "terminating connection due to administrator command"},
	} {
		var err error
		all, err = m.Encode(all)
		must(t, err)
	}
	for _, size := range []int{1, 3, 5, 64, len(all)} {
		var w errorWatch
		var codes []string
		for rest := all; len(rest) > 0; rest = rest[min(size, len(rest)):] {
			if e := w.scan(rest[:min(size, len(rest))]); e != nil {
				codes = append(codes, e.Code)
			}
		}
		if want := pgbough.LSN(1<<32 + 0x10 + 100); w.wal != want {
			t.Errorf("in pieces of %d: the WAL ends at %s, want %s", size, w.wal, want)
		}
		want := []string{"58P01", "57P01"}
		if size == len(all) {
			want = want[1:]
		}
		if !slices.Equal(codes, want) || !w.fatal || w.lost {
			t.Errorf("in pieces of %d: got %v, fatal %v, lost %v", size, codes, w.fatal, w.lost)
		}
	}
}

func FuzzStandbyMessage(f *testing.F) {
	f.Add([]byte("Q\x00\x00\x00\x14IDENTIFY_SYSTEM\x00d\x00\x00\x00\x04"))
	f.Fuzz(func(t *testing.T, b []byte) {
		in := bufio.NewReaderSize(bytes.NewReader(b), 4096)
		for {
			message, err := standbyMessage(in)
			if err != nil {
				return
			}
			if len(message) < 5 || !strings.ContainsRune("dcXQ", rune(message[0])) {
				t.Fatalf("passed: %q", message)
			}
			_, _ = in.Discard(len(message))
		}
	})
}

func FuzzErrorWatch(f *testing.F) {
	f.Add([]byte("E\x00\x00\x00\x09SERR\x00d\x00\x00\x00\x05x"), 3)
	f.Fuzz(func(t *testing.T, b []byte, size int) {
		if size <= 0 {
			size = 1
		}
		var whole, pieces errorWatch
		_ = whole.scan(b)
		for rest := b; len(rest) > 0; rest = rest[min(size, len(rest)):] {
			_ = pieces.scan(rest[:min(size, len(rest))])
		}
		if whole.lost != pieces.lost || whole.fatal != pieces.fatal || whole.remaining != pieces.remaining {
			t.Errorf("whole %+v, in pieces %+v", whole, pieces)
		}
		if len(pieces.body) > maxErrorBody {
			t.Errorf("%d bytes are kept", len(pieces.body))
		}
	})
}

// FuzzConnString: what is said of a connection string that cannot be read shows
// nothing of its password, however badly that is written.
func FuzzConnString(f *testing.F) {
	const password = "sekretOfFollower"
	f.Add("", "", true)
	f.Add("a b='", "' port=x", false)
	f.Add("x port=", "", false)
	f.Add("x sslmode=", "", false)
	f.Add("x connect_timeout=", "", false)
	f.Add("x ", "", false)
	f.Add("p@ss/", "#?port=", true)
	f.Add("p@db1/shop?port=", "", true)
	f.Add("%zz", "%", true)
	f.Add(`\' host=`, ` hostaddr=`, false)
	f.Fuzz(func(t *testing.T, before, after string, uri bool) {
		text := "host=db1 user=follower password=" + before + password + after + " dbname=shop"
		if uri {
			text = "postgresql://follower:" + before + password + after + "@db1/shop"
		}
		if _, err := parseConfig(text, "test"); err != nil && strings.Contains(err.Error(), password) {
			t.Errorf("%q: %v", text, err)
		}
	})
}
