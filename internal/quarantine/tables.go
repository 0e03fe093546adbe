package quarantine

// jobTable is a table of an extension or a scheduler that makes something
// happen by itself, and how that is switched off.
type jobTable struct {
	table, column string // the policy counts where both exist
	set, where    string
	id            string // an expression that names the row, for the audit
	reason        string
}

var jobTables = []jobTable{
	{"cron.job", "active", "active = false", "active", "'job ' || jobid", "pg_cron would run it"},
	{"pgagent.pga_job", "jobenabled", "jobenabled = false", "jobenabled", "jobname", "pgAgent would run it"},
	{"timetable.chain", "live", "live = false", "live", "chain_name", "pg_timetable would run it"},
	{"_timescaledb_config.bgw_job", "scheduled", "scheduled = false", "scheduled", "'job ' || id", "TimescaleDB would run it"},
}

// secretTable is a table of an extension that holds credentials of other servers.
type secretTable struct{ table, column, id string }

var secretTables = []secretTable{
	{"pglogical.node_interface", "if_dsn", "if_name"},
	{"spock.node_interface", "if_dsn", "if_name"},
	{"repmgr.nodes", "conninfo", "node_name"},
	{"pg_catalog.pg_dist_authinfo", "authinfo", "rolename"},
}

// secretColumns are the columns of catalogs that hold credentials. ANALYZE
// copies values of them into pg_statistic, catalogs included.
var secretColumns = []struct{ table, column string }{
	{"pg_catalog.pg_authid", "rolpassword"},
	{"pg_catalog.pg_subscription", "subconninfo"},
	{"pg_catalog.pg_foreign_data_wrapper", "fdwoptions"},
	{"pg_catalog.pg_foreign_server", "srvoptions"},
	{"pg_catalog.pg_foreign_table", "ftoptions"},
	{"pg_catalog.pg_user_mapping", "umoptions"},
}

// policyColumns lists table and column of every policy above, as two parallel
// arrays for the probing query.
func policyColumns() (tables, columns []string) {
	for _, j := range jobTables {
		tables, columns = append(tables, j.table), append(columns, j.column)
	}
	for _, s := range secretTables {
		tables, columns = append(tables, s.table), append(columns, s.column)
	}
	return tables, columns
}

// analyzedColumns lists every column that holds credentials, the same way.
func analyzedColumns() (tables, columns []string) {
	for _, c := range secretColumns {
		tables, columns = append(tables, c.table), append(columns, c.column)
	}
	for _, s := range secretTables {
		tables, columns = append(tables, s.table), append(columns, s.column)
	}
	return tables, columns
}
