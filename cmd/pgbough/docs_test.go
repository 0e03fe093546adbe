package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

const checkout = "../.."

// TestDocs holds what people read to what there is: every command line of
// pgbough in the documentation, in the systemd unit and in the help's own
// examples names a command, with flags that it has, and every target of make,
// script and file that the documentation names exists.
func TestDocs(t *testing.T) {
	targets := makeTargets(t)
	commands := 0
	for _, name := range documents(t) {
		text := read(t, name)
		for _, c := range codeIn(text) {
			for _, line := range commandLines(c.text) {
				commands++
				if err := parses(line, c.whole); err != nil {
					t.Errorf("%s:%d: pgbough %s: %v", name, c.line, line, err)
				}
			}
			for _, m := range makeLine.FindAllStringSubmatch(c.text, -1) {
				if !slices.Contains(targets, m[1]) {
					t.Errorf("%s:%d: the Makefile has no target %s", name, c.line, m[1])
				}
			}
		}
		for _, path := range slices.Concat(scriptName.FindAllString(text, -1), links(name, text)) {
			if _, err := os.Stat(filepath.Join(checkout, path)); err != nil {
				t.Errorf("%s names what does not exist: %v", name, err)
			}
		}
	}
	if commands < 50 {
		t.Errorf("only %d command lines were found: the documentation is no longer read as it is written", commands)
	}
}

