package follower

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/replication"
)

const (
	// mendAfter is how long a standby that is waited for may replay nothing before
	// its connection is made anew. That costs its wal_retrieve_retry_interval; a
	// connection that hangs would be given up after wal_receiver_timeout.
	mendAfter = 5 * time.Second
	// lookTimeout bounds the questions about a standby that does not go on.
	lookTimeout = 2 * time.Second
)

// progress is what one wait for a standby has seen.
type progress struct {
	at     string // what it had replayed
	moved  time.Time
	mended int // how often since
}

// waits takes in that the standby is at a position, and mends its stream or
// gives up when it has been there for too long.
func (p *progress) waits(ctx context.Context, s *Standby, at string, lsn pgbough.LSN, stall time.Duration) error {
	still := time.Since(p.moved)
	switch {
	case at != p.at:
		*p = progress{at: at, moved: time.Now()}
	case still > stall:
		return p.gaveUp(ctx, s, lsn)
	case still > time.Duration(p.mended+1)*mendAfter:
		p.mended++
		s.mend(ctx, lsn)
	}
	return nil
}

// gaveUp logs why, as far as can be seen.
func (p *progress) gaveUp(ctx context.Context, s *Standby, lsn pgbough.LSN) error {
	s.log.ErrorContext(ctx, "a standby that is waited for has stalled", "asked", lsn.String(), "for", time.Since(p.moved).Round(time.Millisecond).String(),
		"standby", s.look(ctx), "upstream", s.above().look(ctx))
	return fmt.Errorf("wait until %s is replayed: %w", lsn, ErrStalled)
}

// above is the standby that it streams from; nil where that is production, or
// nothing now.
func (s *Standby) above() *Standby {
	if s.upstream == nil {
		return nil
	}
	return s.upstream()
}

// mend makes the connection anew over which a position should have come that
// production has reached: the standby's, or its upstream's when that has not got
// it either. A connection that brings something is left alone.
func (s *Standby) mend(ctx context.Context, lsn pgbough.LSN) {
	up := s.above()
	mine, above := s.look(ctx), up.look(ctx)
	late := s
	if up != nil && above.err == nil && above.received < lsn {
		late = up
	}
	st := late.Relay.Status()
	quiet := st.Connected && time.Since(st.Since) > mendAfter && time.Since(st.LastByteAt) > mendAfter
	renew := quiet && (mine.err != nil || mine.received < lsn)
	s.log.WarnContext(ctx, "a standby that is waited for does not go on", "asked", lsn.String(), "renewed", renew, "of", late.Config().ID,
		"standby", mine, "upstream", above)
	if renew {
		late.Relay.Renew()
	}
}

// standing is all that tells why a standby does not go on.
type standing struct {
	id       string
	err      error // it did not answer
	received pgbough.LSN
	sql      string
	relay    replication.RelayStatus
	procs    []string
}

// look asks a standby, its relay and the kernel. There may be no standby.
func (s *Standby) look(ctx context.Context) standing {
	if s == nil {
		return standing{}
	}
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	st := standing{id: s.Config().ID, relay: s.Relay.Status(), procs: processes(s.Process().PID())}
	var received string
	// Not over the connection of its own, which may be the one that waits.
	conn, err := s.Connect(ctx, "template1")
	if err == nil {
		defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
		err = conn.QueryRow(ctx, standingSQL, pgx.QueryExecModeExec).Scan(&received, &st.sql)
	}
	if err == nil {
		st.received, err = pgbough.ParseLSN(received)
	}
	st.err = err
	return st
}

const standingSQL = `SELECT coalesce(pg_last_wal_receive_lsn(), '0/0')::text, concat_ws(', ',
	'received ' || pg_last_wal_receive_lsn(), 'replayed ' || pg_last_wal_replay_lsn(), 'replay ' || pg_get_wal_replay_pause_state(),
	(SELECT format('walreceiver %s on timeline %s, flushed %s, upstream at %s, last message %s', status, received_tli, flushed_lsn, latest_end_lsn, last_msg_receipt_time)
	 FROM pg_stat_wal_receiver),
	(SELECT string_agg(format('walsender %s %s, sent %s, flushed %s', pid, state, sent_lsn, flush_lsn), ', ') FROM pg_stat_replication),
	(SELECT string_agg(format('%s waits for %s %s', backend_type, wait_event_type, wait_event), ', ') FROM pg_stat_activity
	 WHERE backend_type IN ('startup', 'walreceiver', 'walsender')))`

// LogValue is for the log.
func (st standing) LogValue() slog.Value {
	if st.id == "" {
		return slog.StringValue("none")
	}
	at := func(t time.Time) string {
		if t.IsZero() {
			return "never"
		}
		return time.Since(t).Round(time.Millisecond).String() + " ago"
	}
	failed := func(err error) string {
		if err == nil {
			return ""
		}
		return err.Error()
	}
	return slog.GroupValue(
		slog.String("volume", st.id), slog.String("no_answer", failed(st.err)), slog.String("says", st.sql),
		slog.Bool("connected", st.relay.Connected), slog.String("since", at(st.relay.Since)),
		slog.Int64("from_upstream", st.relay.Received), slog.String("last_from_upstream", at(st.relay.LastByteAt)),
		slog.Int64("to_upstream", st.relay.Sent), slog.String("last_to_upstream", at(st.relay.LastSentAt)),
		slog.String("relay_error", failed(st.relay.LastError)), slog.String("relay_error_at", at(st.relay.LastErrorAt)),
		slog.String("processes", strings.Join(st.procs, "; ")))
}

// processes are a postmaster and its children as the kernel sees them: pid, state
// (proc_pid_stat(5)), where in the kernel it waits, and its title.
func processes(postmaster int) []string {
	pid := fmt.Sprint(postmaster)
	children, err := os.ReadFile(filepath.Join("/proc", pid, "task", pid, "children"))
	if err != nil {
		return []string{err.Error()}
	}
	var out []string
	for _, pid := range append([]string{pid}, strings.Fields(string(children))...) {
		stat, _ := os.ReadFile(filepath.Join("/proc", pid, "stat")) // it may have ended
		wchan, _ := os.ReadFile(filepath.Join("/proc", pid, "wchan"))
		title, _ := os.ReadFile(filepath.Join("/proc", pid, "cmdline"))
		state := "?"
		if i := strings.LastIndexByte(string(stat), ')'); i >= 0 && i+2 < len(stat) {
			state = string(stat[i+2])
		}
		name, _, _ := strings.Cut(string(title), "\x00")
		out = append(out, fmt.Sprintf("%s %s %s %.80s", pid, state, wchan, name))
	}
	return out
}
