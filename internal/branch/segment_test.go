package branch

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// wal is the segment that a promoted spare writes to now, and its size on the disk.
func (x *followed) wal() (path string, size int64) {
	x.t.Helper()
	conn, err := x.spare.Connect(x.t.Context(), "postgres")
	must(x.t, err)
	defer func() { _ = conn.Close(x.t.Context()) }()
	var name string
	must(x.t, conn.QueryRow(x.t.Context(), "SELECT pg_walfile_name(pg_current_wal_insert_lsn())").Scan(&name))
	path = filepath.Join(x.spare.Config().DataDir, "pg_wal", name)
	info, err := os.Stat(path)
	must(x.t, err)
	return path, info.Size()
}

// The segment that a promotion makes is cut to what is in it, and can be made whole
// again. A spare that writes meanwhile is refused, and a link is not followed.
func TestSegmentOfAPromotion(t *testing.T) {
	const whole = 16 << 20
	x := newFollowed(t)
	must(t, x.wait(short))
	_, err := x.spare.Promote(t.Context())
	must(t, err)
	if _, size := x.wal(); size != whole {
		t.Fatalf("the segment after a promotion has %d bytes", size)
	}
	must(t, x.spare.TrimSegment(t.Context()))
	if _, size := x.wal(); size >= whole/2 || size == 0 {
		t.Errorf("a trimmed segment has %d bytes", size)
	}
	must(t, x.spare.FillSegment(t.Context()))
	path, size := x.wal()
	if size != whole {
		t.Errorf("a filled segment has %d bytes", size)
	}

	target := filepath.Join(x.dir, "target")
	must(t, os.WriteFile(target, make([]byte, whole), 0o666))
	must(t, os.Rename(path, path+".away"))
	must(t, os.Symlink(target, path))
	for name, resize := range map[string]func(context.Context) error{"trim": x.spare.TrimSegment, "fill": x.spare.FillSegment} {
		if err := resize(t.Context()); err == nil {
			t.Errorf("%s follows a link", name)
		}
	}
	if info, err := os.Stat(target); err != nil || info.Size() != whole {
		t.Errorf("what a link leads to: %v, %v", info, err)
	}
	must(t, os.Rename(path+".away", path))

	ctx, cancel := context.WithCancel(t.Context())
	var writers sync.WaitGroup
	defer writers.Wait()
	defer cancel()
	for range 2 {
		conn, err := x.spare.Connect(t.Context(), "postgres")
		must(t, err)
		writers.Go(func() { writeWAL(ctx, conn) })
	}
	eventually(t, time.Minute, "a trim beside writers is refused", func() bool {
		err := x.spare.TrimSegment(t.Context())
		return err != nil && strings.Contains(err.Error(), "wrote WAL while it was promoted")
	})
}

// writeWAL writes as much as it can.
func writeWAL(ctx context.Context, conn *pgx.Conn) {
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	for ctx.Err() == nil {
		if _, err := conn.Exec(ctx, "SELECT pg_logical_emit_message(false, 'test', repeat('x', 4000000))"); err != nil {
			return
		}
	}
}
