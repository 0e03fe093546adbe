package source

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbough/pgbough/internal/postgres"
)

// serverFacts are what the checks look at; Facts has what the caller may want.
type serverFacts struct {
	standby      bool
	superuser    bool
	replication  bool
	readSettings bool
	walsenders   int      // in use
	standbys     []string // application names of connected standbys
	slots        int      // in use
	tablespaces  []string // "name (path)"
	roleName     string   // CheckOptions.Role, or the owner of the database that branches are used with
	role         bool     // it exists and may log in
}

const serverSQL = `SELECT current_setting('server_version_num'), pg_is_in_recovery(),
	(SELECT system_identifier FROM pg_control_system()),
	CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_walfile_name(pg_current_wal_flush_lsn()) END,
	r.rolsuper, r.rolreplication OR r.rolsuper, pg_has_role(current_user, 'pg_read_all_settings', 'USAGE'),
	(SELECT rolname FROM pg_roles WHERE oid = 10),
	(SELECT count(*) FROM pg_stat_replication),
	(SELECT count(*) FROM pg_replication_slots),
	EXISTS (SELECT 1 FROM pg_roles WHERE rolname = w.role AND rolcanlogin), coalesce(w.role, ''),
	coalesce(inet_client_addr()::text, ''), current_setting('server_version')
FROM pg_roles r, (SELECT coalesce(nullif($1, ''), (SELECT pg_get_userbyid(datdba) FROM pg_database
	WHERE datname = coalesce(nullif($2, ''), current_database())))::text AS role) w
WHERE r.rolname = current_user`

// learn reads everything that is the same from every database.
func (c *checker) learn(ctx context.Context) error {
	rows, err := query(ctx, c.pg, serverSQL, c.o.Role, c.o.Database)
	if err != nil {
		return fmt.Errorf("look at the server: %w", err)
	}
	if len(rows) != 1 {
		return errors.New("look at the server: unexpected answer")
	}
	if err := c.readServer(rows[0]); err != nil {
		return fmt.Errorf("look at the server: %w", err)
	}
	if err := c.learnSettings(ctx); err != nil {
		return err
	}
	if c.facts.standbys, err = column(ctx, c.pg, `SELECT DISTINCT application_name FROM pg_stat_replication WHERE application_name <> '' AND state <> 'backup' ORDER BY 1`); err != nil {
		return fmt.Errorf("look at the standbys: %w", err)
	}
	if c.facts.tablespaces, err = column(ctx, c.pg, `SELECT spcname || ' (' || pg_tablespace_location(oid) || ')' FROM pg_tablespace WHERE spcname NOT IN ('pg_default', 'pg_global') ORDER BY 1`); err != nil {
		return fmt.Errorf("look at the tablespaces: %w", err)
	}
	return c.learnDatabases(ctx)
}

func (c *checker) readServer(row [][]byte) error {
	f, s := &c.report.Facts, &c.facts
	number, errNumber := strconv.Atoi(string(row[0]))
	id, errID := systemID(string(row[2]))
	walsenders, errSenders := strconv.Atoi(string(row[8]))
	slots, errSlots := strconv.Atoi(string(row[9]))
	if err := errors.Join(errNumber, errID, errSenders, errSlots); err != nil {
		return err
	}
	f.Major, f.Minor = number/10000, number%10000
	f.Version = fmt.Sprintf("%d.%d", f.Major, f.Minor)
	f.SystemID, f.BootstrapSuperuser = id, string(row[7])
	s.standby, s.superuser, s.replication, s.readSettings = is(row[1]), is(row[4]), is(row[5]), is(row[6])
	s.walsenders, s.slots, s.role = walsenders, slots, is(row[10])
	s.roleName = string(row[11])
	if addr, _, _ := strings.Cut(string(row[12]), "/"); addr != "" {
		c.local = addr // as production sees it, after any address translation
	}
	if row[3] != nil {
		timeline, err := walFileTimeline(string(row[3]))
		if err != nil {
			return err
		}
		f.Timeline = timeline
	}
	return nil
}

func (c *checker) learnSettings(ctx context.Context) error {
	r := c.pg.ExecParams(ctx, settingsSQL, nil, nil, nil, nil).Read()
	settings, err := readSettings(ctx, c.pg, r)
	if err != nil {
		return err
	}
	c.set = make(map[string]postgres.Setting, len(settings))
	for _, v := range settings {
		c.set[v.Name] = v
	}
	f := &c.report.Facts
	f.Settings = settings
	f.DataChecksums = c.setting("data_checksums") == "on"
	f.SynchronousStandbys = c.setting("synchronous_standby_names")
	f.WALSegmentSize = c.bytes("wal_segment_size")
	return nil
}

