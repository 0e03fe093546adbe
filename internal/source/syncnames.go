package source

import (
	"fmt"
	"strconv"
	"strings"
)

// syncNames is a parsed synchronous_standby_names (Postgres: syncrep_gram.y,
// syncrep_scanner.l).
type syncNames struct {
	method string // "FIRST", "ANY", or empty for a bare list
	number string
	names  []string // "*" is every standby
}

// parseSyncNames reads a value of synchronous_standby_names. Empty is none.
func parseSyncNames(value string) (syncNames, error) {
	words, err := scanSyncNames(value)
	if err != nil || len(words) == 0 {
		return syncNames{}, err
	}
	var s syncNames
	list := words
	if open := indexWord(words, "("); open >= 0 {
		head := words[:open]
		if len(head) == 2 && !head[0].quoted {
			s.method = strings.ToUpper(head[0].text)
			head = head[1:]
		} else {
			s.method = "FIRST" // "2 (a, b)", as before Postgres 10
		}
		if len(head) != 1 || !isNumber(head[0]) || s.method != "FIRST" && s.method != "ANY" || words[len(words)-1].text != ")" {
			return syncNames{}, fmt.Errorf("synchronous_standby_names %q is malformed", value)
		}
		s.number = head[0].text
		list = words[open+1 : len(words)-1]
	}
	if len(list)%2 == 0 {
		return syncNames{}, fmt.Errorf("synchronous_standby_names %q is malformed", value)
	}
	for i, w := range list {
		if comma := !w.quoted && w.text == ","; comma != (i%2 == 1) {
			return syncNames{}, fmt.Errorf("synchronous_standby_names %q is malformed", value)
		} else if !comma {
			s.names = append(s.names, w.text)
		}
	}
	return s, nil
}

// matches tells whether a standby of this application name would be a candidate
// (Postgres: syncrep.c, SyncRepGetStandbyPriority).
func (s syncNames) matches(application string) bool {
	for _, n := range s.names {
		if n == "*" || strings.EqualFold(n, application) {
			return true
		}
	}
	return false
}

// without is the value that no longer matches application: "*" becomes others,
// the standbys that are there now.
func (s syncNames) without(application string, others []string) string {
	var names []string
	add := func(name string) {
		quoted := `"` + strings.ReplaceAll(name, `"`, `""`) + `"`
		if !strings.EqualFold(name, application) && !containsFold(names, quoted) {
			names = append(names, quoted)
		}
	}
	for _, n := range s.names {
		if n != "*" {
			add(n)
			continue
		}
		for _, o := range others {
			add(o)
		}
	}
	list := strings.Join(names, ", ")
	if s.method == "" || list == "" {
		return list
	}
	return fmt.Sprintf("%s %s (%s)", s.method, s.number, list)
}

type syncWord struct {
	text   string
	quoted bool
}

func indexWord(words []syncWord, text string) int {
	for i, w := range words {
		if !w.quoted && w.text == text {
			return i
		}
	}
	return -1
}

func isNumber(w syncWord) bool {
	_, err := strconv.Atoi(w.text)
	return err == nil && !w.quoted
}

func containsFold(list []string, s string) bool {
	for _, l := range list {
		if strings.EqualFold(l, s) {
			return true
		}
	}
	return false
}

func scanSyncNames(value string) ([]syncWord, error) {
	var words []syncWord
	for i := 0; i < len(value); {
		c := value[i]
		switch {
		case strings.IndexByte(" \t\n\r\f\v", c) >= 0:
			i++
		case strings.IndexByte("(),*", c) >= 0:
			words = append(words, syncWord{text: string(c)})
			i++
		case c == '"':
			text, n := scanQuoted(value[i:])
			if n == 0 {
				return nil, fmt.Errorf("synchronous_standby_names %q: a quote is not closed", value)
			}
			words = append(words, syncWord{text: text, quoted: true})
			i += n
		case isNameByte(c):
			start := i
			for i < len(value) && isNameByte(value[i]) {
				i++
			}
			words = append(words, syncWord{text: value[start:i]})
		default:
			return nil, fmt.Errorf("synchronous_standby_names %q: unexpected %q", value, c)
		}
	}
	return words, nil
}

func isNameByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '$' || c >= 0x80
}

// scanQuoted reads a name in double quotes at the start of s, and tells how long
// it is with its quotes; 0 when it does not end. Two quotes in it stand for one.
func scanQuoted(s string) (string, int) {
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		if s[i] != '"' {
			b.WriteByte(s[i])
			continue
		}
		if i+1 < len(s) && s[i+1] == '"' {
			b.WriteByte('"')
			i++
			continue
		}
		return b.String(), i + 1
	}
	return "", 0
}
