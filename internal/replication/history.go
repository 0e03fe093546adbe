package replication

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"

	"github.com/pgbough/pgbough"
)

// HistoryEntry is one ancestor of a timeline: Timeline was left at SwitchLSN
// for the next one. WAL before SwitchLSN is the ancestor's.
type HistoryEntry struct {
	Timeline  uint32
	SwitchLSN pgbough.LSN
	Reason    string // why, in Postgres's words: "no recovery target specified"
}

// ParseHistory reads a timeline history file, oldest ancestor first. It is as
// strict as the server (readTimeLineHistory in timeline.c): timelines increase,
// and so that no ancestor ends before it began, switch points do not decrease.
func ParseHistory(file []byte) ([]HistoryEntry, error) {
	var entries []HistoryEntry
	for i, line := range bytes.Split(file, []byte("\n")) {
		text := strings.TrimSpace(string(line))
		if text == "" || text[0] == '#' {
			continue
		}
		e, err := parseHistoryLine(text)
		if err != nil {
			return nil, fmt.Errorf("read line %d of the timeline history: %w", i+1, err)
		}
		if n := len(entries); n > 0 {
			if last := entries[n-1]; e.Timeline <= last.Timeline || e.SwitchLSN < last.SwitchLSN {
				return nil, fmt.Errorf("read line %d of the timeline history: timeline %d at %s cannot follow timeline %d at %s",
					i+1, e.Timeline, e.SwitchLSN, last.Timeline, last.SwitchLSN)
			}
		}
		entries = append(entries, e)
	}
	return entries, nil
}

func parseHistoryLine(text string) (HistoryEntry, error) {
	number, rest := cutField(text)
	tli, err := strconv.ParseUint(number, 10, 32)
	if err != nil || tli == 0 {
		return HistoryEntry{}, fmt.Errorf("%q is not a timeline", number)
	}
	position, reason := cutField(rest)
	lsn, err := pgbough.ParseLSN(position)
	if err != nil {
		return HistoryEntry{}, err
	}
	return HistoryEntry{Timeline: uint32(tli), SwitchLSN: lsn, Reason: reason}, nil
}

// cutField takes the first field of s off, and the white space after it.
func cutField(s string) (field, rest string) {
	end := strings.IndexAny(s, " \t")
	if end < 0 {
		return s, ""
	}
	return s[:end], strings.TrimLeft(s[end:], " \t")
}
