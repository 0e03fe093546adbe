package source

import (
	"context"
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/pgbough/pgbough/internal/postgres"
)

// machine is what this machine has to run production's data with.
type machine struct {
	libDir     string   // where $libdir points
	extensions string   // the directory of extension control files
	linked     []string // shared libraries of the postgres binary
}

// checkMachine looks for server binaries of production's major version and for
// the libraries that production loads at start.
func (c *checker) checkMachine(ctx context.Context) {
	f := &c.report.Facts
	in, err := postgres.FindInstallation(ctx, f.Major)
	if err != nil {
		c.fail("binaries", err.Error(), fmt.Sprintf("apt-get install postgresql-%d, or name their bin directory in PGBOUGH_POSTGRES_DIRS", f.Major))
		return
	}
	f.Installation = in
	if in.Minor < f.Minor {
		c.warn("binaries", fmt.Sprintf("this machine has Postgres %s, older than production's %s: fixes that production's data may rely on are missing", in.Version, f.Version),
			fmt.Sprintf("apt-get install --only-upgrade postgresql-%d", f.Major))
	} else {
		c.ok("binaries", "Postgres %s in %s", in.Version, in.BinDir)
	}
	c.machine = inspectMachine(ctx, in)
	c.checkPreload(c.machine)
	c.checkCompression(c.machine)
}

// checkPreload: a missing preload library keeps Postgres from starting (shared)
// or from accepting connections (session, local).
func (c *checker) checkPreload(m machine) {
	if !c.facts.readSettings {
		c.skip("preload_libraries", "hidden from the role")
		return
	}
	var missing, present []string
	for _, name := range []string{"shared_preload_libraries", "session_preload_libraries", "local_preload_libraries"} {
		for _, library := range splitList(c.setting(name)) {
			if name == "local_preload_libraries" && !strings.Contains(library, "/") {
				library = "$libdir/plugins/" + library
			}
			if c.libraryFile(m, library) == "" {
				missing = append(missing, fmt.Sprintf("%s (%s)", library, name))
			} else {
				present = append(present, library)
			}
		}
	}
	switch {
	case len(missing) > 0:
		c.fail("preload_libraries", "missing on this machine: "+strings.Join(missing, ", "), c.installFix(missing))
	case len(present) > 0:
		c.ok("preload_libraries", "all there: %s", strings.Join(present, ", "))
	default:
		c.ok("preload_libraries", "production preloads none")
	}
}

// checkCompression: WAL that was compressed with a library this machine's
// Postgres was built without cannot be replayed.
func (c *checker) checkCompression(m machine) {
	method := c.setting("wal_compression")
	library := map[string]string{"lz4": "liblz4", "zstd": "libzstd"}[method]
	if library == "" || len(m.linked) == 0 {
		return
	}
	if slices.ContainsFunc(m.linked, func(l string) bool { return strings.HasPrefix(l, library) }) {
		c.ok("wal_compression", "this machine's Postgres can read %s", method)
		return
	}
	c.warn("wal_compression", fmt.Sprintf("production compresses WAL with %s, and this machine's Postgres does not link %s", method, library),
		fmt.Sprintf("install a Postgres %d that is built with %s", c.report.Facts.Major, method))
}

