package schema

import "strings"

// queries answer rows of: class, oid and sub of the object's address,
// kind, name, what it is called in COMMENT ON, class and oid of what it belongs to,
// its SQL, a stub, and what of pg_class it needs. What initdb made has an oid below
// 16384, since Postgres keeps those for itself (access/transam.h).

// secret are the names of options and settings that may hold a credential: those
// that package postgres takes for such. Their values are not shown.
const secret = `pass|secret|token|credential|conninfo|connection_(string|options)|dsn|_key$|api_?key|getkey`

// options writes generic options.
const options = `(SELECT string_agg(quote_ident(option_name) || ' ' || quote_literal(
	CASE WHEN option_name ~* '` + secret + `' THEN '********' ELSE option_value END), ', ' ORDER BY option_name) FROM pg_options_to_table(%s))`

func optionsOf(column string) string { return strings.ReplaceAll(options, "%s", column) }

// forMajor fills in what differs between major versions.
func forMajor(sql string, major int) string {
	since := func(first int, then, otherwise string) string {
		if major >= first {
			return then
		}
		return otherwise
	}
	iculocale := since(17, "c.colllocale", since(15, "c.colliculocale", "NULL"))
	return strings.NewReplacer(
		"{iculocale}", iculocale,
		"{icurules}", since(16, "c.collicurules", "NULL::text"),
		"{prqual}", since(15, "pg_get_expr(pr.prqual, pr.prrelid)", "NULL::text"),
		"{prattrs}", since(15, "pr.prattrs::int2[]", "NULL::int2[]"),
		"{pubschemas}", since(15, `(SELECT array_agg('TABLES IN SCHEMA ' || quote_ident(sn.nspname) ORDER BY sn.nspname)
			FROM pg_publication_namespace pn JOIN pg_namespace sn ON sn.oid = pn.pnnspid WHERE pn.pnpubid = p.oid)`, "NULL::text[]"),
		"{pubgencols}", since(18, `CASE p.pubgencols WHEN 's' THEN ', publish_generated_columns = stored' ELSE '' END`, "''"),
		"{servers}", optionsOf("s.srvoptions"),
		"{wrappers}", optionsOf("w.fdwoptions"),
		"{foreigns}", optionsOf("ft.ftoptions"),
		"{columns}", optionsOf("a.attfdwoptions"),
		"{joinnotnull}", since(18, joinNotNull, ""),
		"{notnull}", since(18, notNull, notNullBefore),
		"{latenotnull}", since(18, lateNotNull, "''"),
	).Replace(sql)
}

