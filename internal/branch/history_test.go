package branch

import (
	"strings"
	"testing"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/pgtest"
	"github.com/pgbough/pgbough/internal/volume"
	"github.com/pgbough/pgbough/internal/volume/storage"
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

// TestFullArchive: a full disk makes the window shorter, by the oldest point, but
// the last point stays.
func TestFullArchive(t *testing.T) {
	r := newRig(t)
	r.archive = t.TempDir()
	p := r.project()
	p.History = time.Hour
	for i := range 3 {
		v := r.volume(p, volume.RolePast)
		must(t, r.catalog.PutPastPoint(t.Context(), pgbough.PastPoint{VolumeID: v.ID, ProjectID: p.ID, LSN: pgbough.LSN(i + 1), CreatedAt: time.Now()}))
	}
	h, err := r.historyOf(t.Context(), p)
	must(t, err)
	for _, want := range []int{2, 1, 1} {
		before, err := r.catalog.PastPoints(t.Context(), p.ID)
		must(t, err)
		must(t, r.retain(p, h, 0, true))
		points, err := r.catalog.PastPoints(t.Context(), p.ID)
		must(t, err)
		if len(points) != want || points[want-1].VolumeID != before[len(before)-1].VolumeID {
			t.Fatalf("%d points are left, want the newest %d", len(points), want)
		}
		if _, err := r.pool.Get(before[0].VolumeID); (err == nil) != (want == len(before)) {
			t.Errorf("the volume of the oldest of %d points: %v", len(before), err)
		}
	}
	must(t, r.retain(p, h, 0, false))
	if points, err := r.catalog.PastPoints(t.Context(), p.ID); err != nil || len(points) != 1 {
		t.Errorf("%d points are left when there is room again: %v", len(points), err)
	}
}

// TestNoHistoryOfCopies: a pool in which a point would be a full copy has no
// history, so no WAL is archived that nothing could be made of. One that shares
// what is the same has, from the first point on.
func TestNoHistoryOfCopies(t *testing.T) {
	for want, keeps := range map[string]bool{"copy": false, "auto": true} {
		t.Run(want, func(t *testing.T) {
			r := newRig(t, func(c *storage.Config) { c.Want, c.Size, c.Sparse = want, 2<<30, true })
			r.close()
			r.opts.Archive = t.TempDir()
			r.open()
			source := production(t, pgtest.Options{})
			p := r.attach(source)
			f, err := r.followerOf(p.ID)
			must(t, err)
			for range 3 {
				at := source.Value(t, "postgres", "pg_switch_wal()")
				lsn, err := pgbough.ParseLSN(at)
				must(t, err)
				source.Exec(t, "postgres", "SELECT pg_logical_emit_message(true, 'x', 'y')")
				eventually(t, time.Minute, "the segment is there", func() bool { return f.Status().Replay > lsn })
			}
			h, err := r.historyOf(t.Context(), p)
			must(t, err)
			if keeps {
				eventually(t, time.Minute, "there is a point, and WAL for it", func() bool {
					points, err := r.catalog.PastPoints(t.Context(), p.ID)
					must(t, err)
					source.Exec(t, "postgres", "SELECT pg_switch_wal()")
					source.Exec(t, "postgres", "SELECT pg_logical_emit_message(true, 'x', 'y')")
					return len(points) > 0 && h.archive.Stats().Segments > 0
				})
				return
			}
			must(t, r.tendHistory(p))
			if st := h.archive.Stats(); st.Segments != 0 {
				t.Errorf("%d segments are archived", st.Segments)
			}
			_, err = r.CreateBranch(t.Context(), "shop", pgbough.CreateRequest{Name: "x", At: pgbough.Past{Time: time.Now()}})
			if pgbough.ErrorCode(err) != pgbough.EConflict || !strings.Contains(err.Error(), "full copy") {
				t.Errorf("a branch of the past: %v", err)
			}
		})
	}
}
