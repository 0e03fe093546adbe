package archive

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/pgtest"
)

// stamped is a commit of the test's production: its stamp, and a position after
// its record and before that of the next.
type stamped struct {
	at    time.Time
	after pgbough.LSN
}

// busy makes commits of all kinds on a production, one after the other.
func busy(t *testing.T, p *pgtest.Server) (from pgbough.LSN, commits []stamped) {
	t.Helper()
	conn := p.Conn(t, "postgres")
	position := func() pgbough.LSN {
		var text string
		must(t, conn.QueryRow(t.Context(), "SELECT pg_current_wal_insert_lsn()::text").Scan(&text))
		lsn, err := pgbough.ParseLSN(text)
		must(t, err)
		return lsn
	}
	run := func(sql string) {
		t.Helper()
		_, err := conn.Exec(t.Context(), sql)
		must(t, err)
	}
	from = position()
	for i := range 60 {
		insert := fmt.Sprintf("INSERT INTO t SELECT %d, repeat(md5(random()::text), 40) FROM generate_series(1, %d)", i, 1+i*7)
		switch i % 6 {
		case 1: // an abort between commits, and subtransactions
			run("BEGIN; " + insert + "; SAVEPOINT a; " + insert + "; ROLLBACK TO a; SAVEPOINT b; " + insert + "; COMMIT")
			run("BEGIN; " + insert + "; ROLLBACK")
			continue
		case 2:
			run(fmt.Sprintf("BEGIN; %s; PREPARE TRANSACTION 'p%d'", insert, i))
			run(fmt.Sprintf("COMMIT PREPARED 'p%d'", i))
		case 3: // one record of many pages
			run("SELECT pg_logical_emit_message(true, 'x', repeat('y', 70000))")
			continue
		case 4:
			run(insert)
			run("SELECT pg_switch_wal()")
		default:
			run(insert)
		}
		var at time.Time
		must(t, conn.QueryRow(t.Context(), "SELECT pg_xact_commit_timestamp(xmin) FROM t WHERE i = $1 LIMIT 1", i).Scan(&at))
		commits = append(commits, stamped{at.UTC(), position()})
	}
	run("SELECT pg_logical_emit_message(true, 'end', '')")
	return from, commits
}

func open(t *testing.T, dir string) *Archive {
	t.Helper()
	a, err := Open(dir, Options{Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	must(t, err)
	t.Cleanup(func() { must(t, a.Close()) })
	return a
}

func production(t *testing.T, major int) (*pgtest.Server, *os.Root) {
	t.Helper()
	p := pgtest.Start(t, pgtest.Options{Major: major, Conf: map[string]string{
		"track_commit_timestamp": "on", "max_prepared_transactions": "5", "wal_recycle": "off", "wal_keep_size": "2GB",
	}})
	p.Exec(t, "postgres", "CREATE TABLE t (i int, s text)")
	wal, err := os.OpenRoot(filepath.Join(p.Dir, "pg_wal"))
	must(t, err)
	t.Cleanup(func() { must(t, wal.Close()) })
	return p, wal
}

func flushed(t *testing.T, p *pgtest.Server) pgbough.LSN {
	t.Helper()
	lsn, err := pgbough.ParseLSN(p.Value(t, "postgres", "pg_current_wal_flush_lsn()"))
	must(t, err)
	return lsn
}

// TestStops finds for each commit of a production where a replay has to stop to
// have it and nothing that came after, by time and by position, from its own WAL
// and from what is archived of it.
func TestStops(t *testing.T) {
	for _, major := range []int{15, 18} {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			p, wal := production(t, major)
			from, commits := busy(t, p)
			a, end := open(t, t.TempDir()), flushed(t, p)
			l, err := a.Log(wal, end, 1)
			must(t, err)
			stops(t, l, from, commits)
			n, err := a.Collect(t.Context(), wal, end, 1)
			must(t, err)
			if n < 10 || a.Stats().Segments != n || a.Stats().Bytes > a.Stats().RawBytes/2 {
				t.Errorf("%d segments are taken: %+v", n, a.Stats())
			}
			empty, err := os.OpenRoot(t.TempDir())
			must(t, err)
			defer func() { must(t, empty.Close()) }()
			for !a.has(l.fileOf(uint64(commits[len(commits)-1].after) / l.size)) {
				commits = commits[:len(commits)-1] // the newest is not archived yet
			}
			last := commits[len(commits)-1]
			l, err = open(t, a.dir).Log(empty, last.after, 1)
			must(t, err)
			stops(t, l, from, commits)
			if gaps := l.Missing(from, last.after); len(gaps) != 0 {
				t.Errorf("gaps: %v", gaps)
			}
		})
	}
}

