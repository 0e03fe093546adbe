package archive

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"sort"
	"sync"
	"time"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/volume/disk"
)

// Mark is where production was at a time by its own clock: all commits whose
// records end at or before LSN are stamped no later than Time.
type Mark struct {
	Time time.Time
	LSN  pgbough.LSN
}

// The index is a file of marks, each of a fixed size with a checksum of its own,
// in the order of their times and positions.
const (
	indexName = "times"
	markSize  = 20
	staleSize = 4096 * markSize // what of the index may be too old before it is written anew
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

type index struct {
	path string

	mu   sync.Mutex
	file *os.File
	n    int64 // marks
	last Mark
}

func openIndex(dir string) (*index, error) {
	x := &index{path: filepath.Join(dir, indexName)}
	return x, x.open()
}

// open opens the file, and cuts off what is behind the last whole mark.
func (x *index) open() error {
	root, err := os.OpenRoot(filepath.Dir(x.path))
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }() // read only
	if x.file, err = root.OpenFile(indexName, os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return err
	}
	info, err := x.file.Stat()
	if err != nil {
		return err
	}
	x.n, x.last = info.Size()/markSize, Mark{}
	for ; x.n > 0; x.n-- { // a power cut may have cost more than the last one
		if m, err := x.at(x.n - 1); err == nil {
			x.last = m
			break
		}
	}
	return x.file.Truncate(x.n * markSize)
}

func (x *index) close() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	return errors.Join(x.file.Sync(), x.file.Close())
}

// at reads one mark. x.mu is held, or nobody else knows x yet.
func (x *index) at(i int64) (Mark, error) {
	var b [markSize]byte
	if _, err := x.file.ReadAt(b[:], i*markSize); err != nil {
		return Mark{}, err
	}
	if crc32.Checksum(b[:16], castagnoli) != binary.BigEndian.Uint32(b[16:]) {
		return Mark{}, fmt.Errorf("mark %d of %s is damaged", i, x.path)
	}
	return Mark{time.Unix(0, int64(binary.BigEndian.Uint64(b[:]))).UTC(), pgbough.LSN(binary.BigEndian.Uint64(b[8:]))}, nil
}

func encodeMark(m Mark) []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, markSize), uint64(m.Time.UnixNano()))
	b = binary.BigEndian.AppendUint64(b, uint64(m.LSN))
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// Note keeps where production was at a time. One that is not after the last is
// left out: a clock that was set back makes what it passes a second time no
// easier to find.
func (a *Archive) Note(m Mark) error {
	x := a.index
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.n > 0 && (!m.Time.After(x.last.Time) || m.LSN < x.last.LSN) {
		return nil
	}
	if _, err := x.file.WriteAt(encodeMark(m), x.n*markSize); err != nil {
		if isFull(err) {
			err = errors.Join(ErrFull, x.file.Truncate(x.n*markSize))
		}
		return fmt.Errorf("keep the time: %w", err)
	}
	x.n, x.last = x.n+1, m
	return nil
}

// Last is the newest mark; it is zero where there is none.
func (a *Archive) Last() Mark {
	a.index.mu.Lock()
	defer a.index.mu.Unlock()
	return a.index.last
}

// Before is the last mark that is not later than t, and false if there is none.
func (a *Archive) Before(t time.Time) (Mark, bool) {
	return a.index.find(-1, func(m Mark) bool { return m.Time.After(t) })
}

// After is the first mark that is later than t, and false if there is none.
func (a *Archive) After(t time.Time) (Mark, bool) {
	return a.index.find(0, func(m Mark) bool { return m.Time.After(t) })
}

// Reached is the last mark whose position is not after lsn, and false if there is none.
func (a *Archive) Reached(lsn pgbough.LSN) (Mark, bool) {
	return a.index.find(-1, func(m Mark) bool { return m.LSN > lsn })
}

// Since is the first mark whose position is at or after lsn: the earliest time
// that is known to be no earlier than all commits before it.
func (a *Archive) Since(lsn pgbough.LSN) (Mark, bool) {
	return a.index.find(0, func(m Mark) bool { return m.LSN >= lsn })
}

// find is the mark so many places from the first that is true for is, which is
// true for all that follow one for which it is.
func (x *index) find(offset int, is func(Mark) bool) (Mark, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	i := sort.Search(int(x.n), func(i int) bool {
		m, err := x.at(int64(i))
		return err == nil && is(m)
	}) + offset
	if i < 0 || int64(i) >= x.n {
		return Mark{}, false
	}
	m, err := x.at(int64(i))
	return m, err == nil
}

// trim removes marks before oldest, when there are many.
func (x *index) trim(oldest pgbough.LSN) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	stale := int64(sort.Search(int(x.n), func(i int) bool {
		m, err := x.at(int64(i))
		return err == nil && m.LSN >= oldest
	})-1) * markSize // the last one before it is needed still
	if stale < staleSize || stale < x.n*markSize/2 {
		return nil
	}
	rest, err := io.ReadAll(io.NewSectionReader(x.file, stale, x.n*markSize-stale))
	if err != nil {
		return fmt.Errorf("trim the times: %w", err)
	}
	if err := disk.WriteFile(x.path, rest, 0o600); err != nil {
		return fmt.Errorf("trim the times: %w", err)
	}
	old := x.file
	return errors.Join(x.open(), old.Close())
}
