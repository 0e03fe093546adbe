package source

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbough/pgbough"
)

// The majors of Postgres that pgbough is made for.
const oldestMajor, newestMajor = 14, 18

func (c *checker) checkServer() {
	f := c.report.Facts
	what := fmt.Sprintf("Postgres %s, system identifier %d", f.Version, f.SystemID)
	switch {
	case f.Major < oldestMajor:
		c.fail("version", what+fmt.Sprintf("; Postgres %d is the oldest that can be followed", oldestMajor), "upgrade production")
	case f.Major > newestMajor:
		c.warn("version", what+fmt.Sprintf("; Postgres %d is the newest that pgbough was tried with", newestMajor), "")
	default:
		c.ok("version", "%s", what)
	}
	if c.facts.standby {
		c.fail("primary", "this server is a standby; only the primary can say what it has acknowledged", "name the primary in the connection string")
		return
	}
	c.ok("primary", "this is the primary, on timeline %d", f.Timeline)
}

// managedService is how a hosted Postgres can be told from one's own.
type managedService struct {
	name     string
	settings []string // or functions, that only the service's own build or library defines
	roles    []string // that it makes; a dump of roles may carry them elsewhere
}

func managedServices() []managedService {
	return []managedService{
		{"Amazon RDS or Aurora", []string{"rds.extensions", "rds.logical_replication", "aurora_version()"}, []string{"rds_superuser", "rdsadmin"}},
		{"Google Cloud SQL", []string{"cloudsql.iam_authentication", "cloudsql.logical_decoding"}, []string{"cloudsqlsuperuser", "cloudsqladmin"}},
		{"Google AlloyDB", []string{"alloydb.iam_authentication", "alloydb.logical_decoding"}, []string{"alloydbsuperuser", "alloydbadmin"}},
		{"Azure Database for PostgreSQL", []string{"azure.extensions", "azure.accepted_password_auth_method"}, []string{"azure_pg_admin", "azuresu"}},
		{"Neon", []string{"neon.timeline_id", "neon.tenant_id"}, []string{"neon_superuser"}},
		{"Supabase", []string{"supautils.privileged_role"}, []string{"supabase_admin"}},
		{"DigitalOcean", nil, []string{"doadmin"}},
		{"Aiven", nil, []string{"avnadmin"}},
	}
}

// checkManaged tells services that let nobody replicate physically. A service's
// own setting or function is proof; a role is only taken for one where no
// replication connection comes about, since dumps carry roles.
func (c *checker) checkManaged(ctx context.Context) {
	evidence, err := c.managedEvidence(ctx)
	if err != nil {
		c.skip("managed_service", "could not be looked at: "+diagnose(c.config, err, false).reason)
		return
	}
	for _, m := range managedServices() {
		found := intersect(m.settings, evidence)
		if roles := intersect(m.roles, evidence); len(found) == 0 && len(roles) > 0 && c.replicate(ctx) != nil {
			found = roles
		}
		if len(found) > 0 {
			c.fail("managed_service",
				fmt.Sprintf("this is %s (it has %s), which lets nobody outside replicate physically: pgbough cannot follow it", m.name, strings.Join(found, ", ")),
				"follow a Postgres of your own: on a virtual machine, on hardware, in Kubernetes, or a host that offers physical replication")
			return
		}
	}
	c.ok("managed_service", "no sign of a managed service that forbids physical replication")
}

// managedEvidence is which of the services' settings, functions and roles are there.
func (c *checker) managedEvidence(ctx context.Context) ([]string, error) {
	var settings, roles []string
	for _, m := range managedServices() {
		settings, roles = append(settings, m.settings...), append(roles, m.roles...)
	}
	return column(ctx, c.pg, `SELECT n FROM unnest($1::text[]) n WHERE current_setting(n, true) IS NOT NULL
		UNION ALL SELECT DISTINCT proname || '()' FROM pg_proc WHERE proname || '()' = ANY ($1::text[])
		UNION ALL SELECT rolname FROM pg_roles WHERE rolname = ANY ($2::text[])`, array(settings), array(roles))
}

func intersect(wanted, there []string) []string {
	var both []string
	for _, w := range wanted {
		if slices.Contains(there, w) {
			both = append(both, w)
		}
	}
	return both
}

// array writes a text[] of plain names.
func array(names []string) string { return "{" + strings.Join(names, ",") + "}" }

