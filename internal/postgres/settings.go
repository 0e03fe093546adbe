package postgres

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/pgbough/pgbough"
)

// Setting is one row of pg_settings: Value is in Unit ("8kB", "ms"), which is
// empty for settings without one.
type Setting pgbough.Setting

// Param is one assignment of a configuration file.
type Param struct{ Name, Value string }

// File renders a postgresql.conf. A name that occurs more than once is written
// once, where it stood last: the last one counts, as for Postgres. header is
// written above as a comment.
func File(header string, groups ...[]Param) string {
	all := slices.Concat(groups...)
	last := make(map[string]int, len(all))
	for i, p := range all {
		last[strings.ToLower(p.Name)] = i
	}
	var b strings.Builder
	for line := range strings.Lines(header) {
		b.WriteString("# " + strings.TrimRight(line, "\r\n") + "\n")
	}
	for i, p := range all {
		if last[strings.ToLower(p.Name)] == i {
			b.WriteString(p.Name + " = " + quote(p.Value) + "\n")
		}
	}
	return b.String()
}

// quote writes a value as guc-file.l reads it: ” is a quote, a backslash
// escapes (GUC_scanstr), and a string may not hold a bare newline.
func quote(s string) string {
	return "'" + strings.NewReplacer("'", "''", `\`, `\\`, "\n", `\n`, "\r", `\r`).Replace(s) + "'"
}

type floorSetting struct {
	name  string
	least int
}

// recoveryFloor are the settings that recovery needs at least as large as
// production has them (xlogrecovery.c: RecoveryRequiresIntParameter), with
// Postgres's own defaults.
var recoveryFloor = []floorSetting{
	{"max_connections", 100},
	{"max_worker_processes", 8},
	{"max_wal_senders", 10},
	{"max_prepared_transactions", 0},
	{"max_locks_per_transaction", 64},
}

// Floor is what a server that replays production's WAL must be started with:
// production's values, where they are larger than Postgres's defaults.
func Floor(rows []Setting) []Param {
	have := make(map[string]int, len(rows))
	for _, r := range rows {
		if v, err := strconv.Atoi(r.Value); err == nil {
			have[r.Name] = v
		}
	}
	params := make([]Param, 0, len(recoveryFloor))
	for _, f := range recoveryFloor {
		params = append(params, Param{f.name, strconv.Itoa(max(f.least, have[f.name]))})
	}
	return params
}

// IsFloor tells whether recovery needs a setting as large as production has it.
func IsFloor(name string) bool {
	return slices.ContainsFunc(recoveryFloor, func(f floorSetting) bool { return f.name == name })
}

// Known are the settings that an installation has and that may stand in a
// configuration file, with their categories in English.
type Known map[string]string

// KnownSettings asks the binary. It takes some 30 ms and never changes for an
// installation. Categories come from here and not from production, which
// tells them in the language of its lc_messages.
func KnownSettings(ctx context.Context, in Installation) (Known, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(in.BinDir, "postgres"), "--describe-config")
	cmd.Env = []string{"LC_ALL=C"}
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("ask %s for its settings: %w", in.BinDir, err)
	}
	known := Known{}
	for line := range bytes.Lines(out) {
		// name, context, category, type, default, ... (help_config.c)
		if f := strings.Split(string(line), "\t"); len(f) > 3 {
			known[f[0]] = f[2]
		}
	}
	if len(known) == 0 {
		return nil, fmt.Errorf("%s described no settings", in.BinDir)
	}
	return known, nil
}

// Left is a setting of production that belongs to its behaviour and is not
// carried into a branch all the same.
type Left struct{ Name, Reason string }

// behaviourCategories are the classes of settings that plans and results of
// statements depend on. A name ends in "*" where the class has subclasses.
// All other classes are ours: they are about this machine (memory, I/O, paths,
// connections, TLS, logging) or about production's place in the world
// (archiving, replication, recovery).
var behaviourCategories = []struct{ class, why string }{
	{"Query Tuning*", "the planner decides by them"},
	{"Client Connection Defaults / Statement Behavior", "timeouts, isolation, search_path, what statements do"},
	{"Client Connection Defaults / Locale and Formatting", "how values are read and written"},
	{"Client Connection Defaults / Other Defaults", "limits on the results of some index scans"},
	{"Version and Platform Compatibility*", "the meaning of SQL"},
	{"Lock Management", "when a deadlock or a serialization failure is reported"},
	{"Statistics*", "what the statistics views show"},
	{"Autovacuum", "when statistics are renewed, and so plans"},
	{"Vacuuming / Automatic Vacuuming", "the same, from Postgres 18 on"},
	{"Vacuuming / Default Behavior", "what VACUUM does"},
	{"Vacuuming / Freezing", "what VACUUM does"},
}

// behaviourNames are carried although their class is ours.
var behaviourNames = map[string]string{
	"work_mem":                         "the planner decides by it",
	"hash_mem_multiplier":              "the planner decides by it",
	"max_parallel_workers":             "the planner decides by it",
	"max_parallel_workers_per_gather":  "the planner decides by it",
	"max_parallel_maintenance_workers": "CREATE INDEX plans by it",
	"parallel_leader_participation":    "the planner decides by it",
	"temp_file_limit":                  "statements fail by it",
	"synchronous_commit":               "what a commit means",
	"track_commit_timestamp":           "pg_xact_commit_timestamp depends on it",
	"password_encryption":              "what ALTER ROLE stores",
	"scram_iterations":                 "what ALTER ROLE stores",
	"exit_on_error":                    "what an error does to a session",
}

// ourNames are ours although their class is carried.
var ourNames = map[string]string{
	"lc_messages":                         "we read the log, and the locale may be missing here",
	"dynamic_library_path":                "a path of production's machine",
	"extension_control_path":              "a path of production's machine",
	"extension_destdir":                   "a path of production's machine",
	"max_locks_per_transaction":           "part of the recovery floor",
	"autovacuum_max_workers":              "sized by this machine",
	"autovacuum_worker_slots":             "sized by this machine",
	"autovacuum_freeze_max_age":           "a branch that starts near it would rewrite the whole database (P20)",
	"autovacuum_multixact_freeze_max_age": "a branch that starts near it would rewrite the whole database (P20)",
	"allow_alter_system":                  "a branch is changed by its user",
	"transaction_deferrable":              "of the asking transaction",
	"transaction_isolation":               "of the asking transaction",
	"transaction_read_only":               "of the asking transaction",
	"log_executor_stats":                  "logging",
	"log_parser_stats":                    "logging",
	"log_planner_stats":                   "logging",
	"log_statement_stats":                 "logging",
}

// secretName matches names of settings and options that may hold a credential.
var secretName = regexp.MustCompile(`(?i)pass|secret|token|credential|conninfo|connection_(string|options)|dsn|_key$|api_?key|getkey`)

// SecretName tells whether a setting or an option of this name may hold a
// credential.
func SecretName(name string) bool { return secretName.MatchString(name) }

// serverSources are the values of pg_settings.source that hold for a whole
// server. The others (client, user, database, session, ...) belong to the
// session that asked and hide what the server has.
var serverSources = []string{"configuration file", "command line", "environment variable", "global"}

// Behaviour chooses from production's settings those that plans or results
// depend on, in the order of their names. Defaults are not written: the same
// major version has them too. A library's settings ("auto_explain.log_analyze")
// are carried, unless they may hold a credential.
func Behaviour(rows []Setting, known Known) ([]Param, []Left) {
	var params []Param
	var left []Left
	rows = slices.SortedFunc(slices.Values(rows), func(a, b Setting) int { return strings.Compare(a.Name, b.Name) })
	for _, r := range rows {
		custom := strings.Contains(r.Name, ".")
		category, here := known[r.Name]
		if !here {
			category = r.Category
		}
		switch {
		case r.Context == "internal", r.Source == "default":
		case !custom && !isBehaviour(r.Name, category):
		case custom && SecretName(r.Name):
			left = append(left, Left{r.Name, "it may hold a credential"})
		case !custom && !here:
			left = append(left, Left{r.Name, "the Postgres on this machine does not know it"})
		case !slices.Contains(serverSources, r.Source):
			// pgbough's own session on production set it, so the server's own value is not shown.
			if r.Name != "client_encoding" && r.Name != "application_name" {
				left = append(left, Left{r.Name, "pgbough's own session on production has a value of its own, which hides the server's"})
			}
		default:
			params = append(params, Param{r.Name, r.FileValue()})
		}
	}
	return params, left
}

func isBehaviour(name, category string) bool {
	if _, ok := ourNames[name]; ok {
		return false
	}
	if _, ok := behaviourNames[name]; ok {
		return true
	}
	for _, c := range behaviourCategories {
		class, sub := strings.CutSuffix(c.class, "*")
		if category == class || sub && strings.HasPrefix(category, class) {
			return true
		}
	}
	return false
}

var unitFormat = regexp.MustCompile(`^(\d*)(B|kB|MB|GB|TB|us|ms|s|min|h|d)$`)

// FileValue is the value as a configuration file takes it, with a unit that
// Postgres accepts: 524288 of unit "8kB" is "4194304kB". Zero and negative
// values mean something of their own and have no unit.
func (s Setting) FileValue() string {
	m := unitFormat.FindStringSubmatch(s.Unit)
	if m == nil {
		return s.Value
	}
	factor := int64(1)
	if m[1] != "" {
		factor, _ = strconv.ParseInt(m[1], 10, 64) // digits
	}
	if n, err := strconv.ParseInt(s.Value, 10, 64); err == nil {
		if n <= 0 {
			return s.Value
		}
		return strconv.FormatInt(n*factor, 10) + m[2]
	}
	if f, err := strconv.ParseFloat(s.Value, 64); err == nil && f > 0 && factor == 1 {
		return s.Value + m[2] // a real, such as autovacuum_vacuum_cost_delay
	}
	return s.Value
}
