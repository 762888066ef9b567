package journal

import (
	"testing"
	"unicode/utf8"
)

func TestPrintable(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"", ""},
		{"plain, größer, 日本 €", "plain, größer, 日本 €"},
		{"\x1b[31mred\x1b[0m", `\x1b[31mred\x1b[0m`},
		{"a\tb", "a b"},
		{"over\rwritten\b\n\x00\x7f", `over\x0dwritten\x08\x0a\x00\x7f`},
		{"c1 \u009b31m", `c1 \x9b31m`},
		{"raw c1 \x9b31m \xff", `raw c1 \x9b31m \xff`},
		{"\u202egnp.exe\u2066\u200b\ufeff", `\u202egnp.exe\u2066\u200b\ufeff`},
		{"tag \U000e0041", `tag \ue0041`},
		{"\ufffd", "\ufffd"},
	} {
		if got := Printable(tt.in); got != tt.want {
			t.Errorf("Printable(%q) = %q, want %q", tt.in, got, tt.want)
		}
	}
}

func FuzzPrintable(f *testing.F) {
	f.Add("\x1b[31m\u202e\xff")
	f.Fuzz(func(t *testing.T, s string) {
		got := Printable(s)
		if !utf8.ValidString(got) {
			t.Fatalf("%q is not UTF-8", got)
		}
		for _, r := range got {
			if hazardous(r) {
				t.Fatalf("%q has %U", got, r)
			}
		}
		if Printable(got) != got {
			t.Fatalf("%q changes again", got)
		}
	})
}
