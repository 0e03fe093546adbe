package schema

import (
	"container/heap"
	"slices"
	"strings"
)

// DDL writes the schema as SQL that makes it in a database that has nothing yet,
// as a superuser, where the roles that it names are. What others need comes first;
// what stands in a circle is made in two parts.
func (d *Database) DDL() string {
	g := d.graph()
	for !g.broken() {
		continue // with one more part split off
	}
	var b strings.Builder
	b.WriteString(preamble)
	for _, s := range g.sorted() {
		b.WriteString(s.sql())
	}
	return b.String()
}

// Bodies of functions may name what does not exist yet, and every name is qualified.
const preamble = "SET check_function_bodies = off;\nSET search_path = pg_catalog;\n\n"

// step is what is made at once.
type step struct {
	object *Object
	stub   bool // its stub
	rest   bool // what its stub stands for
	needs  map[*step]bool
	apart  map[*Object]bool // defaults of a table that are steps of their own

	index, low int // of the search for circles
	onStack    bool
}

func (s *step) sql() string {
	o := s.object
	switch {
	case s.stub:
		return o.stub
	case s.rest && o.Kind == "view":
		return strings.Replace(o.SQL, "CREATE VIEW", "CREATE OR REPLACE VIEW", 1)
	case o.table != nil:
		return o.table.sql(func(value *Object) bool { return !s.apart[value] })
	case o.inline: // a default
		return "ALTER TABLE ONLY " + o.of.Name + " ALTER COLUMN " + strings.TrimPrefix(o.Name, o.of.Name+".") + " SET " + o.SQL + ";\n"
	}
	return o.SQL
}

// graph is what needs what.
type graph struct {
	db    *Database
	steps []*step
	split map[*Object]bool // defaults apart from their tables, and what has a stub

	of    map[*Object]*step // that makes it as a whole
	stubs map[*Object]*step

	attached map[*Object][]*Object // to an index or key, those of partitions
}

func (d *Database) graph() *graph {
	g := &graph{db: d, split: map[*Object]bool{}}
	g.attach()
	g.build()
	return g
}

func (g *graph) build() {
	g.steps, g.of, g.stubs = nil, map[*Object]*step{}, map[*Object]*step{}
	for _, o := range g.db.Objects {
		if o.inline && !g.split[o] {
			continue
		}
		s := &step{object: o, needs: map[*step]bool{}, apart: map[*Object]bool{}}
		g.of[o] = s
		g.steps = append(g.steps, s)
		if g.split[o] && o.stub != "" {
			stub := &step{object: o, stub: true, needs: map[*step]bool{}}
			s.rest, s.needs[stub] = true, true
			g.stubs[o] = stub
			g.steps = append(g.steps, stub)
		}
	}
	g.link()
}

func (g *graph) link() {
	for _, o := range g.db.Objects {
		if o.inline && g.split[o] {
			g.of[o.of].apart[o] = true
		}
		s := g.stepOf(o)
		if o.of != nil {
			g.need(s, o.of)
		}
		for _, oid := range o.needs {
			if other := g.db.resolve(address{class: relationClass, oid: oid}); other != nil {
				g.need(s, other)
				if o.Kind == "sequence owner" {
					g.needOwner(s, other)
				}
			}
		}
		if o.Kind == "sequence owner" {
			g.needOwner(s, o.of)
		}
		if o.Kind == "index" || o.Kind == "constraint" || o.Kind == "trigger" {
			g.needPartitions(s, o.top())
		}
	}
	g.needParents()
	for _, d := range g.db.depend {
		g.depend(d)
	}
}

