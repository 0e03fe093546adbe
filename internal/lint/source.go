package lint

import (
	"go/ast"
	"go/token"
	"slices"
	"strings"
)

// MaxLines is how long a file that is not a test may be.
const MaxLines = 600

// drawers are package names that say nothing about what is inside.
func drawers() []string {
	return []string{"base", "common", "helper", "helpers", "lib", "misc", "models", "shared", "types", "util", "utils"}
}

// names checks that the package is called after what it provides.
func names(f *File) []Finding {
	name := strings.TrimSuffix(f.Syntax.Name.Name, "_test")
	// The privileged helper process of the design is a thing of that name.
	if name == "helper" && f.Dir() == "internal/helper" {
		return nil
	}
	if slices.Contains(drawers(), name) {
		return []Finding{f.finding(f.Syntax.Name.Pos(), "package %s: a package is named after what it provides", name)}
	}
	return nil
}

// length checks that the file can be read in one go.
func length(f *File) []Finding {
	if f.Test || f.Lines < MaxLines {
		return nil
	}
	return []Finding{{Where: f.Path, What: "has " + plural(f.Lines) + ": cut it by what its parts are about (fewer than " + plural(MaxLines) + ")"}}
}

// exits checks that only a main.go of cmd, bench or a test program ends the process.
func (l Layout) exits(f *File) []Finding {
	if f.Test || (f.Syntax.Name.Name == "main" && strings.HasSuffix(f.Path, "main.go")) {
		return nil
	}
	var found []Finding
	ast.Inspect(f.Syntax, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		pkg, name := selector(call.Fun)
		switch {
		case pkg == "os" && name == "Exit", pkg == "log" && (strings.HasPrefix(name, "Fatal") || strings.HasPrefix(name, "Panic")):
			found = append(found, f.finding(call.Pos(), "%s.%s: return the error; only main.go ends the process", pkg, name))
		}
		return true
	})
	return found
}

// skips checks that a test that is skipped for want of something fails in CI:
// the function that skips asks for the environment variable CI, or the skip is
// for -short, or the layout names it with a reason.
func (l Layout) skips(f *File) []Finding {
	var found []Finding
	for _, decl := range f.Syntax.Decls {
		fn, ok := decl.(*ast.FuncDecl)
		if !ok || fn.Body == nil {
			continue
		}
		at := skipIn(fn.Body)
		if !at.IsValid() || asksForCI(fn.Body) || l.maySkip(f.Dir(), fn.Name.Name) {
			continue
		}
		found = append(found, f.finding(at, "%s skips without a look at CI: there a skipped test is a failure", fn.Name.Name))
	}
	return found
}

func (l Layout) maySkip(dir, fn string) bool {
	return slices.ContainsFunc(l.Skips, func(s Skip) bool { return s.Dir == dir && s.Func == fn })
}

// skipIn is where body calls Skip, Skipf or SkipNow on a test.
func skipIn(body *ast.BlockStmt) token.Pos {
	at := token.NoPos
	ast.Inspect(body, func(n ast.Node) bool {
		if call, ok := n.(*ast.CallExpr); ok && !at.IsValid() {
			if receiver, name := selector(call.Fun); slices.Contains([]string{"t", "tb", "b", "f"}, receiver) && slices.Contains([]string{"Skip", "Skipf", "SkipNow"}, name) {
				at = call.Pos()
			}
		}
		return !at.IsValid()
	})
	return at
}

// asksForCI tells whether body calls os.Getenv("CI") or testing.Short().
func asksForCI(body *ast.BlockStmt) bool {
	asks := false
	ast.Inspect(body, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		switch pkg, name := selector(call.Fun); {
		case pkg == "testing" && name == "Short":
			asks = true
		case pkg == "os" && name == "Getenv" && len(call.Args) == 1:
			if arg, ok := call.Args[0].(*ast.BasicLit); ok && arg.Value == `"CI"` {
				asks = true
			}
		}
		return !asks
	})
	return asks
}

// selector takes x.y apart where x is a plain name.
func selector(e ast.Expr) (x, y string) {
	s, ok := e.(*ast.SelectorExpr)
	if !ok {
		return "", ""
	}
	id, ok := s.X.(*ast.Ident)
	if !ok {
		return "", ""
	}
	return id.Name, s.Sel.Name
}
