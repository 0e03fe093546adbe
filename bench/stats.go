package main

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// sample is a series of measurements of one thing in one unit.
type sample []float64

// add adds a duration in milliseconds.
func (s *sample) add(d time.Duration) { *s = append(*s, float64(d)/float64(time.Millisecond)) }

// quantile is the smallest value that at least the part q of all does not
// exceed (nearest rank). NaN for no values.
func (s sample) quantile(q float64) float64 {
	if len(s) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(s))
	rank := int(math.Ceil(q * float64(len(sorted))))
	return sorted[min(max(rank, 1), len(sorted))-1]
}

// median is the middle value, the mean of the middle two for an even number.
func (s sample) median() float64 {
	if len(s) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(s))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// bar is what a ratio, or a value where there is no control, is held to.
type bar struct {
	Text  string  `json:"text"`
	Limit float64 `json:"limit"`
	Least bool    `json:"least,omitempty"` // it is a lower limit
	// Of tells what the limit is on.
	Of string `json:"of"` // ratio, p50, p95, p99
}

func (b bar) met(v float64) bool {
	if b.Least {
		return v >= b.Limit
	}
	return v <= b.Limit
}

// The units of rows.
const (
	unitMS      = "ms"
	unitTPS     = "tps"
	unitBytes   = "bytes"
	unitMBps    = "MB/s"
	unitPercent = "%"
	unitCount   = ""
)

// show writes a value for people.
func show(v float64, unit string) string {
	switch {
	case math.IsNaN(v):
		return ""
	case unit == unitMS && v >= 10000:
		return fmt.Sprintf("%.1f s", v/1000)
	case unit == unitMS && v >= 1000:
		return fmt.Sprintf("%.2f s", v/1000)
	case unit == unitMS && v >= 10:
		return fmt.Sprintf("%.0f ms", v)
	case unit == unitMS:
		return fmt.Sprintf("%.1f ms", v)
	case unit == unitBytes:
		return fmt.Sprintf("%.1f MB", v/(1<<20))
	case unit == unitTPS:
		return fmt.Sprintf("%.0f tps", v)
	case unit == unitPercent:
		return fmt.Sprintf("%.1f %%", v)
	case unit == unitMBps:
		return fmt.Sprintf("%.1f MB/s", v)
	default:
		return fmt.Sprintf("%g", v)
	}
}

// gigabytes writes a size of data.
func gigabytes(gb float64) string { return fmt.Sprintf("%g GB", gb) }
