package catalog

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/catalog/catalogtest"
)

// TestFormats opens the catalogs of earlier versions: all that was in them is
// there, and they become what a new one is.
func TestFormats(t *testing.T) {
	steps, err := fs.Glob(migrations, "migrations/*.sql")
	must(t, err)
	if len(steps) < catalogtest.Newest {
		t.Fatalf("there are %d formats, and a catalog of format %d", len(steps), catalogtest.Newest)
	}
	fresh := schema(t, open(t, t.TempDir()))
	for format := catalogtest.Oldest; format <= catalogtest.Newest; format++ {
		t.Run(fmt.Sprint(format), func(t *testing.T) {
			dir := t.TempDir()
			catalogtest.Restore(t, format, dir)
			c := open(t, dir)
			equal(t, "the schema", schema(t, c), fresh)
			for _, check := range []string{"PRAGMA integrity_check", "SELECT coalesce((SELECT 'a row without its parent' FROM pragma_foreign_key_check), 'ok')"} {
				var verdict string
				if err := c.reader.QueryRowContext(t.Context(), check).Scan(&verdict); err != nil || verdict != "ok" {
					t.Errorf("%s: %s (%v)", check, verdict, err)
				}
			}
			if id, err := c.PoolID(t.Context()); err != nil || id != "pool-ii722m6xecwhqk52" {
				t.Errorf("pool %q (%v)", id, err)
			}
			knowsBranches(t, c)
			knowsLogins(t, c)
			knowsWork(t, c)
		})
	}
}

// schema are the columns of all tables, and the indexes. A column that was added
// later stands last in its table, so the order is not compared.
func schema(t *testing.T, c *Catalog) map[string]string {
	t.Helper()
	rows, err := c.reader.QueryContext(t.Context(), `
		SELECT m.name || '.' || i.name, i.type || ' ' || i."notnull" || ' ' || coalesce(i.dflt_value, '') || ' ' || i.pk FROM sqlite_schema m, pragma_table_info(m.name) i WHERE m.type = 'table'
		UNION ALL SELECT name, sql FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL`)
	must(t, err)
	defer func() { must(t, rows.Close()) }()
	found := map[string]string{}
	for rows.Next() {
		var name, what string
		must(t, rows.Scan(&name, &what))
		found[name] = what
	}
	must(t, rows.Err())
	return found
}

func knowsBranches(t *testing.T, c *Catalog) {
	t.Helper()
	ctx := t.Context()
	p, err := c.Project(ctx, "shop")
	must(t, err)
	if p.State != pgbough.ProjectActive || p.DefaultRole != "app" || p.Source.Major != 15 || p.Source.SystemID != 7711681245990322447 ||
		p.Source.Slot != "pgbough_fresh_reed_62566184" || !strings.Contains(p.Source.ConnString, "user=follower password=sekret-of-follower") || len(p.Source.Settings) == 0 {
		t.Errorf("project: %+v", p)
	}
	branches, err := c.Branches(ctx, p.ID)
	must(t, err)
	got := map[string]string{}
	for _, b := range branches {
		e, err := c.Endpoint(ctx, b.ID)
		if b.ID == p.RootBranchID {
			got[b.Name] = fmt.Sprint(b.State, " ", b.VolumeID)
			continue
		}
		must(t, err)
		b, err := c.Branch(ctx, p.ID, b.ID)
		must(t, err)
		got[b.Name] = fmt.Sprint(b.State, " ", b.VolumeID, " ", b.ParentLSN, " ", b.Settled, " ", len(b.Differences), " ", e.ID, " ", e.Awake, " ", e.SuspendAfter)
		if (b.Name == "awake") != (time.Until(b.ExpiresAt) > 0 || !b.ExpiresAt.IsZero()) {
			t.Errorf("branch %s expires at %s", b.Name, b.ExpiresAt)
		}
	}
	want := map[string]string{
		"main":   "ready v36r79q3x2r4",
		"awake":  "ready vr43oi8jsq2z 0/30001C8 true 2 ep-late-spruce-9arxaa3g true -1ns",
		"asleep": "ready vfvp22ev7cih 0/3000298 true 2 ep-quiet-thorn-1l0v01wl false 30m0s",
		"half":   "init  0/0 false 2 ep-sweet-sap-7qi0ybqs true -1ns",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("branches (-want +got):\n%s", diff)
	}
}

