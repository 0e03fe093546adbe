// Package archive keeps the history of a lineage: the WAL that a follower has
// received, so that a clone of an earlier state can be replayed to any position
// since.
//
// A lineage is a volume and what became of it, named by the volume's id; never
// by system identifier and timeline, which siblings share. An Archive is the
// directory of one lineage. It holds finished segments of WAL, compressed, each
// with a checksum of what it was, timeline history files alike, and an index of
// where production was at which time. What is newer than the last finished
// segment is in the pg_wal of the follower, and is read there: a Log is both.
package archive

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/volume/disk"
)

// Options of an Archive.
type Options struct {
	// Reserve is what an Archive leaves free of its disk, which is not its alone.
	Reserve int64
	Log     *slog.Logger
}

// Archive is the history of one lineage. Its methods may be called at the same
// time, but for Collect, which one goroutine calls.
type Archive struct {
	dir     string
	reserve int64
	log     *slog.Logger
	index   *index
	codec   codec

	mu        sync.Mutex
	size      uint64            // of a segment in bytes; 0 before the first one is known
	segments  map[segment]int64 // that are here, with their size on the disk
	histories map[uint32]bool   // timelines whose history file is here
	trimmed   pgbough.LSN       // what ends at or before is not wanted
}

// Open opens the archive in dir, or makes one. What a crash has left of a file
// that was not finished is removed.
func Open(dir string, o Options) (*Archive, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open the archive: %w", err)
	}
	a := &Archive{dir: dir, reserve: o.Reserve, log: o.Log, segments: map[segment]int64{}, histories: map[uint32]bool{}}
	if err := a.list(); err != nil {
		return nil, fmt.Errorf("open the archive: %w", err)
	}
	var err error
	if a.codec, err = newCodec(); err != nil {
		return nil, err
	}
	if a.index, err = openIndex(dir); err != nil {
		return nil, fmt.Errorf("open the archive: %w", err)
	}
	return a, nil
}

// Close closes the archive. What it has acknowledged is durable already.
func (a *Archive) Close() error { return a.index.close() }

func (a *Archive) list() error {
	entries, err := os.ReadDir(a.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".new") {
			if err := os.RemoveAll(filepath.Join(a.dir, e.Name())); err != nil {
				return err
			}
			continue
		}
		name, ok := strings.CutSuffix(e.Name(), tail)
		if !ok {
			continue
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if t, ok := parseHistoryName(name); ok {
			a.histories[t] = true
		} else if s, ok := parseSegment(name); ok {
			a.segments[s] = info.Size()
		}
	}
	return a.learnSize()
}

// learnSize reads the size of a segment from one that is here. One that is
// damaged says nothing, and there are others.
func (a *Archive) learnSize() error {
	for s := range a.segments {
		size, err := rawSize(filepath.Join(a.dir, s.name()+tail))
		if err == nil {
			a.size = size
			break
		}
		a.log.Error("an archived WAL segment is damaged", "segment", s.name(), "err", err)
	}
	return nil
}

// ErrFull says that the disk has no room for more.
var ErrFull = errors.New("the disk of the archive is full")

// Collect takes over from a follower's pg_wal what is finished: segments that
// end at or before received, on the timeline that it streams and its ancestors,
// but for those that Trim would remove. It returns how many segments it has taken.
func (a *Archive) Collect(ctx context.Context, wal *os.Root, received pgbough.LSN, timeline uint32) (int, error) {
	entries, err := fs.ReadDir(wal.FS(), ".")
	if err != nil {
		return 0, fmt.Errorf("look at the follower's WAL: %w", err)
	}
	if err := a.takeHistories(wal, entries); err != nil {
		return 0, err
	}
	l, err := a.Log(wal, received, timeline)
	if err != nil {
		return 0, err
	}
	if l.size == 0 {
		return 0, nil // nothing there yet
	}
	taken := 0
	for _, e := range entries {
		s, ok := parseSegment(e.Name())
		if !ok || !a.wants(s, l.size) || !l.finished(s) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return taken, err
		}
		if err := a.take(wal, e.Name(), s); err != nil {
			return taken, fmt.Errorf("archive WAL segment %s: %w", e.Name(), err)
		}
		taken++
	}
	return taken, nil
}

