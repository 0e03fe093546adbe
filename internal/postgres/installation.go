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
	"sync"

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
// scripts/setup installs. PGBOUGH_POSTGRES_DIRS names others in their place.
func SearchDirs() []string {
	if env := os.Getenv("PGBOUGH_POSTGRES_DIRS"); env != "" {
		return filepath.SplitList(env)
	}
	return []string{
		"/usr/lib/postgresql/*/bin",
		"/usr/pgsql-*/bin",
		"/opt/pgbough/postgresql/*/bin",
		"/usr/local/pgsql/bin",
	}
}

// Finder finds server binaries below SearchDirs. It asks each for its version
// once, which takes some 50 ms, and again when there is another file in its place:
// what was installed or removed since the last question counts in the next answer.
// The zero value is ready for use, by several goroutines too.
type Finder struct {
	mu   sync.Mutex
	seen map[string]looked // by bin directory
}

// looked is what a binary was when it was asked.
type looked struct {
	file os.FileInfo
	in   Installation
	ok   bool
}

// Installations lists the server binaries below SearchDirs, newest first.
func Installations(ctx context.Context) ([]Installation, error) { return new(Finder).All(ctx) }

// FindInstallation is the newest minor version of major on this machine.
func FindInstallation(ctx context.Context, major int) (Installation, error) {
	return new(Finder).Find(ctx, major)
}

// All lists what there is now, newest first.
func (f *Finder) All(ctx context.Context) ([]Installation, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	seen := map[string]looked{}
	var found []Installation
	for _, pattern := range SearchDirs() {
		dirs, err := filepath.Glob(pattern)
		if err != nil {
			return nil, pgbough.Errorf(pgbough.EInvalid, "PGBOUGH_POSTGRES_DIRS: bad pattern %q", pattern)
		}
		for _, dir := range dirs {
			l, err := f.look(ctx, dir)
			if err != nil {
				continue // no binary; elsewhere may be one
			}
			if seen[dir] = l; l.ok {
				found = append(found, l.in)
			}
		}
	}
	f.seen = seen
	slices.SortStableFunc(found, func(a, b Installation) int {
		if a.Major != b.Major {
			return b.Major - a.Major
		}
		return b.Minor - a.Minor
	})
	return found, nil
}

// look asks the binary in dir, unless it is the one that was asked before. f.mu is
// held.
func (f *Finder) look(ctx context.Context, dir string) (looked, error) {
	file, err := os.Stat(filepath.Join(dir, "postgres"))
	if err != nil {
		return looked{}, err
	}
	old, ok := f.seen[dir]
	if ok && os.SameFile(old.file, file) && old.file.Size() == file.Size() && old.file.ModTime().Equal(file.ModTime()) {
		return old, nil
	}
	in, err := inspect(ctx, dir)
	if ctx.Err() != nil {
		return looked{}, ctx.Err() // it was not asked to the end
	}
	return looked{file: file, in: in, ok: err == nil}, nil
}

// Find is the newest minor version of major that there is now.
func (f *Finder) Find(ctx context.Context, major int) (Installation, error) {
	all, err := f.All(ctx)
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
	if ctx.Err() != nil {
		return Installation{}, fmt.Errorf("look for Postgres %d server binaries: %w", major, context.Cause(ctx))
	}
	what := "none at all"
	if len(have) > 0 {
		what = "only " + strings.Join(have, ", ")
	}
	return Installation{}, pgbough.Errorf(pgbough.EConflict, "no Postgres %d server binaries on this machine (%s)", major, what).
		WithHint("install them (Debian: apt-get install postgresql-%d), or name their bin directory, beside those of other versions that are needed, in PGBOUGH_POSTGRES_DIRS", major)
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
