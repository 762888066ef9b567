package unitgen

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestUnified(t *testing.T) {
	for _, c := range []struct{ name, old, new, want string }{
		{"create", "", "a\nb\n", "@@ -0,0 +1,2 @@\n+a\n+b\n"},
		{"remove", "a\n", "", "@@ -1 +0,0 @@\n-a\n"},
		{"replace", "a\nb\nc\n", "a\nB\nc\n", "@@ -1,3 +1,3 @@\n a\n-b\n+B\n c\n"},
		{"context", "1\n2\n3\n4\n5\n6\n7\n8\n9\n", "1\n2\n3\n4\nx\n6\n7\n8\n9\n", "@@ -2,7 +2,7 @@\n 2\n 3\n 4\n-5\n+x\n 6\n 7\n 8\n"},
		{"two hunks", "1\n2\n3\n4\n5\n6\n7\n8\n9\n", "2\n3\n4\n5\n6\n7\n8\n9\n10\n", "@@ -1,4 +1,3 @@\n-1\n 2\n 3\n 4\n@@ -7,3 +6,4 @@\n 7\n 8\n 9\n+10\n"},
		{"no newline at the end", "a\nb", "a\nb\n", "@@ -1,2 +1,2 @@\n a\n-b\n\\ No newline at end of file\n+b\n"},
	} {
		got := unified("o", "n", []byte(c.old), []byte(c.new))
		if want := "--- o\n+++ n\n" + c.want; got != want {
			t.Errorf("%s:\n%swant\n%s", c.name, got, want)
		}
	}
}

// patch(1) gets from old to new with what unified writes.
func TestUnifiedPatches(t *testing.T) {
	patch, err := exec.LookPath("patch")
	if err != nil {
		t.Skip("patch is not installed")
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	text := func() string {
		var b strings.Builder
		for range rnd.IntN(30) {
			b.WriteString(string(rune('a'+rnd.IntN(4))) + "\n")
		}
		return b.String()
	}
	for range 40 {
		dir := t.TempDir()
		file := filepath.Join(dir, "f")
		old, new := text()+"x\n", text()+"x\n"
		if old == new {
			continue
		}
		if err := os.WriteFile(file, []byte(old), 0o644); err != nil {
			t.Fatal(err)
		}
		diff := unified("f", "f", []byte(old), []byte(new))
		cmd := exec.Command(patch, "--fuzz=0", "--silent", file)
		cmd.Stdin = strings.NewReader(diff)
		out, err := cmd.CombinedOutput()
		got, _ := os.ReadFile(file)
		if err != nil || string(got) != new {
			t.Fatalf("patch: %v %s\nfrom %q to %q with\n%s", err, out, old, new, diff)
		}
	}
}

// A large hand-made file is compared without a table of a billion cells.
func TestUnifiedLarge(t *testing.T) {
	old := []byte("same\n" + strings.Repeat("a\n", 50_000) + "end\n")
	new := []byte("same\n" + strings.Repeat("b\n", 50_000) + "end\n")
	if got := unified("o", "n", old, new); strings.Count(got, "\n-") != 50_000 || strings.Count(got, "\n+") != 50_001 {
		t.Errorf("%d lines removed, %d added", strings.Count(got, "\n-"), strings.Count(got, "\n+"))
	}
}

func TestDiff(t *testing.T) {
	s := validSpec()
	s.Listen = append(s.Listen, Listen{"tcp", ":9090", "admin"})
	old, err := Generate(s)
	if err != nil {
		t.Fatal(err)
	}
	if c := Diff(old, old); len(c) != 0 {
		t.Errorf("nothing changed, got %+v", c)
	}
	var kinds []string
	for _, c := range Diff(nil, old) {
		kinds = append(kinds, string(c.Kind)+" "+c.Path)
	}
	if want := []string{"create /etc/systemd/system/web.service", "create /etc/systemd/system/web.socket", "create /etc/systemd/system/web.admin.socket"}; !slices.Equal(kinds, want) {
		t.Errorf("%q", kinds)
	}

	s.Listen = s.Listen[:1]
	new, err := Generate(s)
	if err != nil {
		t.Fatal(err)
	}
	old[1].Data = append(old[1].Data, "# by hand\n"...)
	old[0].Mode = 0o600
	changes := Diff(old, new)
	if len(changes) != 3 || changes[0].Kind != Modify || changes[0].Before != Generated || !strings.HasPrefix(changes[0].Text, "old mode 0600\nnew mode 0644\n---") ||
		!strings.Contains(changes[0].Text, "\n-Listen=:9090=admin\n") ||
		changes[1].Kind != Modify || changes[1].Before != Edited || !strings.HasSuffix(changes[1].Text, "\n-# by hand\n") ||
		changes[2].Kind != Remove || changes[2].Path != "/etc/systemd/system/web.admin.socket" {
		t.Errorf("%+v", changes)
	}
}

func TestInspect(t *testing.T) {
	unit := service(t, validSpec()).Data
	edit := func(old, new string) []byte {
		if !strings.Contains(string(unit), old) {
			t.Fatalf("no %q in the unit", old)
		}
		return []byte(strings.Replace(string(unit), old, new, 1))
	}
	for _, c := range []struct {
		name string
		data []byte
		want Provenance
	}{
		{"generated", unit, Provenance{Generated, "web", 1}},
		{"changed", edit("RestartSec=500ms", "RestartSec=5s"), Provenance{Edited, "web", 1}},
		{"appended", append(slices.Clone(unit), '\n'), Provenance{Edited, "web", 1}},
		{"cut", unit[:len(unit)-1], Provenance{Edited, "web", 1}},
		{"seal removed", unit[:strings.Index(string(unit), sealKey)], Provenance{Edited, "web", 1}},
		{"seal and first line removed", unit[strings.Index(string(unit), "\n"):strings.Index(string(unit), sealKey)], Provenance{}},
		{"first line removed", unit[strings.Index(string(unit), "\n"):], Provenance{Edited, "web", 1}},
		{"only seal changed", edit(sealKey, sealKey+"0"), Provenance{Edited, "web", 1}},
		{"seal comment removed", edit(sealComment, ""), Provenance{Edited, "web", 1}},
		{"hand-made", []byte("[Service]\nExecStart=/bin/true\n"), Provenance{}},
		{"empty", nil, Provenance{}},
		{"unreadable", []byte("[Service\n"), Provenance{}},
	} {
		if got := Inspect(c.data); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}