func stops(t *testing.T, l *Log, from pgbough.LSN, commits []stamped) {
	t.Helper()
	before := from
	for i, c := range commits {
		byTime, err := l.Until(from, c.at)
		must(t, err)
		byPosition, err := l.Before(from, c.after)
		must(t, err)
		for how, s := range map[string]Stop{"by time": byTime, "by position": byPosition} {
			// After an own commit of busy's, those without a row may follow.
			if s.Commit.Before(c.at) || s.LSN <= before || how == "by position" && s.LSN > c.after || i+1 < len(commits) && !s.Commit.Before(commits[i+1].at) {
				t.Fatalf("%s, commit %d of %s before %s: stops at %+v", how, i, c.at, c.after, s)
			}
		}
		if !byTime.Commit.Equal(c.at) {
			t.Fatalf("by time, commit %d of %s: the last is of %s", i, c.at, byTime.Commit)
		}
		// Where a segment was left early, production is at the begin of the next one.
		if begin := before &^ pgbough.LSN(l.size-1); begin > from {
			if s, err := l.Until(begin, c.at); err != nil || s.LSN != byTime.LSN {
				t.Fatalf("commit %d of %s, looked for from %s on: %+v, %v, want %s", i, c.at, begin, s, err, byTime.LSN)
			}
		}
		if i%8 == 0 {
			whole(t, l, before, byPosition.LSN, c.at)
		}
		before = c.after
	}
}

// whole looks for the end of a commit's record: one byte less, and it is left out.
func whole(t *testing.T, l *Log, low, high pgbough.LSN, at time.Time) {
	t.Helper()
	from := low
	for high-low > 1 {
		middle := low + (high-low)/2
		s, err := l.Before(from, middle)
		must(t, err)
		if s.LSN > middle {
			t.Fatalf("up to %s: stops at %s", middle, s.LSN)
		}
		if s.Commit.Before(at) {
			low = middle
		} else {
			high = middle
		}
	}
	if s, err := l.Before(from, high); err != nil || s.LSN != high || !s.Commit.Equal(at) {
		t.Errorf("the record of the commit of %s ends at %s, and this is found: %+v, %v", at, high, s, err)
	}
}

// TestDamaged finds one changed byte in an archived segment, names the segment,
// and still serves what does not need it.
func TestDamaged(t *testing.T) {
	p, wal := production(t, 15)
	from, commits := busy(t, p)
	a, end := open(t, t.TempDir()), flushed(t, p)
	_, err := a.Collect(t.Context(), wal, end, 1)
	must(t, err)
	l, err := a.Log(wal, end, 1)
	must(t, err)
	bad := segmentOf(1, uint64(commits[5].after)/l.size, l.size)
	path := filepath.Join(a.dir, bad.name()+tail)
	b, err := os.ReadFile(path)
	must(t, err)
	b[len(b)/2] ^= 1
	must(t, os.WriteFile(path, b, 0o600))
	dest, err := os.OpenRoot(t.TempDir())
	must(t, err)
	defer func() { must(t, dest.Close()) }()
	owner := Owner{os.Geteuid(), os.Getegid()}
	if err := l.Fill(t.Context(), dest, owner, from, commits[9].after); err == nil || !strings.Contains(err.Error(), bad.name()) {
		t.Errorf("filled over the damaged segment %s: %v", bad.name(), err)
	}
	must(t, l.Fill(t.Context(), dest, owner, bad.end(l.size), commits[9].after))
	want, err := readWhole(wal, segmentOf(1, uint64(commits[9].after)/l.size, l.size).name())
	must(t, err)
	got, err := readWhole(dest, segmentOf(1, uint64(commits[9].after)/l.size, l.size).name())
	must(t, err)
	if !bytes.Equal(want, got) {
		t.Error("what was put in place is not what was archived")
	}
}

