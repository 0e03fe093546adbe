package replication

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/pgtest"
)

func TestSlots(t *testing.T) {
	for _, major := range majors(t) {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			ctx := testContext(t)
			s := pgtest.Start(t, pgtest.Options{Major: major, Conf: map[string]string{"wal_level": "logical"}})
			conn := replicationConn(t, s)
			restart := func() string {
				return s.Value(t, "postgres", "SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = 'pgb' AND slot_type = 'physical'")
			}
			must(t, CreateSlot(ctx, conn, "pgb"))
			first := restart()
			if first == "" {
				t.Fatal("the slot keeps no WAL")
			}
			s.Exec(t, "postgres", "CREATE TABLE a AS SELECT 1")
			s.Exec(t, "postgres", "CHECKPOINT")
			must(t, CreateSlot(ctx, conn, "pgb"))
			if second := restart(); second == first {
				t.Errorf("the slot was not made anew: it still keeps WAL from %s", first)
			}

			second := restart()
			s.Exec(t, "postgres", "CREATE TABLE b AS SELECT 1")
			s.Exec(t, "postgres", "CHECKPOINT")
			must(t, EnsureSlot(ctx, conn, "pgb"))
			if got := restart(); got != second {
				t.Errorf("EnsureSlot gave up the WAL from %s on: the slot keeps it from %s", second, got)
			}

			s.Exec(t, "postgres", "SELECT pg_create_logical_replication_slot('theirs', 'pgoutput')")
			for name, err := range map[string]error{"create": CreateSlot(ctx, conn, "theirs"), "drop": DropSlot(ctx, conn, "theirs")} {
				if pgbough.ErrorCode(err) != pgbough.EConflict || !strings.Contains(err.Error(), "not ours") {
					t.Errorf("%s with the name of a logical slot: got %v, want a conflict", name, err)
				}
			}
			if s.Value(t, "postgres", "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'theirs'") != "1" {
				t.Fatal("somebody's logical slot is gone")
			}

			user := replicationConn(t, s)
			user.Frontend().Send(&pgproto3.Query{String: "START_REPLICATION SLOT pgb PHYSICAL " + restart()})
			must(t, user.Frontend().Flush())
			eventually(t, 20*time.Second, "the slot is in use", func() bool {
				return s.Value(t, "postgres", "SELECT active FROM pg_replication_slots WHERE slot_name = 'pgb'") == "true"
			})
			if err := CreateSlot(ctx, conn, "pgb"); pgbough.ErrorCode(err) != pgbough.EConflict || !strings.Contains(err.Error(), "in use") {
				t.Errorf("create a slot in use: got %v, want a conflict", err)
			}
			soon := time.AfterFunc(500*time.Millisecond, func() { _ = user.Conn().Close() })
			defer soon.Stop()
			must(t, DropSlot(ctx, conn, "pgb")) // waits until it is free
			must(t, DropSlot(ctx, conn, "pgb"))
			if restart() != "" {
				t.Error("the slot is still there")
			}
			if err := CreateSlot(ctx, conn, `x" LOGICAL`); pgbough.ErrorCode(err) != pgbough.EInvalid {
				t.Errorf("a bad name: got %v, want invalid", err)
			}
			system, err := IdentifySystem(ctx, conn)
			must(t, err)
			if want := s.Value(t, "postgres", "SELECT system_identifier FROM pg_control_system()"); fmt.Sprint(system.ID) != want || system.Timeline != 1 || system.LSN == 0 {
				t.Errorf("got %+v, want system %s on timeline 1", system, want)
			}
			if h, err := TimelineHistory(ctx, conn, 1); h != nil || err != nil {
				t.Errorf("history of timeline 1: got %q, %v", h, err)
			}
			if _, err := TimelineHistory(ctx, conn, 2); err == nil {
				t.Error("history of a timeline that does not exist: got no error")
			}
		})
	}
}

func TestSlotErrorsTellTheRemedy(t *testing.T) {
	s := pgtest.Start(t, pgtest.Options{Conf: map[string]string{"max_replication_slots": "1"}})
	conn := replicationConn(t, s)
	must(t, CreateSlot(testContext(t), conn, "one"))
	err := CreateSlot(testContext(t), conn, "two")
	if pgbough.ErrorCode(err) != pgbough.EConflict || !strings.Contains(err.Error(), "max_replication_slots") {
		t.Errorf("got %v, want a conflict that names max_replication_slots", err)
	}
}
