package lint

import (
	"regexp"
	"strconv"
	"strings"
)

// requirement is a direct one of go.mod; "// indirect" ones are not ours.
var requirement = regexp.MustCompile(`(?m)^(?:require\s+|\t)([^\s()]+) v\S+$`)

// documented is a module at the start of a row of the table in
// docs/dependencies.md: "| `module` | ...".
var documented = regexp.MustCompile("(?m)^\\| `([^`]+\\.[^`]+/[^`]+)` \\|")

// Dependencies checks that every direct dependency of goMod has its reason in
// doc, and that doc has none that went.
func Dependencies(goMod, doc string) []Finding {
	has := func(re *regexp.Regexp, text string) map[string]bool {
		set := map[string]bool{}
		for _, m := range re.FindAllStringSubmatch(text, -1) {
			set[m[1]] = true
		}
		return set
	}
	required, listed := has(requirement, goMod), has(documented, doc)
	var found []Finding
	for _, name := range order(goMod, required) {
		if !listed[name] {
			found = append(found, Finding{Where: "go.mod", What: name + " has no line in docs/dependencies.md that says what for"})
		}
	}
	for _, name := range order(doc, listed) {
		if !required[name] {
			found = append(found, Finding{Where: "docs/dependencies.md", What: name + " is no direct dependency of go.mod"})
		}
	}
	return found
}

// order is the members of set as text names them first.
func order(text string, set map[string]bool) []string {
	var names []string
	seen := map[string]bool{}
	for word := range strings.FieldsFuncSeq(text, func(r rune) bool { return strings.ContainsRune(" \t\n`|", r) }) {
		if set[word] && !seen[word] {
			seen[word] = true
			names = append(names, word)
		}
	}
	return names
}

func plural(lines int) string {
	if lines == 1 {
		return "1 line"
	}
	return strconv.Itoa(lines) + " lines"
}
