package httpapi

import (
	"maps"
	"slices"
)

// Patterns are all routes, sorted.
func Patterns() []string {
	return slices.Sorted(maps.Keys((&api{}).handlers()))
}
