package quarantine

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgbough/pgbough"
)

// maxListed is how many objects of one kind and database are listed; more are counted.
const maxListed = 50

// contents is what one database has that concerns quarantine.
type contents struct {
	Wrappers []foreignObject `json:"wrappers"`
	Servers  []foreignObject `json:"servers"`
	Mappings []foreignObject `json:"mappings"`
	Tables   []foreignObject `json:"tables"`
	// Written are the catalogs with credentials of this database that have any
	// page on disk: old versions of rows may be there although none lives.
	Written    []string       `json:"written"`
	Analyzed   bool           `json:"analyzed"` // pg_statistic knows a catalog with credentials
	Sampled    bool           `json:"sampled"`  // and holds values of one that are or may be credentials
	Subscribed map[string]int `json:"subscribed"`
	Policies   []string       `json:"policies"` // tables of jobTables and secretTables that exist
	Unlogged   struct {
		Count int      `json:"count"`
		Names []string `json:"names"`
	} `json:"unlogged"`
	Sequences int `json:"sequences"`
}

const contentsSQL = `
WITH wrapper AS (
  SELECT f.oid, f.fdwname, f.fdwoptions,
    coalesce(h.probin, v.probin, '') ~ '(postgres_fdw|dblink)(\.so)?$' OR coalesce(v.proname = 'postgresql_fdw_validator', false) AS libpq
  FROM pg_foreign_data_wrapper f LEFT JOIN pg_proc h ON h.oid = f.fdwhandler LEFT JOIN pg_proc v ON v.oid = f.fdwvalidator
), relation AS (
  SELECT c.relname, c.relnamespace, c.relkind, c.relpersistence FROM pg_class c WHERE c.relkind = 'S' OR c.relpersistence = 'u' AND c.relkind = 'r'
)
SELECT json_build_object(
  'wrappers', (SELECT json_agg(json_build_object('oid', oid::text, 'name', fdwname, 'options', fdwoptions)) FROM wrapper WHERE fdwoptions IS NOT NULL),
  'servers', (SELECT json_agg(json_build_object('oid', s.oid::text, 'name', s.srvname, 'wrapper', w.fdwname, 'libpq', w.libpq, 'options', s.srvoptions))
     FROM pg_foreign_server s JOIN wrapper w ON w.oid = s.srvfdw WHERE s.srvoptions IS NOT NULL),
  'mappings', (SELECT json_agg(json_build_object('oid', u.oid::text, 'name', s.srvname, 'wrapper', w.fdwname, 'libpq', w.libpq, 'options', u.umoptions,
       'owner', CASE u.umuser WHEN 0 THEN 'public' ELSE pg_get_userbyid(u.umuser) END))
     FROM pg_user_mapping u JOIN pg_foreign_server s ON s.oid = u.umserver JOIN wrapper w ON w.oid = s.srvfdw WHERE u.umoptions IS NOT NULL),
  'tables', (SELECT json_agg(json_build_object('oid', t.ftrelid::text, 'name', t.ftrelid::regclass::text, 'options', t.ftoptions))
     FROM pg_foreign_table t WHERE t.ftoptions::text ~* 'pass|secret|token|credential|conn|dsn|key'),
  'written', (SELECT json_agg(c::regclass::text) FROM unnest('{1417,1418}'::oid[]) c WHERE pg_relation_size(c::regclass) > 0),
  'analyzed', EXISTS (SELECT FROM pg_statistic WHERE starelid = ANY (ARRAY(SELECT to_regclass(t)::oid FROM unnest($3::text[]) t))),
  'sampled', EXISTS (SELECT FROM pg_statistic s JOIN pg_attribute a ON a.attrelid = s.starelid AND a.attnum = s.staattnum
     JOIN unnest($3::text[], $4::text[]) p(t, c) ON a.attrelid = to_regclass(p.t) AND a.attname = p.c
     WHERE num_nonnulls(s.stavalues1, s.stavalues2, s.stavalues3, s.stavalues4, s.stavalues5) > 0),
  'subscribed', (SELECT json_object_agg(srsubid, n) FROM (SELECT srsubid::text, count(*) n FROM pg_subscription_rel GROUP BY 1) r),
  'policies', (SELECT json_agg(t) FROM unnest($1::text[], $2::text[]) p(t, c)
     WHERE EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass(t) AND attname = c AND NOT attisdropped)),
  'unlogged', json_build_object('count', (SELECT count(*) FROM relation WHERE relpersistence = 'u' AND relkind = 'r'), 'names',
     (SELECT json_agg(name) FROM (SELECT n.nspname || '.' || r.relname AS name FROM relation r JOIN pg_namespace n ON n.oid = r.relnamespace
        WHERE relpersistence = 'u' AND relkind = 'r' ORDER BY 1 LIMIT 50) u)),
  'sequences', (SELECT count(*) FROM relation WHERE relkind = 'S')
)::text`