func (g *graph) depend(d dependency) {
	from, to := g.db.resolve(d.from), g.db.resolve(d.to)
	switch {
	case from == nil || to == nil || from == to:
	case from.Kind == "sequence" && d.kind == "a":
		// which column it goes with is told later
	case d.kind == "P" || d.kind == "S":
		// partitions are linked by what is written of them
	case g.stubs[from] != nil && d.from.class == relationClass:
		g.need(g.stubs[from], to) // the types of a view's columns
	case g.stubs[from] != nil && from.Kind != "view" && to.Kind != "function" && to.Kind != "view":
		g.need(g.stubs[from], to) // as far as one can tell, the types of a function's arguments
	default:
		g.need(g.stepOf(from), to)
		if from.Kind == "constraint" {
			g.needAttached(g.stepOf(from), to)
		}
	}
}

// needAttached makes a foreign key wait until the key of a partitioned table that
// it refers to has those of all partitions: before that it is not valid.
func (g *graph) needAttached(s *step, key *Object) {
	for _, a := range g.attached[key] {
		g.need(s, a)
		g.needAttached(s, g.db.resolve(address{class: relationClass, oid: a.needs[0]}))
	}
}

// attach notes which attachments an index has.
func (g *graph) attach() {
	g.attached = map[*Object][]*Object{}
	for _, o := range g.db.Objects {
		if o.Kind == "index attachment" {
			parent := g.db.resolve(address{class: relationClass, oid: o.needs[1]})
			g.attached[parent] = append(g.attached[parent], o)
		}
	}
}

// stepOf is the step that makes an object as a whole.
func (g *graph) stepOf(o *Object) *step {
	for o != nil {
		if s := g.of[o]; s != nil {
			return s
		}
		o = o.of
	}
	return nil
}

// need makes s wait for an object, or for what stands for it.
func (g *graph) need(s *step, o *Object) {
	to := g.stepOf(o)
	if stub := g.stubs[o]; stub != nil && s != nil && s.object.of != o {
		to = stub
	}
	if s != nil && to != nil && s != to {
		s.needs[to] = true
	}
}

// needOwner makes s wait until it is said who owns o: a sequence and its table
// must have one owner.
func (g *graph) needOwner(s *step, o *Object) {
	if owner := g.db.byKey["owner "+o.key()]; owner != nil {
		g.need(s, owner)
	}
}

// needPartitions makes what a table has wait for the tables that inherit it, so
// that each of them gets what it has under the name that it has.
func (g *graph) needPartitions(s *step, parent *Object) {
	for _, child := range g.db.children(parent) {
		g.need(s, child)
	}
}

func (g *graph) needParents() {
	for _, o := range g.db.Objects {
		if o.table == nil {
			continue
		}
		for _, parent := range o.table.parents {
			for _, kind := range []string{"table ", "foreign table "} {
				if p := g.db.byKey[kind+parent]; p != nil {
					g.need(g.of[o], p)
					g.needDefaults(g.of[o], p)
				}
			}
		}
	}
}

// needDefaults makes a child wait for what its parent has instead of inherited
// defaults, which it inherits itself.
func (g *graph) needDefaults(s *step, parent *Object) {
	for _, c := range parent.table.columns {
		if c.value != nil && !c.value.inline {
			g.need(s, c.value)
		}
	}
}

// children are the tables that inherit from a table.
func (d *Database) children(parent *Object) []*Object {
	if d.inherit == nil {
		d.inherit = map[string][]*Object{}
		for _, o := range d.Objects {
			if o.table == nil {
				continue
			}
			for _, p := range o.table.parents {
				d.inherit[p] = append(d.inherit[p], o)
			}
		}
	}
	if parent.table == nil {
		return nil
	}
	return d.inherit[parent.Name]
}

// resolve finds the object that an address is of: itself, or what it is a part of.
func (d *Database) resolve(at address) *Object {
	for range 8 {
		if o := d.byAddr[at]; o != nil {
			return o
		}
		whole := address{class: at.class, oid: at.oid}
		if o := d.byAddr[whole]; o != nil {
			return o
		}
		next, ok := d.part[at]
		if !ok {
			if next, ok = d.part[whole]; !ok {
				return nil
			}
		}
		at = next
	}
	return nil
}

