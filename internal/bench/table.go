package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// table is one group of results.
type table struct {
	title string
	rows  []row
}

type row struct {
	name, median, p90, target string
}

// times adds a row of durations and returns their median.
func (t *table) times(name string, d []time.Duration, target time.Duration) time.Duration {
	m := quantile(d, 0.5)
	r := row{name: name, median: ms(m), p90: ms(quantile(d, 0.9))}
	if target > 0 {
		r.target = "≤ " + ms(target) + judge(m <= target)
	}
	t.rows = append(t.rows, r)
	return m
}

// value adds a row with one number.
func (t *table) value(name, value, target string, met bool) {
	if target != "" {
		target += judge(met)
	}
	t.rows = append(t.rows, row{name: name, median: value, target: target})
}

func judge(met bool) string {
	if met {
		return "  met"
	}
	return "  MISSED"
}

func (t *table) print(w io.Writer) {
	fmt.Fprintf(w, "\n%-58s %10s %10s   %s\n", t.title, "median", "p90", "target")
	for _, r := range t.rows {
		fmt.Fprintln(w, strings.TrimRight(fmt.Sprintf("  %-56s %10s %10s   %s", r.name, r.median, r.p90, r.target), " "))
	}
}

func ms(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond)) }

// quantile returns the value below which the part q of the sorted values lies; 0 for none.
func quantile[T time.Duration | float64](values []T, q float64) T {
	if len(values) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(values))
	i := q * float64(len(s)-1)
	low := int(i)
	if low+1 == len(s) {
		return s[low]
	}
	return s[low] + T((i-float64(low))*float64(s[low+1]-s[low]))
}
