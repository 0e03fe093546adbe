package schema

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// owners adds who owns what.
func (r *reader) owners(ctx context.Context) error {
	var at address
	var owner string
	return r.rows(ctx, ownerQuery, []any{&at.class, &at.oid, &owner}, func() {
		if o := r.owner(at); o != nil && o.ref != "" {
			r.attach(o, "owner", "ALTER "+o.ref+" OWNER TO "+owner+";\n")
		}
	})
}

// owner is the object at an address, or the database.
func (r *reader) owner(at address) *Object {
	if at.class == databaseClass {
		o := r.db.byAddr[at]
		if o == nil {
			o = &Object{Kind: "database", Name: r.db.quoted, ref: "DATABASE " + r.db.quoted, at: at}
			r.db.byAddr[at] = o
		}
		return o
	}
	return r.db.byAddr[at]
}

// attach adds what is said of an object.
func (r *reader) attach(to *Object, kind, sql string) {
	o := &Object{Kind: kind, Name: to.key(), SQL: sql, of: to}
	r.db.Objects = append(r.db.Objects, o)
	r.db.byKey[o.key()] = o
}

const ownerQuery = `
SELECT o.class::oid, o.oid, quote_ident(pg_get_userbyid(o.owner)) FROM (
	SELECT 'pg_class'::regclass, oid, relowner FROM pg_class WHERE relkind IN ('r', 'p', 'f', 'v', 'm')
	UNION ALL SELECT 'pg_class'::regclass, c.oid, c.relowner FROM pg_class c WHERE c.relkind = 'S'
		AND NOT EXISTS (SELECT 1 FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'i')
	UNION ALL SELECT 'pg_proc'::regclass, oid, proowner FROM pg_proc
	UNION ALL SELECT 'pg_type'::regclass, oid, typowner FROM pg_type
	UNION ALL SELECT 'pg_namespace'::regclass, oid, nspowner FROM pg_namespace
	UNION ALL SELECT 'pg_collation'::regclass, oid, collowner FROM pg_collation
	UNION ALL SELECT 'pg_operator'::regclass, oid, oprowner FROM pg_operator
	UNION ALL SELECT 'pg_statistic_ext'::regclass, oid, stxowner FROM pg_statistic_ext
	UNION ALL SELECT 'pg_ts_dict'::regclass, oid, dictowner FROM pg_ts_dict
	UNION ALL SELECT 'pg_ts_config'::regclass, oid, cfgowner FROM pg_ts_config
	UNION ALL SELECT 'pg_foreign_data_wrapper'::regclass, oid, fdwowner FROM pg_foreign_data_wrapper
	UNION ALL SELECT 'pg_foreign_server'::regclass, oid, srvowner FROM pg_foreign_server
	UNION ALL SELECT 'pg_event_trigger'::regclass, oid, evtowner FROM pg_event_trigger
	UNION ALL SELECT 'pg_publication'::regclass, oid, pubowner FROM pg_publication
	UNION ALL SELECT 'pg_database'::regclass, oid, datdba FROM pg_database WHERE datname = current_database()
) o(class, oid, owner) WHERE o.oid >= 16384 OR o.class = 'pg_namespace'::regclass OR o.class = 'pg_database'::regclass`

// grant is one item of an access control list.
type grant struct {
	grantor, grantee, privilege string
	column                      string
	option                      bool
}

// list is the access to one thing: what is given, and what an owner and everybody
// would have without any GRANT or REVOKE.
type list struct {
	word, name, owner string
	given, standard   []grant
}

func (r *reader) grants(ctx context.Context) error {
	lists := map[*Object]*list{}
	var at address
	var word, owner, column string
	var g grant
	var standard bool
	err := r.rows(ctx, grantQuery, []any{&at.class, &at.oid, &at.sub, &word, &owner, &column, &standard, &g.grantor, &g.grantee, &g.privilege, &g.option}, func() {
		o := r.owner(at)
		if o == nil && at.sub != 0 {
			o = r.viewColumn(at, column)
		}
		if o == nil {
			return
		}
		l := lists[o]
		if l == nil {
			l = &list{word: word, name: o.Name, owner: owner}
			if at.sub != 0 {
				l.name = o.top().Name
			}
			lists[o] = l
		}
		one := g
		if at.sub != 0 {
			one.column = column
		}
		if standard {
			l.standard = append(l.standard, one)
		} else {
			l.given = append(l.given, one)
		}
	})
	for o, l := range lists {
		if sql := l.sql(o.key() == "schema public"); sql != "" {
			r.attach(o, "grants", sql)
		}
	}
	return err
}

