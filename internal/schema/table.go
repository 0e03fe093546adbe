package schema

import (
	"slices"
	"strings"
)

// table is what a CREATE TABLE is written from.
type table struct {
	name    string
	create  string   // CREATE UNLOGGED TABLE
	ofType  string   // OF and its type, for a typed table
	parents []string // qualified
	bound   string   // FOR VALUES ..., of a partition
	tail    string   // PARTITION BY, USING, WITH, SERVER
	after   string   // further statements of its own
	columns []*column

	parent *table // that it is a partition of
}

// column is a column of a table, as CREATE TABLE and ALTER TABLE want it.
type column struct {
	object   *Object
	name     string
	typ      string // with its options and collation
	notNull  string
	identity string
	computed string // GENERATED ALWAYS AS
	local    bool   // not only inherited
	after    string // statements for what CREATE TABLE has no place for
	value    *Object
}

// line is a column in its CREATE TABLE, without its default.
func (c *column) line() string { return join(" ", c.name, c.typ, c.identity, c.computed, c.notNull) }

// inherited is what a partition has of its parent's column.
func (c *column) inherited() string {
	value := ""
	if c.value != nil {
		value = c.value.SQL
	}
	return join(" ", c.name, c.typ, c.computed, value, c.notNull, strings.ReplaceAll(c.after, c.object.top().Name, ""))
}

// plain tells whether all columns of a partition are just as its parent's, in the
// same order: then they need not be written.
func (t *table) plain() bool {
	return t.parent != nil && slices.EqualFunc(t.columns, t.parent.columns, func(a, b *column) bool { return a.inherited() == b.inherited() })
}

// adopted tells whether the table was made before it got its parents: all its
// columns are its own, in an order of their own.
func (t *table) adopted() bool {
	return len(t.parents) > 0 && t.bound == "" && !slices.ContainsFunc(t.columns, func(c *column) bool { return !c.local })
}

// own is all of the table but its columns.
func (t *table) own() string {
	return join("\n", t.create, t.ofType, strings.Join(t.parents, ", "), t.bound, t.tail, t.after)
}

// sql writes the statements that make the table. Defaults stand in it that inline
// is true of.
func (t *table) sql(inline func(*Object) bool) string {
	var b strings.Builder
	b.WriteString(t.create + " " + t.name)
	plain := t.plain()
	switch {
	case plain:
		b.WriteString(" PARTITION OF " + t.parents[0] + " " + t.bound)
	case t.ofType != "":
		b.WriteString(" OF " + t.ofType)
	default:
		b.WriteString(" (" + t.list(inline) + "\n)")
		if len(t.parents) > 0 && t.bound == "" && !t.adopted() {
			b.WriteString("\nINHERITS (" + strings.Join(t.parents, ", ") + ")")
		}
	}
	b.WriteString(t.tail + ";\n")
	for _, c := range t.columns {
		if !plain {
			b.WriteString(c.after)
		}
	}
	switch {
	case t.bound != "" && !plain:
		b.WriteString("ALTER TABLE ONLY " + t.parents[0] + " ATTACH PARTITION " + t.name + " " + t.bound + ";\n")
	case t.adopted():
		for _, p := range t.parents {
			b.WriteString("ALTER TABLE " + t.name + " INHERIT " + p + ";\n")
		}
	}
	return b.String() + t.after
}

func (t *table) list(inline func(*Object) bool) string {
	var lines []string
	for _, c := range t.columns {
		if !t.written(c) {
			continue
		}
		value := ""
		if c.value != nil && c.value.inline && inline(c.value) {
			value = c.value.SQL
		}
		lines = append(lines, "\n    "+join(" ", c.name, c.typ, c.identity, c.computed, value, c.notNull))
	}
	return strings.Join(lines, ",")
}

// written tells whether a column stands in CREATE TABLE.
func (t *table) written(c *column) bool { return t.ofType == "" && (c.local || t.bound != "") }

// join joins the parts that are not empty.
func join(sep string, parts ...string) string {
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), sep)
}
