package cmd

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/charmbracelet/lipgloss"
	"github.com/muesli/termenv"

	"github.com/zdt-dev/zdt/journal"
)

// style is how one stream shows things: the only place that knows colours and
// characters beyond ASCII. A colour always stands beside a mark or a word that
// says the same. Only the terminal's own 16 colours are used, so its theme,
// light or dark, decides what they look like and need not be asked for it.
type style struct {
	good, bad, warn, note, dim, bold lipgloss.Style
	marks                            marks
}

type marks struct {
	ok, fail, warn, on, off, todo string
	arrow, dot, ellipsis          string
	spin                          []string
}

func newStyle(w io.Writer, color, utf8 bool) style {
	r := lipgloss.NewRenderer(w)
	r.SetHasDarkBackground(true) // said, so that nobody queries the terminal
	r.SetColorProfile(termenv.Ascii)
	if color {
		r.SetColorProfile(termenv.ANSI)
	}
	s := style{
		good: r.NewStyle(), bad: r.NewStyle(), warn: r.NewStyle(), note: r.NewStyle(), dim: r.NewStyle(), bold: r.NewStyle(),
		marks: marks{
			ok: "+", fail: "x", warn: "!", on: "*", off: "o", todo: "-",
			arrow: "->", dot: "|", ellipsis: "...", spin: []string{"|", "/", "-", `\`},
		},
	}
	if color {
		s.good = s.good.Foreground(lipgloss.Color("2"))
		s.bad = s.bad.Foreground(lipgloss.Color("1")).Bold(true)
		s.warn = s.warn.Foreground(lipgloss.Color("3"))
		s.note = s.note.Foreground(lipgloss.Color("6"))
		s.dim = s.dim.Faint(true)
		s.bold = s.bold.Bold(true)
	}
	if utf8 {
		s.marks = marks{
			ok: "✔", fail: "✘", warn: "!", on: "●", off: "○", todo: "·",
			arrow: "→", dot: "·", ellipsis: "…", spin: []string{"⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"},
		}
	}
	return s
}

// clip cuts a line, which may hold escape sequences, to the terminal's width.
func (s style) clip(line string, width int) string {
	if width <= 0 {
		return line
	}
	return lipgloss.NewStyle().MaxWidth(width).Render(line)
}

// line joins the parts of the first choice that is not wider than width, or of
// the last one.
func (s style) line(width int, choices ...[]string) string {
	line := ""
	for _, parts := range choices {
		line = strings.Join(parts, " "+s.dim.Render(s.marks.dot)+" ")
		if lipgloss.Width(line) <= width {
			break
		}
	}
	return line
}

// clean makes text that a service or a file may have chosen safe to show.
func clean(s string) string { return journal.Printable(s) }

// elapsed shows a duration with as many digits as a person reads.
func elapsed(d time.Duration) string {
	switch {
	case d <= 0:
		return "0 ms"
	case d < time.Millisecond:
		return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < 10*time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d < time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	}
	return age(d)
}

// age shows a long duration in its two largest units.
func age(d time.Duration) string {
	units := []struct {
		d time.Duration
		s string
	}{{24 * time.Hour, "d"}, {time.Hour, "h"}, {time.Minute, "min"}, {time.Second, "s"}}
	var parts []string
	for _, u := range units {
		if n := d / u.d; n > 0 || len(parts) > 0 {
			if n > 0 {
				parts = append(parts, fmt.Sprintf("%d %s", n, u.s))
			}
			d -= n * u.d
			if len(parts) == 2 || n == 0 {
				break
			}
		}
	}
	if len(parts) == 0 {
		return "0 s"
	}
	return strings.Join(parts, " ")
}

// plural is "1 connection", "2 connections".
func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
