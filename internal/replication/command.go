package replication

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbough/pgbough"
)

// System is what a server says of itself: which cluster it is, on which
// timeline, and how far its WAL is flushed (a standby: received).
type System struct {
	ID       uint64
	Timeline uint32
	LSN      pgbough.LSN
}

// IdentifySystem asks the server at conn who it is.
func IdentifySystem(ctx context.Context, conn *pgconn.PgConn) (System, error) {
	row, err := command(ctx, conn, "IDENTIFY_SYSTEM", 3)
	if err != nil {
		return System{}, fmt.Errorf("identify the system: %w", err)
	}
	id, errID := strconv.ParseUint(string(row[0]), 10, 64)
	tli, errTimeline := strconv.ParseUint(string(row[1]), 10, 32)
	lsn, errLSN := pgbough.ParseLSN(string(row[2]))
	if err := errors.Join(errID, errTimeline, errLSN); err != nil {
		return System{}, fmt.Errorf("identify the system: %w", err)
	}
	return System{ID: id, Timeline: uint32(tli), LSN: lsn}, nil
}

// TimelineHistory is the history file of timeline, for ParseHistory. The first
// timeline has none: nil.
func TimelineHistory(ctx context.Context, conn *pgconn.PgConn, timeline uint32) ([]byte, error) {
	if timeline == 1 {
		return nil, nil
	}
	row, err := command(ctx, conn, fmt.Sprintf("TIMELINE_HISTORY %d", timeline), 2)
	if err != nil {
		return nil, fmt.Errorf("get the history of timeline %d: %w", timeline, err)
	}
	return row[1], nil
}

// slotWait is how long an active slot is waited for to become free: a server
// notices the end of a connection when it next writes to it.
const slotWait = 5 * time.Second

// CreateSlot makes the physical slot name, which keeps the server's WAL from
// the redo point of its last checkpoint on. An inactive physical slot of that
// name is replaced; one that is in use, and a logical one, are left alone
// with an error of code EConflict.
func CreateSlot(ctx context.Context, conn *pgconn.PgConn, name string) error {
	create, err := createSlotCommand(conn, name)
	if err != nil {
		return err
	}
	_, err = command(ctx, conn, create, 1)
	if sqlState(err) == "42710" { // duplicate_object
		if err := removeSlot(ctx, conn, name); err != nil {
			return err
		}
		_, err = command(ctx, conn, create, 1)
	}
	return slotError(name, "create", err)
}

func createSlotCommand(conn *pgconn.PgConn, name string) (string, error) {
	if !slotName.MatchString(name) {
		return "", pgbough.Errorf(pgbough.EInvalid, "%q cannot be the name of a replication slot: want 1 to 63 of a-z, 0-9 and _", name)
	}
	if majorVersion(conn) >= 15 {
		return fmt.Sprintf("CREATE_REPLICATION_SLOT %s PHYSICAL (RESERVE_WAL)", quoteIdentifier(name)), nil
	}
	return fmt.Sprintf("CREATE_REPLICATION_SLOT %s PHYSICAL RESERVE_WAL", quoteIdentifier(name)), nil
}

var slotName = regexp.MustCompile(`^[a-z0-9_]{1,63}$`)

// DropSlot removes the physical slot name. That there is none is fine. A slot
// in use is waited for, for some seconds.
func DropSlot(ctx context.Context, conn *pgconn.PgConn, name string) error {
	if !slotName.MatchString(name) {
		return pgbough.Errorf(pgbough.EInvalid, "%q cannot be the name of a replication slot", name)
	}
	deadline := time.Now().Add(slotWait)
	for {
		err := removeSlot(ctx, conn, name)
		if err == nil || sqlState(err) != "55006" || time.Now().After(deadline) {
			return err
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return fmt.Errorf("wait for the replication slot %s: %w", name, err)
		}
	}
}

// removeSlot drops the slot name unless it is in use or a logical one.
func removeSlot(ctx context.Context, conn *pgconn.PgConn, name string) error {
	logical, err := isLogical(ctx, conn, name)
	if err != nil {
		return slotError(name, "look at", err)
	}
	if logical {
		return pgbough.Errorf(pgbough.EConflict, "the replication slot %s is a logical one, so it is not ours", name).
			WithHint("drop it on the server if nobody needs it")
	}
	_, err = command(ctx, conn, "DROP_REPLICATION_SLOT "+quoteIdentifier(name), 0)
	if sqlState(err) == "42704" { // undefined_object
		return nil
	}
	return slotError(name, "drop", err)
}

// isLogical tells whether name is a logical slot. It is false too where there
// is no such slot, or where it is in use.
func isLogical(ctx context.Context, conn *pgconn.PgConn, name string) (bool, error) {
	if majorVersion(conn) >= 15 {
		_, err := command(ctx, conn, "READ_REPLICATION_SLOT "+quoteIdentifier(name), 3)
		if sqlState(err) == "0A000" { // "cannot use READ_REPLICATION_SLOT with a logical replication slot"
			return true, nil
		}
		return false, err
	}
	// Older servers drop a logical slot on our connection too, and cannot be
	// asked. So try to stream from a position that no WAL ever reaches: a
	// physical slot then fails with another code than a logical one.
	_, err := command(ctx, conn, "START_REPLICATION SLOT "+quoteIdentifier(name)+" PHYSICAL FFFFFFFF/FF000000", 0)
	switch sqlState(err) {
	case "55000": // "cannot use a logical replication slot for physical replication"
		return true, nil
	case "":
		return false, errors.Join(err, errors.New("the server did not tell its kind"))
	}
	return false, nil
}

func slotError(name, verb string, err error) error {
	switch sqlState(err) {
	case "":
		if err == nil {
			return nil
		}
	case "55006": // object_in_use
		return pgbough.Errorf(pgbough.EConflict, "the replication slot %s is in use by another standby (%w)", name, err).
			WithHint("stop that standby, or drop the slot on the server: SELECT pg_drop_replication_slot('%s')", name)
	case "53400": // configuration_limit_exceeded
		return pgbough.Errorf(pgbough.EConflict, "the server has no replication slot left (%w)", err).
			WithHint("raise max_replication_slots on it, which takes a restart, or drop a slot that nobody uses")
	case "55000": // object_not_in_prerequisite_state: wal_level=minimal, max_replication_slots=0
		return pgbough.Errorf(pgbough.EConflict, "the server cannot keep WAL for a standby (%w)", err).
			WithHint("set wal_level = replica and max_replication_slots = 10 on it, which takes a restart")
	}
	return fmt.Errorf("%s the replication slot %s: %w", verb, name, err)
}

// command runs one replication command and returns its last row, copied. With
// columns > 0 there must be a row of at least so many.
func command(ctx context.Context, conn *pgconn.PgConn, text string, columns int) ([][]byte, error) {
	results, err := conn.Exec(ctx, text).ReadAll()
	if err != nil {
		return nil, err
	}
	var row [][]byte
	for _, r := range results {
		if len(r.Rows) > 0 {
			row = r.Rows[len(r.Rows)-1]
		}
	}
	if len(row) < columns {
		return nil, fmt.Errorf("the server answered with %d columns, not %d", len(row), columns)
	}
	return row, nil
}

// sqlState is the code of the server's error in err's chain, or empty.
func sqlState(err error) string {
	var e *pgconn.PgError
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

// pause waits for d, unless ctx ends before.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
