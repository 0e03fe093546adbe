// Package lint holds the module to its layers and to a few rules that no
// ordinary linter knows. Its test reads the source and fails with one line per
// finding.
//
// A layer is a set of packages that may be imported by the layers above it and
// by nothing else. An exception is one import that goes sideways, with the
// reason why it may. Test support is what only tests import.
package lint

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Module is the import path of the root package.
const Module = "github.com/pgbough/pgbough"

// File is one parsed Go file.
type File struct {
	Path   string // relative to the module, with slashes
	Test   bool
	Lines  int
	Syntax *ast.File
	fset   *token.FileSet
}

// Dir is the directory of the file's package, "." for the root package.
func (f *File) Dir() string { return path.Dir(f.Path) }

// Finding is one breach of a rule.
type Finding struct {
	Where string // file:line, or a file
	What  string
}

// String is the finding as a compiler would print it.
func (f Finding) String() string { return f.Where + ": " + f.What }

func (f *File) finding(pos token.Pos, format string, args ...any) Finding {
	return Finding{
		Where: f.Path + ":" + strconv.Itoa(f.fset.Position(pos).Line),
		What:  fmt.Sprintf(format, args...),
	}
}

// Parse reads the source of one file.
func Parse(name string, source []byte) (*File, error) {
	fset := token.NewFileSet()
	syntax, err := parser.ParseFile(fset, name, source, parser.SkipObjectResolution|parser.ParseComments)
	if err != nil {
		return nil, fmt.Errorf("parse %s: %w", name, err)
	}
	return &File{
		Path:   name,
		Test:   strings.HasSuffix(name, "_test.go"),
		Lines:  strings.Count(string(source), "\n"),
		Syntax: syntax,
		fset:   fset,
	}, nil
}

// Load parses every Go file of the module at root. Directories with a go.mod of
// their own, testdata and hidden ones are not part of it.
func Load(root string) ([]*File, error) {
	var files []*File
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name != root && foreign(name) {
				return fs.SkipDir
			}
			return nil
		}
		if filepath.Ext(name) != ".go" {
			return nil
		}
		source, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		file, err := Parse(filepath.ToSlash(relative), source)
		if err != nil {
			return err
		}
		files = append(files, file)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("load the module: %w", err)
	}
	return files, nil
}

func foreign(dir string) bool {
	base := filepath.Base(dir)
	if strings.HasPrefix(base, ".") || base == "testdata" {
		return true
	}
	_, err := os.Stat(filepath.Join(dir, "go.mod"))
	return err == nil
}

// Check applies every rule that looks at source.
func Check(files []*File, l Layout) []Finding {
	var found []Finding
	for _, f := range files {
		found = append(found, l.imports(f)...)
		found = append(found, l.exits(f)...)
		found = append(found, l.skips(f)...)
		found = append(found, names(f)...)
		found = append(found, length(f)...)
	}
	found = append(found, l.stale(files)...)
	slices.SortFunc(found, func(a, b Finding) int { return strings.Compare(a.String(), b.String()) })
	return slices.Compact(found)
}
