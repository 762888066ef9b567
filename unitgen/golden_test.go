package unitgen

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite the expected files in testdata")

// golden is one testdata/*.txtar: a spec and the unit files it becomes.
type golden struct {
	name    string
	archive archive
	spec    Spec
}

// goldens reads all of testdata.
func goldens(t testing.TB) []golden {
	t.Helper()
	paths, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no goldens: %v", err)
	}
	var all []golden
	for _, p := range paths {
		data, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		a := parseArchive(data)
		if len(a.files) == 0 || a.files[0].name != "spec.json" {
			t.Fatalf("%s does not begin with spec.json", p)
		}
		all = append(all, golden{strings.TrimSuffix(filepath.Base(p), ".txtar"), a, decodeSpec(t, []byte(a.files[0].data))})
	}
	return all
}

// decodeSpec reads a Spec in which durations and sockets are strings, as operators write them.
func decodeSpec(t testing.TB, data []byte) Spec {
	t.Helper()
	var in struct {
		Spec
		Listen                           []string
		ReadyTimeout, DrainTimeout, Bake string
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&in); err != nil {
		t.Fatal(err)
	}
	s := in.Spec
	for _, text := range in.Listen {
		parse := ParseListen
		if s.Template() {
			parse = ParseTemplateListen
		}
		l, err := parse(text)
		if err != nil {
			t.Fatal(err)
		}
		s.Listen = append(s.Listen, l)
	}
	for text, to := range map[string]*time.Duration{in.ReadyTimeout: &s.ReadyTimeout, in.DrainTimeout: &s.DrainTimeout, in.Bake: &s.Bake} {
		if text == "" {
			continue
		}
		v, err := time.ParseDuration(text)
		if err != nil {
			t.Fatal(err)
		}
		*to = v
	}
	return s
}

// The units of every golden spec are byte for byte those in its archive.
func TestGolden(t *testing.T) {
	for _, g := range goldens(t) {
		t.Run(g.name, func(t *testing.T) {
			files, err := Generate(g.spec)
			if err != nil {
				t.Fatal(err)
			}
			got := archive{comment: g.archive.comment, files: g.archive.files[:1:1]}
			for _, f := range files {
				got.files = append(got.files, archived{f.Path, string(f.Data)})
			}
			text := got.format()
			if *update {
				if err := os.WriteFile(filepath.Join("testdata", g.name+".txtar"), text, 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if want := g.archive.format(); !bytes.Equal(text, want) {
				t.Errorf("run go test -update ./unitgen after looking at this:\n%s", unified("want", "got", want, text))
			}
		})
	}
}