// viewColumn stands for a column that no CREATE TABLE names.
func (r *reader) viewColumn(at address, name string) *Object {
	of := r.db.byAddr[address{class: at.class, oid: at.oid}]
	if of == nil {
		return nil
	}
	o := &Object{Kind: "column", Name: of.Name + "." + name, ref: "COLUMN " + of.Name + "." + name, of: of, at: at, inline: true}
	r.db.byAddr[at] = o
	return o
}

// sql writes what makes the list of the standard one. Schema public is there
// before, with what everybody may do.
func (l *list) sql(public bool) string {
	var b strings.Builder
	if public {
		fmt.Fprintf(&b, "REVOKE ALL ON SCHEMA public FROM PUBLIC;\n")
	}
	for _, who := range grantees(l.standard) {
		if slices.ContainsFunc(l.standard, func(g grant) bool { return g.grantee == who && !slices.Contains(l.given, g) }) {
			fmt.Fprintf(&b, "REVOKE ALL ON %s %s FROM %s;\n", l.word, l.name, who)
			l.standard = slices.DeleteFunc(l.standard, func(g grant) bool { return g.grantee == who })
		}
	}
	given := slices.DeleteFunc(slices.Clone(l.given), func(g grant) bool { return slices.Contains(l.standard, g) })
	for len(given) > 0 {
		first := given[0]
		var privileges []string
		given = slices.DeleteFunc(given, func(g grant) bool {
			same := g.grantor == first.grantor && g.grantee == first.grantee && g.option == first.option
			if same {
				privileges = append(privileges, join(" ", g.privilege, columnList(g.column)))
			}
			return same
		})
		b.WriteString(l.statement(first, privileges))
	}
	return b.String()
}

func (l *list) statement(g grant, privileges []string) string {
	slices.Sort(privileges)
	sql := fmt.Sprintf("GRANT %s ON %s %s TO %s", strings.Join(privileges, ", "), l.word, l.name, g.grantee)
	if g.option {
		sql += " WITH GRANT OPTION"
	}
	if g.grantor != l.owner {
		return "SET SESSION AUTHORIZATION " + g.grantor + ";\n" + sql + ";\nRESET SESSION AUTHORIZATION;\n"
	}
	return sql + ";\n"
}

func columnList(name string) string {
	if name == "" {
		return ""
	}
	return "(" + name + ")"
}

func grantees(list []grant) []string {
	var out []string
	for _, g := range list {
		if !slices.Contains(out, g.grantee) {
			out = append(out, g.grantee)
		}
	}
	return out
}

// A grantor that is not the owner comes after the owner, from whom it has what it gives.
const grantQuery = `
SELECT o.class::oid, o.oid, o.sub::int4, o.word, quote_ident(pg_get_userbyid(o.owner)), quote_ident(o.attname), x.standard, quote_ident(pg_get_userbyid(x.grantor)),
	CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(x.grantee)) END, x.privilege_type, x.is_grantable
FROM (
	SELECT 'pg_class'::regclass, oid, 0, CASE relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, CASE relkind WHEN 'S' THEN 's' ELSE 'r' END, relowner, relacl, '' FROM pg_class WHERE relkind IN ('r', 'p', 'f', 'v', 'm', 'S')
	UNION ALL SELECT 'pg_class'::regclass, c.oid, a.attnum, 'TABLE', 'c', c.relowner, a.attacl, a.attname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid WHERE a.attacl IS NOT NULL AND NOT a.attisdropped
	UNION ALL SELECT 'pg_proc'::regclass, oid, 0, 'ROUTINE', 'f', proowner, proacl, '' FROM pg_proc
	UNION ALL SELECT 'pg_type'::regclass, oid, 0, 'TYPE', 'T', typowner, typacl, '' FROM pg_type
	UNION ALL SELECT 'pg_namespace'::regclass, oid, 0, 'SCHEMA', 'n', nspowner, nspacl, '' FROM pg_namespace
	UNION ALL SELECT 'pg_foreign_data_wrapper'::regclass, oid, 0, 'FOREIGN DATA WRAPPER', 'F', fdwowner, fdwacl, '' FROM pg_foreign_data_wrapper
	UNION ALL SELECT 'pg_foreign_server'::regclass, oid, 0, 'FOREIGN SERVER', 'S', srvowner, srvacl, '' FROM pg_foreign_server
	UNION ALL SELECT 'pg_database'::regclass, oid, 0, 'DATABASE', 'd', datdba, datacl, '' FROM pg_database WHERE datname = current_database()
) o(class, oid, sub, word, type, owner, acl, attname)
CROSS JOIN LATERAL (SELECT false AS standard, * FROM aclexplode(o.acl) UNION ALL SELECT true, * FROM aclexplode(acldefault(o.type::"char", o.owner))) x
WHERE o.acl IS NOT NULL AND (o.oid >= 16384 OR o.class = 'pg_namespace'::regclass OR o.class = 'pg_database'::regclass)
ORDER BY o.class, o.oid, o.sub, x.grantor <> o.owner, 8, 9, x.is_grantable, x.privilege_type`

