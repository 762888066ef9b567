package docstest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/zdt-dev/zdt/internal/guest"
)

// The commands of docs/containers.md work, one after the other in one shell, and print what it says.
func TestContainers(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "docs/containers.md"))
	if err != nil {
		t.Fatal(err)
	}
	blocks, err := Blocks(string(text))
	if err != nil {
		t.Fatal(err)
	}
	commands, err := Commands(blocks)
	if err != nil {
		t.Fatal(err)
	}
	if len(commands) < 5 {
		t.Fatalf("only %d commands: is the document read rightly?", len(commands))
	}
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		checkout := copyTree(t)
		build(t, checkout, commands[0].Text)
		sync(t, g, checkout)
		const mark = "-- command "
		var script bytes.Buffer
		for i, c := range commands[1:] {
			fmt.Fprintf(&script, "echo '%s%d'\n%s\n", mark, i+1, c.Text)
		}
		r, err := g.Exec(t.Context(), guest.Command{Args: []string{"/bin/bash"}, Dir: home, Stdin: &script})
		if err != nil || r.Code != 0 {
			t.Fatalf("%v\n%s", err, r)
		}
		printed := strings.Split(r.Stdout, mark)[1:]
		for i, c := range commands[1:] {
			if i >= len(printed) {
				t.Fatalf("containers.md:%d: # %s\ndid not come to it:\n%s", c.Line, c.Text, r)
			}
			_, out, _ := strings.Cut(printed[i], "\n")
			if missed := Match(c.Output, strings.Split(strings.TrimSuffix(out, "\n"), "\n")); missed != "" {
				t.Fatalf("containers.md:%d: # %s\nthe document has: %s\nit printed:\n%s\n%s", c.Line, c.Text, missed, out, r.Stderr)
			}
		}
	})
}
