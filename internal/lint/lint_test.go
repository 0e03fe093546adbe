package lint

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const root = "../.."

// TestModule holds this module to its layout.
func TestModule(t *testing.T) {
	files, err := Load(root)
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 20 {
		t.Fatalf("only %d files: is %s the module?", len(files), root)
	}
	for _, f := range Check(files, Current()) {
		t.Error(f)
	}
}

// TestModuleDependencies holds go.mod to docs/dependencies.md.
func TestModuleDependencies(t *testing.T) {
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for _, f := range Dependencies(read("go.mod"), read("docs/dependencies.md")) {
		t.Error(f)
	}
}

// toy is a small layout with one of everything.
func toy() Layout {
	return Layout{
		Layers: []Layer{
			{Name: "nouns", Dirs: []string{"."}},
			{Name: "leaves", Dirs: []string{"internal/disk", "internal/volume/..."}},
			{Name: "services", Dirs: []string{"internal/catalog", "internal/compute"}},
			{Name: "edges", Dirs: []string{"client"}, Only: []string{"."}, Why: "a client knows only the nouns"},
			{Name: "commands", Dirs: []string{"cmd/..."}, Only: []string{"client"}, Why: "commands are clients"},
		},
		TestSupport: []string{"internal/pgtest", "test/..."},
		Wiring:      []string{"cmd/pgbough/server.go"},
		Exceptions:  []Exception{{"internal/volume/btrfs", "internal/volume/...", "a driver"}},
		Owners: []Owner{
			{"github.com/spf13/cobra", []string{"cmd/pgbough"}, "one place"},
			{"os/exec", []string{"internal/disk"}, "few"},
			{"example.com/cmp", nil, "tests"},
		},
		Skips: []Skip{{"internal/disk", "TestOdd", "a reason"}},
	}
}

func TestRules(t *testing.T) {
	const m = Module
	tests := []struct {
		name, file, source string
		want               string // in the only finding; "" is none
	}{
		{"nouns import the standard library", "id.go", `package pgbough; import _ "strings"`, ""},
		{"nouns import a library", "id.go", `package pgbough; import _ "github.com/spf13/cobra"`, "only the standard library"},
		{"nouns import ours", "id.go", `package pgbough; import _ "` + m + `/internal/disk"`, "imports point downward"},
		{"a test of the nouns imports a library", "id_test.go", `package pgbough; import _ "example.com/cmp"`, ""},

		{"a service imports a leaf", "internal/catalog/a.go", `package catalog; import _ "` + m + `/internal/disk"`, ""},
		{"a leaf imports a service", "internal/disk/a.go", `package disk; import _ "` + m + `/internal/catalog"`, "imports point downward"},
		{"a service imports a service", "internal/compute/a.go", `package compute; import _ "` + m + `/internal/catalog"`, "never import each other"},
		{"a leaf imports a leaf", "internal/disk/a.go", `package disk; import _ "` + m + `/internal/volume"`, "never import each other"},
		{"an exception", "internal/volume/btrfs/a.go", `package btrfs; import _ "` + m + `/internal/volume/tree"`, ""},
		{"an exception is of one package", "internal/volume/zfs/a.go", `package zfs; import _ "` + m + `/internal/volume/tree"`, "never import each other"},
		{"an edge with a list", "client/a.go", `package client; import _ "` + m + `"`, ""},
		{"an edge beyond its list", "client/a.go", `package client; import _ "` + m + `/internal/disk"`, "a client knows only the nouns"},
		{"a command beyond its list", "cmd/pgbough/branch.go", `package main; import _ "` + m + `/internal/catalog"`, "commands are clients"},
		{"the wiring", "cmd/pgbough/server.go", `package main; import _ "` + m + `/internal/catalog"`, ""},
		{"the wiring and test support", "cmd/pgbough/server.go", `package main; import _ "` + m + `/internal/pgtest"`, "for tests only"},
		{"a test and test support", "internal/disk/a_test.go", `package disk; import _ "` + m + `/internal/pgtest"`, ""},
		{"test support and anything", "internal/pgtest/a.go", `package pgtest; import _ "` + m + `/internal/catalog"`, ""},
		{"a package without a layer", "internal/new/a.go", `package new`, "has no layer"},
		{"all below test", "test/shop/a.go", `package shop; import _ "` + m + `/internal/catalog"`, ""},

		{"a library at its owner", "cmd/pgbough/a.go", `package main; import _ "github.com/spf13/cobra"`, ""},
		{"a part of a library at its owner", "cmd/pgbough/a.go", `package main; import _ "github.com/spf13/cobra/doc"`, ""},
		{"a library elsewhere", "client/a.go", `package client; import _ "github.com/spf13/cobra"`, "which is for cmd/pgbough: one place"},
		{"a library of tests", "client/a.go", `package client; import _ "example.com/cmp/x"`, "which is for tests only"},
		{"a library of like name", "client/a.go", `package client; import _ "github.com/spf13/cobrax"`, "has no owner"},
		{"an owned package of the standard library", "client/a.go", `package client; import _ "os/exec"`, "which is for internal/disk"},

		{"a drawer", "internal/disk/a.go", `package util`, "named after what it provides"},
		{"a drawer's test", "internal/disk/a_test.go", `package common_test`, "named after what it provides"},

		{"exit in main", "cmd/pgbough/main.go", `package main; import "os"; func main() { os.Exit(1) }`, ""},
		{"exit beside main", "cmd/pgbough/a.go", `package main; import "os"; func f() { os.Exit(1) }`, "only main.go"},
		{"exit in a file of that name elsewhere", "client/main.go", `package client; import "os"; func f() { os.Exit(1) }`, "only main.go"},
		{"fatal log", "client/a.go", `package client; import "log"; func f() { log.Fatalf("x") }`, "only main.go"},
		{"exit in a test", "client/a_test.go", `package client; import "os"; func TestMain() { os.Exit(1) }`, ""},

		{"a skip", "client/a_test.go", `package client; func TestA(t *testing.T) { t.Skip("no") }`, "TestA skips without a look at CI"},
		{"a skip in a subtest", "client/a_test.go", `package client; func TestA(t *testing.T) { t.Run("x", func(t *testing.T) { t.Skipf("no") }) }`, "TestA skips"},
		{"a skip that looks", "client/a_test.go", `package client; func need(t *testing.T) { if os.Getenv("CI") == "true" { t.Fatal() }; t.Skip("no") }`, ""},
		{"a skip that looks elsewhere", "client/a_test.go", `package client; func need(t *testing.T) { os.Getenv("HOME"); t.Skip("no") }`, "need skips"},
		{"a skip when short", "client/a_test.go", `package client; func TestA(t *testing.T) { if testing.Short() { t.SkipNow() } }`, ""},
		{"a skip with a reason", "internal/disk/a_test.go", `package disk; func TestOdd(t *testing.T) { t.Skip("no") }`, ""},

		{"a long file", "client/a.go", "package client" + strings.Repeat("\n", 600), "has 600 lines"},
		{"a nearly long file", "client/a.go", "package client" + strings.Repeat("\n", 599), ""},
		{"a long test", "client/a_test.go", "package client" + strings.Repeat("\n", 600), ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f, err := Parse(tt.file, []byte(tt.source))
			if err != nil {
				t.Fatal(err)
			}
			found := slices.DeleteFunc(Check([]*File{f}, toy()), func(f Finding) bool {
				return f.Where == "internal/lint/layout.go" // most of the toy is not there: TestStale
			})
			switch {
			case tt.want == "" && len(found) > 0:
				t.Errorf("found %v, want nothing", found)
			case tt.want != "" && (len(found) != 1 || !strings.Contains(found[0].What, tt.want)):
				t.Errorf("found %v, want one with %q", found, tt.want)
			}
		})
	}
}

