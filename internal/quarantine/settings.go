package quarantine

import "github.com/pgbough/pgbough/internal/postgres"

// Settings are what a spare must be started with, and every branch for its
// whole life, so that it acts on nothing outside from its first instant. They
// stand after all others in its configuration file. primary_conninfo and
// recovery_target_timeline are not among them: they are the spare's.
func Settings(major int) []postgres.Param {
	params := []postgres.Param{
		// A subscription's worker starts a moment after promotion (facts 19).
		{Name: "max_logical_replication_workers", Value: "0"},
		// Its WAL must not reach production's archive, nor wait for it.
		{Name: "archive_mode", Value: "off"},
		{Name: "archive_command", Value: ""},
		{Name: "archive_timeout", Value: "0"},
		// Leftovers of a recovery of production (facts 16), and commands of its machine.
		{Name: "restore_command", Value: ""},
		{Name: "archive_cleanup_command", Value: ""},
		{Name: "recovery_end_command", Value: ""},
		{Name: "recovery_target", Value: ""},
		{Name: "recovery_target_lsn", Value: ""},
		{Name: "recovery_target_name", Value: ""},
		{Name: "recovery_target_time", Value: ""},
		{Name: "recovery_target_xid", Value: ""},
		{Name: "recovery_min_apply_delay", Value: "0"},
		{Name: "primary_slot_name", Value: ""},
		// A commit in a branch waits for nobody.
		{Name: "synchronous_standby_names", Value: ""},
		{Name: "hot_standby_feedback", Value: "off"},
		// Old WAL holds production's password hashes: a recycled segment would
		// keep them, a kept one too (facts 21).
		{Name: "wal_recycle", Value: "off"},
		{Name: "wal_keep_size", Value: "0"},
		// Nobody authenticates to it but through pgbough.
		{Name: "listen_addresses", Value: ""},
		{Name: "ssl", Value: "off"},
		{Name: "bonjour", Value: "off"},
		{Name: "krb_server_keyfile", Value: ""},
	}
	if major <= 15 {
		params = append(params, postgres.Param{Name: "promote_trigger_file", Value: ""})
	}
	if major >= 15 {
		params = append(params, postgres.Param{Name: "archive_library", Value: ""})
	}
	if major >= 17 {
		params = append(params,
			postgres.Param{Name: "sync_replication_slots", Value: "off"},
			postgres.Param{Name: "synchronized_standby_slots", Value: ""},
			postgres.Param{Name: "summarize_wal", Value: "off"}, // summaries outlive the WAL
		)
	}
	return params
}

// UntilRun are settings for a spare until Run has returned; a reload without
// them ends them. Autovacuum would hold back what Run takes away, and would
// hold locks that Run waits for.
func UntilRun() []postgres.Param {
	return []postgres.Param{{Name: "autovacuum", Value: "off"}}
}
