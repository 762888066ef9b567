package termsvg

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestScreen(t *testing.T) {
	for _, test := range []struct {
		name, in, want, erased string
	}{
		{"lines", "one\r\ntwo\nthree", "one|two|three", ""},
		{"overwrite", "hello\rj", "jello", ""},
		{"erase line", "long line\rnew\x1b[K", "new", ""},
		{"redraw", "a 1\n- 2\n\x1b[2A\ra 3\x1b[K\nb 4\x1b[K\n", "a 3|b 4", ""},
		{"erase screen", "$ zdt\na\nb\n\x1b[2A\r\x1b[Jdone\n", "$ zdt|done", "a|b"},
		{"up beyond the top", "a\n\x1b[9A\rb", "b", ""},
		{"trailing space", "a  \nb \x1b[1m \x1b[0m", "a|b", ""},
		{"columns", "\x1b[32m✔\x1b[0m  äö", "✔  äö", ""},
		{"cursor", "\x1b[?25la\x1b[?25h", "a", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			var s Screen
			if err := s.Feed(test.in); err != nil {
				t.Fatal(err)
			}
			if got := join(s.Lines()); got != test.want {
				t.Errorf("screen %q, want %q", got, test.want)
			}
			if got := join(s.Erased()); got != test.erased {
				t.Errorf("erased %q, want %q", got, test.erased)
			}
		})
	}
}

func TestScreenWraps(t *testing.T) {
	s := Screen{Columns: 4}
	if err := s.Feed("abcdefghi\r\nabcd\r\nend"); err != nil {
		t.Fatal(err)
	}
	if got, want := join(s.Lines()), "abcd|efgh|i|abcd|end"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestScreenStyles(t *testing.T) {
	var s Screen
	if err := s.Feed("\x1b[1;31mbad\x1b[22m still red \x1b[39;2mfaint\x1b[m plain"); err != nil {
		t.Fatal(err)
	}
	want := Line{
		{0, "bad", Style{Color: 1, Bold: true}},
		{3, " still red ", Style{Color: 1}},
		{14, "faint", Style{Faint: true}},
		{19, " plain", Style{}},
	}
	got := s.Lines()[0]
	if len(got) != len(want) {
		t.Fatalf("%+v", got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("run %d: %+v, want %+v", i, got[i], want[i])
		}
	}
}

// What it cannot show it refuses, so that no picture is quietly wrong.
func TestScreenRefuses(t *testing.T) {
	for _, in := range []string{"\x1b[5m", "\x1b[3B", "\x1b[2J", "\x1b]0;title\a", "\x1b[", "\x1b", "\a", "\xff", "\x1b[38;5;1m", "\x1b[xA"} {
		var s Screen
		if err := s.Feed(in); err == nil {
			t.Errorf("%q was accepted", in)
		}
	}
}

func TestWriteSVG(t *testing.T) {
	var s Screen
	if err := s.Feed("# zdt <&> \x1b[32m✔\x1b[0m \x1b[2mdim\x1b[0m\n\n\x1b[1;91mx\x1b[0m"); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if err := WriteSVG(&b, `a "title" & more`, s.Lines()); err != nil {
		t.Fatal(err)
	}
	svg := b.String()
	for d := xml.NewDecoder(strings.NewReader(svg)); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("no XML: %v\n%s", err, svg)
		}
	}
	for _, want := range []string{"&lt;&amp;&gt;", "✔", `class="c2"`, `class="f"`, `class="b c9"`, ".c2{", ".c9{", "<title>a &#34;title&#34; &amp; more</title>"} {
		if !strings.Contains(svg, want) {
			t.Errorf("no %s in\n%s", want, svg)
		}
	}
}

// Columns stay columns in renderers that show several spaces as one.
func TestColumns(t *testing.T) {
	var b strings.Builder
	if err := WriteSVG(&b, "", []Line{{{Column: 1, Text: "  a b     c  "}}}); err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range strings.Lines(b.String()) {
		if strings.HasPrefix(line, "<text ") {
			got = append(got, strings.TrimSpace(line))
		}
	}
	want := []string{`<text x="43.2" y="30" textLength="25.2">a b</text>`, `<text x="110.4" y="30" textLength="8.4">c</text>`}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func FuzzScreen(f *testing.F) {
	for _, seed := range []string{"a\r\nb", "\x1b[1;31mx\x1b[0m", "a\n\x1b[2A\r\x1b[J", "\x1b[K\x1b[?25l", "✔ ä"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, in string) {
		if len(in) > 1<<12 { // moving up and writing lines far down is quadratic in nothing but patience
			return
		}
		var s Screen
		if s.Feed(in) != nil {
			return
		}
		if err := WriteSVG(io.Discard, in, s.Lines()); err != nil {
			t.Error(err)
		}
	})
}

func join(lines []Line) string {
	var out []string
	for _, l := range lines {
		out = append(out, l.Text())
	}
	return strings.Join(out, "|")
}