func TestStale(t *testing.T) {
	parse := func(name, source string) *File {
		f, err := Parse(name, []byte(source))
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	layout := Layout{
		Layers:     []Layer{{Name: "leaves", Dirs: []string{"internal/a", "internal/b"}}},
		Exceptions: []Exception{{"internal/a", "internal/b", "why not"}},
	}
	a := parse("internal/a/a.go", `package a; import _ "`+Module+`/internal/b"`)
	b := parse("internal/b/b.go", `package b`)
	if found := layout.stale([]*File{a, b}); len(found) != 0 {
		t.Errorf("found %v, want nothing", found)
	}
	if found := layout.stale([]*File{b}); len(found) != 2 {
		t.Errorf("found %v, want the exception and the package that went", found)
	}
}

func TestDependencies(t *testing.T) {
	const mod = "module x\n\ngo 1.26\n\nrequire github.com/a/single v1.0.0\n\nrequire (\n\tgithub.com/a/b v1.2.3\n\tgithub.com/c/d v0.1.0 // indirect\n)\n"
	const both = "| module | why |\n|---|---|\n| `github.com/a/single` | one |\n| `github.com/a/b` | two |\n| `bwrap` | a program |\n"
	tests := []struct{ name, doc, want string }{
		{"all there", both, ""},
		{"one missing", strings.Replace(both, "github.com/a/b", "bb", 1), "go.mod: github.com/a/b has no line"},
		{"the single one missing", strings.Replace(both, "github.com/a/single", "s", 1), "go.mod: github.com/a/single has no line"},
		{"one too many", both + "| `github.com/c/d` | gone |\n", "github.com/c/d is no direct dependency"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			found := Dependencies(mod, tt.doc)
			switch {
			case tt.want == "" && len(found) > 0:
				t.Errorf("found %v, want nothing", found)
			case tt.want != "" && (len(found) != 1 || !strings.Contains(found[0].String(), tt.want)):
				t.Errorf("found %v, want one with %q", found, tt.want)
			}
		})
	}
}

func TestLoadLeavesOthersOut(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"a.go": "package a\n", "sub/b.go": "package b\n", "sub/testdata/c.go": "not Go", ".hidden/d.go": "not Go",
		"tools/go.mod": "module tools\n", "tools/e.go": "not Go",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	files, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != 2 || files[0].Path != "a.go" || files[1].Path != "sub/b.go" {
		t.Errorf("loaded %v", files)
	}
}
