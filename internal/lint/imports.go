package lint

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
)

// Layer is a set of packages, given as directories of the module. A directory
// with "/..." stands also for all below it.
type Layer struct {
	Name string
	Dirs []string
	// Only, where given, are the only directories of the module that it may
	// import. Why says why.
	Only []string
	Why  string
}

// Exception is an import within a layer that is right nevertheless.
type Exception struct {
	From, To string // directories; To may end in "/..."
	Why      string
}

// Owner says which packages may import a library, or a dangerous package of the
// standard library.
type Owner struct {
	Import string // an import path; also all below it
	Dirs   []string
	Why    string
}

// Skip is a test that may be skipped for a reason that does not fail in CI.
type Skip struct {
	Dir, Func string
	Why       string
}

// Layout is what the rules hold the module to.
type Layout struct {
	Layers      []Layer  // from the bottom up
	TestSupport []string // directories that only tests import
	// Wiring are the files that put the concrete types together and may import
	// anything; the rest of their package is held to Only.
	Wiring     []string
	Exceptions []Exception
	Owners     []Owner
	Skips      []Skip
}

// matches tells whether dir is pattern, or below it if pattern ends in "/...".
func matches(pattern, dir string) bool {
	if above, ok := strings.CutSuffix(pattern, "/..."); ok {
		return dir == above || strings.HasPrefix(dir, above+"/")
	}
	return dir == pattern
}

func within(patterns []string, dir string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return matches(p, dir) })
}

// layerOf is the number of the layer of dir, -1 if it has none.
func (l Layout) layerOf(dir string) int {
	return slices.IndexFunc(l.Layers, func(layer Layer) bool { return within(layer.Dirs, dir) })
}

// imports checks what f imports against the layers and the owners. Tests may
// import whatever compiles, except what another package's library is for.
func (l Layout) imports(f *File) []Finding {
	var found []Finding
	for _, spec := range f.Syntax.Imports {
		name, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			continue // the compiler says so
		}
		what := ""
		if target, ours := directory(name); ours {
			what = l.internalImport(f, target)
		} else {
			what = l.libraryImport(f, name)
		}
		if what != "" {
			found = append(found, f.finding(spec.Pos(), "%s", what))
		}
	}
	if !l.known(f.Dir()) {
		found = append(found, f.finding(f.Syntax.Package, "package %s has no layer: give it one in internal/lint/layout.go", f.Dir()))
	}
	return found
}

func (l Layout) known(dir string) bool {
	return l.layerOf(dir) >= 0 || within(l.TestSupport, dir)
}

// directory is where in the module an import path is.
func directory(importPath string) (string, bool) {
	if importPath == Module {
		return ".", true
	}
	return strings.CutPrefix(importPath, Module+"/")
}

// internalImport says what is wrong with f importing target, if anything.
func (l Layout) internalImport(f *File, target string) string {
	if f.Test || within(l.TestSupport, f.Dir()) {
		return ""
	}
	if within(l.TestSupport, target) {
		return target + " is for tests only"
	}
	if slices.Contains(l.Wiring, f.Path) {
		return ""
	}
	from, to := l.layerOf(f.Dir()), l.layerOf(target)
	if from < 0 || to < 0 || f.Dir() == target {
		return "" // reported where the package is
	}
	layer := l.Layers[from]
	if layer.Only != nil && !within(layer.Only, target) {
		return "imports " + target + ", but " + layer.Why
	}
	switch cmp.Compare(to, from) {
	case -1:
		return ""
	case 0:
		if l.excepted(f.Dir(), target) {
			return ""
		}
		return "imports " + target + " beside it among the " + layer.Name + ": they never import each other; let what needs both join them"
	}
	return "imports " + target + " of the " + l.Layers[to].Name + " above the " + layer.Name + ": imports point downward"
}

func (l Layout) excepted(from, to string) bool {
	return slices.ContainsFunc(l.Exceptions, func(e Exception) bool { return matches(e.From, from) && matches(e.To, to) })
}

// libraryImport says what is wrong with f importing name, if anything.
func (l Layout) libraryImport(f *File, name string) string {
	if f.Test || within(l.TestSupport, f.Dir()) {
		return ""
	}
	standard := !strings.Contains(strings.SplitN(name, "/", 2)[0], ".")
	if from := l.layerOf(f.Dir()); from == 0 && !standard {
		return "imports " + name + ", but the nouns import only the standard library"
	}
	for _, o := range l.Owners {
		if matches(o.Import+"/...", name) {
			if within(o.Dirs, f.Dir()) {
				return ""
			}
			return "imports " + name + ", which is for " + cmp.Or(strings.Join(o.Dirs, ", "), "tests only") + ": " + o.Why
		}
	}
	if standard {
		return ""
	}
	return "imports " + name + ", which has no owner: give it one in internal/lint/layout.go and a line in docs/dependencies.md"
}

// stale finds what the layout allows and nothing uses, so that the table stays
// true.
func (l Layout) stale(files []*File) []Finding {
	var found []Finding
	missing := func(what string) {
		found = append(found, Finding{Where: "internal/lint/layout.go", What: what})
	}
	for _, e := range l.Exceptions {
		if !slices.ContainsFunc(files, func(f *File) bool { return !f.Test && matches(e.From, f.Dir()) && importsDir(f, e.To) }) {
			missing("exception that nothing needs: " + e.From + " imports " + e.To)
		}
	}
	for _, layer := range l.Layers {
		for _, dir := range layer.Dirs {
			if !slices.ContainsFunc(files, func(f *File) bool { return matches(dir, f.Dir()) }) {
				missing("layer " + layer.Name + " names a package that is not there: " + dir)
			}
		}
	}
	return found
}

func importsDir(f *File, pattern string) bool {
	for _, spec := range f.Syntax.Imports {
		name, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			continue
		}
		if dir, ours := directory(name); ours && matches(pattern, dir) {
			return true
		}
	}
	return false
}