// broken finds the circles, splits what can be split in each, and is true when
// nothing is left to split.
func (g *graph) broken() bool {
	done := true
	for _, circle := range g.circles() {
		if g.splitIn(circle) {
			done = false
		}
	}
	if !done {
		g.build()
	}
	return done
}

func (g *graph) splitIn(circle []*step) bool {
	found := false
	for _, s := range circle {
		if t := s.object.table; t != nil {
			for _, c := range t.columns {
				if c.value != nil && c.value.inline && !g.split[c.value] {
					g.split[c.value], found = true, true
				}
			}
		}
	}
	for _, kind := range []string{"view", "function", "procedure"} {
		for _, s := range circle {
			if !found && s.object.Kind == kind && s.object.stub != "" && !g.split[s.object] {
				g.split[s.object] = true
				return true
			}
		}
	}
	return found
}

// circles are the sets of more than one step that need each other (Tarjan).
func (g *graph) circles() [][]*step {
	f := &finder{}
	for _, s := range g.steps {
		if s.index == 0 {
			f.visit(s)
		}
	}
	return f.found
}

type finder struct {
	count int
	stack []*step
	found [][]*step
}

func (f *finder) visit(s *step) {
	f.count++
	s.index, s.low, s.onStack = f.count, f.count, true
	f.stack = append(f.stack, s)
	for _, n := range inOrder(s.needs) {
		if n.index == 0 {
			f.visit(n)
			s.low = min(s.low, n.low)
		} else if n.onStack {
			s.low = min(s.low, n.index)
		}
	}
	if s.low != s.index {
		return
	}
	at := slices.Index(f.stack, s)
	circle := slices.Clone(f.stack[at:])
	f.stack = f.stack[:at]
	for _, c := range circle {
		c.onStack = false
	}
	if len(circle) > 1 {
		f.found = append(f.found, circle)
	}
}

func inOrder(set map[*step]bool) []*step {
	out := make([]*step, 0, len(set))
	for s := range set {
		out = append(out, s)
	}
	slices.SortFunc(out, before)
	return out
}

// before is the order of steps that need nothing of each other: by kind, so that
// what is good for all comes first and what acts on all comes last.
func before(a, b *step) int {
	if c := rank(a.object.Kind) - rank(b.object.Kind); c != 0 {
		return c
	}
	if c := compare(a.object, b.object); c != 0 || a.stub == b.stub {
		return c
	}
	if a.stub {
		return -1
	}
	return 1
}

// sorted puts each step after all that it needs. Of a circle that cannot be split
// the first comes first.
func (g *graph) sorted() []*step {
	waiting, waits := map[*step]int{}, map[*step][]*step{}
	var ready queue
	for _, s := range g.steps {
		waiting[s] = len(s.needs)
		for n := range s.needs {
			waits[n] = append(waits[n], s)
		}
		if len(s.needs) == 0 {
			heap.Push(&ready, s)
		}
	}
	left := slices.Clone(g.steps)
	slices.SortFunc(left, before)
	var out []*step
	for len(out) < len(g.steps) {
		if ready.Len() == 0 {
			at := slices.IndexFunc(left, func(s *step) bool { return waiting[s] > 0 })
			waiting[left[at]] = 0
			heap.Push(&ready, left[at])
		}
		s := heap.Pop(&ready).(*step)
		out = append(out, s)
		for _, w := range waits[s] {
			if waiting[w]--; waiting[w] == 0 {
				heap.Push(&ready, w)
			}
		}
	}
	return out
}

// queue is a heap of steps that can be taken.
type queue []*step

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return before(q[i], q[j]) < 0 }
func (q queue) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *queue) Push(x any)        { *q = append(*q, x.(*step)) }
func (q *queue) Pop() any {
	last := (*q)[len(*q)-1]
	*q = (*q)[:len(*q)-1]
	return last
}