func (r *reader) defaultPrivileges(ctx context.Context) error {
	lists := map[string]*list{}
	var who, where, on string
	var g grant
	var standard, given bool
	err := r.rows(ctx, defaultPrivilegeQuery, []any{&who, &where, &on, &standard, &given, &g.grantor, &g.grantee, &g.privilege, &g.option}, func() {
		name := join(" ", who, where, on)
		l := lists[name]
		if l == nil {
			l = &list{word: on, owner: who}
			lists[name] = l
		}
		switch {
		case !given:
		case standard:
			l.standard = append(l.standard, g)
		default:
			l.given = append(l.given, g)
		}
	})
	for name, l := range lists {
		head := "ALTER DEFAULT PRIVILEGES FOR ROLE " + strings.TrimSuffix(name, " "+l.word) + " "
		var b strings.Builder
		for statement := range strings.Lines(l.sql(false)) {
			b.WriteString(head + strings.Replace(statement, " ON "+l.word+" ", " ON "+l.word, 1))
		}
		if b.Len() > 0 {
			o := &Object{Kind: "default privileges", Name: name, SQL: b.String()}
			r.db.Objects = append(r.db.Objects, o)
			r.db.byKey[o.key()] = o
		}
	}
	return err
}

const defaultPrivilegeQuery = `
SELECT quote_ident(pg_get_userbyid(d.defaclrole)), coalesce('IN SCHEMA ' || quote_ident(n.nspname), ''),
	CASE d.defaclobjtype WHEN 'r' THEN 'TABLES' WHEN 'S' THEN 'SEQUENCES' WHEN 'f' THEN 'ROUTINES' WHEN 'T' THEN 'TYPES' WHEN 'n' THEN 'SCHEMAS' ELSE 'LARGE OBJECTS' END,
	coalesce(x.standard, false), x.grantor IS NOT NULL, quote_ident(pg_get_userbyid(d.defaclrole)),
	CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE coalesce(quote_ident(pg_get_userbyid(x.grantee)), '') END, coalesce(x.privilege_type, ''), coalesce(x.is_grantable, false)
FROM pg_default_acl d LEFT JOIN pg_namespace n ON n.oid = d.defaclnamespace
LEFT JOIN LATERAL (SELECT false AS standard, * FROM aclexplode(d.defaclacl) UNION ALL SELECT true, * FROM aclexplode(acldefault(
	CASE d.defaclobjtype WHEN 'S' THEN 's' ELSE d.defaclobjtype END, d.defaclrole)) WHERE d.defaclnamespace = 0) x ON true
ORDER BY 1, 2, 3, 7, x.is_grantable, x.privilege_type`

// comments adds what people wrote.
func (r *reader) comments(ctx context.Context) error {
	var at address
	var text, column string
	return r.rows(ctx, `SELECT d.classoid, d.objoid, d.objsubid, quote_literal(d.description), coalesce(quote_ident(a.attname), '')
		FROM pg_description d LEFT JOIN pg_attribute a ON d.classoid = 'pg_class'::regclass AND d.objsubid > 0 AND a.attrelid = d.objoid AND a.attnum = d.objsubid
		UNION ALL SELECT s.classoid, s.objoid, 0, quote_literal(s.description), '' FROM pg_shdescription s JOIN pg_database db ON db.oid = s.objoid
		WHERE s.classoid = 'pg_database'::regclass AND db.datname = current_database()`,
		[]any{&at.class, &at.oid, &at.sub, &text, &column}, func() {
			o := r.owner(at)
			if o == nil && at.sub != 0 && column != "" {
				at := at
				if to, ok := r.db.part[address{class: at.class, oid: at.oid}]; ok && r.db.byAddr[address{class: at.class, oid: at.oid}] == nil {
					at.class, at.oid = to.class, to.oid // a composite type's columns are a relation's
				}
				o = r.viewColumn(at, column)
			}
			if o != nil && o.ref != "" {
				r.attach(o, "comment", "COMMENT ON "+o.ref+" IS "+text+";\n")
			}
		})
}