var queries = []string{
	`SELECT 'pg_namespace'::regclass::oid, n.oid, 0, 'schema', quote_ident(n.nspname), 'SCHEMA ' || quote_ident(n.nspname), 0::oid, 0::oid,
		'CREATE SCHEMA ' || CASE n.nspname WHEN 'public' THEN 'IF NOT EXISTS ' ELSE '' END || quote_ident(n.nspname) || E';\n', '', '{}'::oid[]
		FROM pg_namespace n WHERE n.nspname = 'public' OR n.oid >= 16384 AND n.nspname !~ '^pg_(temp|toast)'`,
	`SELECT 'pg_extension'::regclass::oid, e.oid, 0, 'extension', quote_ident(e.extname), 'EXTENSION ' || quote_ident(e.extname), 0::oid, 0::oid,
		format(E'CREATE EXTENSION IF NOT EXISTS %I WITH SCHEMA %I VERSION %L;\n', e.extname, n.nspname, e.extversion), '', '{}'::oid[]
		FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace`,
	`SELECT 'pg_foreign_data_wrapper'::regclass::oid, w.oid, 0, 'foreign data wrapper', quote_ident(w.fdwname), 'FOREIGN DATA WRAPPER ' || quote_ident(w.fdwname), 0::oid, 0::oid,
		'CREATE FOREIGN DATA WRAPPER ' || quote_ident(w.fdwname)
		|| CASE WHEN w.fdwhandler <> 0 THEN ' HANDLER ' || w.fdwhandler::regproc ELSE '' END
		|| CASE WHEN w.fdwvalidator <> 0 THEN ' VALIDATOR ' || w.fdwvalidator::regproc ELSE '' END
		|| coalesce(' OPTIONS (' || {wrappers} || ')', '') || E';\n', '', '{}'::oid[]
		FROM pg_foreign_data_wrapper w WHERE w.oid >= 16384`,
	`SELECT 'pg_foreign_server'::regclass::oid, s.oid, 0, 'server', quote_ident(s.srvname), 'SERVER ' || quote_ident(s.srvname), 0::oid, 0::oid,
		'CREATE SERVER ' || quote_ident(s.srvname) || coalesce(' TYPE ' || quote_literal(s.srvtype), '') || coalesce(' VERSION ' || quote_literal(s.srvversion), '')
		|| ' FOREIGN DATA WRAPPER ' || quote_ident(w.fdwname) || coalesce(' OPTIONS (' || {servers} || ')', '') || E';\n', '', '{}'::oid[]
		FROM pg_foreign_server s JOIN pg_foreign_data_wrapper w ON w.oid = s.srvfdw WHERE s.oid >= 16384`,
	`SELECT 'pg_user_mapping'::regclass::oid, u.umid, 0, 'user mapping', format('%s on %I', r.who, u.srvname), '', 'pg_foreign_server'::regclass::oid, u.srvid,
		format(E'CREATE USER MAPPING FOR %s SERVER %I;\n', r.who, u.srvname), '', '{}'::oid[]
		FROM pg_user_mappings u, LATERAL (SELECT CASE u.umuser WHEN 0 THEN 'PUBLIC' ELSE quote_ident(u.usename) END AS who) r WHERE u.umid >= 16384`,
	`SELECT 'pg_collation'::regclass::oid, c.oid, 0, 'collation', format('%I.%I', n.nspname, c.collname), format('COLLATION %I.%I', n.nspname, c.collname), 0::oid, 0::oid,
		format('CREATE COLLATION %I.%I (', n.nspname, c.collname) || concat_ws(', ',
			'provider = ' || CASE c.collprovider WHEN 'i' THEN 'icu' WHEN 'b' THEN 'builtin' ELSE 'libc' END,
			'locale = ' || quote_literal(coalesce({iculocale}, CASE c.collprovider WHEN 'i' THEN c.collcollate END)),
			CASE c.collprovider WHEN 'c' THEN 'lc_collate = ' || quote_literal(c.collcollate) END,
			CASE c.collprovider WHEN 'c' THEN 'lc_ctype = ' || quote_literal(c.collctype) END,
			CASE WHEN NOT c.collisdeterministic THEN 'deterministic = false' END,
			'rules = ' || quote_literal({icurules})) || E');\n', '', '{}'::oid[]
		FROM pg_collation c JOIN pg_namespace n ON n.oid = c.collnamespace WHERE c.oid >= 16384`,
	typeQuery, domainConstraintQuery,
	textSearchQuery,
	functionQuery, aggregateQuery, operatorQuery, castQuery,
	sequenceQuery, sequenceOwnerQuery, viewQuery, viewDefaultQuery,
	constraintQuery, replicaIdentityQuery, indexQuery, indexAttachmentQuery,
	ruleQuery, triggerQuery, partitionTriggerQuery, rowSecurityQuery, policyQuery,
	statisticsQuery, publicationQuery, eventTriggerQuery, settingQuery,
}

