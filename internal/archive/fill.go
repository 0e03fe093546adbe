package archive

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/pgbough/pgbough"
)

// Empty removes all WAL from the pg_wal of a clone that nothing runs on: it is
// in the archive, or in the pg_wal that the clone was made of.
func Empty(wal *os.Root) error {
	entries, err := fs.ReadDir(wal.FS(), ".")
	if err != nil {
		return fmt.Errorf("empty pg_wal: %w", err)
	}
	for _, e := range entries {
		if e.IsDir() {
			continue // archive_status, summaries
		}
		if err := wal.Remove(e.Name()); err != nil {
			return fmt.Errorf("empty pg_wal: %w", err)
		}
	}
	return nil
}

// Owner is who the files that Fill makes belong to.
type Owner struct{ UID, GID int }

// Fill puts into an empty pg_wal what replaying from one position to another
// needs, checked against its checksums: segments and the history of the timeline
// that to is on. So the Postgres there needs nothing from outside its sandbox.
func (l *Log) Fill(ctx context.Context, wal *os.Root, owner Owner, from, to pgbough.LSN) error {
	at, err := l.at(to)
	if err != nil {
		return err
	}
	if l.end < to {
		return fmt.Errorf("%w: it ends at %s, before %s", ErrMissing, l.end, to)
	}
	if at.timeline > 1 {
		text, err := l.file(historyName(at.timeline), l.archive.hasHistory(at.timeline))
		if err != nil {
			return fmt.Errorf("put WAL in place: %w", err)
		}
		if err := put(wal, owner, historyName(at.timeline), text, int64(len(text))); err != nil {
			return err
		}
	}
	for no := uint64(from) / l.size; no*l.size <= uint64(to); no++ {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		data, err := l.read(no)
		if errors.Is(err, errEnd) {
			break // to is where the WAL ends
		}
		if err != nil {
			return fmt.Errorf("put WAL in place: %w", err)
		}
		// Of a segment that a later timeline has copied only what came before is to's.
		if begin := no * l.size; at.end < pgbough.LSN(begin+uint64(len(data))) {
			data = data[:uint64(at.end)-begin]
		}
		if err := put(wal, owner, segmentOf(at.on(no), no, l.size).name(), data, int64(l.size)); err != nil {
			return err
		}
	}
	return nil
}

// at is the log as the timeline saw it that lsn is on.
func (l *Log) at(lsn pgbough.LSN) (*Log, error) {
	c := *l
	for i, h := range l.history {
		if lsn <= h.SwitchLSN {
			c.timeline, c.history, c.end = h.Timeline, l.history[:i], h.SwitchLSN
			break
		}
	}
	if l.size == 0 {
		return nil, fmt.Errorf("%w: there is none yet", ErrMissing)
	}
	return &c, nil
}

// on is the newest timeline that has begun by the end of a segment.
func (l *Log) on(no uint64) uint32 {
	for _, t := range slices.Backward(l.timelines()) {
		if uint64(t.at)/l.size <= no {
			return t.timeline
		}
	}
	return l.timeline
}

// put makes a file of size bytes that begins with data. It need not be durable:
// whoever fills a pg_wal does that with the rest of the clone.
func put(wal *os.Root, owner Owner, name string, data []byte, size int64) error {
	f, err := wal.OpenFile(name, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("put WAL in place: %w", err)
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Truncate(size), f.Chown(owner.UID, owner.GID), f.Close())
	if err != nil {
		return fmt.Errorf("put WAL segment %s in place: %w", name, err)
	}
	return nil
}
