package unitgen

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// maxSpan bounds every duration of a Spec: a week is more than any drain, and
// far from where systemd's microseconds overflow.
const maxSpan = 7 * 24 * time.Hour

// formatSpan writes d so that time.ParseDuration and systemd read the same
// from it ("m" is a minute to both). d is rounded up to milliseconds.
func formatSpan(d time.Duration) string {
	if r := d % time.Millisecond; r > 0 {
		d += time.Millisecond - r
	}
	if d == 0 {
		return "0s"
	}
	var b strings.Builder
	for _, u := range []struct {
		unit time.Duration
		name string
	}{{time.Hour, "h"}, {time.Minute, "m"}, {time.Second, "s"}, {time.Millisecond, "ms"}} {
		if n := d / u.unit; n > 0 {
			fmt.Fprintf(&b, "%d%s", n, u.name)
			d -= n * u.unit
		}
	}
	return b.String()
}

// spanUnits are the units of systemd.time(7) that a policy can sensibly use.
// Months and years are left out: "1M" is a month, and nobody means it.
var spanUnits = map[string]time.Duration{
	"": time.Second, "s": time.Second, "sec": time.Second, "second": time.Second, "seconds": time.Second,
	"ms": time.Millisecond, "msec": time.Millisecond,
	"m": time.Minute, "min": time.Minute, "minute": time.Minute, "minutes": time.Minute,
	"h": time.Hour, "hr": time.Hour, "hour": time.Hour, "hours": time.Hour,
	"d": 24 * time.Hour, "day": 24 * time.Hour, "days": 24 * time.Hour,
}

// parseSpan reads a duration as Go or as systemd writes it: "90s", "1m30s",
// "1min 30s", and "90" for seconds, as everywhere else in a unit file.
func parseSpan(s string) (time.Duration, error) {
	var total float64
	rest := strings.TrimSpace(s)
	if rest == "" {
		return 0, errors.New("empty")
	}
	for rest != "" {
		n := strings.IndexFunc(rest, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
		if n < 0 {
			n = len(rest)
		}
		v, err := strconv.ParseFloat(rest[:n], 64)
		if err != nil {
			return 0, fmt.Errorf("not a duration such as 90s or 1min 30s")
		}
		rest = strings.TrimLeft(rest[n:], " \t")
		n = strings.IndexFunc(rest, func(r rune) bool { return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') })
		if n < 0 {
			n = len(rest)
		}
		unit, known := spanUnits[rest[:n]]
		if !known {
			return 0, fmt.Errorf("unknown unit of time %q", rest[:n])
		}
		rest = strings.TrimLeft(rest[n:], " \t")
		if total += v * float64(unit); total > float64(maxSpan) {
			return 0, fmt.Errorf("longer than %s", formatSpan(maxSpan))
		}
	}
	return time.Duration(total), nil
}
