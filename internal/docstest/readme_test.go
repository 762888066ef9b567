package docstest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/zdt-dev/zdt/internal/guest"
	"github.com/zdt-dev/zdt/internal/pty"
	"github.com/zdt-dev/zdt/internal/termsvg"
)

const (
	root    = "../.."
	columns = 140
	home    = "/root/zdt" // the checkout, as far as the guest has one
)

// In the guest the test binary is what runs commands on a terminal.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "-on-terminal" {
		status, err := pty.Run(os.Stdout, columns, 50, os.Args[2:])
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(125)
		}
		os.Exit(status)
	}
	os.Exit(m.Run())
}

func readme(t *testing.T) []Block {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	blocks, err := Blocks(string(text))
	if err != nil {
		t.Fatal(err)
	}
	return blocks
}

// The commands of the README work, in the order in which a reader comes to them, and print what it says. Those that
// build run in a copy of the checkout, all others in the guest.
func TestReadme(t *testing.T) {
	commands, err := Commands(readme(t))
	if err != nil {
		t.Fatal(err)
	}
	if len(commands) < 5 {
		t.Fatalf("only %d commands: is the README read rightly?", len(commands))
	}
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		checkout := copyTree(t)
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		if err := g.Copy(self, "/usr/local/lib/docstest", 0o755); err != nil {
			t.Fatal(err)
		}
		g.MustRun(t, "mkdir", "-p", home)
		status := 0
		for _, c := range commands {
			var got []string
			switch {
			case c.Text == "echo $?":
				got = []string{fmt.Sprint(status)}
			case strings.HasPrefix(c.Text, "make ") || strings.HasPrefix(c.Text, "go "):
				build(t, checkout, c.Text)
				status = 0
				sync(t, g, checkout)
			default:
				got, status = onTerminal(t, g, c.Text)
			}
			if missed := Match(c.Output, got); missed != "" {
				t.Fatalf("README.md:%d: # %s\nthe README has: %s\nit printed:\n%s", c.Line, c.Text, missed, strings.Join(got, "\n"))
			}
			// A command that shows no output has no reason to fail.
			if c.Output == nil && status != 0 {
				t.Fatalf("README.md:%d: # %s\nexit status %d:\n%s", c.Line, c.Text, status, strings.Join(got, "\n"))
			}
		}
	})
}

// copyTree copies the checkout, without what git and builds put there.
func copyTree(t *testing.T) string {
	to := t.TempDir()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		switch {
		case d.IsDir() && (rel == ".git" || rel == "bin"):
			return fs.SkipDir
		case d.IsDir():
			return os.MkdirAll(filepath.Join(to, rel), 0o755)
		case !d.Type().IsRegular():
			return nil
		}
		data, err := os.ReadFile(path)
		if os.IsNotExist(err) {
			return nil // somebody's temporary file
		}
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, rel), data, 0o755)
	})
	if err != nil {
		t.Fatal(err)
	}
	return to
}

func build(t *testing.T, dir, command string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c", command)
	cmd.Dir = dir
	// Static: the guest's C library is not the host's. And this may be a make inside a make.
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "MAKEFLAGS=", "GOFLAGS=-buildvcs=false")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("# %s\n%v\n%s", command, err, out)
	}
}

// sync copies what was built to the guest.
func sync(t *testing.T, g *guest.Guest, checkout string) {
	t.Helper()
	built, err := os.ReadDir(filepath.Join(checkout, "bin"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range built {
		if err := g.Copy(filepath.Join(checkout, "bin", f.Name()), filepath.Join(home, "bin", f.Name()), 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// onTerminal runs a command in the guest on a terminal and returns what that shows in the end.
func onTerminal(t *testing.T, g *guest.Guest, command string) (shown []string, status int) {
	t.Helper()
	r, err := g.Exec(t.Context(), guest.Command{
		Args: []string{"/usr/local/lib/docstest", "-on-terminal", "/bin/sh", "-c", command},
		Dir:  home, Env: []string{"TERM=xterm", "NO_COLOR=1"},
	})
	if err != nil {
		t.Fatal(err)
	}
	var screen termsvg.Screen
	if err := screen.Feed(r.Stdout); err != nil {
		t.Fatalf("# %s\n%v\n%q", command, err, r.Stdout)
	}
	for _, line := range screen.Lines() {
		shown = append(shown, line.Text())
	}
	return shown, r.Code
}

// The commands that are only shown are targets of the Makefile. They are not run here, not even with --dry-run: make
// then still runs what it believes to be another make.
func TestReadmeTargets(t *testing.T) {
	makefile, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range readme(t) {
		if b.Language != "sh" {
			continue
		}
		for line := range strings.Lines(b.Text) {
			target, ok := strings.CutPrefix(strings.TrimSpace(line), "make ")
			if !ok || !strings.Contains("\n"+string(makefile), "\n"+target+":") {
				t.Errorf("%q: no such target", strings.TrimSpace(line))
			}
		}
	}
}

// The programs of the README compile as they stand.
func TestReadmePrograms(t *testing.T) {
	found := 0
	for _, b := range readme(t) {
		if b.Language != "go" {
			continue
		}
		found++
		dir := t.TempDir()
		file := filepath.Join(dir, "main.go")
		if err := os.WriteFile(file, []byte(b.Text), 0o644); err != nil {
			t.Fatal(err)
		}
		// An overlay shows Go the file as part of this module, which it is not.
		inside, err := filepath.Abs(filepath.Join(root, "internal/docstest/readme/main.go"))
		if err != nil {
			t.Fatal(err)
		}
		overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{inside: file}})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o644); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("go", "build", "-buildvcs=false", "-overlay", filepath.Join(dir, "overlay.json"), "-o", filepath.Join(dir, "program"), "./internal/docstest/readme")
		cmd.Dir = root
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("README.md:%d: %v\n%s", b.Line, err, out)
		}
		formatted, err := exec.Command("gofmt", file).Output()
		if err != nil || !bytes.Equal(formatted, []byte(b.Text)) {
			t.Errorf("README.md:%d: not as gofmt has it (%v)", b.Line, err)
		}
	}
	if found == 0 {
		t.Error("no program: is the README read rightly?")
	}
}

// What the documents link to exists.
func TestLinks(t *testing.T) {
	documents, err := filepath.Glob(filepath.Join(root, "docs/*.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, document := range append(documents, filepath.Join(root, "README.md")) {
		text, err := os.ReadFile(document)
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range strings.Split(string(text), "](")[1:] {
			target, _, _ := strings.Cut(part, ")")
			target, _, _ = strings.Cut(target, "#")
			if target == "" || strings.Contains(target, "://") {
				continue
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(document), target)); err != nil {
				t.Errorf("%s: %v", filepath.Base(document), err)
			}
		}
	}
}
