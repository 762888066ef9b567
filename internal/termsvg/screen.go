// Package termsvg turns what a program wrote to a terminal into a small SVG picture.
//
// It understands what zdt writes and what is close to it: lines, carriage returns, the cursor moving up, erasing to the
// end of the line or of the screen, and the attributes bold, faint and the 16 colours. Anything else is an error, so
// that a picture is never quietly wrong.
package termsvg

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Style is how a piece of text looks.
type Style struct {
	Color int // 1 red … 7 white, 9 bright red …; 0 stands for the terminal's own
	Bold  bool
	Faint bool
}

// Run is a piece of text of one style.
type Run struct {
	Column int
	Text   string
	Style  Style
}

// Line is a line of text without trailing space.
type Line []Run

type cell struct {
	r     rune
	style Style
}

// Screen is a terminal without a bottom. The zero value is empty and as wide as it needs to be.
type Screen struct {
	Columns int // longer lines go on in the next one; 0 stands for any length

	rows     [][]cell
	row, col int
	style    Style
	erased   []Line
}

// Lines returns what is on the screen.
func (s *Screen) Lines() []Line { return lines(s.rows) }

// Erased returns what was last erased by a sequence that erases to the end of the screen: the last frame of something
// that was drawn live.
func (s *Screen) Erased() []Line { return s.erased }

// Feed processes output. Sequences must not be split between two calls.
func (s *Screen) Feed(output string) error {
	for len(output) > 0 {
		r, size := utf8.DecodeRuneInString(output)
		switch {
		case r == '\n': // a terminal gets "\r\n"; a capture of a pipe has bare newlines
			s.row, s.col = s.row+1, 0
		case r == '\r':
			s.col = 0
		case r == '\x1b':
			n, err := s.sequence(output)
			if err != nil {
				return err
			}
			size = n
		case r < ' ' || r == utf8.RuneError && size == 1:
			return fmt.Errorf("cannot show %q", output[:size])
		default:
			s.put(r)
		}
		output = output[size:]
	}
	return nil
}

func (s *Screen) put(r rune) {
	if s.Columns > 0 && s.col >= s.Columns {
		s.row, s.col = s.row+1, 0
	}
	for len(s.rows) <= s.row {
		s.rows = append(s.rows, nil)
	}
	row := s.rows[s.row]
	for len(row) <= s.col {
		row = append(row, cell{r: ' '})
	}
	row[s.col] = cell{r, s.style}
	s.rows[s.row] = row
	s.col++
}

// sequence carries out the control sequence at the beginning of text and returns its length.
func (s *Screen) sequence(text string) (int, error) {
	end := strings.IndexFunc(text[1:], func(r rune) bool { return r >= '@' && r != '[' })
	if end < 0 || !strings.HasPrefix(text, "\x1b[") {
		return 0, fmt.Errorf("cannot understand %.12q", text)
	}
	end++
	params, final := text[2:end], text[end]
	n, err := strconv.Atoi(params)
	switch {
	case final == 'm':
		return end + 1, s.attributes(params)
	case final == 'A' && err == nil:
		s.row = max(0, s.row-n)
	case final == 'K' && (params == "" || n == 0 && err == nil):
		if s.row < len(s.rows) && s.col < len(s.rows[s.row]) {
			s.rows[s.row] = s.rows[s.row][:s.col]
		}
	case final == 'J' && (params == "" || n == 0 && err == nil):
		if s.row < len(s.rows) {
			s.erased = lines(s.rows[s.row:])
			s.rows = s.rows[:s.row]
		}
	case params == "?25" && (final == 'l' || final == 'h'): // the cursor, which no picture shows
	default:
		return 0, fmt.Errorf("cannot understand %q", text[:end+1])
	}
	return end + 1, nil
}

func (s *Screen) attributes(params string) error {
	for p := range strings.SplitSeq(params, ";") {
		n, err := strconv.Atoi(p)
		switch {
		case p == "" || n == 0 && err == nil:
			s.style = Style{}
		case n == 1:
			s.style.Bold = true
		case n == 2:
			s.style.Faint = true
		case n == 22:
			s.style.Bold, s.style.Faint = false, false
		case n >= 30 && n <= 37:
			s.style.Color = n - 30
		case n == 39:
			s.style.Color = 0
		case n >= 90 && n <= 97:
			s.style.Color = n - 82
		default:
			return fmt.Errorf("cannot show attribute %q", p)
		}
	}
	return nil
}

func lines(rows [][]cell) []Line {
	out := make([]Line, 0, len(rows))
	for _, row := range rows {
		end := len(row)
		for end > 0 && row[end-1].r == ' ' {
			end--
		}
		var line Line
		for col, c := range row[:end] {
			last := len(line) - 1
			if last < 0 || line[last].Style != c.style {
				line = append(line, Run{Column: col, Style: c.style})
				last++
			}
			line[last].Text += string(c.r)
		}
		out = append(out, line)
	}
	return slices.Clip(out)
}

// Text returns the line without its styles.
func (l Line) Text() string {
	var b strings.Builder
	for _, r := range l {
		b.WriteString(strings.Repeat(" ", max(0, r.Column-utf8.RuneCountInString(b.String()))))
		b.WriteString(r.Text)
	}
	return b.String()
}
