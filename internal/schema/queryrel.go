package schema

// The statements about functions, relations and what belongs to them.

// A stub stands for a function until what its body depends on is there.
const functionQuery = `
SELECT 'pg_proc'::regclass::oid, p.oid, 0, q.kind, q.name, upper(q.kind) || ' ' || q.name, 0::oid, 0::oid,
	rtrim(pg_get_functiondef(p.oid), E'\n') || E';\n',
	CASE p.prokind WHEN 'f' THEN format(E'CREATE FUNCTION %s RETURNS %s LANGUAGE sql AS %L;\n', q.name, pg_get_function_result(p.oid), '')
		WHEN 'p' THEN format(E'CREATE PROCEDURE %s LANGUAGE sql AS %L;\n', q.name, '') ELSE '' END, '{}'::oid[]
FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
CROSS JOIN LATERAL (SELECT CASE p.prokind WHEN 'p' THEN 'procedure' ELSE 'function' END AS kind,
	format('%I.%I(%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid)) AS name) q
WHERE p.oid >= 16384 AND p.prokind <> 'a' AND n.nspname !~ '^pg_temp'`

const aggregateQuery = `
SELECT 'pg_proc'::regclass::oid, p.oid, 0, 'aggregate', q.name, 'AGGREGATE ' || q.name, 0::oid, 0::oid,
	'CREATE AGGREGATE ' || q.name || ' (' || concat_ws(', ', 'SFUNC = ' || a.aggtransfn, 'STYPE = ' || format_type(a.aggtranstype, NULL),
		CASE WHEN a.aggtransspace <> 0 THEN 'SSPACE = ' || a.aggtransspace END,
		CASE WHEN a.aggfinalfn::oid <> 0 THEN 'FINALFUNC = ' || a.aggfinalfn END, CASE WHEN a.aggfinalextra THEN 'FINALFUNC_EXTRA' END,
		'FINALFUNC_MODIFY = ' || CASE a.aggfinalmodify WHEN 'r' THEN 'READ_ONLY' WHEN 's' THEN 'SHAREABLE' ELSE 'READ_WRITE' END,
		CASE WHEN a.aggcombinefn::oid <> 0 THEN 'COMBINEFUNC = ' || a.aggcombinefn END,
		CASE WHEN a.aggserialfn::oid <> 0 THEN 'SERIALFUNC = ' || a.aggserialfn END, CASE WHEN a.aggdeserialfn::oid <> 0 THEN 'DESERIALFUNC = ' || a.aggdeserialfn END,
		'INITCOND = ' || quote_literal(a.agginitval),
		CASE WHEN a.aggmtransfn::oid <> 0 THEN concat_ws(', ', 'MSFUNC = ' || a.aggmtransfn, 'MINVFUNC = ' || a.aggminvtransfn, 'MSTYPE = ' || format_type(a.aggmtranstype, NULL),
			CASE WHEN a.aggmtransspace <> 0 THEN 'MSSPACE = ' || a.aggmtransspace END,
			CASE WHEN a.aggmfinalfn::oid <> 0 THEN 'MFINALFUNC = ' || a.aggmfinalfn END, CASE WHEN a.aggmfinalextra THEN 'MFINALFUNC_EXTRA' END,
			'MFINALFUNC_MODIFY = ' || CASE a.aggmfinalmodify WHEN 'r' THEN 'READ_ONLY' WHEN 's' THEN 'SHAREABLE' ELSE 'READ_WRITE' END,
			'MINITCOND = ' || quote_literal(a.aggminitval)) END,
		CASE WHEN a.aggsortop <> 0 THEN (SELECT format('SORTOP = OPERATOR(%I.%s)', sn.nspname, o.oprname) FROM pg_operator o JOIN pg_namespace sn ON sn.oid = o.oprnamespace WHERE o.oid = a.aggsortop) END,
		CASE p.proparallel WHEN 's' THEN 'PARALLEL = SAFE' WHEN 'r' THEN 'PARALLEL = RESTRICTED' END, CASE WHEN a.aggkind = 'h' THEN 'HYPOTHETICAL' END) || E');\n', '', '{}'::oid[]
FROM pg_proc p JOIN pg_aggregate a ON a.aggfnoid = p.oid JOIN pg_namespace n ON n.oid = p.pronamespace
CROSS JOIN LATERAL (SELECT format('%I.%I(%s)', n.nspname, p.proname, coalesce(nullif(pg_get_function_identity_arguments(p.oid), ''), '*')) AS name) q
WHERE p.oid >= 16384 AND n.nspname !~ '^pg_temp'`

