// Package catalogtest has catalogs that servers of pgbough left behind, one of each
// format since the first that was kept, so that tests can open them with what
// there is now.
package catalogtest

import (
	"database/sql"
	"embed"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	_ "modernc.org/sqlite" // the driver "sqlite"
)

// files are a dump and a key of each format. They never change; a new format
// gets new ones.
//
//go:embed testdata
var files embed.FS

// The formats that there are catalogs of.
const (
	Oldest = 2
	Newest = 2
)

// Restore puts the catalog of a format into dir, as catalog.db and secret.key.
func Restore(t testing.TB, format int, dir string) {
	t.Helper()
	dump := read(t, fmt.Sprintf("format%d.sql", format))
	key, err := hex.DecodeString(strings.TrimSpace(read(t, fmt.Sprintf("format%d.key", format))))
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "secret.key"), key, 0o600)
	}
	if err != nil {
		t.Fatalf("restore the key of a catalog of format %d: %v", format, err)
	}
	db, err := sql.Open("sqlite", filepath.Join(dir, "catalog.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	if _, err := db.ExecContext(t.Context(), "BEGIN;\n"+dump+"COMMIT"); err != nil {
		t.Fatalf("restore a catalog of format %d: %v", format, err)
	}
}

func read(t testing.TB, name string) string {
	t.Helper()
	b, err := files.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