// TestGap: WAL that the follower has removed before it was archived is told, and
// what needs it is refused.
func TestGap(t *testing.T) {
	p, wal := production(t, 15)
	from, commits := busy(t, p)
	end := flushed(t, p)
	a := open(t, t.TempDir())
	l, err := a.Log(wal, end, 1)
	must(t, err)
	lost := uint64(commits[5].after) / l.size
	must(t, os.Remove(filepath.Join(p.Dir, "pg_wal", segmentOf(1, lost, l.size).name())))
	_, err = a.Collect(t.Context(), wal, end, 1)
	must(t, err)
	want := Gap{pgbough.LSN(lost * l.size), pgbough.LSN((lost + 1) * l.size)}
	if gaps := l.Missing(from, end); len(gaps) != 1 || gaps[0] != want {
		t.Errorf("gaps %v, want %v", gaps, want)
	}
	if err := l.Fill(t.Context(), wal, Owner{}, from, end); !errors.Is(err, ErrMissing) {
		t.Errorf("filled over a gap: %v", err)
	}
	must(t, a.Trim(want.To))
	for s := range a.segments {
		if s.no(l.size) <= lost {
			t.Errorf("%s is kept", s.name())
		}
	}
	if n, err := a.Collect(t.Context(), wal, end, 1); err != nil || n != 0 {
		t.Errorf("%d segments are taken again that were trimmed, and are still in the follower's WAL: %v", n, err)
	}
}

// TestTimelines: after a failover, the segment in which it happened is that of the
// new timeline for what came after, and the part before it is the old one's.
func TestTimelines(t *testing.T) {
	const size = 16 << 20
	follower := t.TempDir()
	file := func(name string, fill byte) {
		b := bytes.Repeat([]byte{fill}, size)
		binary.LittleEndian.PutUint32(b[sizeOffset:], size)
		must(t, os.WriteFile(filepath.Join(follower, name), b, 0o600))
	}
	file("000000010000000000000002", 'a')
	file("000000010000000000000003", 'b') // what the old one had received of it
	file("000000020000000000000003", 'c')
	file("000000020000000000000004", 'd')
	must(t, os.WriteFile(filepath.Join(follower, "00000002.history"), []byte("1\t0/3500000\tno recovery target specified\n"), 0o600))
	wal, err := os.OpenRoot(follower)
	must(t, err)
	defer func() { must(t, wal.Close()) }()
	a := open(t, t.TempDir())
	const end = pgbough.LSN(0x4200000)
	if n, err := a.Collect(t.Context(), wal, end, a.Newest(wal, 1)); err != nil || n != 2 {
		t.Fatalf("%d segments are finished: %v", n, err)
	}
	l, err := a.Log(wal, end, 2)
	must(t, err)
	for lsn, want := range map[pgbough.LSN]uint32{0x2100000: 1, 0x3500000: 1, 0x3500001: 2, end: 2} {
		if got := l.TimelineAt(lsn); got != want {
			t.Errorf("%s is on timeline %d, want %d", lsn, got, want)
		}
	}
	for to, want := range map[pgbough.LSN]string{
		0x3400000: "000000010000000000000002:a 000000010000000000000003:c.",
		0x4100000: "00000002.history:1 000000010000000000000002:a 000000020000000000000003:c 000000020000000000000004:d.",
	} {
		dir := t.TempDir()
		dest, err := os.OpenRoot(dir)
		must(t, err)
		must(t, l.Fill(t.Context(), dest, Owner{os.Geteuid(), os.Getegid()}, 0x2000028, to))
		must(t, dest.Close())
		entries, err := os.ReadDir(dir)
		must(t, err)
		var got []string
		for _, e := range entries {
			b, err := os.ReadFile(filepath.Join(dir, e.Name()))
			must(t, err)
			about := e.Name() + ":" + string(b[:1])
			if b[len(b)-1] == 0 { // nothing of what came after
				about += "."
			}
			got = append(got, about)
		}
		slices.Sort(got)
		sorted := strings.Fields(want)
		slices.Sort(sorted)
		if !slices.Equal(got, sorted) {
			t.Errorf("for %s: %q, want %q", to, got, sorted)
		}
	}
}

