package systest

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/zdt-dev/zdt/internal/docstest"
	"github.com/zdt-dev/zdt/internal/guest"
)

// recipe is what one of docs/recipes tells its reader to do.
type recipe struct {
	files   []docstest.Block // "LANGUAGE /PATH": to be written
	quotes  []docstest.Block // "LANGUAGE NAME": lines of a file that the reader brings
	setUp   []string         // commands
	upgrade []string
}

// readRecipe reads a recipe. Its commands under "## Set up" and "## Upgrade" are for a shell in the directory where the
// reader's files are.
func readRecipe(t *testing.T, name string) recipe {
	t.Helper()
	text, err := os.ReadFile("../../docs/recipes/" + name + ".md")
	if err != nil {
		t.Fatal(err)
	}
	setUp, upgrade, ok := strings.Cut(string(text), "\n## Upgrade\n")
	if !ok {
		t.Fatalf("%s.md has no part on upgrades", name)
	}
	var r recipe
	r.setUp = r.read(t, setUp)
	r.upgrade = r.read(t, upgrade)
	if len(r.setUp) == 0 || len(r.upgrade) == 0 {
		t.Fatalf("%s.md has no commands: is it read rightly?", name)
	}
	return r
}

// read takes the files of one part, and returns its commands.
func (r *recipe) read(t *testing.T, markdown string) (commands []string) {
	blocks, err := docstest.Blocks(markdown)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range blocks {
		switch _, name, named := strings.Cut(b.Language, " "); {
		case named && path.IsAbs(name):
			r.files = append(r.files, docstest.Block{Line: b.Line, Language: name, Text: b.Text})
		case named:
			r.quotes = append(r.quotes, docstest.Block{Line: b.Line, Language: name, Text: b.Text})
		}
	}
	all, err := docstest.Commands(blocks)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range all {
		commands = append(commands, c.Text)
	}
	return commands
}

// do runs a recipe's commands in dir, to the first that fails.
func (s *service) do(dir string, commands []string) guest.Result {
	s.t.Helper()
	script := "set -e\n" + strings.Join(commands, "\n")
	r, err := s.g.Exec(s.t.Context(), guest.Command{Args: []string{"bash", "-c", script}, Dir: dir})
	if err != nil {
		s.t.Fatalf("%v\n%s", err, r)
	}
	return r
}

// writeUnit makes a file that is not executable: of a unit that is, systemd says so each time it reads it.
func (s *service) writeUnit(path, text string) {
	s.t.Helper()
	if err := s.g.WriteFile(path, []byte(text), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

// upload puts a release of the program where its operator has it before it is installed, and returns the directory.
func (s *service) upload(p foreign, n int, broken bool) string {
	s.t.Helper()
	dir := fmt.Sprintf("/srv/upload/%s", version(n))
	for name, data := range p.release(s, n, broken) {
		if err := s.g.WriteFile(path.Join(dir, name), data, 0o755); err != nil {
			s.t.Fatal(err)
		}
	}
	return dir
}

// source is a file of testdata/programs.
func (p foreign) source(t testing.TB, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata/programs", p.recipe, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// Every recipe is one that is tested.
func TestRecipesAreTested(t *testing.T) {
	files, err := filepath.Glob("../../docs/recipes/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		name := strings.TrimSuffix(filepath.Base(f), ".md")
		if name != "README" && !slices.ContainsFunc(foreigners(), func(p foreign) bool { return p.recipe == name }) {
			t.Errorf("nobody does what %s says", f)
		}
	}
}

// What a recipe quotes of a program is in the program that is tested.
func TestRecipesQuote(t *testing.T) {
	for _, p := range foreigners() {
		for _, q := range readRecipe(t, p.recipe).quotes {
			if !strings.Contains(p.source(t, q.Language), q.Text) {
				t.Errorf("%s.md:%d: %s does not have\n%s", p.recipe, q.Line, q.Language, q.Text)
			}
		}
	}
}
