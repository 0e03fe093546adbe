package follower

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sys/unix"

	"github.com/pgbough/pgbough"
)

// segmentRest is what of the new segment stays as it is behind the end of the
// WAL, for what is written before TrimSegment has looked a second time.
const segmentRest = 1 << 20

// TrimSegment cuts off the rest of the WAL segment that a promotion has just made,
// so that nobody waits until its zeros are on the disk: a promotion copies the
// last segment of the old timeline and fills it up (xlog.c, XLogFileCopy), and a
// flush writes all 16 MB. Postgres goes on in the same file; it may write no faster
// than segmentRest in the meantime, which is checked: WAL is never written beyond
// the position where it is inserted, and that only grows. FillSegment makes the
// file whole again; a recovery takes one that is short for the end of the WAL.
func (s *Standby) TrimSegment(ctx context.Context) error {
	before, err := s.segmentEnd(ctx)
	if err != nil {
		return err
	}
	keep := (before.offset + segmentRest) &^ (1<<13 - 1) // whole pages of WAL
	if keep >= before.size {
		return nil
	}
	if err := s.resize(before.name, func(f *os.File) error { return cutOff(f, keep) }); err != nil {
		return fmt.Errorf("trim the new WAL segment: %w", err)
	}
	after, err := s.segmentEnd(ctx)
	if err != nil {
		return err
	}
	if after.name != before.name || after.offset > keep {
		return pgbough.Errorf(pgbough.EInternal, "%s wrote WAL while it was promoted", s.Config().ID).WithHint("make the branch again")
	}
	return nil
}

// FillSegment gives the current WAL segment its size, whatever Postgres has
// written meanwhile. That is cheap once the file is flushed.
func (s *Standby) FillSegment(ctx context.Context) error {
	at, err := s.segmentEnd(ctx)
	if err != nil {
		return err
	}
	if err := s.resize(at.name, func(f *os.File) error { return f.Truncate(at.size) }); err != nil {
		return fmt.Errorf("fill the new WAL segment: %w", err)
	}
	return nil
}

// segment is a WAL file, and where in it the next record will be inserted.
type segment struct {
	name         string
	offset, size int64 // bytes
}

func (s *Standby) segmentEnd(ctx context.Context) (segment, error) {
	var at segment
	err := s.ask(ctx, func(c *pgx.Conn) error {
		return c.QueryRow(ctx, `
			SELECT w.file_name, w.file_offset::bigint, pg_size_bytes(current_setting('wal_segment_size'))
			FROM pg_walfile_name_offset(pg_current_wal_insert_lsn()) w`).Scan(&at.name, &at.offset, &at.size)
	})
	if err != nil {
		return at, fmt.Errorf("ask where WAL is inserted: %w", err)
	}
	return at, nil
}

func (s *Standby) resize(segment string, f func(*os.File) error) error {
	root, err := os.OpenRoot(filepath.Join(s.Config().DataDir, "pg_wal"))
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }() // read only
	file, err := root.OpenFile(segment, os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	return errors.Join(f(file), file.Close())
}

// cutOff cuts a file of which nothing is on the disk yet, without writing what
// comes before. XFS writes all of it unless the file is on the disk as long as it
// is to be (xfs_iops.c, xfs_setattr_size), so the last page is written first. A
// punched hole would even write the pages that it drops.
func cutOff(f *os.File, size int64) error {
	page := int64(os.Getpagesize())
	err := unix.SyncFileRange(int(f.Fd()), size-page, page,
		unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER)
	return errors.Join(err, f.Truncate(size))
}