const operatorQuery = `
SELECT 'pg_operator'::regclass::oid, o.oid, 0, 'operator', q.name, 'OPERATOR ' || q.name, 0::oid, 0::oid,
	format('CREATE OPERATOR %I.%s (', n.nspname, o.oprname) || concat_ws(', ', 'PROCEDURE = ' || o.oprcode,
		CASE WHEN o.oprleft <> 0 THEN 'LEFTARG = ' || format_type(o.oprleft, NULL) END, 'RIGHTARG = ' || format_type(o.oprright, NULL),
		(SELECT format('COMMUTATOR = OPERATOR(%I.%s)', xn.nspname, x.oprname) FROM pg_operator x JOIN pg_namespace xn ON xn.oid = x.oprnamespace WHERE x.oid = o.oprcom),
		(SELECT format('NEGATOR = OPERATOR(%I.%s)', xn.nspname, x.oprname) FROM pg_operator x JOIN pg_namespace xn ON xn.oid = x.oprnamespace WHERE x.oid = o.oprnegate),
		CASE WHEN o.oprrest::oid <> 0 THEN 'RESTRICT = ' || o.oprrest END, CASE WHEN o.oprjoin::oid <> 0 THEN 'JOIN = ' || o.oprjoin END,
		CASE WHEN o.oprcanhash THEN 'HASHES' END, CASE WHEN o.oprcanmerge THEN 'MERGES' END) || E');\n', '', '{}'::oid[]
FROM pg_operator o JOIN pg_namespace n ON n.oid = o.oprnamespace
CROSS JOIN LATERAL (SELECT format('%I.%s (%s, %s)', n.nspname, o.oprname, CASE o.oprleft WHEN 0 THEN 'NONE' ELSE format_type(o.oprleft, NULL) END, format_type(o.oprright, NULL)) AS name) q
WHERE o.oid >= 16384 AND o.oprcode::oid <> 0 AND n.nspname !~ '^pg_temp'`

const castQuery = `
SELECT 'pg_cast'::regclass::oid, c.oid, 0, 'cast', q.name, 'CAST ' || q.name, 0::oid, 0::oid,
	'CREATE CAST ' || q.name || CASE c.castmethod WHEN 'f' THEN format(' WITH FUNCTION %s', c.castfunc::regprocedure) WHEN 'i' THEN ' WITH INOUT' ELSE ' WITHOUT FUNCTION' END
	|| CASE c.castcontext WHEN 'a' THEN ' AS ASSIGNMENT' WHEN 'i' THEN ' AS IMPLICIT' ELSE '' END || E';\n', '', '{}'::oid[]
FROM pg_cast c CROSS JOIN LATERAL (SELECT format('(%s AS %s)', format_type(c.castsource, NULL), format_type(c.casttarget, NULL)) AS name) q WHERE c.oid >= 16384`

const sequenceQuery = `
SELECT 'pg_class'::regclass::oid, c.oid, 0, 'sequence', q.name, 'SEQUENCE ' || q.name, 0::oid, 0::oid,
	'CREATE ' || CASE c.relpersistence WHEN 'u' THEN 'UNLOGGED ' ELSE '' END || 'SEQUENCE ' || q.name || format(' AS %s START WITH %s INCREMENT BY %s MINVALUE %s MAXVALUE %s CACHE %s',
		format_type(s.seqtypid, NULL), s.seqstart, s.seqincrement, s.seqmin, s.seqmax, s.seqcache) || CASE WHEN s.seqcycle THEN ' CYCLE' ELSE '' END || E';\n', '', '{}'::oid[]
FROM pg_class c JOIN pg_sequence s ON s.seqrelid = c.oid JOIN pg_namespace n ON n.oid = c.relnamespace
CROSS JOIN LATERAL (SELECT format('%I.%I', n.nspname, c.relname) AS name) q
WHERE c.oid >= 16384 AND c.relpersistence <> 't'
AND NOT EXISTS (SELECT 1 FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'i')`

const sequenceOwnerQuery = `
SELECT 'pg_sequence'::regclass::oid, c.oid, 0, 'sequence owner', format('%I.%I', n.nspname, c.relname), '', 'pg_class'::regclass::oid, c.oid,
	format(E'ALTER SEQUENCE %I.%I OWNED BY %I.%I.%I;\n', n.nspname, c.relname, tn.nspname, t.relname, a.attname), '', ARRAY[t.oid]
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'a' AND d.refclassid = 'pg_class'::regclass
JOIN pg_class t ON t.oid = d.refobjid JOIN pg_namespace tn ON tn.oid = t.relnamespace JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = d.refobjsubid
WHERE c.relkind = 'S' AND c.oid >= 16384 AND c.relpersistence <> 't'`

