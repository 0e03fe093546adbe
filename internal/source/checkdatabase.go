package source

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// contents is what one database holds that this machine has to have too.
type contents struct {
	extensions []Extension
	libraries  []string // of its C functions
	collations []collation
}

// collation is a collation version that indexes of a database depend on.
type collation struct {
	name, provider    string
	recorded, current string // when it was made, and of the library that production runs now
	indexes           int
}

// checkDatabases looks into each database for extensions and for collations that
// indexes use. It connects to them one after the other.
func (c *checker) checkDatabases(ctx context.Context) {
	var skipped []string
	var libraries []string
	f := &c.report.Facts
	for i := range f.Databases {
		d := &f.Databases[i]
		if !d.Connectable {
			if !d.Template {
				skipped = append(skipped, d.Name+" (the role may not connect)")
			}
			continue
		}
		in, err := c.lookInto(ctx, d.Name)
		if err != nil {
			skipped = append(skipped, fmt.Sprintf("%s (%s)", d.Name, diagnose(c.config, err, false).reason))
			continue
		}
		f.Extensions = append(f.Extensions, in.extensions...)
		libraries = append(libraries, in.libraries...)
		c.noteCollations(d.Name, in.collations)
	}
	if len(skipped) > 0 {
		c.skip("databases", "not looked into: "+strings.Join(skipped, ", "))
	}
	if f.Installation.BinDir == "" {
		c.skip("extensions", "no server binaries to compare with")
		return
	}
	slices.Sort(libraries)
	c.checkLibraries(c.machine, slices.Compact(libraries))
	c.checkExtensions(c.machine)
}

// collationsSQL lists the versioned collations that indexes use, apart from the
// database's default.
const (
	extensionsSQL = `SELECT extname, extversion FROM pg_extension ORDER BY 1`
	librariesSQL  = `SELECT DISTINCT p.probin FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
		WHERE l.lanname = 'c' AND p.probin IS NOT NULL AND p.probin <> '' ORDER BY 1`
	collationsSQL = `SELECT c.collname, CASE c.collprovider WHEN 'i' THEN 'icu' WHEN 'c' THEN 'libc' ELSE 'builtin' END, coalesce(c.collversion, ''),
		coalesce(pg_collation_actual_version(c.oid), ''), count(DISTINCT x.indexrelid)
		FROM pg_index x CROSS JOIN LATERAL unnest(x.indcollation) u(oid) JOIN pg_collation c ON c.oid = u.oid
		WHERE c.collprovider = 'i' OR c.collprovider = 'c' AND c.collcollate NOT IN ('C', 'POSIX') AND c.collcollate NOT LIKE 'C.%'
		GROUP BY c.oid, 1, 2, 3 ORDER BY 1`
)

// lookInto reads one database, over the connection at hand when it is that one's.
func (c *checker) lookInto(ctx context.Context, database string) (contents, error) {
	pg := c.pg
	if database != c.config.Database {
		config := c.config.Copy()
		config.Database = database
		var err error
		if pg, err = c.dial(ctx, config); err != nil {
			return contents{}, err
		}
		defer discard(pg)
	}
	return readContents(ctx, pg, database)
}

func readContents(ctx context.Context, pg *pgconn.PgConn, database string) (contents, error) {
	var in contents
	results, err := pipeline(ctx, pg, []string{extensionsSQL, librariesSQL, collationsSQL})
	if err != nil {
		return contents{}, err
	}
	for _, r := range results {
		if r.Err != nil {
			return contents{}, r.Err
		}
	}
	for _, row := range results[0].Rows {
		in.extensions = append(in.extensions, Extension{Database: database, Name: string(row[0]), Version: string(row[1])})
	}
	for _, row := range results[1].Rows {
		in.libraries = append(in.libraries, string(row[0]))
	}
	for _, row := range results[2].Rows {
		v := collation{name: string(row[0]), provider: string(row[1]), recorded: string(row[2]), current: string(row[3])}
		if _, err := fmt.Sscan(string(row[4]), &v.indexes); err != nil {
			return contents{}, fmt.Errorf("read the collations: %w", err)
		}
		in.collations = append(in.collations, v)
	}
	return in, nil
}

// checkLibraries: without a function's library every call of it fails, and an
// index or a constraint that calls it cannot be used.
func (c *checker) checkLibraries(m machine, libraries []string) {
	var missing []string
	for _, l := range libraries {
		if c.libraryFile(m, l) == "" {
			missing = append(missing, l)
		}
	}
	if len(missing) > 0 {
		c.fail("extension_libraries", "missing on this machine: "+strings.Join(missing, ", "), c.installFix(missing))
		return
	}
	c.ok("extension_libraries", "all %d libraries that functions of production use are on this machine", len(libraries))
}

// checkExtensions compares versions by the control files: what a branch has is
// production's version, and CREATE or ALTER EXTENSION in it uses this machine's.
func (c *checker) checkExtensions(m machine) {
	var absent, other, installed []string
	for _, e := range c.report.Facts.Extensions {
		version, ok := controlVersion(m, e.Name)
		what := e.Name + " " + e.Version
		switch {
		case !ok:
			absent = append(absent, e.Name)
		case version != "" && version != e.Version:
			other = append(other, fmt.Sprintf("%s (this machine offers %s)", what, version))
		default:
			installed = append(installed, what)
		}
	}
	for _, list := range []*[]string{&absent, &other, &installed} {
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}
	if len(absent) > 0 {
		c.warn("extensions", "their control files are missing on this machine, so branches cannot create or update them: "+strings.Join(absent, ", "), c.installFix(absent))
	}
	if len(other) > 0 {
		c.warn("extension_versions", "production has other versions: "+strings.Join(other, ", "), "install production's versions on this machine, or ALTER EXTENSION ... UPDATE on production")
	}
	if len(absent)+len(other) == 0 {
		c.ok("extensions", "%s", strings.Join(installed, ", "))
	}
}

// defaultVersion is the line of a control file that says which version CREATE EXTENSION makes.
var defaultVersion = regexp.MustCompile(`(?m)^\s*default_version\s*=\s*'([^']*)'`)

// controlVersion is the default version of an extension on this machine, and
// whether it has a control file.
func controlVersion(m machine, name string) (string, bool) {
	if m.extensions == "" || name != filepath.Base(name) {
		return "", false
	}
	b, err := os.ReadFile(filepath.Join(m.extensions, name+".control"))
	if err != nil {
		return "", false
	}
	found := defaultVersion.FindSubmatch(b)
	if found == nil {
		return "", true
	}
	return string(found[1]), true
}
