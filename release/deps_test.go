package release

import (
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The store must stay usable from everywhere: it imports nothing of zdt but two
// helpers, and nothing of others but x/sys and what reads minisign's signatures.
func TestImports(t *testing.T) {
	t.Parallel()
	allowed := []string{"golang.org/x/sys/unix", "aead.dev/minisign",
		"github.com/zdt-dev/zdt/internal/atomicfile", "github.com/zdt-dev/zdt/internal/memfile"}
	files, err := filepath.Glob("*.go")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, name := range files {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, imp := range f.Imports {
			path, _ := strconv.Unquote(imp.Path.Value)
			first, _, _ := strings.Cut(path, "/")
			if strings.Contains(first, ".") && !slices.Contains(allowed, path) {
				t.Errorf("%s imports %s", name, path)
			}
		}
	}
}
