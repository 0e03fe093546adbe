package quarantine

import (
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/postgres"
)

// Libraries are production's settings of that name, as pg_settings shows them.
type Libraries struct {
	Shared  string // shared_preload_libraries
	Session string // session_preload_libraries
	Local   string // local_preload_libraries
}

// LibrariesOf picks them from production's settings.
func LibrariesOf(rows []postgres.Setting) Libraries {
	var l Libraries
	for _, r := range rows {
		switch r.Name {
		case "shared_preload_libraries":
			l.Shared = r.Value
		case "session_preload_libraries":
			l.Session = r.Value
		case "local_preload_libraries":
			l.Local = r.Value
		}
	}
	return l
}

// Plan is what a branch loads of production's libraries.
type Plan struct {
	Settings    []postgres.Param // the preload settings, and what a kept library needs to stay quiet
	Differences []pgbough.Difference
}

// policy of one library. A library that is kept with params runs with them.
type policy struct {
	keep   bool
	reason string
	params []postgres.Param
}

// policies of libraries that are known. What a library does on its own decides:
// one that only serves statements is kept, since without it statements fail or
// plan differently; one that begins work by itself is not. Unknown ones are not
// loaded either.
var policies = map[string]policy{
	// They serve statements.
	"pg_stat_statements": {keep: true}, "auto_explain": {keep: true}, "pg_hint_plan": {keep: true}, "pg_stat_kcache": {keep: true},
	"pg_qualstats": {keep: true}, "pg_stat_monitor": {keep: true}, "pg_store_plans": {keep: true}, "pg_show_plans": {keep: true},
	"pg_wait_sampling": {keep: true}, "pg_track_settings": {keep: true}, "hypopg": {keep: true}, "plprofiler": {keep: true},
	"plugin_debugger": {keep: true}, "plpgsql_check": {keep: true}, "plpgsql": {keep: true}, "pgaudit": {keep: true},
	"passwordcheck": {keep: true}, "credcheck": {keep: true}, "safeupdate": {keep: true}, "set_user": {keep: true}, "supautils": {keep: true},
	"pg_tle": {keep: true}, "anon": {keep: true}, "pg_ivm": {keep: true}, "orafce": {keep: true}, "pgtt": {keep: true},
	"pg_dirtyread": {keep: true}, "pg_surgery": {keep: true}, "test_decoding": {keep: true},
	// Index and table access methods; some replay their own WAL records.
	"age": {keep: true}, "vchord": {keep: true}, "pg_search": {keep: true}, "orioledb": {keep: true}, "rum": {keep: true},
	// They work in the background too, which these settings stop.
	"pg_prewarm": {keep: true, params: []postgres.Param{{Name: "pg_prewarm.autoprewarm", Value: "off"}}},
	"timescaledb": {keep: true, params: []postgres.Param{
		{Name: "timescaledb.max_background_workers", Value: "0"},
		{Name: "timescaledb.telemetry_level", Value: "off"},
	}},
	// They begin work by themselves.
	"pg_cron":             {reason: "it runs scheduled jobs as soon as the branch exists"},
	"pg_partman_bgw":      {reason: "it changes partitions on a schedule"},
	"pg_squeeze":          {reason: "it rewrites tables on a schedule"},
	"pg_net":              {reason: "it sends queued HTTP requests"},
	"pg_later":            {reason: "it runs queued statements"},
	"powa":                {reason: "it takes snapshots on a schedule"},
	"pglogical":           {reason: "it connects to other servers"},
	"spock":               {reason: "it connects to other servers"},
	"bdr":                 {reason: "it connects to other servers"},
	"citus":               {reason: "it connects to its worker nodes"},
	"repmgr":              {reason: "it manages production's failover"},
	"pgautofailover":      {reason: "it manages production's failover"},
	"pg_failover_slots":   {reason: "it copies replication slots from another server"},
	"pgsodium":            {reason: "it reads production's root key at start"},
	"login_hook":          {reason: "it runs a function of production at each login"},
	"auth_delay":          {reason: "it delays logins, which pgbough answers"},
	"basic_archive":       {reason: "it archives WAL"},
	"basebackup_to_shell": {reason: "it runs commands"},
	"pgauditlogtofile":    {reason: "it writes log files of its own"},
	"worker_spi":          {reason: "it starts workers"},
}