func (c *checker) checkRole() {
	user := quoteIdent(c.config.User)
	if c.facts.replication {
		c.ok("replication_role", "role %q may replicate", c.config.User)
	} else {
		c.fail("replication_role", fmt.Sprintf("role %q lacks REPLICATION", c.config.User), fmt.Sprintf("ALTER ROLE %s REPLICATION;", user))
	}
	if c.facts.readSettings {
		c.ok("read_settings", "role %q may read all settings", c.config.User)
	} else {
		c.fail("read_settings",
			fmt.Sprintf("role %q may not read all settings: shared_preload_libraries and others that branches need are hidden", c.config.User),
			fmt.Sprintf("GRANT pg_read_all_settings TO %s;", user))
	}
}

// replicate is openReplication, tried once.
func (c *checker) replicate(ctx context.Context) error {
	if !c.tried {
		c.tried, c.refusal = true, c.openReplication(ctx)
	}
	return c.refusal
}

// openReplication makes a replication connection, asks it who it is, and ends it.
func (c *checker) openReplication(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	config := c.config.Copy()
	config.RuntimeParams = maps.Clone(config.RuntimeParams)
	config.RuntimeParams["replication"] = "true" // physical: in no database
	pg, err := pgconn.ConnectConfig(ctx, config)
	if err != nil {
		return err
	}
	defer discard(pg)
	results, err := pg.Exec(ctx, "IDENTIFY_SYSTEM").ReadAll()
	if err != nil {
		return err
	}
	if len(results) != 1 || len(results[0].Rows) != 1 {
		return errors.New("unexpected answer to IDENTIFY_SYSTEM")
	}
	id, err := strconv.ParseUint(string(results[0].Rows[0][0]), 10, 64)
	if err != nil {
		return fmt.Errorf("read the system identifier: %w", err)
	}
	if id != c.report.Facts.SystemID {
		return ErrOtherSystem
	}
	return nil
}

// checkReplication really opens a replication connection: pg_hba.conf has lines
// of its own for those, and nothing else tells which one matches.
func (c *checker) checkReplication(ctx context.Context) {
	const name = "replication_connection"
	method := "scram-sha-256"
	if c.setting("password_encryption") == "md5" {
		method = "md5"
	}
	line := hbaLine(c.config, c.seenAddress(), true, method)
	if !c.facts.replication {
		c.skip(name, "not tried, since the role lacks REPLICATION; the line of pg_hba.conf that it will need: "+line)
		return
	}
	err := c.replicate(ctx)
	var refused *pgconn.PgError
	switch {
	case err == nil:
		c.ok(name, "a replication connection was made")
	case errors.Is(err, ErrOtherSystem):
		c.fail(name, "replication connections reach another server than ordinary ones", "name one server in the connection string, not a pooler or a balancer")
	case errors.As(err, &refused) && refused.Routine == "ClientAuthentication":
		t := diagnose(c.config, err, true)
		if addr := peerAddress(c.config, refused.Message); addr != "" {
			line = hbaLine(c.config, addr, true, method)
		}
		fix := hbaFix(line)
		if file := c.setting("hba_file"); file != "" {
			fix = strings.Replace(fix, "production's pg_hba.conf", file, 1)
		}
		c.fail(name, t.reason, fix)
	default:
		t := diagnose(c.config, err, true)
		c.fail(name, t.reason, t.fix)
	}
}

// seenAddress is our address for a line of pg_hba.conf.
func (c *checker) seenAddress() string {
	if strings.HasPrefix(c.config.Host, "/") {
		return "local"
	}
	return c.local
}

// checkNames looks for the database and the role that branches shall be reached with.
func (c *checker) checkNames() {
	if c.o.Database != "" {
		found := false
		for _, d := range c.report.Facts.Databases {
			found = found || d.Name == c.o.Database
		}
		if found {
			c.ok("database", "database %q exists", c.o.Database)
		} else {
			c.fail("database", fmt.Sprintf("there is no database %q", c.o.Database), "name one that exists with --database")
		}
	}
	switch {
	case c.facts.role:
		c.ok("role", "role %q exists and may log in", c.facts.roleName)
	case c.o.Role != "":
		c.fail("role", fmt.Sprintf("there is no role %q that may log in", c.o.Role), "name one that exists with --role")
	case c.facts.roleName != "": // without the database there is another finding
		c.fail("role", fmt.Sprintf("branches would be used as %q, which owns the database and may not log in", c.facts.roleName), "name a role that may log in with --role")
	}
}