func knowsLogins(t *testing.T, c *Catalog) {
	t.Helper()
	ctx := t.Context()
	for _, id := range []string{"br-tiny-sun-tp9lnyhc", "br-cold-canopy-5d9i82ip", "br-still-willow-mx022mdk"} {
		roles, err := c.Roles(ctx, id)
		must(t, err)
		var names []string
		for _, r := range roles {
			names = append(names, r.Name)
			if len(r.Password) < 16 {
				t.Errorf("the password of role %s in branch %s is %q", r.Name, id, r.Password)
			}
		}
		equal(t, "the roles of branch "+id, names, []string{"app", "clerk", "follower", "postgres"})
	}
	until := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	for role, validUntil := range map[string]time.Time{"app": {}, "clerk": until} {
		l, ok, err := c.KeptLogin(ctx, "br-cold-canopy-5d9i82ip", role)
		if err != nil || !ok || !strings.HasPrefix(l.Verifier, "SCRAM-SHA-256$") || !l.ValidUntil.Equal(validUntil) {
			t.Errorf("what role %s must prove to the branch that sleeps: valid until %s, there %t, %v", role, l.ValidUntil, ok, err)
		}
	}
}

func knowsWork(t *testing.T, c *Catalog) {
	t.Helper()
	ctx := t.Context()
	spares, err := c.Spares(ctx, "fresh-reed-62566184")
	must(t, err)
	got := map[string]pgbough.SpareState{}
	for _, sp := range spares {
		got[sp.VolumeID] = sp.State
	}
	equal(t, "spares", got, map[string]pgbough.SpareState{"v51dyk8o2q7e": pgbough.SpareReady, "vk0gzu6lf5j7": pgbough.SpareTaken})
	all, err := c.Operations(ctx, "fresh-reed-62566184")
	must(t, err)
	left, err := c.Unfinished(ctx)
	must(t, err)
	if len(all) != 11 || len(left) != 1 {
		t.Fatalf("%d operations, %d of them unfinished; want 11 and 1", len(all), len(left))
	}
	op := left[0]
	if op.Kind != "create_branch" || op.Status != pgbough.OperationRunning || op.BranchID != "br-still-willow-mx022mdk" || op.Step != 3 || len(op.Steps) != 5 ||
		!strings.Contains(string(op.State), "vk0gzu6lf5j7") {
		t.Errorf("the unfinished operation: %+v", op)
	}
}

// TestNewerFormat: a catalog of a newer pgbough is refused, says so, and stays as
// it is.
func TestNewerFormat(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir)
	_, err := c.writer.ExecContext(t.Context(), "CREATE TABLE later (a INTEGER) STRICT; INSERT INTO migrations SELECT max(version) + 1, 'later', 0 FROM migrations")
	must(t, err)
	before := schema(t, c)
	must(t, c.Close())
	_, err = Open(t.Context(), filepath.Join(dir, "catalog.db"), testKey(t, dir))
	wantCode(t, "a catalog of a newer pgbough", err, pgbough.EConflict)
	if !strings.Contains(fmt.Sprint(err), "newer pgbough") {
		t.Errorf("the refusal does not say why: %v", err)
	}
	db, err := openFile(filepath.Join(dir, "catalog.db"), 1, "query_only(1)")
	must(t, err)
	defer func() { _ = db.Close() }()
	equal(t, "the schema after the refusal", schema(t, &Catalog{reader: db}), before)
}