const viewQuery = `
SELECT 'pg_class'::regclass::oid, c.oid, 0, q.kind, q.name, upper(q.kind) || ' ' || q.name, 0::oid, 0::oid,
	'CREATE ' || CASE c.relpersistence WHEN 'u' THEN 'UNLOGGED ' ELSE '' END || upper(q.kind) || ' ' || q.name || CASE WHEN am.amname <> 'heap' THEN ' USING ' || quote_ident(am.amname) ELSE '' END
	|| coalesce(' WITH (' || (SELECT string_agg(o.option_name || '=' || quote_literal(o.option_value), ', ' ORDER BY o.option_name) FROM pg_options_to_table(c.reloptions) o) || ')', '')
	|| E' AS\n' || rtrim(pg_get_viewdef(c.oid), ';') || CASE c.relkind WHEN 'm' THEN E'\nWITH NO DATA' ELSE '' END || E';\n',
	CASE c.relkind WHEN 'v' THEN 'CREATE VIEW ' || q.name || ' AS SELECT ' || (SELECT string_agg(format('NULL::%s%s AS %I', format_type(a.atttypid, a.atttypmod),
		CASE WHEN a.attcollation <> 0 AND a.attcollation <> t.typcollation THEN format(' COLLATE %I.%I', cn.nspname, co.collname) ELSE '' END, a.attname), ', ' ORDER BY a.attnum)
		FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid LEFT JOIN pg_collation co ON co.oid = a.attcollation LEFT JOIN pg_namespace cn ON cn.oid = co.collnamespace
		WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) || E';\n' ELSE '' END, '{}'::oid[]
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_am am ON am.oid = c.relam
CROSS JOIN LATERAL (SELECT CASE c.relkind WHEN 'm' THEN 'materialized view' ELSE 'view' END AS kind, format('%I.%I', n.nspname, c.relname) AS name) q
WHERE c.oid >= 16384 AND c.relkind IN ('v', 'm') AND c.relpersistence <> 't'`

// Foreign keys of partitions and checks that were only inherited come with those
// of the parent. A key of a partition has a name of its own, as its index has.
const constraintQuery = `
SELECT 'pg_constraint'::regclass::oid, k.oid, 0, 'constraint', format('%I.%I.%I', n.nspname, c.relname, k.conname), format('CONSTRAINT %I ON %I.%I', k.conname, n.nspname, c.relname),
	'pg_class'::regclass::oid, c.oid,
	format(E'ALTER TABLE %s%I.%I ADD CONSTRAINT %I %s;\n', CASE WHEN k.contype IN ('p', 'u', 'x') THEN 'ONLY ' ELSE '' END, n.nspname, c.relname, k.conname, pg_get_constraintdef(k.oid))
	|| CASE WHEN x.reloptions IS NULL THEN '' ELSE format(E'ALTER INDEX %I.%I SET (%s);\n', xn.nspname, x.relname,
		(SELECT string_agg(o.option_name || '=' || quote_literal(o.option_value), ', ' ORDER BY o.option_name) FROM pg_options_to_table(x.reloptions) o)) END
	|| CASE WHEN i.indisclustered THEN format(E'ALTER TABLE %I.%I CLUSTER ON %I;\n', n.nspname, c.relname, x.relname) ELSE '' END, '', '{}'::oid[]
FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_class x ON x.oid = k.conindid AND k.contype IN ('p', 'u', 'x') LEFT JOIN pg_namespace xn ON xn.oid = x.relnamespace
LEFT JOIN pg_index i ON i.indexrelid = k.conindid AND k.contype IN ('p', 'u', 'x')
WHERE c.oid >= 16384 AND c.relpersistence <> 't'
AND (k.contype IN ('p', 'u', 'x') OR k.contype = 'c' AND k.conislocal OR k.contype = 'f' AND k.conparentid = 0)`

