package schema

// tableQuery answers class, oid, kind, name, what it is created with, its type
// where it is a typed one, parents, bounds, the end of CREATE TABLE, and further
// statements.
const tableQuery = `
SELECT 'pg_class'::regclass::oid, c.oid, CASE c.relkind WHEN 'f' THEN 'foreign table' ELSE 'table' END, format('%I.%I', n.nspname, c.relname),
	'CREATE ' || CASE WHEN c.relkind = 'f' THEN 'FOREIGN ' WHEN c.relpersistence = 'u' THEN 'UNLOGGED ' ELSE '' END || 'TABLE',
	CASE WHEN c.reloftype <> 0 THEN format_type(c.reloftype, NULL) ELSE '' END,
	coalesce((SELECT array_agg(format('%I.%I', pn.nspname, pc.relname) ORDER BY h.inhseqno) FROM pg_inherits h
		JOIN pg_class pc ON pc.oid = h.inhparent JOIN pg_namespace pn ON pn.oid = pc.relnamespace WHERE h.inhrelid = c.oid), '{}'),
	coalesce(pg_get_expr(c.relpartbound, c.oid), ''),
	CASE WHEN c.relkind = 'p' THEN E'\nPARTITION BY ' || pg_get_partkeydef(c.oid) ELSE '' END
	|| CASE WHEN am.amname <> 'heap' THEN E'\nUSING ' || quote_ident(am.amname) ELSE '' END
	|| coalesce(E'\nWITH (' || (SELECT string_agg(o, ', ' ORDER BY o) FROM (
		SELECT o.option_name || '=' || quote_literal(o.option_value) FROM pg_options_to_table(c.reloptions) o
		UNION ALL SELECT 'toast.' || o.option_name || '=' || quote_literal(o.option_value) FROM pg_class tc, pg_options_to_table(tc.reloptions) o WHERE tc.oid = c.reltoastrelid) s(o)) || ')', '')
	|| coalesce((SELECT format(E'\nSERVER %I', s.srvname) || coalesce(' OPTIONS (' || {foreigns} || ')', '') FROM pg_foreign_table ft JOIN pg_foreign_server s ON s.oid = ft.ftserver WHERE ft.ftrelid = c.oid), ''),
	''
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_am am ON am.oid = c.relam
WHERE c.oid >= 16384 AND c.relkind IN ('r', 'p', 'f') AND c.relpersistence <> 't' AND n.nspname !~ '^pg_(temp|toast)'`

