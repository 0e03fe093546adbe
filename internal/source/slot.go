package source

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbough/pgbough"
)

// Slot is what production says of one of its replication slots.
type Slot struct {
	Exists    bool
	Physical  bool
	Active    bool
	ActivePID int // the backend that uses it, 0 without
	// WALStatus is "reserved", "extended", "unreserved" or "lost" (Postgres documentation, pg_replication_slots), and empty
	// for a slot that has reserved nothing yet. Lost means that the follower cannot go on from it.
	WALStatus string
	// SafeWAL is how many more bytes production may write before the slot can be lost; -1 without a limit.
	SafeWAL int64
	Restart pgbough.LSN // the oldest WAL it keeps; 0 for none
	Reason  string      // why it was invalidated (Postgres 17 and newer)
}

// Lost tells whether production has removed WAL that the slot was to keep.
func (s Slot) Lost() bool { return s.Exists && s.WALStatus == "lost" }

// slotSQL reads through to_jsonb because columns came with versions.
const slotSQL = `SELECT s.slot_type, s.active, coalesce(s.active_pid, 0), coalesce(s.wal_status, ''), coalesce(s.safe_wal_size, -1),
	coalesce(s.restart_lsn::text, ''), coalesce(to_jsonb(s) ->> 'invalidation_reason', '')
FROM pg_replication_slots s WHERE s.slot_name = $1`

// SlotStatus tells how a slot on production is.
func (s *Source) SlotStatus(ctx context.Context, name string) (Slot, error) {
	var slot Slot
	err := s.do(ctx, func(ctx context.Context, pg *pgconn.PgConn) error {
		var err error
		slot, err = readSlot(ctx, pg, name)
		return err
	})
	return slot, err
}

func readSlot(ctx context.Context, pg *pgconn.PgConn, name string) (Slot, error) {
	r := pg.ExecParams(ctx, slotSQL, [][]byte{[]byte(name)}, nil, nil, nil).Read()
	if r.Err != nil {
		return Slot{}, fmt.Errorf("look at slot %s: %w", name, r.Err)
	}
	if len(r.Rows) == 0 {
		return Slot{}, nil
	}
	row := r.Rows[0]
	pid, errPID := strconv.Atoi(string(row[2]))
	safe, errSafe := strconv.ParseInt(string(row[4]), 10, 64)
	slot := Slot{
		Exists: true, Physical: string(row[0]) == "physical", Active: string(row[1]) == "t",
		ActivePID: pid, WALStatus: string(row[3]), SafeWAL: safe, Reason: string(row[6]),
	}
	errLSN := slot.Restart.UnmarshalText(row[5])
	if err := errors.Join(errPID, errSafe, errLSN); err != nil {
		return Slot{}, fmt.Errorf("look at slot %s: %w", name, err)
	}
	return slot, nil
}

// How DropSlot treats a slot that is in use: it looks again and again, after a
// while ends the walsender if it is one of our role's (its peer is gone, and
// production would notice only after wal_sender_timeout), and gives up at last.
const (
	slotLookAgain = 100 * time.Millisecond
	slotPatience  = 2 * time.Second
	slotGiveUp    = 15 * time.Second
)

// DropSlot removes a physical slot from production. A slot that is not there is
// no error. The caller stops the follower first; DropSlot waits until production
// has noticed.
func (s *Source) DropSlot(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, slotGiveUp)
	defer cancel()
	began := time.Now()
	timer := time.NewTimer(slotLookAgain)
	defer timer.Stop()
	for {
		busy, err := s.tryDropSlot(ctx, name, time.Since(began) > slotPatience)
		if !busy {
			return err
		}
		timer.Reset(slotLookAgain)
		select {
		case <-timer.C:
		case <-ctx.Done():
			return pgbough.Errorf(pgbough.EConflict, "slot %s on production is still in use", name).
				WithHint("find who uses it, then: SELECT pg_drop_replication_slot(%s);", quoteLiteral(name))
		}
	}
}