const replicaIdentityQuery = `
SELECT 0::oid, c.oid, 0, 'replica identity', format('%I.%I', n.nspname, c.relname), '', 'pg_class'::regclass::oid, c.oid,
	format(E'ALTER TABLE ONLY %I.%I REPLICA IDENTITY %s;\n', n.nspname, c.relname, CASE c.relreplident WHEN 'f' THEN 'FULL' WHEN 'n' THEN 'NOTHING' ELSE 'USING INDEX ' || quote_ident(x.relname) END), '',
	array_remove(ARRAY[x.oid], NULL)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_index i ON i.indrelid = c.oid AND i.indisreplident LEFT JOIN pg_class x ON x.oid = i.indexrelid
WHERE c.oid >= 16384 AND c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND (c.relreplident IN ('f', 'n') OR c.relreplident = 'i' AND x.oid IS NOT NULL)`

const indexQuery = `
SELECT 'pg_class'::regclass::oid, x.oid, 0, 'index', format('%I.%I', n.nspname, x.relname), format('INDEX %I.%I', n.nspname, x.relname), 'pg_class'::regclass::oid, i.indrelid,
	pg_get_indexdef(x.oid) || E';\n' || CASE WHEN i.indisclustered THEN format(E'ALTER TABLE %s CLUSTER ON %I;\n', i.indrelid::regclass, x.relname) ELSE '' END
	|| coalesce((SELECT string_agg(format(E'ALTER INDEX %I.%I ALTER COLUMN %s SET STATISTICS %s;\n', n.nspname, x.relname, a.attnum, a.attstattarget), '' ORDER BY a.attnum)
		FROM pg_attribute a WHERE a.attrelid = x.oid AND a.attstattarget >= 0), ''), '', '{}'::oid[]
FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_namespace n ON n.oid = x.relnamespace JOIN pg_class c ON c.oid = i.indrelid
WHERE x.oid >= 16384 AND c.relkind IN ('r', 'p', 'm') AND c.relpersistence <> 't'
AND NOT EXISTS (SELECT 1 FROM pg_constraint k WHERE k.conindid = x.oid AND k.conrelid = c.oid AND k.contype IN ('p', 'u', 'x'))`

const indexAttachmentQuery = `
SELECT 0::oid, x.oid, 0, 'index attachment', format('%I.%I', n.nspname, x.relname), '', 'pg_class'::regclass::oid, i.indrelid,
	format(E'ALTER INDEX %s ATTACH PARTITION %I.%I;\n', h.inhparent::regclass, n.nspname, x.relname), '', ARRAY[x.oid, h.inhparent]
FROM pg_inherits h JOIN pg_class x ON x.oid = h.inhrelid JOIN pg_index i ON i.indexrelid = x.oid JOIN pg_namespace n ON n.oid = x.relnamespace
WHERE x.oid >= 16384 AND x.relkind IN ('i', 'I') AND x.relpersistence <> 't'`

const ruleQuery = `
SELECT 'pg_rewrite'::regclass::oid, r.oid, 0, 'rule', format('%I.%I.%I', n.nspname, c.relname, r.rulename), format('RULE %I ON %I.%I', r.rulename, n.nspname, c.relname), 'pg_class'::regclass::oid, c.oid,
	pg_get_ruledef(r.oid) || E'\n' || CASE r.ev_enabled WHEN 'O' THEN '' ELSE format(E'ALTER TABLE %I.%I %s RULE %I;\n', n.nspname, c.relname,
		CASE r.ev_enabled WHEN 'D' THEN 'DISABLE' WHEN 'R' THEN 'ENABLE REPLICA' ELSE 'ENABLE ALWAYS' END, r.rulename) END, '', '{}'::oid[]
FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE r.oid >= 16384 AND c.relpersistence <> 't' AND r.rulename <> '_RETURN'`

const triggerQuery = `
SELECT 'pg_trigger'::regclass::oid, t.oid, 0, 'trigger', format('%I.%I.%I', n.nspname, c.relname, t.tgname), format('TRIGGER %I ON %I.%I', t.tgname, n.nspname, c.relname), 'pg_class'::regclass::oid, c.oid,
	pg_get_triggerdef(t.oid) || E';\n' || CASE t.tgenabled WHEN 'O' THEN '' ELSE format(E'ALTER TABLE %I.%I %s TRIGGER %I;\n', n.nspname, c.relname,
		CASE t.tgenabled WHEN 'D' THEN 'DISABLE' WHEN 'R' THEN 'ENABLE REPLICA' ELSE 'ENABLE ALWAYS' END, t.tgname) END, '', '{}'::oid[]
FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE t.oid >= 16384 AND c.relpersistence <> 't' AND NOT t.tgisinternal AND t.tgparentid = 0`

