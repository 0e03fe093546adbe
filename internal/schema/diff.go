package schema

import (
	"fmt"
	"slices"
	"sort"
	"strings"

	"github.com/aymanbagabas/go-udiff"

	"github.com/pgbough/pgbough"
)

// around is how many lines stand around a change.
const around = 3

// Diff tells what b has that a has not, and the reverse: by object, and as lines.
// The lines are those of all objects in the order of their kinds and names, which
// no change of another object moves. What belongs to something that only one of
// them has goes with it.
func Diff(a, b *Database, nameA, nameB string) pgbough.SchemaDiff {
	d := pgbough.SchemaDiff{Changes: []pgbough.SchemaChange{}}
	for _, p := range pairs(a, b) {
		if c, ok := p.change(); ok {
			d.Changes = append(d.Changes, c)
		}
	}
	d.Unified = unified(a, b, nameA, nameB)
	return d
}

// pair is an object of both, or of one.
type pair struct{ a, b *Object }

// pairs joins the objects of both in their order.
func pairs(a, b *Database) []pair {
	var out []pair
	for _, o := range a.Objects {
		out = append(out, pair{o, b.byKey[o.key()]})
	}
	for _, o := range b.Objects {
		if a.byKey[o.key()] == nil {
			out = append(out, pair{nil, o})
		}
	}
	slices.SortStableFunc(out, func(x, y pair) int { return compare(x.one(), y.one()) })
	for i, p := range out {
		out[i] = p.other(a, b)
	}
	return slices.DeleteFunc(out, func(p pair) bool { return p.a == nil && p.b == nil })
}

func (p pair) one() *Object {
	if p.b != nil {
		return p.b
	}
	return p.a
}

// other leaves out what is told with what it belongs to.
func (p pair) other(a, b *Database) pair {
	for of := p.one().of; of != nil; of = of.of {
		if of.Kind != "database" && !a.has(of) != !b.has(of) {
			return pair{}
		}
	}
	if column := "column " + p.one().Name; p.one().Kind == "default" && (a.byKey[column] == nil) != (b.byKey[column] == nil) {
		return pair{}
	}
	return p
}

// has tells whether d has an object; what stands in no text of its own is taken
// for being there.
func (d *Database) has(o *Object) bool {
	return d.byKey[o.key()] != nil || o.Kind == "column" && o.SQL == ""
}

func (p pair) change() (pgbough.SchemaChange, bool) {
	one := p.one()
	c := pgbough.SchemaChange{Kind: one.Kind, Name: one.Name}
	switch {
	case p.a == nil:
		c.Change, c.To = pgbough.Added, p.b.told()
	case p.b == nil:
		c.Change, c.From = pgbough.Removed, p.a.told()
	case p.a.same(p.b):
		return c, false
	default:
		c.Change, c.From, c.To = pgbough.Changed, p.a.told(), p.b.told()
	}
	return c, !one.inline || !p.implied()
}

// implied tells whether a column is as its partitioned parent's in both.
func (p pair) implied() bool {
	for _, o := range []*Object{p.a, p.b} {
		if o != nil && !o.of.table.plain() {
			return false
		}
	}
	return true
}

// same tells whether two objects of one name are equal, apart from what has a name
// of its own in them.
func (o *Object) same(other *Object) bool {
	if o.table == nil || other.table == nil {
		return o.SQL == other.SQL
	}
	return o.table.own() == other.table.own() && o.table.sameOrder(other.table)
}

// sameOrder tells whether the columns that two tables both have stand in one order.
func (t *table) sameOrder(other *table) bool {
	return slices.Equal(t.common(other), other.common(t))
}

func (t *table) common(other *table) []string {
	there := map[string]bool{}
	for _, c := range other.columns {
		there[c.name] = true
	}
	var out []string
	for _, c := range t.columns {
		if there[c.name] {
			out = append(out, c.name)
		}
	}
	return out
}

func (o *Object) told() string { return strings.TrimSuffix(o.whole(), "\n") }

// text is the lines of an object. The last of a list has a comma, as the others
// have: else a line would differ that only has got another after it.
func (o *Object) text() string {
	if o.inline {
		return "" // it stands in its table's
	}
	sql := o.whole()
	if o.table != nil || o.Kind == "type" {
		sql = strings.Replace(sql, "\n)", ",\n)", 1)
	}
	if !strings.HasSuffix(sql, "\n") {
		sql += "\n"
	}
	return sql
}

// unified is the difference as lines, empty if there is none. Every object is
// compared with itself only.
func unified(a, b *Database, nameA, nameB string) string {
	before, edits, starts := texts(a, b)
	if len(edits) == 0 {
		return ""
	}
	u, err := udiff.ToUnifiedDiff(nameA, nameB, before, edits, around)
	if err != nil { // edits that do not fit would be a fault of ours
		panic(err)
	}
	return headed(u, starts)
}

// heading is an object and its first line in the text of a.
type heading struct {
	line int
	name string
}

// texts is the text of a, what makes that of b of it, and where objects begin.
func texts(a, b *Database) (string, []udiff.Edit, []heading) {
	var text strings.Builder
	var edits []udiff.Edit
	var starts []heading
	line := 1
	for _, p := range merged(a, b) {
		old, now := "", ""
		if p.a != nil {
			old = p.a.text()
		}
		if p.b != nil {
			now = p.b.text()
		}
		at := text.Len()
		if old != now {
			for _, e := range udiff.Lines(old, now) {
				edits = append(edits, udiff.Edit{Start: e.Start + at, End: e.End + at, New: e.New})
			}
		}
		starts = append(starts, heading{line, p.one().key()})
		line += strings.Count(old, "\n")
		text.WriteString(old)
	}
	return text.String(), edits, starts
}

// merged are the objects of both in the order of their texts.
func merged(a, b *Database) []pair {
	var out []pair
	for i, j := 0, 0; i < len(a.Objects) || j < len(b.Objects); {
		c := 0
		switch {
		case i == len(a.Objects):
			c = 1
		case j == len(b.Objects):
			c = -1
		default:
			c = compare(a.Objects[i], b.Objects[j])
		}
		p := pair{}
		if c <= 0 {
			p.a = a.Objects[i]
			i++
		}
		if c >= 0 {
			p.b = b.Objects[j]
			j++
		}
		out = append(out, p)
	}
	return out
}

// headed writes a diff with the object that each of its parts begins in.
func headed(u udiff.UnifiedDiff, starts []heading) string {
	var out strings.Builder
	hunks := u.Hunks
	for line := range strings.Lines(u.String()) {
		if strings.HasPrefix(line, "@@ ") && len(hunks) > 0 {
			first := hunks[0].FromLine
			hunks = hunks[1:]
			at := sort.Search(len(starts), func(i int) bool { return starts[i].line > first }) - 1
			line = strings.TrimSuffix(line, "\n") + fmt.Sprintf(" %s\n", starts[max(at, 0)].name)
		}
		out.WriteString(line)
	}
	return out.String()
}
