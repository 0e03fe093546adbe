package branch

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/postgres"
	"github.com/pgbough/pgbough/internal/quarantine"
)

// Memory is what each Postgres of ours may use for itself.
type Memory struct {
	SharedBuffers string // postgresql.conf's form: "128MB"
}

// The three kinds of Postgres that pgbough runs differ in what they stream
// from; quarantine's settings stand after all others in each, so that nothing
// of production's wins over them.

// rootSettings are a follower's. rows are production's; nil is as it last was.
func (s *Service) rootSettings(p pgbough.Project, in postgres.Inside, rows []postgres.Setting) string {
	if rows == nil {
		rows = fromNouns(p.Source.Settings)
	}
	plan, _ := s.preload(p, rows)
	return postgres.File("pgbough: the follower of project "+p.Name,
		postgres.Floor(rows), ours(s.memory, p.Source.Major), quarantine.Settings(p.Source.Major), plan, streaming(in, p.Source.Slot), kept(rows))
}

// leastKept is how much WAL a follower keeps at least, in MB.
const leastKept = 1024

// kept is the WAL that a follower keeps for the spares that are being filled.
// Before a clone of it streams, it replays what lies between two of production's
// checkpoints, at most some max_wal_size; production writes no more than that
// meanwhile, or the spare would never catch up. Without it the restartpoint at
// the end of a checkpoint that began after the clone took away what the clone
// needs next. A branch keeps none: its WAL holds what quarantine cut out.
func kept(rows []postgres.Setting) []postgres.Param {
	size := int64(leastKept)
	for _, r := range rows {
		if n, err := strconv.ParseInt(r.Value, 10, 64); err == nil && r.Name == "max_wal_size" { // its unit is MB
			size = max(size, n)
		}
	}
	return []postgres.Param{{Name: "wal_keep_size", Value: strconv.FormatInt(size, 10) + "MB"}}
}

// spareSettings are what a spare is started with: all that the branch needs
// which it will be, since its Postgres is not started again when it becomes one.
func (s *Service) spareSettings(p pgbough.Project, in postgres.Inside, rows []postgres.Setting) string {
	plan, _ := s.preload(p, rows)
	return postgres.File("pgbough: a spare of project "+p.Name,
		postgres.Floor(rows), s.behaviour(p, rows), ours(s.memory, p.Source.Major), quarantine.Settings(p.Source.Major), plan,
		quarantine.UntilRun(), noRestartpoints(), streaming(in, ""))
}

// noRestartpoints keeps a spare from restartpoints. It has no use for them, since
// one that fell behind a checkpoint is renewed, and their writes are in the way.
func noRestartpoints() []postgres.Param {
	return []postgres.Param{{Name: "checkpoint_timeout", Value: "1d"}, {Name: "max_wal_size", Value: "1TB"}}
}

// branchSettings are a branch's. Recycled WAL segments are cheaper to write than
// new ones; until the branch is settled they would keep what quarantine cut out.
func (s *Service) branchSettings(p pgbough.Project, rows []postgres.Setting, settled bool) string {
	plan, _ := s.preload(p, rows)
	groups := [][]postgres.Param{
		postgres.Floor(rows), s.behaviour(p, rows), ours(s.memory, p.Source.Major), quarantine.Settings(p.Source.Major), plan,
	}
	if settled {
		groups = append(groups, []postgres.Param{{Name: "wal_recycle", Value: "on"}, {Name: "wal_init_zero", Value: "on"}})
	}
	return postgres.File("pgbough: a branch of project "+p.Name, groups...)
}

// behaviour are production's settings that plans and results depend on. A
// Postgres that cannot describe its settings is one that cannot be started.
func (s *Service) behaviour(p pgbough.Project, rows []postgres.Setting) []postgres.Param {
	known, err := s.known(p.Source.Major)
	if err != nil {
		s.log.ErrorContext(s.ctx, "production's settings are not carried over", "project", p.Name, "err", err)
		return nil
	}
	params, _ := postgres.Behaviour(rows, known)
	return params
}

// leftOut are the settings of production that a branch should have and has not.
func (s *Service) leftOut(p pgbough.Project, rows []postgres.Setting) ([]pgbough.Difference, error) {
	known, err := s.known(p.Source.Major)
	if err != nil {
		return nil, err
	}
	_, left := postgres.Behaviour(rows, known)
	var out []pgbough.Difference
	for _, l := range left {
		out = append(out, pgbough.Difference{Kind: "setting", Object: l.Name, Action: "not carried over", Reason: l.Reason})
	}
	return out, nil
}

