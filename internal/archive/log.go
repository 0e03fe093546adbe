package archive

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/replication"
)

// Log is the WAL of a lineage at one moment, up to where the follower had
// received it: what is archived, and the rest in the follower's own pg_wal.
type Log struct {
	archive  *Archive
	wal      *os.Root
	size     uint64
	end      pgbough.LSN
	timeline uint32
	history  []replication.HistoryEntry // its ancestors
}

// Log is the WAL up to received on a timeline, whose newest part is in wal. It
// is used no longer than wal is open.
func (a *Archive) Log(wal *os.Root, received pgbough.LSN, timeline uint32) (*Log, error) {
	l := &Log{archive: a, wal: wal, end: received, timeline: timeline}
	if timeline > 1 {
		text, err := l.file(historyName(timeline), a.hasHistory(timeline))
		if err != nil {
			return nil, fmt.Errorf("read the history of timeline %d: %w", timeline, err)
		}
		if l.history, err = replication.ParseHistory(text); err != nil {
			return nil, err
		}
	}
	var err error
	if l.size, err = a.segmentSize(wal); err != nil {
		return nil, err
	}
	return l, nil
}

// segmentSize is that of the archive, or the follower's where that has nothing yet.
func (a *Archive) segmentSize(wal *os.Root) (uint64, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.size != 0 {
		return a.size, nil
	}
	entries, err := fs.ReadDir(wal.FS(), ".")
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		if _, ok := parseSegment(e.Name()); !ok {
			continue
		}
		// The file says so itself; one that was just made says nothing yet.
		head := make([]byte, longHeader)
		f, err := wal.Open(e.Name())
		if err != nil {
			continue
		}
		_, err = f.ReadAt(head, 0)
		_ = f.Close() // read only
		size := uint64(binary.LittleEndian.Uint32(head[sizeOffset:]))
		if err == nil && size >= 1<<20 && size <= maxSegment && size&(size-1) == 0 {
			a.size = size
			return size, nil
		}
	}
	return 0, nil
}

func (l *Log) file(name string, archived bool) ([]byte, error) {
	if archived {
		return l.archive.read(name)
	}
	b, err := readWhole(l.wal, name)
	if errors.Is(err, fs.ErrNotExist) { // archived and removed meanwhile, or lost
		return l.archive.read(name)
	}
	return b, err
}

// reign is from where to where WAL is of a timeline.
type reign struct {
	timeline uint32
	at, end  pgbough.LSN
}

// timelines are all up to the newest, the oldest first.
func (l *Log) timelines() []reign {
	var list []reign
	var at pgbough.LSN
	for _, h := range l.history {
		list = append(list, reign{h.Timeline, at, h.SwitchLSN})
		at = h.SwitchLSN
	}
	return append(list, reign{l.timeline, at, l.end})
}

// finished tells whether nothing more comes into a segment.
func (l *Log) finished(s segment) bool {
	for _, t := range l.timelines() {
		if t.timeline == s.timeline {
			return s.end(l.size) <= t.end
		}
	}
	return false // of no ancestor
}

// TimelineAt is the timeline that the WAL before lsn belongs to.
func (l *Log) TimelineAt(lsn pgbough.LSN) uint32 {
	for _, h := range l.history {
		if lsn <= h.SwitchLSN {
			return h.Timeline
		}
	}
	return l.timeline
}

// fileOf is the segment of that number in which Postgres looks on the way to the
// newest timeline: that of the newest timeline which has begun by its end, and of
// which there is one (xlogrecovery.c, XLogFileReadAnyTLI).
func (l *Log) fileOf(no uint64) segment {
	var first segment
	for _, t := range slices.Backward(l.timelines()) {
		if uint64(t.at)/l.size > no {
			continue
		}
		s := segmentOf(t.timeline, no, l.size)
		if l.there(s) {
			return s
		}
		if first == (segment{}) {
			first = s
		}
	}
	return first
}

// ErrMissing says that WAL is not there: it was lost before it was kept.
var ErrMissing = errors.New("WAL is missing")

// read is the segment of that number, without what the follower has not received.
func (l *Log) read(no uint64) ([]byte, error) {
	s := l.fileOf(no)
	begin := pgbough.LSN(no * l.size)
	if begin >= l.end {
		return nil, errEnd
	}
	b, err := l.file(s.name(), l.archive.has(s))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s, from %s on", ErrMissing, s.name(), begin)
	}
	if err != nil {
		return nil, err
	}
	return b[:min(uint64(len(b)), uint64(l.end-begin))], nil
}

func (l *Log) reader() *reader { return &reader{size: l.size, segment: l.read} }

// Stop is where a replay is to stop: after a whole record.
type Stop struct {
	LSN    pgbough.LSN
	Commit time.Time // the stamp of the last commit before it, if one was seen
}

// Before is the stop after the last record that ends at or before lsn. from is
// where looking for the last commit begins.
func (l *Log) Before(from, lsn pgbough.LSN) (Stop, error) {
	return l.walk(min(from, lsn), lsn, func(record) bool { return false })
}

// Until is the stop before the first commit after from that is stamped later
// than t, or at the end of the WAL.
func (l *Log) Until(from pgbough.LSN, t time.Time) (Stop, error) {
	return l.walk(from, l.end, func(r record) bool { return r.end > from && r.commit.After(t) })
}

// walk goes over the records from the page of from on that end at or before to,
// up to the first for which over is true.
func (l *Log) walk(from, to pgbough.LSN, over func(record) bool) (Stop, error) {
	r := l.reader()
	if err := r.seek(from); err != nil {
		return Stop{}, err
	}
	stop := Stop{LSN: r.at}
	if r.at%pageSize == pgbough.LSN(r.header(r.at&^(pageSize-1))) && r.at-r.at%pageSize > 0 {
		stop.LSN = r.at &^ (pageSize - 1) // the record before ends where its page does
	}
	for {
		rec, err := r.next()
		if errors.Is(err, errEnd) {
			return stop, nil
		}
		if err != nil {
			return stop, err
		}
		if rec.end > to || over(rec) {
			return stop, nil
		}
		stop.LSN = rec.end
		if !rec.commit.IsZero() {
			stop.Commit = rec.commit
		}
	}
}

// Missing are the gaps between two positions.
func (l *Log) Missing(from, to pgbough.LSN) []Gap {
	if l.size == 0 || to <= from {
		return nil
	}
	var gaps []Gap
	for no := uint64(from) / l.size; no*l.size < uint64(to); no++ {
		if l.there(l.fileOf(no)) {
			continue
		}
		begin, end := pgbough.LSN(no*l.size), pgbough.LSN((no+1)*l.size)
		if n := len(gaps); n > 0 && gaps[n-1].To == begin {
			gaps[n-1].To = end
			continue
		}
		gaps = append(gaps, Gap{begin, end})
	}
	return gaps
}

func (l *Log) there(s segment) bool {
	if l.archive.has(s) {
		return true
	}
	_, err := l.wal.Lstat(s.name())
	return err == nil || l.archive.has(s)
}

// Newest is the newest timeline that a follower has begun to follow: the one that
// it says, or one whose history file it has fetched since.
func (a *Archive) Newest(wal *os.Root, timeline uint32) uint32 {
	a.mu.Lock()
	for t := range a.histories {
		timeline = max(timeline, t)
	}
	a.mu.Unlock()
	entries, err := fs.ReadDir(wal.FS(), ".")
	if err != nil {
		return timeline
	}
	for _, e := range entries {
		if t, ok := parseHistoryName(e.Name()); ok {
			timeline = max(timeline, t)
		}
	}
	return timeline
}
