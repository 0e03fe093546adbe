package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// spareRange is how many spares a project has ready, at least and at most: 1..4,
// or 2 for always two.
type spareRange struct{ least, most int }

func (r *spareRange) String() string {
	if r.least == r.most {
		return strconv.Itoa(r.least)
	}
	return fmt.Sprintf("%d..%d", r.least, r.most)
}

// Set reads it from a flag.
func (r *spareRange) Set(text string) error {
	first, last, isRange := strings.Cut(text, "..")
	if !isRange {
		last = first
	}
	least, err := strconv.Atoi(first)
	most, err2 := strconv.Atoi(last)
	switch {
	case err != nil || err2 != nil:
		return errors.New("want a number such as 2, or a range such as 1..4")
	case least < 1:
		return errors.New("without a spare nothing can be branched: give 1 or more")
	case most < least:
		return fmt.Errorf("the most (%d) is less than the least (%d)", most, least)
	}
	r.least, r.most = least, most
	return nil
}

// Type is what help calls such a value.
func (r *spareRange) Type() string { return "N or N..M" }