func (c *checker) checkWAL() {
	if level := c.setting("wal_level"); level == "minimal" {
		c.fail("wal_level", "wal_level is minimal, which holds too little for a standby", "ALTER SYSTEM SET wal_level = 'replica'; -- then restart production")
	} else {
		c.ok("wal_level", "wal_level is %s", level)
	}
	// The base backup and the stream use one each for a while.
	const wanted = 2
	limit, used := c.number("max_wal_senders"), c.facts.walsenders
	if limit-used >= wanted {
		c.ok("walsenders", "%d of %d walsenders are free", limit-used, limit)
	} else {
		c.fail("walsenders",
			fmt.Sprintf("%d of %d walsenders are free; pgbough uses one, and two during the base backup", max(limit-used, 0), limit),
			fmt.Sprintf("ALTER SYSTEM SET max_wal_senders = %d; -- then restart production", used+wanted+2))
	}
	if c.setting("full_page_writes") == "off" {
		c.warn("full_page_writes", "full_page_writes is off: safe only where production's storage never tears a page", "ALTER SYSTEM SET full_page_writes = on; SELECT pg_reload_conf();")
	} else {
		c.ok("full_page_writes", "full_page_writes is on")
	}
}

func (c *checker) checkSync() {
	const name = "synchronous_standby_names"
	value := c.setting(name)
	names, err := parseSyncNames(value)
	switch {
	case err != nil:
		c.warn(name, err.Error(), "")
	case names.matches(ApplicationName):
		var others []string
		for _, s := range c.facts.standbys {
			if !strings.EqualFold(s, ApplicationName) {
				others = append(others, s)
			}
		}
		c.fail(name,
			fmt.Sprintf("%q would make our follower a synchronous standby, for which production's commits wait", value),
			fmt.Sprintf("ALTER SYSTEM SET synchronous_standby_names = %s; SELECT pg_reload_conf();", quoteLiteral(names.without(ApplicationName, others))))
	case value == "":
		c.ok(name, "no synchronous standbys")
	default:
		c.ok(name, "%q does not match %q", value, ApplicationName)
	}
}

func (c *checker) checkTablespaces() {
	if list := c.facts.tablespaces; len(list) > 0 {
		c.fail("tablespaces",
			"pgbough cannot branch tablespaces other than the default yet; there are: "+strings.Join(list, ", "),
			"move what is in them (ALTER TABLE ALL IN TABLESPACE ... SET TABLESPACE pg_default; in each database), then DROP TABLESPACE")
		return
	}
	c.ok("tablespaces", "only the default ones")
}

// checkPool compares the pool with what attach brings into it: the data, which
// grows a little meanwhile, the WAL that a follower keeps, and the first spare.
func (c *checker) checkPool() {
	const name = "pool_space"
	f := c.report.Facts
	var unmeasured []string
	for _, d := range f.Databases {
		if d.Bytes < 0 {
			unmeasured = append(unmeasured, d.Name)
		}
	}
	need := f.DataBytes + f.DataBytes/10 + c.bytes("max_wal_size")
	if c.o.PoolCopies {
		need *= 2
	}
	need += c.o.Spare
	detail := fmt.Sprintf("%s of data need about %s of pool", sizeText(f.DataBytes), sizeText(need))
	switch {
	case c.o.PoolFree == nil:
		c.skip(name, detail+"; no pool to compare with")
	case need > *c.o.PoolFree:
		c.fail(name, fmt.Sprintf("%s, of which %s are free", detail, sizeText(*c.o.PoolFree)), fmt.Sprintf("start the server with a pool that has at least %s more: --pool-size, or --pool KIND:PATH on a larger file system", sizeText(need-*c.o.PoolFree)))
	case len(unmeasured) > 0:
		c.warn(name, detail+"; not counted, since the role may not measure them: "+strings.Join(unmeasured, ", "),
			fmt.Sprintf("GRANT pg_read_all_stats TO %s;", quoteIdent(c.config.User)))
	default:
		c.ok(name, "%s; %s are free", detail, sizeText(*c.o.PoolFree))
	}
}

// checkNotes are what a person may want to know, and what nothing depends on.
func (c *checker) checkNotes() {
	f := c.report.Facts
	if f.DataChecksums {
		c.ok("data_checksums", "data checksums are on")
	} else {
		c.ok("data_checksums", "data checksums are off; the base backup is checked against its manifest only")
	}
	c.ok("wal_segment_size", "%s", sizeText(f.WALSegmentSize))
	var values []string
	for _, name := range []string{"max_connections", "max_worker_processes", "max_wal_senders", "max_prepared_transactions", "max_locks_per_transaction"} {
		values = append(values, name+"="+c.setting(name))
	}
	c.ok("recovery_settings", "the follower will start with %s", strings.Join(values, " "))
	if c.number("max_prepared_transactions") > 0 {
		c.add(pgbough.FindingOK, "prepared_transactions", "prepared transactions are rolled back in branches", "")
	}
}
