package branch

import (
	"strings"
	"testing"
	"time"

	"github.com/pgbough/pgbough"
)

// TestOutdated: all points of the last hour are kept, then one of each hour, then
// one of each day, and of those before the window the one that it begins with.
func TestOutdated(t *testing.T) {
	now := time.Date(2027, 3, 10, 12, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		ages   string // of the points, the oldest first
		window time.Duration
		kept   string
	}{
		"the last hour":        {"50m 40m 30m 1m", 24 * time.Hour, "50m 40m 30m 1m"},
		"one of each hour":     {"3h10m 3h5m 2h50m 2h10m 1h50m 5m", 24 * time.Hour, "3h10m 2h50m 1h50m 5m"},
		"one of each day":      {"70h 69h 50h 49h 30h 5m", 96 * time.Hour, "70h 50h 30h 5m"},
		"before the window":    {"30h 26h 23h 5m", 24 * time.Hour, "26h 23h 5m"},
		"the last one stays":   {"90h", 24 * time.Hour, "90h"},
		"no history":           {"2h 1m", 0, ""},
		"a window that shrank": {"5h 4h 3h 2h 1m", 2 * time.Hour, "2h 1m"},
	} {
		var points []pgbough.PastPoint
		for _, age := range strings.Fields(c.ages) {
			d, err := time.ParseDuration(age)
			must(t, err)
			points = append(points, pgbough.PastPoint{VolumeID: age, CreatedAt: now.Add(-d)})
		}
		gone := map[string]bool{}
		for _, pt := range outdated(points, now, c.window) {
			gone[pt.VolumeID] = true
		}
		var kept []string
		for _, pt := range points {
			if !gone[pt.VolumeID] {
				kept = append(kept, pt.VolumeID)
			}
		}
		if got := strings.Join(kept, " "); got != c.kept {
			t.Errorf("%s: %s are kept, want %s", name, got, c.kept)
		}
	}
}
