package postgres

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/pgbough/pgbough"
)

// Installation is one set of Postgres server binaries on this machine.
type Installation struct {
	BinDir  string
	Major   int
	Minor   int
	Version string // "15.18"
}

// SearchDirs are the places where server binaries are looked for, as globs of
// their bin directories: Debian's, Red Hat's, source builds, and those that
// scripts/setup installs.
func SearchDirs() []string {
	dirs := []string{
		"/usr/lib/postgresql/*/bin",
		"/usr/pgsql-*/bin",
		"/opt/pgbough/postgresql/*/bin",
		"/usr/local/pgsql/bin",
	}
	if env := os.Getenv("PGBOUGH_POSTGRES_DIRS"); env != "" {
		dirs = append(filepath.SplitList(env), dirs...)
	}
	return dirs
}

// Installations lists the server binaries below SearchDirs, newest first.
func Installations(ctx context.Context) ([]Installation, error) {
	var found []Installation
	for _, pattern := range SearchDirs() {
		dirs, err := filepath.Glob(pattern)
		if err != nil {
			return nil, pgbough.Errorf(pgbough.EInvalid, "PGBOUGH_POSTGRES_DIRS: bad pattern %q", pattern)
		}
		for _, dir := range dirs {
			in, err := inspect(ctx, dir)
			if err != nil {
				continue // not a usable installation; others may be
			}
			found = append(found, in)
		}
	}
	slices.SortStableFunc(found, func(a, b Installation) int {
		if a.Major != b.Major {
			return b.Major - a.Major
		}
		return b.Minor - a.Minor
	})
	return found, nil
}

// FindInstallation is the newest minor version of major on this machine.
func FindInstallation(ctx context.Context, major int) (Installation, error) {
	all, err := Installations(ctx)
	if err != nil {
		return Installation{}, err
	}
	var have []string
	for _, in := range all {
		if in.Major == major {
			return in, nil
		}
		have = append(have, in.Version)
	}
	what := "none at all"
	if len(have) > 0 {
		what = "only " + strings.Join(have, ", ")
	}
	return Installation{}, pgbough.Errorf(pgbough.EConflict, "no Postgres %d server binaries on this machine (%s)", major, what).
		WithHint("install them (Debian: apt-get install postgresql-%d), or name their directory in PGBOUGH_POSTGRES_DIRS", major)
}

// HasLibrary tells whether the installation has a loadable library of that
// name, as it stands in a preload list ("auto_explain", "$libdir/pg_cron").
func (in Installation) HasLibrary(name string) bool {
	name = strings.TrimPrefix(strings.TrimSuffix(name, ".so"), "$libdir/")
	for _, dir := range []string{"../lib", "../lib/postgresql"} {
		if fi, err := os.Stat(filepath.Join(in.BinDir, dir, name+".so")); err == nil && fi.Mode().IsRegular() {
			return true
		}
	}
	return false
}

var versionOutput = regexp.MustCompile(`\(PostgreSQL\) (\d+)\.(\d+)`)

func inspect(ctx context.Context, bin string) (Installation, error) {
	out, err := exec.CommandContext(ctx, filepath.Join(bin, "postgres"), "--version").Output()
	if err != nil {
		return Installation{}, fmt.Errorf("ask %s for its version: %w", bin, err)
	}
	m := versionOutput.FindSubmatch(out)
	if m == nil {
		return Installation{}, fmt.Errorf("%s: cannot read the version in %q", bin, out)
	}
	major, _ := strconv.Atoi(string(m[1])) // digits
	minor, _ := strconv.Atoi(string(m[2]))
	return Installation{BinDir: bin, Major: major, Minor: minor, Version: fmt.Sprintf("%d.%d", major, minor)}, nil
}