// known are the settings of the newest installation of a major version, asked for once.
func (s *Service) known(major int) (postgres.Known, error) {
	in, err := s.installations.Find(s.ctx, major)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if k, ok := s.knownSettings[in]; ok {
		return k, nil
	}
	k, err := postgres.KnownSettings(s.ctx, in)
	if err != nil {
		return nil, err
	}
	s.knownSettings[in] = k
	return k, nil
}

// preload is what of production's libraries is loaded, and what is not.
func (s *Service) preload(p pgbough.Project, rows []postgres.Setting) ([]postgres.Param, []pgbough.Difference) {
	available := func(string) bool { return false }
	if in, err := s.installations.Find(s.ctx, p.Source.Major); err == nil {
		available = in.HasLibrary
	}
	plan := quarantine.Preload(quarantine.LibrariesOf(rows), available)
	return plan.Settings, plan.Differences
}

// ours is what every Postgres of pgbough runs with, whatever production has:
// its memory, its log, its walsenders' and walreceivers' patience.
func ours(m Memory, major int) []postgres.Param {
	params := []postgres.Param{
		{Name: "shared_buffers", Value: m.SharedBuffers},
		{Name: "huge_pages", Value: "off"},
		{Name: "fsync", Value: "on"},
		{Name: "full_page_writes", Value: "on"},
		{Name: "wal_level", Value: "replica"},
		{Name: "wal_recycle", Value: "off"},
		{Name: "wal_init_zero", Value: "off"},
		{Name: "min_wal_size", Value: "80MB"},
		{Name: "max_wal_size", Value: "1GB"},
		{Name: "checkpoint_timeout", Value: "15min"},
		{Name: "logging_collector", Value: "off"},
		{Name: "log_destination", Value: "stderr"},
		{Name: "log_line_prefix", Value: "%m [%p] %q%u@%d "},
		{Name: "lc_messages", Value: "C"}, // the follower's log is read by us
		{Name: "hot_standby", Value: "on"},
		{Name: "hot_standby_feedback", Value: "off"},
		{Name: "max_standby_archive_delay", Value: "0"},
		{Name: "max_standby_streaming_delay", Value: "0"},
		{Name: "wal_retrieve_retry_interval", Value: "200ms"},
		{Name: "wal_receiver_status_interval", Value: "1s"},
		{Name: "wal_receiver_timeout", Value: "30s"},
		{Name: "wal_sender_timeout", Value: "30s"},
	}
	if major >= 15 {
		// It reads blocks that replay overwrites with full pages anyway: on a
		// fresh clone it only costs time.
		params = append(params, postgres.Param{Name: "recovery_prefetch", Value: "off"})
	}
	if major >= 18 {
		// The sandbox refuses io_uring, which bypasses its system call filter.
		params = append(params, postgres.Param{Name: "io_method", Value: "worker"})
	}
	return params
}

// streaming is what a standby needs to follow its relay, to the latest timeline as
// by default. slot is empty for a
// spare: two standbys cannot share one (facts 8).
func streaming(in postgres.Inside, slot string) []postgres.Param {
	return []postgres.Param{
		{Name: "primary_conninfo", Value: fmt.Sprintf("host=%s port=%d user=pgbough application_name=pgbough", in.Relay, postgres.Port)},
		{Name: "primary_slot_name", Value: slot},
	}
}

func fromNouns(rows []pgbough.Setting) []postgres.Setting {
	out := make([]postgres.Setting, len(rows))
	for i, r := range rows {
		out[i] = postgres.Setting(r)
	}
	return out
}

// toNouns are settings to keep in the catalog: those that are not defaults, and
// no value that may be a credential.
func toNouns(rows []postgres.Setting) []pgbough.Setting {
	var out []pgbough.Setting
	for _, r := range rows {
		if postgres.SecretName(r.Name) && strings.Contains(r.Name, ".") {
			r.Value = "" // the name is for the list of what a branch lacks
			out = append(out, pgbough.Setting(r))
			continue
		}
		if r.Source != "default" && !postgres.SecretName(r.Name) || postgres.IsFloor(r.Name) {
			out = append(out, pgbough.Setting(r))
		}
	}
	return out
}
