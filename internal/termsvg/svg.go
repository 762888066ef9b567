package termsvg

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// The picture's measures, in its own units. A character's advance is stated for every run, so that columns stay columns
// whatever font the reader has.
const (
	advance  = 8.4
	height   = 20
	margin   = 18
	fontSize = 14
)

// The panel has colours of its own, dark ones, and so is the same on a light and on a dark page.
const (
	background = "#1b1f27"
	frame      = "#3b4252"
	foreground = "#d8dee9"
)

// palette has the terminal's colours by their number; each has a contrast of 4.5 or more with the background.
var palette = [16]string{
	1: "#ef7d86", 2: "#a3d18a", 3: "#ecc874", 4: "#8fb4dd", 5: "#cfa0c8", 6: "#88c8d8", 7: "#e5e9f0",
	0: "#8690a2", 8: "#9aa3b3", 9: "#ef7d86", 10: "#a3d18a", 11: "#ecc874", 12: "#8fb4dd", 13: "#cfa0c8", 14: "#88c8d8", 15: "#ffffff",
}

// faint is the colour of faint text.
const faint = "#97a0b1"

// WriteSVG writes the lines as a picture. title is read out instead of the picture.
func WriteSVG(w io.Writer, title string, lines []Line) error {
	columns := 0
	for _, l := range lines {
		if len(l) > 0 {
			last := l[len(l)-1]
			columns = max(columns, last.Column+utf8.RuneCountInString(last.Text))
		}
	}
	width := float64(columns)*advance + 2*margin
	tall := len(lines)*height + 2*margin - 4
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %d" width="%.0f" height="%d" role="img">`, width, tall, width, tall)
	fmt.Fprintf(&b, "\n<title>%s</title>\n", escape(title))
	fmt.Fprintf(&b, "<style>text{font:%dpx ui-monospace,SFMono-Regular,Menlo,Consolas,\"DejaVu Sans Mono\",monospace;fill:%s}.b{font-weight:700}.f{fill:%s}%s</style>\n",
		fontSize, foreground, faint, colorClasses(lines))
	fmt.Fprintf(&b, `<rect x=".5" y=".5" width="%.0f" height="%d" rx="8" fill="%s" stroke="%s"/>`+"\n", width-1, tall-1, background, frame)
	for i, l := range lines {
		y := margin + i*height + fontSize - 2
		for _, r := range l {
			writeRun(&b, r, y)
		}
	}
	b.WriteString("</svg>\n")
	_, err := w.Write(b.Bytes())
	return err
}

// writeRun writes the words of a run. More than one space ends a piece of text, since some renderers show any number of
// them as one.
func writeRun(b *bytes.Buffer, r Run, y int) {
	column := r.Column
	for i, text := range strings.Split(r.Text, "  ") {
		if i > 0 {
			column += 2
		}
		n := utf8.RuneCountInString(text)
		trimmed := strings.TrimLeft(text, " ")
		left := n - utf8.RuneCountInString(trimmed)
		trimmed = strings.TrimRight(trimmed, " ")
		if trimmed != "" {
			writeText(b, trimmed, r.Style, column+left, y)
		}
		column += n
	}
}

func writeText(b *bytes.Buffer, text string, style Style, column, y int) {
	x, width := margin+float64(column)*advance, float64(utf8.RuneCountInString(text))*advance
	fmt.Fprintf(b, `<text x="%s" y="%d" textLength="%s"`, number(x), y, number(width))
	if class := class(style); class != "" {
		fmt.Fprintf(b, ` class="%s"`, class)
	}
	fmt.Fprintf(b, ">%s</text>\n", escape(text))
}

func class(s Style) string {
	var words []string
	if s.Bold {
		words = append(words, "b")
	}
	switch {
	case s.Faint:
		words = append(words, "f")
	case s.Color > 0:
		words = append(words, fmt.Sprintf("c%d", s.Color))
	}
	return strings.Join(words, " ")
}

// colorClasses defines the colours that the lines use.
func colorClasses(lines []Line) string {
	var used [16]bool
	for _, l := range lines {
		for _, r := range l {
			used[r.Style.Color] = true
		}
	}
	var b strings.Builder
	for n, yes := range used {
		if yes && n > 0 {
			fmt.Fprintf(&b, ".c%d{fill:%s}", n, palette[n])
		}
	}
	return b.String()
}

func number(f float64) string { return strings.TrimSuffix(fmt.Sprintf("%.1f", f), ".0") }

func escape(s string) string {
	var b strings.Builder
	xml.EscapeText(&b, []byte(s)) // a strings.Builder never fails
	return b.String()
}
