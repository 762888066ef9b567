package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/zdt-dev/zdt/internal/load"
)

// showClients prints the counts, and for each release when it answered.
func (d *demo) showClients(r load.Report) {
	verdict := func(n int) string {
		if n > 0 {
			return d.style("1;31", fmt.Sprint(n))
		}
		return d.style("1;32", "0")
	}
	fmt.Fprintf(d.out, "  requests      %d in %.1f s\n", r.Requests, r.Elapsed.Seconds())
	fmt.Fprintf(d.out, "  failed        %s\n", verdict(r.Failed))
	fmt.Fprintf(d.out, "  refused       %s\n", verdict(r.Refused))
	fmt.Fprintf(d.out, "  reconnected   %s\n", verdict(r.Reconnects))
	fmt.Fprintf(d.out, "  latency       median %.1f ms, 99th percentile %.1f ms\n", r.P50.Seconds()*1000, r.P99.Seconds()*1000)
	for _, f := range r.Failures {
		fmt.Fprintf(d.out, "  +%.3f s %s: %s\n", f.At.Seconds(), f.Kind, f.Text)
	}
	fmt.Fprintln(d.out)
	for _, v := range slices.Sorted(maps.Keys(r.Versions)) {
		fmt.Fprintf(d.out, "  %-4s %s  %d answers\n", v, d.style("36", sparkline(r.Buckets, v, 60)), r.Versions[v])
	}
}

// sparkline shows how many answers of a version came when, in at most width characters.
func sparkline(buckets []load.Bucket, version string, width int) string {
	if len(buckets) == 0 {
		return ""
	}
	width = min(width, len(buckets))
	sums, most := make([]int, width), 1
	totals := make([]int, width)
	for i, b := range buckets {
		at := i * width / len(buckets)
		sums[at] += b.Versions[version]
		for _, n := range b.Versions {
			totals[at] += n
		}
		most = max(most, totals[at])
	}
	levels := []rune("▁▂▃▄▅▆▇█")
	var b strings.Builder
	for _, n := range sums {
		if n == 0 {
			b.WriteByte(' ')
			continue
		}
		b.WriteRune(levels[min(n*len(levels)/most, len(levels)-1)])
	}
	return b.String()
}
