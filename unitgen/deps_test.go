package unitgen

import (
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The package stays pure: no import with which it could write, run or connect.
func TestImports(t *testing.T) {
	allowed := []string{
		"bytes", "cmp", "crypto/sha256", "encoding/hex", "errors", "fmt", "io/fs", "math", "net/netip", "net/url", "path", "regexp", "slices", "strconv",
		"strings", "text/template", "time", "unicode", "unicode/utf8",
		"github.com/zdt-dev/zdt/templates",
	}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range f.Imports {
			if p, err := strconv.Unquote(i.Path.Value); err != nil || !slices.Contains(allowed, p) {
				t.Errorf("%s imports %s", name, i.Path.Value)
			}
		}
	}
}