const unknownReason = "pgbough does not know whether it begins work by itself"

// Preload decides which of production's libraries a branch loads. available
// tells whether the installation has a library; allow names libraries that are
// loaded although they would not be. A library that is not loaded is a
// difference.
func Preload(l Libraries, available func(library string) bool, allow ...string) Plan {
	var plan Plan
	var quiet []postgres.Param
	for _, list := range []struct{ setting, value string }{
		{"shared_preload_libraries", l.Shared}, {"session_preload_libraries", l.Session}, {"local_preload_libraries", l.Local},
	} {
		var kept []string
		for _, lib := range SplitLibraries(list.value) {
			name := LibraryName(lib)
			p, known := policies[name]
			var reason string
			switch {
			case !available(lib):
				reason = "this machine does not have it"
			case p.keep || slices.Contains(allow, name):
				kept = append(kept, lib)
				quiet = append(quiet, p.params...)
				continue
			case !known:
				reason = unknownReason
			default:
				reason = p.reason
			}
			plan.Differences = append(plan.Differences, pgbough.Difference{
				Kind: "preload_library", Object: name, Action: "not loaded", Reason: reason, Detail: list.setting,
			})
		}
		plan.Settings = append(plan.Settings, postgres.Param{Name: list.setting, Value: joinLibraries(kept)})
	}
	plan.Settings = append(plan.Settings, quiet...)
	return plan
}

// LibraryName is the plain name of a library in a preload list:
// "$libdir/plugins/plugin_debugger.so" is plugin_debugger.
func LibraryName(lib string) string { return strings.TrimSuffix(path.Base(lib), ".so") }

// AvailableIn tells whether an installation has a library. Its library
// directory is found from where its binaries are, as Postgres does
// (port/path.c); builds differ in whether it has a subdirectory of its own.
func AvailableIn(in postgres.Installation) func(library string) bool {
	return func(library string) bool {
		name := strings.TrimSuffix(strings.TrimPrefix(library, "$libdir/"), ".so") + ".so"
		if filepath.IsAbs(name) {
			return isFile(name)
		}
		lib := filepath.Join(in.BinDir, "..", "lib")
		for _, dir := range []string{lib, filepath.Join(lib, "postgresql"), filepath.Join(lib, "plugins"), filepath.Join(lib, "postgresql", "plugins")} {
			if isFile(filepath.Join(dir, name)) {
				return true
			}
		}
		return false
	}
}

func isFile(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.Mode().IsRegular()
}

// SplitLibraries reads a preload list as SplitDirectoriesString does: commas
// between names, which may be in double quotes.
func SplitLibraries(list string) []string {
	var out []string
	var b strings.Builder
	quoted := false
	flush := func() {
		if s := strings.TrimSpace(b.String()); s != "" {
			out = append(out, s)
		}
		b.Reset()
	}
	for i := 0; i < len(list); i++ {
		switch c := list[i]; {
		case c == '"' && quoted && i+1 < len(list) && list[i+1] == '"':
			b.WriteByte('"')
			i++
		case c == '"':
			quoted = !quoted
		case c == ',' && !quoted:
			flush()
		default:
			b.WriteByte(c)
		}
	}
	flush()
	return out
}

func joinLibraries(libs []string) string {
	quoted := make([]string, len(libs))
	for i, lib := range libs {
		quoted[i] = lib
		if strings.ContainsAny(lib, `," `) {
			quoted[i] = `"` + strings.ReplaceAll(lib, `"`, `""`) + `"`
		}
	}
	return strings.Join(quoted, ", ")
}
