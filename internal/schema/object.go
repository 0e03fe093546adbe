package schema

import (
	"slices"
	"strings"
)

// Object is a part of a schema that a change can be told of.
type Object struct {
	Kind string // as in "materialized view"
	Name string // qualified, and quoted where SQL wants it
	// SQL are the statements that make it. Of a column or default that stands in its
	// table's CREATE TABLE it is what stands there.
	SQL string

	ref    string  // what COMMENT ON and ALTER ... OWNER call it
	of     *Object // what it belongs to
	inline bool    // its SQL stands in that of its table
	stub   string  // a statement that makes something that others can depend on in its place
	table  *table
	needs  []uint32 // of pg_class, beside what pg_depend knows
	at     address
}

// key is what no other object of a database has.
func (o *Object) key() string { return o.Kind + " " + o.Name }

// top is the object that o belongs to at last: itself, or a table.
func (o *Object) top() *Object {
	for o.of != nil {
		o = o.of
	}
	return o
}

// address is an object's in the catalogs, as pg_depend has it.
type address struct {
	class, oid uint32
	sub        int32
}

// Database is the schema of one database at one moment.
type Database struct {
	Name    string
	Major   int
	Objects []*Object // in the order of their texts

	byKey  map[string]*Object
	byAddr map[address]*Object
	part   map[address]address // what is a part of another object, or goes with it
	depend []dependency

	inherit map[string][]*Object // the children of tables, once somebody asks
	quoted  string               // its name as SQL wants it
}

// dependency is a row of pg_depend.
type dependency struct {
	from, to address
	kind     string
}

// Kinds in the order in which they stand in a text. One that another is made of
// comes first where that is possible at all.
var order = []string{
	"database", "setting", "schema", "extension", "foreign data wrapper", "server", "user mapping", "collation",
	"type", "domain", "text search parser", "text search template", "text search dictionary", "text search configuration",
	"function", "procedure", "aggregate", "operator", "cast", "sequence", "table", "foreign table", "view", "materialized view",
	"sequence owner", "column", "default", "constraint", "replica identity", "index", "index attachment", "statistics", "rule", "trigger",
	"row security", "policy", "publication", "owner", "grants", "comment", "default privileges", "event trigger",
}

func rank(kind string) int { return slices.Index(order, kind) }

// compare sorts objects so that what belongs together stands together.
func compare(a, b *Object) int {
	x, y := a.top(), b.top()
	for _, c := range []int{
		rank(x.Kind) - rank(y.Kind), strings.Compare(x.Name, y.Name),
		rank(a.Kind) - rank(b.Kind), strings.Compare(a.Name, b.Name),
	} {
		if c != 0 {
			return c
		}
	}
	return 0
}

// whole is the statements of an object, those of a table with its columns.
func (o *Object) whole() string {
	if o.table != nil {
		return o.table.sql(func(*Object) bool { return true })
	}
	return o.SQL
}