// TestExamples is TestDocs for the examples in the help of each command.
func TestExamples(t *testing.T) {
	found := 0
	var walk func(*cobra.Command)
	walk = func(cmd *cobra.Command) {
		for line := range strings.Lines(cmd.Example) {
			for _, args := range commandLines(line) {
				found++
				if err := parses(args, true); err != nil {
					t.Errorf("help of %s: pgbough %s: %v", cmd.CommandPath(), args, err)
				}
			}
		}
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk(newRootCommand(&globals{getenv: func(string) string { return "" }}))
	if found < 20 {
		t.Errorf("only %d examples were found", found)
	}
}

// TestUnit holds the systemd unit to the flags of the server.
func TestUnit(t *testing.T) {
	for line := range strings.Lines(read(t, "packaging/pgbough.service")) {
		if args, ok := strings.CutPrefix(line, "ExecStart=/usr/local/bin/pgbough "); ok {
			if err := parses(strings.TrimSuffix(strings.TrimSpace(args), " $PGBOUGH_FLAGS"), true); err != nil {
				t.Errorf("pgbough %s: %v", args, err)
			}
			return
		}
	}
	t.Error("the unit starts no server")
}

func TestCommandLines(t *testing.T) {
	for line, want := range map[string]string{
		"pgbough status # how it is":                 "status",
		"$ pgbough psql x -- -c 'select 1; --y'":     "psql x -- -c 'select 1; --y'",
		`psql "$(pgbough url x --role y)"`:           "url x --role y",
		"PGBOUGH_SOURCE=x pgbough check --json | jq": "check --json",
		"pgbough branch list && pgbough pool":        "branch list, pool",
		"CREATE ROLE pgbough LOGIN REPLICATION":      "",
		"install bin/pgbough there":                  "",
		"host  shop  pgbough  10.0.0.7/32":           "",
	} {
		if got := strings.Join(commandLines(line), ", "); got != want {
			t.Errorf("command lines in %q: %q, want %q", line, got, want)
		}
	}
	for line, want := range map[string]string{
		"branch":                     "needs a verb",
		"branch make x":              "needs a verb",
		"nonsense":                   "unknown command",
		"branch create":              "accepts 1 arg",
		"branch create x --when now": "unknown flag",
		"server --spares many":       "invalid argument",
		"psql x -c 'select 1'":       "unknown shorthand flag",
		"url x 'unclosed":            "quote",
		"run -- make test --at x":    "",
		"server --data DIR":          "",
		"pool":                       "",
	} {
		err := parses(line, true)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("pgbough %s: %v, want %q", line, err, want)
		}
	}
	if err := parses("branch create", false); err != nil {
		t.Errorf("naming a command is not calling it: %v", err)
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(checkout, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// documents are the paths of all that is written for people.
func documents(t *testing.T) []string {
	names := []string{"README.md", "CHANGELOG.md"}
	err := filepath.WalkDir(filepath.Join(checkout, "docs"), func(path string, e fs.DirEntry, err error) error {
		if err == nil && filepath.Ext(path) == ".md" {
			path, err = filepath.Rel(checkout, path)
			names = append(names, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func makeTargets(t *testing.T) []string {
	var out []string
	for _, m := range regexp.MustCompile(`(?m)^([a-z0-9-]+):`).FindAllStringSubmatch(read(t, "Makefile"), -1) {
		out = append(out, m[1])
	}
	return out
}

var (
	codeSpan   = regexp.MustCompile("`([^`]+)`")
	makeLine   = regexp.MustCompile(`(?:^|&& |[\s(])make ([a-z][a-z0-9-]*)`)
	scriptName = regexp.MustCompile(`\bscripts/[a-z0-9-]+`)
	link       = regexp.MustCompile(`\]\(([^)#:]+)(?:#[^)]*)?\)`)
	called     = regexp.MustCompile(`(?:^|[\s(])pgbough ([a-z-].*)`)
)

// code is a piece of code in a document: a line of a block, which is whole, or
// what stands between two backquotes.
type code struct {
	text  string
	line  int
	whole bool
}

func codeIn(text string) []code {
	var out []code
	var prose strings.Builder // with as many lines as text
	fenced, n := false, 0
	for line := range strings.Lines(text) {
		n++
		switch {
		case strings.HasPrefix(strings.TrimSpace(line), "```"):
			fenced = !fenced
		case fenced, strings.HasPrefix(line, "    "):
			out = append(out, code{strings.TrimSpace(line), n, true})
		default:
			prose.WriteString(strings.TrimSuffix(line, "\n"))
		}
		prose.WriteString("\n")
	}
	words := prose.String()
	for _, m := range codeSpan.FindAllStringSubmatchIndex(words, -1) {
		inside := words[m[2]:m[3]]
		out = append(out, code{strings.ReplaceAll(inside, "\n", " "), 1 + strings.Count(words[:m[0]], "\n"), false})
	}
	return out
}

// commandLines are the arguments of each call of pgbough in a line of shell.
func commandLines(line string) []string {
	var out []string
	for m := called.FindStringSubmatch(line); m != nil; m = called.FindStringSubmatch(line) {
		end := commandEnd(m[1])
		out = append(out, strings.TrimSpace(m[1][:end]))
		line = m[1][end:]
	}
	return out
}

// commandEnd is where a command ends in the line that begins with it.
func commandEnd(line string) int {
	quoted := rune(0)
	for i, r := range line {
		switch {
		case quoted != 0:
			if r == quoted {
				quoted = 0
			}
		case r == '\'' || r == '"':
			quoted = r
		case strings.ContainsRune(")|;&<>", r), r == '#' && i > 0 && line[i-1] == ' ':
			return i
		}
	}
	return len(line)
}

// parses tells whether a command line would be taken, without running it. If it
// is not whole, arguments may be missing.
func parses(line string, whole bool) error {
	words, err := split(line)
	if err != nil {
		return err
	}
	cmd, rest, err := newRootCommand(&globals{getenv: func(string) string { return "" }}).Find(words)
	if err != nil {
		return err
	}
	cmd.InitDefaultHelpFlag()
	cmd.InitDefaultVersionFlag()
	if err := cmd.ParseFlags(rest); err != nil {
		return err
	}
	if help, _ := cmd.Flags().GetBool("help"); help {
		return nil
	}
	args := cmd.Flags().Args()
	switch {
	case cmd.HasParent() && cmd.HasSubCommands() && cmd.Args == nil:
		return fmt.Errorf("%s needs a verb", cmd.CommandPath())
	case !whole:
		return nil
	}
	return cmd.ValidateArgs(args)
}

// split cuts a command line into words as a shell does.
func split(line string) ([]string, error) {
	var words []string
	var word strings.Builder
	quoted, begun := rune(0), false
	for _, r := range line + " " {
		switch {
		case quoted == r:
			quoted = 0
		case quoted == 0 && (r == '\'' || r == '"'):
			quoted, begun = r, true
		case quoted == 0 && r == ' ':
			if begun {
				words = append(words, word.String())
			}
			word.Reset()
			begun = false
		default:
			word.WriteRune(r)
			begun = true
		}
	}
	if quoted != 0 {
		return nil, fmt.Errorf("a quote %c is not closed", quoted)
	}
	return words, nil
}

// links are the files of the checkout that a document links to.
func links(name, text string) []string {
	var out []string
	for _, m := range link.FindAllStringSubmatch(text, -1) {
		out = append(out, filepath.Join(filepath.Dir(name), m[1]))
	}
	return out
}