// take keeps one segment. One that the follower has removed meanwhile is a gap.
func (a *Archive) take(wal *os.Root, name string, s segment) error {
	raw, err := readWhole(wal, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	n, err := a.write(name, raw)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.segments[s] = n
	return nil
}

// write makes a file of the archive, if the disk has room for it.
func (a *Archive) write(name string, raw []byte) (int64, error) {
	encoded := a.codec.encode(raw)
	space, err := disk.SpaceOf(a.dir)
	if err != nil {
		return 0, err
	}
	if int64(space.Free)-int64(len(encoded)) < a.reserve {
		return 0, ErrFull
	}
	err = disk.WriteFile(filepath.Join(a.dir, name+tail), encoded, 0o600)
	if isFull(err) {
		return 0, errors.Join(ErrFull, os.RemoveAll(filepath.Join(a.dir, name+tail+".new")))
	}
	return int64(len(encoded)), err
}

func (a *Archive) takeHistories(wal *os.Root, entries []fs.DirEntry) error {
	for _, e := range entries {
		t, ok := parseHistoryName(e.Name())
		if !ok || a.hasHistory(t) {
			continue
		}
		raw, err := readWhole(wal, e.Name())
		if err != nil {
			return fmt.Errorf("archive %s: %w", e.Name(), err)
		}
		if _, err := a.write(e.Name(), raw); err != nil {
			return fmt.Errorf("archive %s: %w", e.Name(), err)
		}
		a.mu.Lock()
		a.histories[t] = true
		a.mu.Unlock()
	}
	return nil
}

func (a *Archive) wants(s segment, size uint64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, ok := a.segments[s]
	return !ok && s.end(size) > a.trimmed
}

func (a *Archive) has(s segment) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, ok := a.segments[s]
	return ok
}

func (a *Archive) hasHistory(t uint32) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.histories[t]
}

// read is what a file of the archive was. Its error names one that is damaged.
func (a *Archive) read(name string) ([]byte, error) {
	path := filepath.Join(a.dir, name+tail)
	encoded, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	raw, err := a.codec.decode(encoded)
	if err != nil {
		return nil, pgbough.Errorf(pgbough.EConflict, "the archived WAL %s is damaged: %w", path, err).
			WithHint("moments that need it are lost; later ones, from the next point on, are not (pgbough history)")
	}
	return raw, nil
}

// Stats tell what an archive holds.
type Stats struct {
	Segments int
	Bytes    int64 // on the disk
	RawBytes int64 // what it is of WAL
}

// Stats are of this moment.
func (a *Archive) Stats() Stats {
	a.mu.Lock()
	defer a.mu.Unlock()
	var st Stats
	for _, n := range a.segments {
		st.Segments++
		st.Bytes += n
	}
	st.RawBytes = int64(st.Segments) * int64(a.size)
	return st
}

// Trim removes the segments that end at or before oldest, and the times before
// it. The caller knows that nobody needs them.
func (a *Archive) Trim(oldest pgbough.LSN) error {
	a.mu.Lock()
	a.trimmed = oldest
	var gone []segment
	for s := range a.segments {
		if a.size != 0 && s.end(a.size) <= oldest {
			gone = append(gone, s)
		}
	}
	a.mu.Unlock()
	slices.SortFunc(gone, func(x, y segment) int { return cmp.Compare(x.no(a.size), y.no(a.size)) }) // so that a crash leaves no hole
	for _, s := range gone {
		if err := os.RemoveAll(filepath.Join(a.dir, s.name()+tail)); err != nil {
			return fmt.Errorf("trim the archive: %w", err)
		}
		a.mu.Lock()
		delete(a.segments, s)
		a.mu.Unlock()
	}
	return a.index.trim(oldest)
}

// Gap is WAL that was lost before it could be kept: from its first byte to
// where it goes on.
type Gap struct{ From, To pgbough.LSN }
