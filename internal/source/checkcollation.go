package source

import (
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"strings"

	"github.com/pgbough/pgbough"
)

// An index on text is sorted by a library, libc or ICU. Where this machine's
// library sorts otherwise than production's, such an index silently finds too
// little and unique constraints let duplicates in. Postgres records libraries'
// versions, and does not compare them for its default before version 15.

// dependency is one versioned collation that something on production uses.
type dependency struct {
	collation
	where     string // "database shop", "3 indexes of shop"
	isDefault bool
}

// noteCollations keeps what checkCollations compares.
func (c *checker) noteCollations(database string, list []collation) {
	for _, v := range list {
		c.depends = append(c.depends, dependency{collation: v, where: fmt.Sprintf("%d indexes of %s", v.indexes, database)})
	}
}

// actualLibcSQL asks the library through any collation that has a version; the C
// locales have none. A database's default says it only since Postgres 15.
const actualLibcSQL = `SELECT coalesce((SELECT v FROM (SELECT pg_collation_actual_version(oid) AS v FROM pg_collation
	WHERE collprovider = 'c' AND collcollate NOT IN ('C', 'POSIX') AND collcollate NOT LIKE 'C.%') x WHERE v IS NOT NULL LIMIT 1), '')`

func (c *checker) checkCollations(ctx context.Context) {
	f := &c.report.Facts
	f.MachineLibcVersion = machineLibc(ctx)
	if v, err := column(ctx, c.pg, actualLibcSQL); err == nil && len(v) == 1 {
		f.LibcVersion = v[0]
	}
	for _, d := range f.Databases {
		if d.Provider == "libc" && isCLocale(d.Collate) || d.Provider == "builtin" {
			continue
		}
		v := collation{name: d.Collate, provider: d.Provider, recorded: d.CollVersion, current: d.ActualVersion}
		if d.Provider == "icu" {
			v.name = d.Locale
		}
		if v.provider == "libc" && v.current == "" {
			v.current = f.LibcVersion
		} else if v.provider == "libc" && f.LibcVersion == "" {
			f.LibcVersion = v.current
		}
		c.depends = append(c.depends, dependency{collation: v, where: "database " + d.Name, isDefault: true})
	}
	c.checkRecorded()
	c.checkLibc()
	c.checkICU()
	c.checkLocales(ctx)
}

// isCLocale tells whether a libc locale sorts by code point, without a version
// (Postgres: pg_locale.c, get_collation_actual_version).
func isCLocale(name string) bool {
	return name == "C" || name == "POSIX" || strings.HasPrefix(strings.ToUpper(name), "C.")
}

// checkRecorded: production itself may run another library than its indexes were built with.
func (c *checker) checkRecorded() {
	var stale []string
	for _, d := range c.depends {
		if d.recorded != "" && d.current != "" && d.recorded != d.current {
			stale = append(stale, fmt.Sprintf("%s of %s was made with %s, and runs with %s", d.name, d.where, d.recorded, d.current))
		}
	}
	if len(stale) > 0 {
		c.warn("collation_recorded", "on production already, "+strings.Join(stale, "; "), "on production: REINDEX what uses it, then ALTER DATABASE ... or ALTER COLLATION ... REFRESH VERSION;")
	}
}

// reordered is the release of glibc that changed the order of most locales
// (Postgres wiki, "Locale data changes").
const reordered = 2.28

func (c *checker) checkLibc() {
	const name = "collation_libc"
	f := c.report.Facts
	users := c.users("libc")
	switch ours, theirs := f.MachineLibcVersion, f.LibcVersion; {
	case len(users) == 0:
		c.ok(name, "nothing on production sorts by libc's locales")
	case theirs == "":
		c.warn(name, "production does not tell which C library it sorts with (musl, in Alpine images, never does); used by "+strings.Join(users, ", "),
			"run pgbough on the distribution that production runs on, or check indexes in a branch: amcheck's bt_index_check()")
	case ours == "":
		c.warn(name, fmt.Sprintf("production sorts with glibc %s, and this machine does not tell what it has", theirs), "")
	case ours == theirs:
		c.ok(name, "glibc %s on both", ours)
	default:
		detail := fmt.Sprintf("production sorts with glibc %s and this machine with %s; indexes on text may give wrong answers in branches; used by %s", theirs, ours, strings.Join(users, ", "))
		fix := "run pgbough on the release of the distribution that production runs on (glibc " + theirs + ")"
		if (version(ours) < reordered) != (version(theirs) < reordered) {
			c.fail(name, detail, fix)
		} else {
			c.warn(name, detail, fix+", or check indexes in a branch: amcheck's bt_index_check()")
		}
	}
}

// version reads "2.36" so that it can be compared with 2.28: glibc has had two
// digits after the point since 2.10.
func version(s string) float64 {
	v, err := strconv.ParseFloat(s, 64)
	if err != nil {
		return 0
	}
	return v
}

