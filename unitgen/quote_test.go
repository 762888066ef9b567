package unitgen

import (
	"slices"
	"strings"
	"testing"
)

// awkward are words that mean something to systemd, or are on the edge of it.
var awkward = []string{
	"", "plain", "-x", "--a=b", "@x", "+x", "!x", ":x", ";", ";;", "#", "# x", "a;b", "\\;",
	" ", "  two  ", "a b", "a\tb", "a\nb", "a\r\nb", "\x01\x7f", "'", "\"", "'\"'", "a'b\"c", "\\", "\\\\", "a\\", "\\n", "\\x41",
	"$", "$$", "$A", "${A}", "a$A", "$A b", "$$A", "${", "$MAINPID", "${MAINPID}", "%", "%%", "%n", "100%", "%{", "%%n",
	"Wörld", "日本語", "🙂", "\u00a0", "\u2028", "\ufeff", "\xff", "a\xc3", "\ufffd", "*", "?", "~", "`id`", "$(id)", "&&", "|", "<", ">",
	"[Service]", "ExecStart=/bin/false", "a=b c=d", strings.Repeat("x ", 2000),
}

func TestQuoteWord(t *testing.T) {
	for in, want := range map[string]string{
		"":         `""`,
		"a-b_c/d":  `a-b_c/d`,
		"a b":      `"a b"`,
		"50%":      `"50%%"`,
		`say "hi"`: `"say \"hi\""`,
		`C:\dir`:   `"C:\\dir"`,
		"a\nb":     `"a\x0ab"`,
		"\xff":     `"\xff"`,
		"ü":        `"ü"`,
		"\u2028":   `"\xe2\x80\xa8"`,
		";":        `";"`,
		"$A":       `"$A"`,
	} {
		if got := quoteWord(in); got != want {
			t.Errorf("quoteWord(%q) = %s, want %s", in, got, want)
		}
	}
	if got, want := quoteArg("$A $$"), `"$$A $$$$"`; got != want {
		t.Errorf("quoteArg = %s, want %s", got, want)
	}
}

func TestSplitWords(t *testing.T) {
	for in, want := range map[string][]string{
		"":                    nil,
		"  ":                  nil,
		"a  b\tc":             {"a", "b", "c"},
		`"a b" 'c d'`:         {"a b", "c d"},
		`a"b c"d`:             {"ab cd"},
		`"" ''`:               {"", ""},
		`'a\x41\101\u00fc\s'`: {"aAAü "},
		`"it's" 'say "hi"'`:   {"it's", `say "hi"`},
		`a\ b`:                nil, // an escape systemd does not know
		`"a`:                  nil,
		`\x00`:                nil,
		`\xZZ`:                nil,
		`\`:                   nil,
		`\777`:                nil,
		`\ud800`:              nil,
	} {
		got, err := splitWords(in)
		if !slices.Equal(got, want) || (want == nil) != (err != nil || strings.TrimSpace(in) == "") {
			t.Errorf("splitWords(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
}

// expand does to a word what systemd does after splitting: specifiers, and in
// commands variables. It refuses what would not stay literal.
func expand(t *testing.T, word string, dollars bool) string {
	t.Helper()
	literal := func(s, mark string) string {
		parts := strings.Split(s, mark+mark)
		for _, p := range parts {
			if strings.Contains(p, mark) {
				t.Fatalf("%q would be expanded", s)
			}
		}
		return strings.Join(parts, mark)
	}
	word = literal(word, "%")
	if dollars {
		word = literal(word, "$")
	}
	return word
}

// Words, as arguments and as variables, come back as they went in, through the
// parser of unit files as well. What systemd itself makes of them is TestSystemArguments.
func FuzzWords(f *testing.F) {
	for _, w := range awkward {
		f.Add(w, "x")
		f.Add("a "+w, w)
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		if strings.Contains(a+b, "\x00") {
			return // no argument can
		}
		unit := "[Service]\nExecStart=/bin/x " + quoteArg(a) + " " + quoteArg(b) + "\nEnvironment=" + quoteWord("A="+a) + " " + quoteWord(b) + "\n# end\nX=y\n"
		all, bad := parseUnit([]byte(unit))
		if len(bad) > 0 || len(all) != 3 || all[0].key != "ExecStart" || all[1].key != "Environment" || all[2].key != "X" {
			t.Fatalf("unit %q is read as %q, %v", unit, all, bad)
		}
		for i, want := range [][]string{{"/bin/x", a, b}, {"A=" + a, b}} {
			words, err := splitWords(all[i].value)
			if err != nil || len(words) != len(want) {
				t.Fatalf("%q is read as %q, %v; want %q", all[i].value, words, err, want)
			}
			for j := range words {
				if got := expand(t, words[j], i == 0); got != want[j] {
					t.Fatalf("%q comes back as %q", want[j], got)
				}
			}
		}
	})
}
