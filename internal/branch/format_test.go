package branch

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/pgbough/pgbough/internal/catalog"
	"github.com/pgbough/pgbough/internal/catalog/catalogtest"
	"github.com/pgbough/pgbough/internal/credential"
)

// TestEarlierStates: what an operation of an earlier version remembers is what this
// one reads, with no field that it has another name for. A server goes on with an
// operation that the version before it began.
func TestEarlierStates(t *testing.T) {
	for format := catalogtest.Oldest; format <= catalogtest.Newest; format++ {
		t.Run(fmt.Sprint(format), func(t *testing.T) {
			dir := t.TempDir()
			catalogtest.Restore(t, format, dir)
			key, err := credential.EnsureKey(filepath.Join(dir, "secret.key"))
			must(t, err)
			c, err := catalog.Open(t.Context(), filepath.Join(dir, "catalog.db"), key)
			must(t, err)
			defer func() { must(t, c.Close()) }()
			ops, err := c.Operations(t.Context(), "")
			must(t, err)
			if len(ops) == 0 {
				t.Fatal("no operation in the catalog")
			}
			for _, op := range ops {
				into, ok := map[string]any{
					"attach_project": &attachState{}, "create_branch": &createState{}, "delete_branch": &deleteState{}, "refill_spare": &refillState{},
					"suspend_compute": &struct{}{}, "start_compute": &struct{}{},
				}[op.Kind]
				if !ok {
					t.Errorf("operation %s is of a kind that this test does not know", op.Kind)
					continue
				}
				d := json.NewDecoder(bytes.NewReader(op.State))
				d.DisallowUnknownFields()
				if err := d.Decode(into); err != nil {
					t.Errorf("what %s remembers cannot be read: %v\n%.300s", op.Kind, err, op.State)
				}
				if s, ok := into.(*createState); ok && (s.VolumeID == "" || s.Cut == nil || s.Cut.LSN == 0 || len(s.Settings) == 0) {
					t.Errorf("what create_branch remembers is lost: %+v", s)
				}
			}
		})
	}
}