// inspectMachine finds the directories of an installation. pg_config knows them;
// installations without it are laid out in one of two ways.
func inspectMachine(ctx context.Context, in postgres.Installation) machine {
	var m machine
	if out, err := exec.CommandContext(ctx, filepath.Join(in.BinDir, "pg_config"), "--pkglibdir", "--sharedir").Output(); err == nil {
		if lines := strings.Split(strings.TrimSpace(string(out)), "\n"); len(lines) == 2 {
			m.libDir, m.extensions = lines[0], filepath.Join(lines[1], "extension")
		}
	}
	prefix := filepath.Dir(in.BinDir)
	if m.libDir == "" || !isDir(m.libDir) {
		m.libDir = firstWith("plpgsql.so", filepath.Join(prefix, "lib", "postgresql"), filepath.Join(prefix, "lib"))
	}
	if m.extensions == "" || !isDir(m.extensions) {
		m.extensions = firstWith("plpgsql.control", filepath.Join(prefix, "share", "postgresql", "extension"), filepath.Join(prefix, "share", "extension"),
			fmt.Sprintf("/usr/share/postgresql/%d/extension", in.Major))
	}
	if binary, err := elf.Open(filepath.Join(in.BinDir, "postgres")); err == nil {
		m.linked, _ = binary.ImportedLibraries() // none when it is static
		_ = binary.Close()                       // was only read
	}
	return m
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// firstWith is the first directory that has the file, or empty.
func firstWith(file string, dirs ...string) string {
	for _, dir := range dirs {
		if _, err := os.Stat(filepath.Join(dir, file)); err == nil {
			return dir
		}
	}
	return ""
}

// libraryFile is the file that Postgres would load for a library's name here, or
// empty (Postgres: dfmgr.c, expand_dynamic_library_name).
func (c *checker) libraryFile(m machine, library string) string {
	var candidates []string
	switch {
	case strings.HasPrefix(library, "$libdir"):
		candidates = []string{m.libDir + strings.TrimPrefix(library, "$libdir")}
	case strings.Contains(library, "/"):
		candidates = []string{library}
	default:
		for dir := range strings.SplitSeq(c.setting("dynamic_library_path"), ":") {
			candidates = append(candidates, filepath.Join(strings.Replace(dir, "$libdir", m.libDir, 1), library))
		}
		candidates = append(candidates, filepath.Join(m.libDir, library))
	}
	for _, path := range candidates {
		for _, suffix := range []string{"", ".so"} {
			if info, err := os.Stat(path + suffix); err == nil && info.Mode().IsRegular() {
				return path + suffix
			}
		}
	}
	return ""
}

// packages are the Debian packages of extensions and libraries whose names do
// not follow from theirs, without the prefix postgresql-<major>-.
func packages() map[string]string {
	return map[string]string{
		"vector": "pgvector", "pg_cron": "cron", "pg_partman": "partman", "pg_partman_bgw": "partman", "pg_repack": "repack",
		"pg_hint_plan": "pg-hint-plan", "pg_squeeze": "squeeze", "postgis": "postgis-3", "postgis-3": "postgis-3",
		"postgis_topology-3": "postgis-3", "postgis_raster-3": "postgis-3", "pgrouting": "pgrouting", "pgaudit": "pgaudit",
		"hll": "hll", "ip4r": "ip4r", "rum": "rum", "timescaledb": "timescaledb", "wal2json": "wal2json", "orafce": "orafce",
		"pg_qualstats": "pg-qualstats", "pg_stat_kcache": "pg-stat-kcache", "pg_wait_sampling": "pg-wait-sampling",
		"plpython3u": "plpython3", "plpython3": "plpython3", "plperl": "plperl", "pltcl": "pltcl", "http": "http", "h3": "h3",
		"prefix": "prefix", "semver": "semver", "set_user": "set-user", "tds_fdw": "tds-fdw", "mysql_fdw": "mysql-fdw",
		"oracle_fdw": "oracle-fdw", "pgq": "pgq3", "pgtap": "pgtap", "pg_similarity": "similarity", "plv8": "plv8", "unit": "unit",
	}
}

// libraryName cuts a library's name out of its path, its suffixes and a remark.
var libraryName = regexp.MustCompile(`([A-Za-z0-9_-]+?)(?:-[0-9.]+)?(?:\.so)?(?: \(.*\))?$`)

// installFix names the packages that bring what is missing, as far as they are known.
func (c *checker) installFix(missing []string) string {
	major := c.report.Facts.Major
	var known, unknown []string
	for _, what := range missing {
		full := strings.TrimSuffix(filepath.Base(strings.SplitN(what, " ", 2)[0]), ".so")
		name := full
		if m := libraryName.FindStringSubmatch(full); m != nil {
			name = m[1]
		}
		p, ok := packages()[full]
		if !ok {
			p, ok = packages()[name]
		}
		if p = fmt.Sprintf("postgresql-%d-%s", major, p); !ok {
			unknown = append(unknown, name)
		} else if !slices.Contains(known, p) {
			known = append(known, p)
		}
	}
	var parts []string
	if len(known) > 0 {
		parts = append(parts, "apt-get install "+strings.Join(known, " "))
	}
	if len(unknown) > 0 {
		slices.Sort(unknown)
		parts = append(parts, "install for Postgres "+fmt.Sprint(major)+" on this machine, in production's version: "+strings.Join(slices.Compact(unknown), ", "))
	}
	return strings.Join(parts, "; ")
}