// users names what depends on a provider's collations.
func (c *checker) users(provider string) []string {
	var users []string
	for _, d := range c.depends {
		if d.provider == provider {
			users = append(users, fmt.Sprintf("%s (%s)", d.where, d.name))
		}
	}
	return users
}

// unicodeOfICU is the second number of the collator versions that an ICU library
// reports, by its major version: eight times the major version of the Unicode
// collation algorithm, plus the minor. Releases not listed are not known.
func unicodeOfICU(major int) (int, bool) {
	switch {
	case major >= 60 && major <= 61:
		return 80, true
	case major >= 62 && major <= 63:
		return 88, true
	case major >= 66 && major <= 69:
		return 104, true
	case major >= 70 && major <= 71:
		return 112, true
	case major >= 72 && major <= 73:
		return 120, true
	case major >= 74 && major <= 75:
		return 121, true
	case major >= 76 && major <= 77:
		return 128, true
	}
	return 0, false
}

// linkedICU finds ICU's major version in the name of the library.
var linkedICU = regexp.MustCompile(`^libicui18n\.so\.(\d+)`)

func (c *checker) checkICU() {
	const name = "collation_icu"
	users := c.users("icu")
	if len(users) == 0 {
		return
	}
	major, ok := c.machineICU()
	if !ok {
		c.fail(name, "this machine's Postgres is built without ICU, or does not tell which; used by "+strings.Join(users, ", "),
			fmt.Sprintf("install a Postgres %d that is built with ICU", c.report.Facts.Major))
		return
	}
	ours, known := unicodeOfICU(major)
	status, detail := pgbough.FindingOK, fmt.Sprintf("this machine's Postgres has ICU %d, as production's collation versions say of its", major)
	for _, d := range c.depends {
		if d.provider != "icu" || d.current == "" {
			continue
		}
		parts := strings.Split(d.current, ".")
		if !known || len(parts) < 2 || parts[1] != strconv.Itoa(ours) {
			status = pgbough.FindingWarn
			detail = fmt.Sprintf("production sorts with ICU collator version %s (%s), and this machine's Postgres has ICU %d; indexes that use it may give wrong answers in branches", d.current, d.where, major)
		}
	}
	fix := ""
	if status == pgbough.FindingWarn {
		fix = "run pgbough on the release of the distribution that production runs on, or check indexes in a branch: amcheck's bt_index_check()"
	}
	c.add(status, name, detail, fix)
}

func (c *checker) machineICU() (int, bool) {
	for _, library := range c.machine.linked {
		if m := linkedICU.FindStringSubmatch(library); m != nil {
			major, err := strconv.Atoi(m[1])
			return major, err == nil
		}
	}
	return 0, false
}

// checkLocales: Postgres refuses connections to a database whose locale the
// operating system does not have.
func (c *checker) checkLocales(ctx context.Context) {
	out, err := exec.CommandContext(ctx, "locale", "-a").Output()
	if err != nil {
		c.skip("locales", "this machine does not list its locales")
		return
	}
	have := map[string]bool{"c": true, "posix": true}
	for line := range strings.Lines(string(out)) {
		have[normalLocale(strings.TrimSpace(line))] = true
	}
	var missing []string
	seen := map[string]bool{}
	for _, d := range c.report.Facts.Databases {
		for _, l := range []string{d.Collate, d.CType} {
			if n := normalLocale(l); !have[n] && !seen[n] {
				seen[n] = true
				missing = append(missing, l)
			}
		}
	}
	if len(missing) == 0 {
		c.ok("locales", "this machine has the locales of all databases")
		return
	}
	var fixes []string
	for _, l := range missing {
		base, charset, _ := strings.Cut(l, ".")
		if charset == "" {
			charset = "UTF-8"
		}
		fixes = append(fixes, fmt.Sprintf("localedef -i %s -f %s %s", base, strings.Replace(strings.ToUpper(charset), "UTF8", "UTF-8", 1), l))
	}
	c.fail("locales", "locales of production's databases are missing on this machine: "+strings.Join(missing, ", "), strings.Join(fixes, " && "))
}

// normalLocale writes a locale as `locale -a` does: en_US.UTF-8 is en_US.utf8.
func normalLocale(s string) string {
	base, charset, ok := strings.Cut(strings.ToLower(s), ".")
	if !ok {
		return base
	}
	charset, modifier, _ := strings.Cut(charset, "@")
	charset = strings.NewReplacer("-", "", "_", "").Replace(charset)
	if modifier != "" {
		charset += "@" + modifier
	}
	return base + "." + charset
}

// machineLibc is the version of this machine's glibc, or empty.
func machineLibc(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "getconf", "GNU_LIBC_VERSION").Output()
	if err != nil {
		return ""
	}
	v, ok := strings.CutPrefix(strings.TrimSpace(string(out)), "glibc ")
	if !ok {
		return ""
	}
	return v
}
