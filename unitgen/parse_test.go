package unitgen

import (
	"slices"
	"strings"
	"testing"
)

func TestParseUnit(t *testing.T) {
	for _, c := range []struct {
		name, in string
		want     []setting
	}{
		{"empty", "", nil},
		{"comments", "# a\n; b\n  # c\n[A]\n#x=y\n", nil},
		{"plain", "[A]\nk=v\n", []setting{{"A", "k", "v", 2}}},
		{"no newline at the end", "[A]\nk=v", []setting{{"A", "k", "v", 2}}},
		{"CRLF and CR", "[A]\r\nk=v\rl=w\r\n", []setting{{"A", "k", "v", 2}, {"A", "l", "w", 3}}},
		{"blanks", "[A]\n  k  =  v w \t\n", []setting{{"A", "k", "v w", 2}}},
		{"empty value", "[A]\nk=\n", []setting{{"A", "k", "", 2}}},
		{"= in the value", "[A]\nk=a=b\n", []setting{{"A", "k", "a=b", 2}}},
		{"goes on", "[A]\nk=a\\\n  b\nl=c\n", []setting{{"A", "k", "a   b", 2}, {"A", "l", "c", 4}}},
		{"goes on over comments", "[A]\nk=a\\\n# no\\\n; no\nb\n", []setting{{"A", "k", "a b", 2}}},
		{"escaped backslash does not go on", "[A]\nk=a\\\\\nl=c\n", []setting{{"A", "k", "a\\\\", 2}, {"A", "l", "c", 3}}},
		{"goes on at the end of the file", "[A]\nk=a\\", []setting{{"A", "k", "a", 2}}},
		{"goes on to a comment at the end", "[A]\nk=a\\\n#x", []setting{{"A", "k", "a", 2}}},
		{"mark of order", "\ufeff[A]\nk=v\n", []setting{{"A", "k", "v", 2}}},
		{"same section twice", "[A]\nk=v\n[B]\nl=w\n[A]\nk=x\n", []setting{{"A", "k", "v", 2}, {"B", "l", "w", 4}, {"A", "k", "x", 6}}},
	} {
		got, bad := parseUnit([]byte(c.in))
		if len(bad) > 0 || !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, %v; want %q", c.name, got, bad, c.want)
		}
	}
	// What is wrong is reported, what is right is read nevertheless.
	for in, want := range map[string]badLine{
		"k=v\n[B]\nl=w\n":          {"", 1, `"k=v" stands in no section`},
		"[A]\n\nnoise\n[B]\nl=w\n": {"A", 3, `"noise" is no setting (there is no =)`},
		"[A]\nk=\xff\n[B]\nl=w\n":  {"A", 2, "not UTF-8"},
		"[A\n[B]\nl=w\n":           {"", 1, `section header "[A" is not closed`},
	} {
		all, bad := parseUnit([]byte(in))
		if len(bad) != 1 || bad[0] != want || len(all) != 1 || all[0].section != "B" || all[0].value != "w" {
			t.Errorf("parseUnit(%q): %q, %v, want %v", in, all, bad, want)
		}
	}
}

// No input makes the readers of unit files panic, and none that is read loses a line break.
func FuzzParseUnit(f *testing.F) {
	for _, s := range []string{"", "[A]\nk=v\\\n#\n x\n", "[X-Zdt]\nName=web\nHealth=\nBake=1min 30s\n", "\\", "[", "[A]\n=\n", "\ufeff", "[A]\rk=\x00v"} {
		f.Add([]byte(s))
	}
	for _, g := range goldens(f) {
		files, err := Generate(g.spec)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range files {
			f.Add(file.Data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		all, bad := parseUnit(data)
		for _, s := range all {
			if strings.ContainsAny(s.section+s.key+s.value, "\n\r\x00") {
				t.Fatalf("%q spans lines", s)
			}
		}
		p, err := ParsePolicy(File{Path: "x", Data: data})
		if len(bad) > 0 && err == nil && len(p.Warnings) == 0 {
			t.Fatalf("nothing was said of %v", bad)
		}
		for _, u := range p.Health {
			if validateHealth(u) != nil {
				t.Fatalf("health %q", u)
			}
		}
		Inspect(data)
	})
}