// databasesSQL reads through to_jsonb because columns came with versions:
// datlocprovider and datcollversion in 15, and daticulocale there became datlocale in 17.
const databasesSQL = `SELECT d.datname, coalesce((SELECT rolname FROM pg_roles r WHERE r.oid = d.datdba), ''), pg_encoding_to_char(d.encoding),
	d.datcollate, d.datctype, coalesce(to_jsonb(d) ->> 'datlocprovider', 'c'),
	coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale', ''), coalesce(to_jsonb(d) ->> 'datcollversion', ''),
	d.datallowconn AND has_database_privilege(d.oid, 'CONNECT'), d.datistemplate,
	CASE WHEN has_database_privilege(d.oid, 'CONNECT') OR pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') THEN pg_database_size(d.oid) ELSE -1 END,
	%s
FROM pg_database d ORDER BY d.datistemplate, d.datname`

func (c *checker) learnDatabases(ctx context.Context) error {
	actual := `''`
	if c.report.Facts.Major >= 15 {
		actual = `coalesce(pg_database_collation_actual_version(d.oid), '')`
	}
	rows, err := query(ctx, c.pg, fmt.Sprintf(databasesSQL, actual))
	if err != nil {
		return fmt.Errorf("list the databases: %w", err)
	}
	providers := map[string]string{"c": "libc", "i": "icu", "b": "builtin"}
	f := &c.report.Facts
	for _, row := range rows {
		size, err := strconv.ParseInt(string(row[10]), 10, 64)
		if err != nil {
			return fmt.Errorf("list the databases: %w", err)
		}
		f.Databases = append(f.Databases, Database{
			Name: string(row[0]), Owner: string(row[1]), Encoding: string(row[2]), Collate: string(row[3]), CType: string(row[4]),
			Provider: providers[string(row[5])], Locale: string(row[6]), CollVersion: string(row[7]), ActualVersion: string(row[11]),
			Connectable: is(row[8]), Template: is(row[9]), Bytes: size,
		})
		f.DataBytes += max(size, 0)
		if string(row[0]) == c.config.Database {
			f.Encoding = string(row[2])
		}
	}
	return nil
}

// bytes is a setting that is a size, in bytes; 0 when it is hidden or none.
func (c *checker) bytes(name string) int64 {
	v := c.set[name]
	n, err := strconv.ParseInt(v.Value, 10, 64)
	if err != nil {
		return 0
	}
	if n < 0 {
		return n
	}
	units := map[string]int64{"": 1, "B": 1, "kB": 1 << 10, "8kB": 8 << 10, "16kB": 16 << 10, "MB": 1 << 20, "16MB": 16 << 20, "GB": 1 << 30}
	return n * units[v.Unit]
}

// number is a setting that counts something; 0 when it is hidden.
func (c *checker) number(name string) int {
	n, err := strconv.Atoi(c.setting(name))
	if err != nil {
		return 0
	}
	return n
}

func is(b []byte) bool { return string(b) == "t" }

// column is the first column of a query, as text.
func column(ctx context.Context, pg *pgconn.PgConn, sql string, args ...string) ([]string, error) {
	rows, err := query(ctx, pg, sql, args...)
	if err != nil {
		return nil, err
	}
	values := make([]string, 0, len(rows))
	for _, row := range rows {
		values = append(values, string(row[0]))
	}
	return values, nil
}

// sizeText is a number of bytes for people.
func sizeText(n int64) string {
	units := []string{"B", "kB", "MB", "GB", "TB", "PB"}
	v, u := float64(n), 0
	for v >= 1024 && u < len(units)-1 {
		v, u = v/1024, u+1
	}
	if u == 0 || v >= 100 {
		return fmt.Sprintf("%.0f %s", v, units[u])
	}
	return fmt.Sprintf("%.1f %s", v, units[u])
}

// splitList reads a list of names in a setting: separated by commas, each perhaps
// in double quotes (Postgres: varlena.c, SplitDirectoriesString).
func splitList(value string) []string {
	var names []string
	for rest := strings.TrimSpace(value); rest != ""; {
		var name string
		if rest[0] == '"' {
			n := 0
			if name, n = scanQuoted(rest); n == 0 {
				return names // Postgres would not have started with it
			}
			_, rest, _ = strings.Cut(rest[n:], ",")
		} else {
			name, rest, _ = strings.Cut(rest, ",")
		}
		if name = strings.TrimSpace(name); name != "" && !slices.Contains(names, name) {
			names = append(names, name)
		}
		rest = strings.TrimSpace(rest)
	}
	return names
}