const typeQuery = `
SELECT 'pg_type'::regclass::oid, t.oid, 0, CASE t.typtype WHEN 'd' THEN 'domain' ELSE 'type' END, q.name,
	CASE t.typtype WHEN 'd' THEN 'DOMAIN ' ELSE 'TYPE ' END || q.name, 0::oid, 0::oid, CASE t.typtype
	WHEN 'e' THEN 'CREATE TYPE ' || q.name || ' AS ENUM (' || coalesce((
		SELECT string_agg(E'\n    ' || quote_literal(e.enumlabel), ',' ORDER BY e.enumsortorder) FROM pg_enum e WHERE e.enumtypid = t.oid), '') || E'\n);\n'
	WHEN 'c' THEN 'CREATE TYPE ' || q.name || ' AS (' || coalesce((
		SELECT string_agg(E'\n    ' || quote_ident(a.attname) || ' ' || format_type(a.atttypid, a.atttypmod) || CASE
			WHEN a.attcollation <> 0 AND a.attcollation <> at.typcollation THEN format(' COLLATE %I.%I', cn.nspname, co.collname) ELSE '' END, ',' ORDER BY a.attnum)
		FROM pg_attribute a JOIN pg_type at ON at.oid = a.atttypid
		LEFT JOIN pg_collation co ON co.oid = a.attcollation LEFT JOIN pg_namespace cn ON cn.oid = co.collnamespace
		WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped), '') || E'\n);\n'
	WHEN 'r' THEN 'CREATE TYPE ' || q.name || ' AS RANGE (SUBTYPE = ' || format_type(r.rngsubtype, NULL)
		|| CASE WHEN oc.opcdefault THEN '' ELSE format(', SUBTYPE_OPCLASS = %I.%I', ocn.nspname, oc.opcname) END
		|| CASE WHEN r.rngcollation <> 0 AND r.rngcollation <> sub.typcollation THEN format(', COLLATION = %I.%I', rcn.nspname, rc.collname) ELSE '' END
		|| CASE WHEN r.rngcanonical::oid <> 0 THEN ', CANONICAL = ' || r.rngcanonical ELSE '' END
		|| CASE WHEN r.rngsubdiff::oid <> 0 THEN ', SUBTYPE_DIFF = ' || r.rngsubdiff ELSE '' END
		|| ', MULTIRANGE_TYPE_NAME = ' || format_type(r.rngmultitypid, NULL) || E');\n'
	ELSE 'CREATE DOMAIN ' || q.name || ' AS ' || format_type(t.typbasetype, t.typtypmod)
		|| CASE WHEN t.typcollation <> 0 AND t.typcollation <> base.typcollation THEN format(' COLLATE %I.%I', dcn.nspname, dc.collname) ELSE '' END
		|| coalesce(' DEFAULT ' || pg_get_expr(t.typdefaultbin, 0), '') || CASE WHEN t.typnotnull THEN ' NOT NULL' ELSE '' END || E';\n'
	END, '', '{}'::oid[]
FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
CROSS JOIN LATERAL (SELECT format('%I.%I', n.nspname, t.typname) AS name) q
LEFT JOIN pg_class rel ON rel.oid = t.typrelid
LEFT JOIN pg_range r ON r.rngtypid = t.oid LEFT JOIN pg_type sub ON sub.oid = r.rngsubtype
LEFT JOIN pg_opclass oc ON oc.oid = r.rngsubopc LEFT JOIN pg_namespace ocn ON ocn.oid = oc.opcnamespace
LEFT JOIN pg_collation rc ON rc.oid = r.rngcollation LEFT JOIN pg_namespace rcn ON rcn.oid = rc.collnamespace
LEFT JOIN pg_type base ON base.oid = t.typbasetype
LEFT JOIN pg_collation dc ON dc.oid = t.typcollation LEFT JOIN pg_namespace dcn ON dcn.oid = dc.collnamespace
WHERE t.oid >= 16384 AND n.nspname !~ '^pg_temp' AND (t.typtype IN ('e', 'd', 'r') OR t.typtype = 'c' AND rel.relkind = 'c')`

const domainConstraintQuery = `
SELECT 'pg_constraint'::regclass::oid, c.oid, 0, 'constraint', format('%I.%I.%I', n.nspname, t.typname, c.conname),
	format('CONSTRAINT %I ON DOMAIN %I.%I', c.conname, n.nspname, t.typname), 'pg_type'::regclass::oid, t.oid,
	format(E'ALTER DOMAIN %I.%I ADD CONSTRAINT %I %s;\n', n.nspname, t.typname, c.conname, pg_get_constraintdef(c.oid)), '', '{}'::oid[]
FROM pg_constraint c JOIN pg_type t ON t.oid = c.contypid JOIN pg_namespace n ON n.oid = t.typnamespace
WHERE c.oid >= 16384 AND c.contype = 'c' AND n.nspname !~ '^pg_temp'`