// tryDropSlot drops the slot, or tells that it is in use; then it ends its
// walsender if end is set and the walsender is our role's.
func (s *Source) tryDropSlot(ctx context.Context, name string, end bool) (busy bool, err error) {
	err = s.do(ctx, func(ctx context.Context, pg *pgconn.PgConn) error {
		busy = false
		slot, err := readSlot(ctx, pg, name)
		if err != nil || !slot.Exists {
			return err
		}
		if !slot.Physical {
			return pgbough.Errorf(pgbough.EConflict, "slot %s on production is a logical one, so it is not ours", name).
				WithHint("leave it, or drop it by hand")
		}
		if slot.Active {
			busy = true
			if end {
				return endWalsender(ctx, pg, slot.ActivePID)
			}
			return nil
		}
		return dropSlot(ctx, pg, name, &busy)
	})
	return busy && err == nil, err
}

func dropSlot(ctx context.Context, pg *pgconn.PgConn, name string, busy *bool) error {
	r := pg.ExecParams(ctx, `SELECT pg_drop_replication_slot($1)`, [][]byte{[]byte(name)}, nil, nil, nil).Read()
	var refused *pgconn.PgError
	switch {
	case !errors.As(r.Err, &refused):
		return r.Err
	case refused.Code == stateUndefinedObject:
		return nil
	case refused.Code == stateObjectInUse:
		*busy = true
		return nil
	case refused.Code == stateNoPrivilege:
		return pgbough.Errorf(pgbough.EConflict, "production does not let this role drop slot %s: %w", name, r.Err).
			WithHint("as a superuser there: SELECT pg_drop_replication_slot(%s);", quoteLiteral(name))
	}
	return fmt.Errorf("drop slot %s: %w", name, r.Err)
}

// endWalsender ends a walsender of our own role; what is another's stays.
func endWalsender(ctx context.Context, pg *pgconn.PgConn, pid int) error {
	const sql = `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
		WHERE pid = $1::int AND backend_type = 'walsender' AND usename = current_user`
	r := pg.ExecParams(ctx, sql, [][]byte{[]byte(strconv.Itoa(pid))}, nil, nil, nil).Read()
	if r.Err != nil {
		return fmt.Errorf("end walsender %d on production: %w", pid, r.Err)
	}
	return nil
}

// Checkpoint is the newest completed checkpoint of production.
type Checkpoint struct {
	LSN      pgbough.LSN // of its record
	Redo     pgbough.LSN // where recovery from it starts
	Timeline uint32
	Time     time.Time // when it began
	// WALSince is how many bytes production has written since Redo: what a new spare has to replay.
	WALSince int64
}

const checkpointSQL = `SELECT c.checkpoint_lsn, c.redo_lsn, c.timeline_id,
	to_char(c.checkpoint_time AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS'),
	CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_wal_lsn_diff(pg_current_wal_insert_lsn(), c.redo_lsn)::bigint END
FROM pg_control_checkpoint() c`

// LastCheckpoint tells where production's newest checkpoint is.
func (s *Source) LastCheckpoint(ctx context.Context) (Checkpoint, error) {
	var c Checkpoint
	err := s.do(ctx, func(ctx context.Context, pg *pgconn.PgConn) error {
		r := pg.ExecParams(ctx, checkpointSQL, nil, nil, nil, nil).Read()
		if r.Err != nil {
			return fmt.Errorf("ask production for its last checkpoint: %w", r.Err)
		}
		row := r.Rows[0]
		if row[4] == nil {
			return s.check(Moment{}, ErrStandby)
		}
		var err error
		c, err = readCheckpoint(row)
		return err
	})
	return c, err
}

func readCheckpoint(row [][]byte) (Checkpoint, error) {
	lsn, errLSN := pgbough.ParseLSN(string(row[0]))
	redo, errRedo := pgbough.ParseLSN(string(row[1]))
	timeline, errTimeline := strconv.ParseUint(string(row[2]), 10, 32)
	at, errTime := time.Parse("2006-01-02T15:04:05", string(row[3]))
	since, errSince := strconv.ParseInt(string(row[4]), 10, 64)
	if err := errors.Join(errLSN, errRedo, errTimeline, errTime, errSince); err != nil {
		return Checkpoint{}, fmt.Errorf("read production's last checkpoint: %w", err)
	}
	return Checkpoint{LSN: lsn, Redo: redo, Timeline: uint32(timeline), Time: at, WALSince: since}, nil
}