// columnQuery answers class, oid, number, name, type with options and collation,
// identity, the expression that computes it, NOT NULL, whether it is local, further
// statements, its default, and that one's oid. What an inherited column has of its
// parent is left out.
const columnQuery = `
SELECT 'pg_class'::regclass::oid, a.attrelid, a.attnum::int4, quote_ident(a.attname),
	format_type(a.atttypid, a.atttypmod) || coalesce(' OPTIONS (' || {columns} || ')', '')
	|| CASE WHEN a.attcollation <> 0 AND a.attcollation <> t.typcollation THEN format(' COLLATE %I.%I', cn.nspname, co.collname) ELSE '' END,
	CASE WHEN a.attidentity = '' THEN '' ELSE 'GENERATED ' || CASE a.attidentity WHEN 'a' THEN 'ALWAYS' ELSE 'BY DEFAULT' END || ' AS IDENTITY' || coalesce(q.options, '') END,
	CASE a.attgenerated WHEN '' THEN '' ELSE 'GENERATED ALWAYS AS (' || pg_get_expr(d.adbin, d.adrelid) || ')' || CASE a.attgenerated WHEN 's' THEN ' STORED' ELSE '' END END,
	CASE WHEN local.written THEN {notnull} ELSE '' END, a.attislocal,
	CASE WHEN NOT local.written AND {notnull} <> '' AND NOT coalesce(up.attnotnull, false)
		THEN format(E'ALTER TABLE ONLY %I.%I ALTER COLUMN %I SET NOT NULL;\n', n.nspname, c.relname, a.attname) ELSE '' END
	|| CASE WHEN a.attstorage <> coalesce(CASE WHEN c.relispartition OR NOT a.attislocal THEN up.attstorage END, t.typstorage) THEN format(E'ALTER TABLE ONLY %I.%I ALTER COLUMN %I SET STORAGE %s;\n', n.nspname, c.relname, a.attname,
		CASE a.attstorage WHEN 'p' THEN 'PLAIN' WHEN 'e' THEN 'EXTERNAL' WHEN 'm' THEN 'MAIN' ELSE 'EXTENDED' END) ELSE '' END
	|| CASE a.attcompression WHEN '' THEN '' ELSE format(E'ALTER TABLE ONLY %I.%I ALTER COLUMN %I SET COMPRESSION %s;\n', n.nspname, c.relname, a.attname, CASE a.attcompression WHEN 'l' THEN 'lz4' ELSE 'pglz' END) END
	|| CASE WHEN a.attstattarget >= 0 THEN format(E'ALTER TABLE ONLY %I.%I ALTER COLUMN %I SET STATISTICS %s;\n', n.nspname, c.relname, a.attname, a.attstattarget) ELSE '' END
	|| coalesce(format(E'ALTER TABLE ONLY %I.%I ALTER COLUMN %I SET ', n.nspname, c.relname, a.attname) || '(' || (
		SELECT string_agg(o.option_name || '=' || quote_literal(o.option_value), ', ' ORDER BY o.option_name) FROM pg_options_to_table(a.attoptions) o) || E');\n', '')
	|| {latenotnull},
	CASE WHEN a.attgenerated <> '' OR d.adbin IS NULL OR NOT local.written AND pg_get_expr(d.adbin, d.adrelid) = coalesce(up.value, '') THEN ''
		ELSE 'DEFAULT ' || pg_get_expr(d.adbin, d.adrelid) END, coalesce(d.oid, 0)
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_collation co ON co.oid = a.attcollation LEFT JOIN pg_namespace cn ON cn.oid = co.collnamespace
LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
CROSS JOIN LATERAL (SELECT c.reloftype = 0 AND (a.attislocal OR c.relispartition) AS written) local
LEFT JOIN LATERAL (SELECT pa.attstorage, pa.attnotnull, pg_get_expr(pd.adbin, pd.adrelid) AS value FROM pg_inherits h JOIN pg_attribute pa ON pa.attrelid = h.inhparent AND pa.attname = a.attname
	LEFT JOIN pg_attrdef pd ON pd.adrelid = pa.attrelid AND pd.adnum = pa.attnum WHERE h.inhrelid = c.oid AND a.attinhcount > 0 ORDER BY h.inhseqno LIMIT 1) up ON true
LEFT JOIN LATERAL (SELECT ' (' || concat_ws(' ', CASE WHEN sc.relname <> c.relname || '_' || a.attname || '_seq' OR sn.oid <> n.oid THEN format('SEQUENCE NAME %I.%I', sn.nspname, sc.relname) END,
		'START WITH ' || s.seqstart, 'INCREMENT BY ' || s.seqincrement, 'MINVALUE ' || s.seqmin, 'MAXVALUE ' || s.seqmax, 'CACHE ' || s.seqcache, CASE WHEN s.seqcycle THEN 'CYCLE' END) || ')' AS options
	FROM pg_depend sd JOIN pg_sequence s ON s.seqrelid = sd.objid JOIN pg_class sc ON sc.oid = s.seqrelid JOIN pg_namespace sn ON sn.oid = sc.relnamespace
	WHERE a.attidentity <> '' AND sd.classid = 'pg_class'::regclass AND sd.deptype = 'i' AND sd.refclassid = 'pg_class'::regclass AND sd.refobjid = c.oid AND sd.refobjsubid = a.attnum) q ON true
{joinnotnull}
WHERE c.oid >= 16384 AND c.relkind IN ('r', 'p', 'f') AND c.relpersistence <> 't' AND n.nspname !~ '^pg_(temp|toast)' AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attrelid, a.attnum`

// Since 18 a NOT NULL is a constraint with a name, which may be of no parent, not
// valid yet, or not be inherited.
const (
	joinNotNull = `LEFT JOIN pg_constraint nn ON nn.conrelid = a.attrelid AND nn.contype = 'n' AND nn.conkey = ARRAY[a.attnum]`
	notNull     = `CASE WHEN nn.oid IS NULL OR NOT nn.convalidated THEN '' ELSE
		CASE WHEN nn.conname = left(c.relname || '_' || a.attname || '_not_null', 63) THEN '' ELSE format('CONSTRAINT %I ', nn.conname) END
		|| 'NOT NULL' || CASE WHEN nn.connoinherit THEN ' NO INHERIT' ELSE '' END END`
	lateNotNull = `CASE WHEN nn.oid IS NOT NULL AND NOT nn.convalidated AND nn.conislocal
		THEN format(E'ALTER TABLE ONLY %I.%I ADD CONSTRAINT %I %s;\n', n.nspname, c.relname, nn.conname, pg_get_constraintdef(nn.oid)) ELSE '' END`
	notNullBefore = `CASE WHEN a.attnotnull THEN 'NOT NULL' ELSE '' END`
)