// forgetSecretsSQL takes what ANALYZE copied of credentials out of pg_statistic.
const forgetSecretsSQL = `DELETE FROM pg_statistic s USING unnest($1::text[], $2::text[]) p(t, c), pg_attribute a
	WHERE s.starelid = to_regclass(p.t) AND a.attrelid = s.starelid AND a.attname = p.c AND s.staattnum = a.attnum`

func (s *session) contents(ctx context.Context) (contents, error) {
	var text string
	var c contents
	pt, pc := policyColumns()
	at, ac := analyzedColumns()
	if err := s.conn.QueryRow(ctx, s.statement(lookAtDatabase, contentsSQL), pt, pc, at, ac).Scan(&text); err != nil {
		return c, fmt.Errorf("look for what to cut in database %q: %w", s.database, err)
	}
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return c, fmt.Errorf("read what is to be cut in database %q: %w", s.database, err)
	}
	return c, nil
}

// rewrite lists what must be rewritten in this database. It depends only on
// what cutting leaves as it was, so that a second run finds the same.
func (c contents) rewrite() []string {
	tables := slices.Clone(c.Written)
	if len(c.Wrappers) > 0 {
		tables = append(tables, "pg_foreign_data_wrapper")
	}
	if len(c.Tables) > 0 {
		tables = append(tables, "pg_foreign_table")
	}
	for _, t := range secretTables {
		if slices.Contains(c.Policies, t.table) {
			tables = append(tables, t.table)
		}
	}
	return tables
}

// rollBack ends the prepared transactions of this database. They come first:
// they hold locks, and the old versions of rows that others change.
func (s *session) rollBack(ctx context.Context, prepared []preparedTx) ([]pgbough.Difference, error) {
	var out []pgbough.Difference
	for _, p := range prepared {
		if _, err := s.conn.Exec(ctx, "ROLLBACK PREPARED '"+strings.ReplaceAll(p.GID, "'", "''")+"'"); err != nil {
			return out, fmt.Errorf("roll back the prepared transaction %q in database %q: %w", p.GID, s.database, err)
		}
		out = append(out, pgbough.Difference{
			Kind: "prepared_transaction", Object: p.GID, DB: s.database, Action: "rolled back",
			Reason: "its coordinator decides about production's, and it would keep its locks for ever", Detail: "of role " + p.Owner,
		})
	}
	return out, nil
}

// cutDatabase cuts what stands in the catalogs and tables of one database.
func (s *session) cutDatabase(ctx context.Context, c contents) ([]pgbough.Difference, error) {
	var b pgx.Batch
	diffs := s.cutForeign(&b, c)
	if len(c.Subscribed) > 0 {
		b.Queue("DELETE FROM pg_subscription_rel")
	}
	if c.Sampled {
		tables, columns := analyzedColumns()
		b.Queue(s.statement(forgetSecrets, forgetSecretsSQL), tables, columns)
	}
	if err := s.batch(ctx, &b); err != nil {
		return nil, fmt.Errorf("cut off the foreign servers of database %q: %w", s.database, err)
	}
	more, err := s.cutTables(ctx, c.Policies)
	if err != nil {
		return nil, err
	}
	return append(append(diffs, more...), c.emptied(s.database)...), nil
}

// nothingToCut tells that nothing in this database has to be changed.
func (c contents) nothingToCut() bool {
	return len(c.Wrappers)+len(c.Servers)+len(c.Mappings)+len(c.Tables)+len(c.Subscribed)+len(c.Policies) == 0 && !c.Sampled
}

// emptied are the tables of this database that have lost their rows.
func (c contents) emptied(database string) []pgbough.Difference {
	var diffs []pgbough.Difference
	for _, name := range c.Unlogged.Names {
		diffs = append(diffs, pgbough.Difference{
			Kind: "unlogged_table", Object: name, DB: database, Action: "emptied",
			Reason: "its rows are not in production's WAL, so no copy of production has them",
		})
	}
	if more := c.Unlogged.Count - len(c.Unlogged.Names); more > 0 {
		diffs = append(diffs, moreOf("unlogged_table", database, "emptied", more))
	}
	return diffs
}

