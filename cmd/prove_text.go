package cmd

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/zdt-dev/zdt/handoff/control"
)

// proveText is the result for a person: a table, what was answered when, and the verdict if it is a good one. A bad one is
// told as errors are.
func proveText(st style, utf8 bool, d *proveDoc) string {
	var b strings.Builder
	row := func(label string, during, rest string) {
		fmt.Fprintf(&b, "  %s %s %s\n", padRight(label, 18), padLeft(during, 12), padLeft(rest, 12))
	}
	count := func(label string, during, rest int, bad shownAs) {
		show := func(n int) string {
			if n > 0 && bad != nil {
				return bad(st, fmt.Sprint(n))
			}
			return fmt.Sprint(n)
		}
		row(label, show(during), show(rest))
	}
	row("", st.bold.Render("handoff"), st.bold.Render("rest"))
	count("requests", d.During.Requests, d.Rest.Requests, nil)
	count("failed", d.During.Failed, d.Rest.Failed, alarming)
	count("refused", d.During.Refused, d.Rest.Refused, alarming)
	expected := shownAs(remarkable)
	if d.Runtime == control.RuntimeHelper {
		expected = nil // a program of its own ways ends its connections with its process
	}
	count("reconnected", d.During.Reconnected, d.Rest.Reconnected, expected)
	count("closed politely", d.During.PoliteCloses, d.Rest.PoliteCloses, nil)
	if d.IdleCloses > 0 {
		count("closed while idle", d.During.IdleCloses, d.Rest.IdleCloses, expected)
	}
	for _, status := range slices.Sorted(maps.Keys(d.Statuses)) {
		if status < 200 || status > 299 {
			count(fmt.Sprintf("answered %d", status), d.During.Statuses[status], d.Rest.Statuses[status], remarkable)
		}
	}
	during, rest := d.During.Latency, d.Rest.Latency
	row("median latency", latency(d.During, during.P50), latency(d.Rest, rest.P50))
	row("99th percentile", latency(d.During, during.P99), latency(d.Rest, rest.P99))
	row("longest", latency(d.During, during.Max), latency(d.Rest, rest.Max))

	if bars, marks := timeline(d); utf8 && bars != "" {
		fmt.Fprintf(&b, "\n  %s  %s\n", st.note.Render(bars), st.dim.Render("answers"))
		if strings.TrimSpace(marks) != "" {
			fmt.Fprintf(&b, "  %s  %s\n", marks, st.dim.Render("handoff"))
		}
	}
	b.WriteByte('\n')
	for _, line := range proveSetting(d) {
		fmt.Fprintf(&b, "  %s\n", st.dim.Render(line))
	}
	if d.Outcome == proveProved {
		fmt.Fprintf(&b, "\n%s\n", provedLine(st, d))
	}
	return b.String()
}

// shownAs is how a number looks that should be 0.
type shownAs func(st style, text string) string

func alarming(st style, text string) string   { return st.bad.Render(st.marks.fail + " " + text) }
func remarkable(st style, text string) string { return st.warn.Render(st.marks.warn + " " + text) }

// latency shows a duration; nothing was measured where nothing was answered.
func latency(c proveCounts, d time.Duration) string {
	switch {
	case c.Requests == c.Failed:
		return "-"
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
	}
	return elapsed(d)
}

// proveSetting says what the clients did, and what became of the old processes' connections, by their own word.
func proveSetting(d *proveDoc) []string {
	t := target{Network: d.Target.Network, Address: d.Target.Address, Host: d.Target.Host, Path: d.Target.Path}
	clients := plural(d.Clients, "client")
	if d.Fresh > 0 {
		clients += fmt.Sprintf(", %d of them with a connection per request", d.Fresh)
	}
	lines := []string{clients, "GET " + clean(t.url())}
	var sum control.Counts
	known := false
	for _, h := range d.Handoffs {
		if c := h.Connections; c != nil && h.Finished {
			known = true
			sum.Moved, sum.Drained, sum.Closed, sum.Cut = sum.Moved+c.Moved, sum.Drained+c.Drained, sum.Closed+c.Closed, sum.Cut+c.Cut
		}
	}
	if known {
		lines = append(lines, fmt.Sprintf("connections: %d moved, %d finished, %d closed politely, %d cut", sum.Moved, sum.Drained, sum.Closed, sum.Cut))
	}
	return lines
}

func provedLine(st style, d *proveDoc) string {
	dot := " " + st.dim.Render(st.marks.dot) + " "
	what := "handed over"
	if n := len(d.Handoffs); n > 1 {
		what = fmt.Sprintf("handed over %d times", n)
	}
	verdict := "nothing lost"
	switch n := d.During.Reconnected; {
	case n == 0:
		verdict += ", no reconnect"
	default:
		verdict += ", " + plural(n, "reconnect")
	}
	parts := []string{fmt.Sprintf("%s %s %s: %s", st.good.Render(st.marks.ok), st.bold.Render(clean(d.Service)), what, verdict)}
	var longest time.Duration
	for _, h := range d.Handoffs {
		longest = max(longest, h.Took)
	}
	if n := len(d.Handoffs); n > 0 {
		parts = append(parts, fmt.Sprintf("pid %d %s %d", d.Handoffs[0].Incumbent, st.marks.arrow, d.Handoffs[n-1].Candidate), elapsed(longest))
	}
	return strings.Join(parts, dot)
}

// timeline is a picture of the answers over time, and below it where the handoffs were.
func timeline(d *proveDoc) (bars, marks string) {
	answers := slices.Clone(d.Timeline.Answers)
	if len(answers) == 0 {
		return "", ""
	}
	most := max(1, slices.Max(answers))
	if last := len(answers) - 1; last > 0 && answers[last] < answers[last-1] {
		answers[last] = answers[last-1] // its time was not over when the clients ended
	}
	levels := []rune(" ▁▂▃▄▅▆▇█")
	var b strings.Builder
	for _, n := range answers {
		b.WriteRune(levels[(n*(len(levels)-1)+most-1)/most])
	}
	line := []rune(strings.Repeat(" ", len(answers)))
	for _, h := range d.Handoffs {
		column := func(t time.Duration) int { return min(len(line)-1, int(t/d.Timeline.Every)) }
		for i := column(h.At); i <= column(h.At+h.Took); i++ {
			line[i] = '▔'
		}
	}
	return b.String(), string(line)
}

// padLeft and padRight count columns, not the bytes of what is styled.
func padLeft(s string, width int) string {
	return strings.Repeat(" ", max(0, width-columns(s))) + s
}

func padRight(s string, width int) string {
	return s + strings.Repeat(" ", max(0, width-columns(s)))
}

func columns(s string) int {
	n := 0
	for i := 0; i < len(s); {
		if s[i] == '\x1b' { // SGR, the only sequence that a style makes
			for i < len(s) && s[i] != 'm' {
				i++
			}
			i++
			continue
		}
		_, size := utf8.DecodeRuneInString(s[i:])
		i += size
		n++
	}
	return n
}
