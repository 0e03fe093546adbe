package e2e

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pgbough/pgbough/internal/pgtest"
)

// TestBurst makes 16 branches at once, of a production under load, with one spare.
// They share what is made of a spare; each has all that production had
// acknowledged before it was asked for, and is a branch like any other.
func TestBurst(t *testing.T) {
	const many = 16
	p := production(t, pgtest.Options{})
	c := startCrowd(t, p, "", "SET synchronous_commit = off")
	s := startServer(t, "--spares", "1..4", "--max-awake", "20", "--max-branches", fmt.Sprint(many), "--shared-buffers", "32MB")
	s.attach(p)
	var wg sync.WaitGroup
	before := make([][]int64, many)
	began := time.Now()
	took := make([]time.Duration, many)
	for i := range many {
		wg.Go(func() {
			before[i] = c.known()
			if r := s.cli("branch", "create", fmt.Sprintf("b%d", i)); r.code != 0 {
				t.Errorf("create b%d: exit %d\n%s", i, r.code, r.err)
			}
			took[i] = time.Since(began)
		})
	}
	wg.Wait()
	slices.Sort(took)
	t.Logf("%d creates at once took %s to %s", many, took[0], took[many-1])
	cuts := map[string]int{}
	for i := range many {
		name := fmt.Sprintf("b%d", i)
		var b branchJSON
		s.json(&b, "branch", "get", name) // before it is read: that leaves hints in its pages, which are its own then
		cuts[b.Branch.ParentLSN]++
		if cuts[b.Branch.ParentLSN] > 1 && b.Branch.OwnBytes > 20<<20 {
			t.Errorf("branch %s shares its state, and holds %d bytes of its own", name, b.Branch.OwnBytes)
		}
		if missing := c.missing(s, name, before[i]); missing != "" {
			t.Errorf("branch %s: %s", name, missing)
		}
	}
	if len(cuts) > 3 {
		t.Errorf("%d branches have %d states: %v", many, len(cuts), cuts)
	}
	if r := s.cli("branch", "create", "more"); r.code != 4 || !strings.Contains(r.err, "there are 16 branches, and this server allows 16") {
		t.Errorf("one more than --max-branches: exit %d\n%s", r.code, r.err)
	}
	s.must("branch", "create", "b0", "--reuse")
	s.query("b0", "CREATE TABLE mine AS SELECT 1 AS a; DROP TABLE acked_by")
	if got := s.query("b1", "SELECT to_regclass('mine') IS NULL AND to_regclass('acked_by') IS NOT NULL"); got != "t" {
		t.Error("b1 sees what was done in b0")
	}
	c.end(t)
	s.kill()
	s.start()
	for i := range many {
		s.query(fmt.Sprintf("b%d", i), "SELECT 1")
		s.must("branch", "delete", fmt.Sprintf("b%d", i))
	}
	s.nothingLost()
}