const textSearchQuery = `
SELECT 'pg_ts_parser'::regclass::oid, p.oid, 0, 'text search parser', format('%I.%I', n.nspname, p.prsname), format('TEXT SEARCH PARSER %I.%I', n.nspname, p.prsname), 0::oid, 0::oid,
	format('CREATE TEXT SEARCH PARSER %I.%I (START = %s, GETTOKEN = %s, END = %s, LEXTYPES = %s', n.nspname, p.prsname, p.prsstart, p.prstoken, p.prsend, p.prslextype)
	|| CASE WHEN p.prsheadline::oid <> 0 THEN ', HEADLINE = ' || p.prsheadline ELSE '' END || E');\n', '', '{}'::oid[]
FROM pg_ts_parser p JOIN pg_namespace n ON n.oid = p.prsnamespace WHERE p.oid >= 16384
UNION ALL
SELECT 'pg_ts_template'::regclass::oid, t.oid, 0, 'text search template', format('%I.%I', n.nspname, t.tmplname), format('TEXT SEARCH TEMPLATE %I.%I', n.nspname, t.tmplname), 0::oid, 0::oid,
	format('CREATE TEXT SEARCH TEMPLATE %I.%I (', n.nspname, t.tmplname) || CASE WHEN t.tmplinit::oid <> 0 THEN 'INIT = ' || t.tmplinit || ', ' ELSE '' END
	|| 'LEXIZE = ' || t.tmpllexize || E');\n', '', '{}'::oid[]
FROM pg_ts_template t JOIN pg_namespace n ON n.oid = t.tmplnamespace WHERE t.oid >= 16384
UNION ALL
SELECT 'pg_ts_dict'::regclass::oid, d.oid, 0, 'text search dictionary', format('%I.%I', n.nspname, d.dictname), format('TEXT SEARCH DICTIONARY %I.%I', n.nspname, d.dictname), 0::oid, 0::oid,
	format('CREATE TEXT SEARCH DICTIONARY %I.%I (TEMPLATE = %I.%I', n.nspname, d.dictname, tn.nspname, t.tmplname) || coalesce(', ' || d.dictinitoption, '') || E');\n', '', '{}'::oid[]
FROM pg_ts_dict d JOIN pg_namespace n ON n.oid = d.dictnamespace JOIN pg_ts_template t ON t.oid = d.dicttemplate JOIN pg_namespace tn ON tn.oid = t.tmplnamespace WHERE d.oid >= 16384
UNION ALL
SELECT 'pg_ts_config'::regclass::oid, c.oid, 0, 'text search configuration', format('%I.%I', n.nspname, c.cfgname), format('TEXT SEARCH CONFIGURATION %I.%I', n.nspname, c.cfgname), 0::oid, 0::oid,
	format(E'CREATE TEXT SEARCH CONFIGURATION %I.%I (PARSER = %I.%I);\n', n.nspname, c.cfgname, pn.nspname, p.prsname) || coalesce((
		SELECT string_agg(format(E'ALTER TEXT SEARCH CONFIGURATION %I.%I ADD MAPPING FOR %I WITH %s;\n', n.nspname, c.cfgname, m.alias, m.dicts), '' ORDER BY m.alias)
		FROM (SELECT tt.alias, string_agg(format('%I.%I', dn.nspname, d.dictname), ', ' ORDER BY cm.mapseqno) AS dicts
			FROM pg_ts_config_map cm JOIN ts_token_type(c.cfgparser) tt ON tt.tokid = cm.maptokentype
			JOIN pg_ts_dict d ON d.oid = cm.mapdict JOIN pg_namespace dn ON dn.oid = d.dictnamespace
			WHERE cm.mapcfg = c.oid GROUP BY tt.alias) m), ''), '', '{}'::oid[]
FROM pg_ts_config c JOIN pg_namespace n ON n.oid = c.cfgnamespace JOIN pg_ts_parser p ON p.oid = c.cfgparser JOIN pg_namespace pn ON pn.oid = p.prsnamespace WHERE c.oid >= 16384`