func (s *session) cutForeign(b *pgx.Batch, c contents) []pgbough.Difference {
	var diffs []pgbough.Difference
	change := func(table, column, key string, o foreignObject, options []string, d pgbough.Difference) {
		switch changed := !slices.Equal(o.Options, options); {
		case changed:
			b.Queue("UPDATE "+table+" SET "+column+" = $2::text[] WHERE "+key+" = $1::text::oid", o.OID, options)
		case !isCut(options):
			return
		}
		d.DB = s.database // also when an interrupted run has cut it
		diffs = append(diffs, d)
	}
	for _, o := range c.Wrappers {
		change("pg_foreign_data_wrapper", "fdwoptions", "oid", o, cutSecrets(o), pgbough.Difference{
			Kind: "foreign_data_wrapper", Object: o.Name, Action: "credentials removed", Reason: "a branch reaches no other server",
		})
	}
	for _, o := range c.Servers {
		change("pg_foreign_server", "srvoptions", "oid", o, cutServer(o), pgbough.Difference{
			Kind: "foreign_server", Object: o.Name, Action: "cut off", Reason: "a branch reaches no other server", Detail: address(o),
		})
	}
	for _, o := range c.Mappings {
		change("pg_user_mapping", "umoptions", "oid", o, cutMapping(o), pgbough.Difference{
			Kind: "user_mapping", Object: o.Owner + "@" + o.Name, Action: "credentials removed", Reason: "a branch holds no credential of another server", Detail: address(o),
		})
	}
	for _, o := range c.Tables {
		change("pg_foreign_table", "ftoptions", "ftrelid", o, cutSecrets(o), pgbough.Difference{
			Kind: "foreign_table", Object: o.Name, Action: "credentials removed", Reason: "a branch holds no credential of another server",
		})
	}
	return capped(diffs)
}

// cutTables applies the policies to tables of extensions that exist.
func (s *session) cutTables(ctx context.Context, exist []string) ([]pgbough.Difference, error) {
	has := map[string]bool{}
	for _, t := range exist {
		has[t] = true
	}
	var diffs []pgbough.Difference
	for _, t := range secretTables {
		if !has[t.table] {
			continue
		}
		ids, err := s.changed(ctx, fmt.Sprintf("UPDATE %s SET %s = '' WHERE %s <> '' RETURNING (%s)::text", t.table, t.column, t.column, t.id))
		if err != nil {
			return nil, fmt.Errorf("take the credentials out of %s in database %q: %w", t.table, s.database, err)
		}
		for _, id := range ids {
			diffs = append(diffs, pgbough.Difference{
				Kind: "credential", Object: t.table + ": " + id, DB: s.database, Action: "credentials removed", Reason: "a branch holds no credential of another server",
			})
		}
	}
	for _, j := range jobTables {
		if !has[j.table] {
			continue
		}
		ids, err := s.changed(ctx, fmt.Sprintf("UPDATE %s SET %s WHERE %s RETURNING (%s)::text", j.table, j.set, j.where, j.id))
		if err != nil {
			// Its library is not loaded (see Preload): this was the second lock of two.
			diffs = append(diffs, pgbough.Difference{
				Kind: "scheduled_job", Object: j.table, DB: s.database, Action: "not loaded",
				Reason: j.reason + "; its rows could not be changed, and nothing here runs them", Detail: err.Error(),
			})
			continue
		}
		for _, id := range ids {
			diffs = append(diffs, pgbough.Difference{Kind: "scheduled_job", Object: j.table + ": " + id, DB: s.database, Action: "disabled", Reason: j.reason})
		}
	}
	return capped(diffs), nil
}

func (s *session) changed(ctx context.Context, sql string) ([]string, error) {
	rows, err := s.conn.Query(ctx, sql)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// capped shortens long lists of one kind to maxListed and a count.
func capped(diffs []pgbough.Difference) []pgbough.Difference {
	seen, kinds := map[string]int{}, map[string]pgbough.Difference{}
	var order []string
	out := diffs[:0]
	for _, d := range diffs {
		if seen[d.Kind]++; seen[d.Kind] <= maxListed {
			out = append(out, d)
		} else if _, ok := kinds[d.Kind]; !ok {
			kinds[d.Kind] = d
			order = append(order, d.Kind)
		}
	}
	for _, kind := range order {
		out = append(out, moreOf(kind, kinds[kind].DB, kinds[kind].Action, seen[kind]-maxListed))
	}
	return out
}

func moreOf(kind, db, action string, n int) pgbough.Difference {
	return pgbough.Difference{Kind: kind, Object: fmt.Sprintf("and %d more", n), DB: db, Action: action, Reason: "as above"}
}