// A trigger of a partition comes with that of its parent, but may be enabled or
// disabled by itself.
const partitionTriggerQuery = `
SELECT 'pg_trigger'::regclass::oid, t.oid, 0, 'trigger', format('%I.%I.%I', n.nspname, c.relname, t.tgname), format('TRIGGER %I ON %I.%I', t.tgname, n.nspname, c.relname), 'pg_class'::regclass::oid, c.oid,
	format(E'ALTER TABLE %I.%I %s TRIGGER %I;\n', n.nspname, c.relname,
		CASE t.tgenabled WHEN 'D' THEN 'DISABLE' WHEN 'R' THEN 'ENABLE REPLICA' WHEN 'A' THEN 'ENABLE ALWAYS' ELSE 'ENABLE' END, t.tgname), '', ARRAY[p.tgrelid]
FROM pg_trigger t JOIN pg_trigger p ON p.oid = t.tgparentid JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE t.oid >= 16384 AND c.relpersistence <> 't' AND NOT p.tgisinternal AND t.tgenabled <> p.tgenabled`

const rowSecurityQuery = `
SELECT 0::oid, c.oid, 0, 'row security', format('%I.%I', n.nspname, c.relname), '', 'pg_class'::regclass::oid, c.oid,
	CASE WHEN c.relrowsecurity THEN format(E'ALTER TABLE %I.%I ENABLE ROW LEVEL SECURITY;\n', n.nspname, c.relname) ELSE '' END
	|| CASE WHEN c.relforcerowsecurity THEN format(E'ALTER TABLE %I.%I FORCE ROW LEVEL SECURITY;\n', n.nspname, c.relname) ELSE '' END, '', '{}'::oid[]
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid >= 16384 AND c.relpersistence <> 't' AND (c.relrowsecurity OR c.relforcerowsecurity)`

const policyQuery = `
SELECT 'pg_policy'::regclass::oid, p.oid, 0, 'policy', format('%I.%I.%I', n.nspname, c.relname, p.polname), format('POLICY %I ON %I.%I', p.polname, n.nspname, c.relname), 'pg_class'::regclass::oid, c.oid,
	format('CREATE POLICY %I ON %I.%I AS %s FOR %s TO %s', p.polname, n.nspname, c.relname, CASE WHEN p.polpermissive THEN 'PERMISSIVE' ELSE 'RESTRICTIVE' END,
		CASE p.polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE' WHEN 'd' THEN 'DELETE' ELSE 'ALL' END,
		(SELECT string_agg(coalesce(quote_ident(r.rolname), 'PUBLIC'), ', ' ORDER BY r.rolname) FROM unnest(p.polroles) o LEFT JOIN pg_roles r ON r.oid = o))
	|| coalesce(' USING (' || pg_get_expr(p.polqual, p.polrelid) || ')', '') || coalesce(' WITH CHECK (' || pg_get_expr(p.polwithcheck, p.polrelid) || ')', '') || E';\n', '', '{}'::oid[]
FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE p.oid >= 16384 AND c.relpersistence <> 't'`

const statisticsQuery = `
SELECT 'pg_statistic_ext'::regclass::oid, s.oid, 0, 'statistics', format('%I.%I', n.nspname, s.stxname), format('STATISTICS %I.%I', n.nspname, s.stxname), 'pg_class'::regclass::oid, s.stxrelid,
	pg_get_statisticsobjdef(s.oid) || E';\n' || CASE WHEN s.stxstattarget >= 0 THEN format(E'ALTER STATISTICS %I.%I SET STATISTICS %s;\n', n.nspname, s.stxname, s.stxstattarget) ELSE '' END, '', '{}'::oid[]
FROM pg_statistic_ext s JOIN pg_namespace n ON n.oid = s.stxnamespace JOIN pg_class c ON c.oid = s.stxrelid WHERE s.oid >= 16384 AND c.relpersistence <> 't'`

// A table's defaults are read with its columns.
const viewDefaultQuery = `
SELECT 'pg_attrdef'::regclass::oid, d.oid, 0, 'default', format('%I.%I.%I', n.nspname, c.relname, a.attname), '', 'pg_class'::regclass::oid, c.oid,
	format(E'ALTER VIEW %I.%I ALTER COLUMN %I SET DEFAULT %s;\n', n.nspname, c.relname, a.attname, pg_get_expr(d.adbin, d.adrelid)), '', '{}'::oid[]
FROM pg_attrdef d JOIN pg_class c ON c.oid = d.adrelid JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = d.adnum
WHERE c.oid >= 16384 AND c.relkind = 'v' AND c.relpersistence <> 't'`