// TestFull stops before the reserve of the disk is touched, and goes on when
// there is room.
func TestFull(t *testing.T) {
	p, wal := production(t, 15)
	busy(t, p)
	a, end := open(t, t.TempDir()), flushed(t, p)
	a.reserve = 1 << 60
	if n, err := a.Collect(t.Context(), wal, end, 1); !errors.Is(err, ErrFull) || n != 0 {
		t.Errorf("%d segments archived on a full disk: %v", n, err)
	}
	a.reserve = 0
	if n, err := a.Collect(t.Context(), wal, end, 1); err != nil || n == 0 {
		t.Errorf("%d segments archived: %v", n, err)
	}
}

// TestIndex cuts off what a power cut has left of the last mark, and finds marks
// by time and by position.
func TestIndex(t *testing.T) {
	dir, began := t.TempDir(), time.Unix(1800000000, 0).UTC()
	a := open(t, dir)
	mark := func(i int) Mark { return Mark{began.Add(time.Duration(i) * time.Second), pgbough.LSN(i / 3 * 100)} }
	for i := range 30 {
		must(t, a.Note(mark(i)))
	}
	must(t, a.Note(mark(3))) // the clock was set back
	path := filepath.Join(dir, indexName)
	whole, err := os.ReadFile(path)
	must(t, err)
	for name, torn := range map[string][]byte{
		"short": whole[:len(whole)-7], "damaged": append(bytes.Clone(whole[:len(whole)-1]), whole[len(whole)-1]^1), "zeros behind": append(bytes.Clone(whole[:len(whole)-markSize]), make([]byte, 3*markSize)...),
	} {
		must(t, os.WriteFile(path, torn, 0o600))
		if got := open(t, dir).Last(); got != mark(28) {
			t.Errorf("%s: the last mark is %v", name, got)
		}
	}
	a = open(t, dir)
	for name, c := range map[string]struct {
		find func() (Mark, bool)
		want Mark
		ok   bool
	}{
		"too early":   {func() (Mark, bool) { return a.Before(began.Add(-1)) }, Mark{}, false},
		"at a mark":   {func() (Mark, bool) { return a.Before(mark(5).Time) }, mark(5), true},
		"between":     {func() (Mark, bool) { return a.Before(mark(5).Time.Add(1)) }, mark(5), true},
		"after all":   {func() (Mark, bool) { return a.Before(began.Add(time.Hour)) }, mark(28), true},
		"reached":     {func() (Mark, bool) { return a.Reached(100) }, mark(5), true},
		"since":       {func() (Mark, bool) { return a.Since(101) }, mark(6), true},
		"since never": {func() (Mark, bool) { return a.Since(5000) }, Mark{}, false},
	} {
		if got, ok := c.find(); got != c.want || ok != c.ok {
			t.Errorf("%s: %v, %t; want %v, %t", name, got, ok, c.want, c.ok)
		}
	}
	for i := 30; i < 3*staleSize/markSize; i++ {
		must(t, a.Note(mark(i)))
	}
	n := a.index.n
	must(t, a.Trim(mark(2*staleSize/markSize).LSN))
	if got, ok := a.Reached(mark(2 * staleSize / markSize).LSN); !ok || a.index.n > n/2 || got.LSN != mark(2*staleSize/markSize).LSN {
		t.Errorf("after trimming there are %d marks, and %v", a.index.n, got)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
