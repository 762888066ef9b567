package cmd

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// parsed are the declarations of a file of this repository.
func parsed(t *testing.T, path string) *ast.File {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// constants are the values of all constants of a type in a file.
func constants(t *testing.T, path, kind string) (values []string) {
	t.Helper()
	ast.Inspect(parsed(t, path), func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if name, ok := spec.Type.(*ast.Ident); ok && name.Name == kind {
			for _, v := range spec.Values {
				values = append(values, word(v))
			}
		}
		return true
	})
	return values
}

func word(e ast.Expr) string {
	if lit, ok := e.(*ast.BasicLit); ok && lit.Kind == token.STRING {
		s, _ := strconv.Unquote(lit.Value)
		return s
	}
	return ""
}

// noteIDs are the IDs of all notes that a file makes: add("id", …) and note{ID: "id"}.
func noteIDs(t *testing.T, paths ...string) (ids []string) {
	t.Helper()
	look := func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CallExpr:
			if name, ok := n.Fun.(*ast.Ident); ok && name.Name == "add" {
				ids = append(ids, word(n.Args[0]))
			}
		case *ast.KeyValueExpr:
			if key, ok := n.Key.(*ast.Ident); ok && key.Name == "ID" && word(n.Value) != "" {
				ids = append(ids, word(n.Value))
			}
		}
		return true
	}
	for _, path := range paths {
		ast.Inspect(parsed(t, path), look)
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// documented are the words in the first column of the tables below a heading, up to the next one.
func documented(t *testing.T, path, heading string) (words []string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	_, part, found := strings.Cut(string(text), "\n"+heading+"\n")
	if !found {
		t.Fatalf("%s has no %q", path, heading)
	}
	for line := range strings.Lines(part) {
		if strings.HasPrefix(line, "#") {
			break
		}
		if cell, ok := strings.CutPrefix(line, "| `"); ok {
			for _, w := range strings.Split(strings.SplitN(cell, " |", 2)[0], ", ") {
				words = append(words, strings.Trim(w, "`"))
			}
		}
	}
	slices.Sort(words)
	return words
}

// Every state that zdt status can show is explained, and none that it cannot.
func TestEveryStateIsDocumented(t *testing.T) {
	const doc = "../docs/operating.md"
	for _, c := range []struct {
		heading string
		code    []string
	}{
		{"### The service: `state`", constants(t, "status_doc.go", "state")},
		{"### The program that runs: `runtime.phase`", constants(t, "../handoff/control/status.go", "Phase")},
		{"### An upgrade: `lock.phase` and `txn.phase`", constants(t, "../release/txn.go", "Phase")},
		{"### Notes: `notes[].id`", noteIDs(t, "status.go", "status_notes.go")},
	} {
		slices.Sort(c.code)
		if len(c.code) < 5 {
			t.Errorf("%s: only %q in the code: is it read rightly?", c.heading, c.code)
		}
		if got := documented(t, doc, c.heading); !slices.Equal(got, c.code) {
			t.Errorf("%s in %s\nhas      %q\nthe code %q", c.heading, doc, got, c.code)
		}
	}
}
