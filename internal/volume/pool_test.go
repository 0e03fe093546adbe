package volume_test

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/volume"
	"github.com/pgbough/pgbough/internal/volume/copydir"
	"github.com/pgbough/pgbough/internal/volume/reflink"
)

// The behaviour of a pool is tested with every driver by volumetest; here is
// what it says of directories that are not its own.

func TestOpenRefusesForeign(t *testing.T) {
	dir := t.TempDir()
	cfg := volume.Config{Dir: dir, Driver: copydir.Driver{}, CatalogID: "c", Log: slog.New(slog.DiscardHandler)}
	pool, err := volume.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	again, err := volume.Open(t.Context(), cfg)
	if err != nil || again.ID() != pool.ID() || !strings.HasPrefix(pool.ID(), "pool-") {
		t.Fatalf("opened again: %v (%v), want %v", again, err, pool.ID())
	}
	file := filepath.Join(dir, "pool.json")
	original, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, content, says string
		change              func(*volume.Config)
	}{
		{name: "kind", says: "made by driver copy", change: func(c *volume.Config) { c.Driver = reflink.Driver{} }},
		{name: "pool", says: "belongs to pool pool-other", change: func(c *volume.Config) { c.PoolID = "pool-other" }},
		{name: "version", says: "format version 7", content: strings.Replace(string(original), `"version": 1`, `"version": 7`, 1)},
		{name: "torn", says: "does not describe a pool", content: string(original[:len(original)/2])},
		{name: "other program's", says: "does not describe a pool", content: `{"name": "swimming"}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg, content := cfg, []byte(c.content)
			if c.change != nil {
				c.change(&cfg)
				content = original
			}
			if err := os.WriteFile(file, content, 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := volume.Open(t.Context(), cfg)
			if pgbough.ErrorCode(err) != pgbough.EConflict || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want a conflict that says %q", err, c.says)
			}
		})
	}
}

// A pool that is not mounted looks like an empty directory.
func TestOpenRefusesEmptyInPlaceOfPool(t *testing.T) {
	cfg := volume.Config{Dir: t.TempDir(), Driver: copydir.Driver{}, PoolID: "pool-mine", Log: slog.New(slog.DiscardHandler)}
	if _, err := volume.Open(t.Context(), cfg); pgbough.ErrorCode(err) != pgbough.EConflict {
		t.Errorf("empty directory: %v, want a conflict", err)
	}
	if names, _ := os.ReadDir(cfg.Dir); len(names) != 0 {
		t.Errorf("it left %v", names)
	}
	cfg.PoolID = ""
	if err := os.MkdirAll(cfg.Dir+"/volumes/v1", 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := volume.Open(t.Context(), cfg); pgbough.ErrorCode(err) != pgbough.EConflict {
		t.Errorf("volumes without pool.json: %v, want a conflict", err)
	}
}

func TestOpenAfterTornIdentity(t *testing.T) {
	dir := t.TempDir()
	// A crash while pool.json was written the first time.
	if err := os.WriteFile(dir+"/pool.json.new", []byte(`{"for`), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := volume.Config{Dir: dir, Driver: copydir.Driver{}, Log: slog.New(slog.DiscardHandler)}
	if _, err := volume.Open(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
}