const eventTriggerQuery = `
SELECT 'pg_event_trigger'::regclass::oid, e.oid, 0, 'event trigger', quote_ident(e.evtname), 'EVENT TRIGGER ' || quote_ident(e.evtname), 0::oid, 0::oid,
	format('CREATE EVENT TRIGGER %I ON %I', e.evtname, e.evtevent)
	|| coalesce(' WHEN TAG IN (' || (SELECT string_agg(quote_literal(tag), ', ' ORDER BY tag) FROM unnest(e.evttags) tag) || ')', '')
	|| format(E' EXECUTE FUNCTION %s();\n', e.evtfoid::regproc)
	|| CASE e.evtenabled WHEN 'D' THEN format(E'ALTER EVENT TRIGGER %I DISABLE;\n', e.evtname) WHEN 'R' THEN format(E'ALTER EVENT TRIGGER %I ENABLE REPLICA;\n', e.evtname)
		WHEN 'A' THEN format(E'ALTER EVENT TRIGGER %I ENABLE ALWAYS;\n', e.evtname) ELSE '' END, '', '{}'::oid[]
FROM pg_event_trigger e`

const publicationQuery = `
SELECT 'pg_publication'::regclass::oid, p.oid, 0, 'publication', quote_ident(p.pubname), 'PUBLICATION ' || quote_ident(p.pubname), 0::oid, 0::oid,
	'CREATE PUBLICATION ' || quote_ident(p.pubname) || CASE WHEN p.puballtables THEN ' FOR ALL TABLES'
		ELSE coalesce(E' FOR ' || nullif(concat_ws(E',\n    ', 'TABLE ' || array_to_string(t.tables, E',\n    '), array_to_string({pubschemas}, E',\n    ')), ''), '') END
	|| format(E'\nWITH (publish = %L, publish_via_partition_root = %s', concat_ws(', ', CASE WHEN p.pubinsert THEN 'insert' END, CASE WHEN p.pubupdate THEN 'update' END,
		CASE WHEN p.pubdelete THEN 'delete' END, CASE WHEN p.pubtruncate THEN 'truncate' END), p.pubviaroot::text) || {pubgencols} || E');\n', '', coalesce(t.needs, '{}')
FROM pg_publication p LEFT JOIN LATERAL (
	SELECT array_agg('ONLY ' || format('%I.%I', n.nspname, c.relname)
		|| coalesce(' (' || (SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum) FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum = ANY ({prattrs})) || ')', '')
		|| coalesce(' WHERE ' || {prqual}, '') ORDER BY n.nspname, c.relname) AS tables, array_agg(c.oid) AS needs
	FROM pg_publication_rel pr JOIN pg_class c ON c.oid = pr.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE pr.prpubid = p.oid) t ON true`

// The values of settings that are lists of names are kept as they have to be
// written; all others are plain text (guc.h: GUC_LIST_QUOTE).
const settingQuery = `
SELECT 'pg_db_role_setting'::regclass::oid, 0::oid, 0, 'setting', concat_ws(' ', 'role ' || CASE s.setrole WHEN 0 THEN CASE s.setdatabase WHEN 0 THEN 'ALL' END ELSE quote_ident(r.rolname) END,
		'database ' || quote_ident(d.datname), v.name), '', 0::oid, 0::oid,
	'ALTER ' || CASE WHEN s.setrole = 0 AND s.setdatabase <> 0 THEN 'DATABASE ' || quote_ident(d.datname)
		ELSE 'ROLE ' || CASE s.setrole WHEN 0 THEN 'ALL' ELSE quote_ident(r.rolname) END || coalesce(' IN DATABASE ' || quote_ident(d.datname), '') END
	|| ' SET ' || quote_ident(v.name) || ' TO ' || CASE
		WHEN lower(v.name) IN ('local_preload_libraries', 'search_path', 'session_preload_libraries', 'shared_preload_libraries', 'temp_tablespaces', 'unix_socket_directories')
			AND v.value <> '' THEN v.value
		WHEN v.name ~* '` + secret + `' THEN quote_literal('********') ELSE quote_literal(v.value) END || E';\n', '', '{}'::oid[]
FROM pg_db_role_setting s LEFT JOIN pg_roles r ON r.oid = s.setrole LEFT JOIN pg_database d ON d.oid = s.setdatabase
CROSS JOIN LATERAL (SELECT split_part(c, '=', 1) AS name, substr(c, strpos(c, '=') + 1) AS value FROM unnest(s.setconfig) c) v
WHERE s.setdatabase = 0 OR d.datname = current_database()`
