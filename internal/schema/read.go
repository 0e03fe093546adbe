package schema

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
)

// read reads everything in one transaction.
func read(ctx context.Context, tx pgx.Tx) (*Database, error) {
	db := &Database{byKey: map[string]*Object{}, byAddr: map[address]*Object{}}
	r := &reader{tx: tx, db: db, of: map[*Object]address{}}
	var number int
	err := tx.QueryRow(ctx, "SELECT current_database(), quote_ident(current_database()), current_setting('server_version_num')::int").Scan(&db.Name, &db.quoted, &number)
	if err != nil {
		return nil, fmt.Errorf("read which database it is: %w", err)
	}
	db.Major = number / 10000
	for _, step := range []func(context.Context) error{
		r.depend, r.tables, r.columns, r.objects, r.assemble, r.owners, r.grants, r.defaultPrivileges, r.comments,
	} {
		if err := step(ctx); err != nil {
			return nil, fmt.Errorf("read the schema of database %s: %w", db.Name, err)
		}
	}
	db.Objects = slices.DeleteFunc(db.Objects, func(o *Object) bool { return o.SQL == "" && o.table == nil })
	slices.SortFunc(db.Objects, compare)
	return db, nil
}

// reader reads a database in steps.
type reader struct {
	tx      pgx.Tx
	db      *Database
	of      map[*Object]address // what an object belongs to, until all are read
	members map[address]bool    // of extensions
	hidden  map[address]bool    // what Postgres has made for another object
	tabular []*Object
}

func (r *reader) rows(ctx context.Context, sql string, into []any, each func()) error {
	rows, err := r.tx.Query(ctx, forMajor(sql, r.db.Major), pgx.QueryExecModeExec)
	if err != nil {
		return err
	}
	_, err = pgx.ForEachRow(rows, into, func() error { each(); return nil })
	return err
}

func (r *reader) depend(ctx context.Context) error {
	r.members, r.hidden, r.db.part = map[address]bool{}, map[address]bool{}, map[address]address{}
	var d dependency
	return r.rows(ctx, `SELECT classid, objid, objsubid, refclassid, refobjid, refobjsubid, deptype::text FROM pg_depend
		WHERE deptype = 'e' OR objid >= 16384 AND refobjid >= 16384 `,
		[]any{&d.from.class, &d.from.oid, &d.from.sub, &d.to.class, &d.to.oid, &d.to.sub, &d.kind}, func() {
			switch d.kind {
			case "e":
				r.members[d.from] = true
				return
			case "i":
				r.hidden[d.from] = true
				r.db.part[d.from] = d.to
			case "a":
				if d.from.class == attrdefClass || d.from.class == constraintClass {
					r.db.part[d.from] = d.to // of a generated column, or a NOT NULL
				}
			}
			r.db.depend = append(r.db.depend, d)
		})
}

// add takes an object that is no member of an extension.
func (r *reader) add(o *Object, of address) *Object {
	if r.members[o.at] {
		return nil
	}
	if of.oid != 0 {
		r.of[o] = of
	}
	r.db.Objects = append(r.db.Objects, o)
	if o.at.class != 0 && o.at.oid != 0 {
		r.db.byAddr[o.at] = o
	}
	return o
}

func (r *reader) tables(ctx context.Context) error {
	var o Object
	var t table
	var parents []string
	var options string
	return r.rows(ctx, tableQuery, []any{&o.at.class, &o.at.oid, &o.Kind, &o.Name, &t.create, &t.ofType, &parents, &t.bound, &t.tail, &options}, func() {
		own, made := o, t
		made.name, made.parents, made.after = o.Name, slices.Clone(parents), options
		own.table, own.ref = &made, map[string]string{"table": "TABLE ", "foreign table": "FOREIGN TABLE "}[o.Kind]+o.Name
		if added := r.add(&own, address{}); added != nil {
			r.tabular = append(r.tabular, added)
		}
	})
}

func (r *reader) columns(ctx context.Context) error {
	var at address
	var c column
	var value string
	var valueOID uint32
	return r.rows(ctx, columnQuery, []any{&at.class, &at.oid, &at.sub, &c.name, &c.typ, &c.identity, &c.computed, &c.notNull, &c.local, &c.after, &value, &valueOID}, func() {
		table := r.db.byAddr[address{class: at.class, oid: at.oid}]
		if table == nil {
			return // of an extension
		}
		made, name := c, table.Name+"."+c.name
		made.object = &Object{Kind: "column", Name: name, ref: "COLUMN " + name, inline: true, of: table, at: at}
		r.add(made.object, address{})
		table.table.columns = append(table.table.columns, &made)
		if value != "" {
			made.value = &Object{Kind: "default", Name: name, SQL: value, inline: true, of: table, at: address{attrdefClass, valueOID, 0}}
			r.add(made.value, address{})
		}
	})
}

// The oids of catalogs are part of their header files.
const (
	relationClass   = 1259 // pg_class
	databaseClass   = 1262 // pg_database
	attrdefClass    = 2604 // pg_attrdef
	constraintClass = 2606 // pg_constraint
)

func (r *reader) objects(ctx context.Context) error {
	var o Object
	var of address
	into := []any{&o.at.class, &o.at.oid, &o.at.sub, &o.Kind, &o.Name, &o.ref, &of.class, &of.oid, &o.SQL, &o.stub, &o.needs}
	for _, q := range queries {
		err := r.rows(ctx, q, into, func() {
			made := o
			made.needs = slices.Clone(o.needs)
			if (made.Kind == "function" || made.Kind == "cast") && r.hidden[made.at] {
				return // the constructor or the cast of a range type
			}
			r.add(&made, of)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// assemble joins what belongs together. What belongs to a member of an extension
// goes with it.
func (r *reader) assemble(context.Context) error {
	for o, at := range r.of {
		o.of = r.db.byAddr[at]
	}
	r.db.Objects = slices.DeleteFunc(r.db.Objects, func(o *Object) bool {
		at, belongs := r.of[o]
		gone := belongs && r.db.byAddr[at] == nil
		if gone {
			delete(r.db.byAddr, o.at)
		}
		return gone
	})
	byName := map[string]*table{}
	for _, o := range r.tabular {
		byName[o.Name] = o.table
	}
	for _, o := range r.tabular {
		if o.table.bound != "" {
			o.table.parent = byName[o.table.parents[0]]
		}
	}
	for _, o := range r.tabular {
		o.table.finish()
	}
	for _, o := range r.db.Objects {
		r.db.byKey[o.key()] = o
	}
	return nil
}

// finish decides where the columns and defaults of a table are written.
func (t *table) finish() {
	for _, c := range t.columns {
		c.object.SQL = join("\n", c.line(), c.after)
		if !t.written(c) {
			c.object.SQL = c.after // it is its parent's
		}
		if c.value != nil && !t.written(c) {
			c.value.inline = false
			c.value.SQL = "ALTER TABLE ONLY " + t.name + " ALTER COLUMN " + c.name + " SET " + c.value.SQL + ";\n"
		}
	}
}
