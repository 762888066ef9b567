package handoff

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// TestImports keeps the promise of the package comment: whoever imports
// handoff gets the standard library, golang.org/x/sys, zdt's own journal, and of
// zdt's internal packages those few that handoff shares with package helper.
// The test lies here and not at the root, so that a change of the guarded
// packages is a change of its binary and not served from the test cache.
func TestImports(t *testing.T) {
	const module = "github.com/zdt-dev/zdt/"
	handoff := []string{
		module + "handoff", module + "journal", "golang.org/x/sys/",
		module + "internal/gate", module + "internal/inherited", module + "internal/journalstream", module + "internal/listenfds",
		module + "internal/memfile", module + "internal/netfd", module + "internal/sdnotify",
		module + "internal/takeover", module + "internal/wire",
	}
	wire := []string{
		module + "internal/wire", module + "handoff/control", module + "internal/gate", module + "internal/inherited", module + "internal/listenfds", module + "internal/netfd", "golang.org/x/sys/",
	}
	for _, tt := range []struct {
		pkg     string
		allowed []string
	}{
		{module + "handoff", handoff},
		{module + "handoff/control", handoff},
		{module + "internal/wire", wire},
		{module + "internal/takeover", append(wire, module+"internal/takeover")},
		{module + "journal", []string{module + "journal"}},
	} {
		for _, goos := range []string{"linux", "darwin", "windows"} {
			cmd := exec.Command("go", "list", "-deps", "-json=ImportPath,Standard", tt.pkg)
			cmd.Env = append(os.Environ(), "GOOS="+goos, "CGO_ENABLED=0")
			var stderr strings.Builder
			cmd.Stderr = &stderr
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("go list %s: %v\n%s", tt.pkg, err, stderr.String())
			}
			dec := json.NewDecoder(strings.NewReader(string(out)))
			seen := 0
			for {
				var p struct {
					ImportPath string
					Standard   bool
				}
				if err := dec.Decode(&p); errors.Is(err, io.EOF) {
					break
				} else if err != nil {
					t.Fatal(err)
				}
				seen++
				allowed := p.Standard || slices.ContainsFunc(tt.allowed, func(a string) bool {
					return p.ImportPath == strings.TrimSuffix(a, "/") || strings.HasPrefix(p.ImportPath, strings.TrimSuffix(a, "/")+"/")
				})
				if !allowed {
					t.Errorf("%s imports %s (GOOS=%s)", tt.pkg, p.ImportPath, goos)
				}
				if p.Standard && p.ImportPath == "C" || p.ImportPath == "runtime/cgo" {
					t.Errorf("%s needs cgo", tt.pkg)
				}
			}
			if seen < 10 {
				t.Errorf("go list %s says only %d packages", tt.pkg, seen)
			}
		}
	}
}

// TestBuildsEverywhere: elsewhere than on Linux the package listens and drains.
func TestBuildsEverywhere(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the standard library for each system")
	}
	for _, target := range []string{"linux/arm64", "linux/386", "windows/amd64", "darwin/arm64", "freebsd/amd64", "plan9/amd64", "js/wasm"} {
		goos, goarch, _ := strings.Cut(target, "/")
		cmd := exec.Command("go", "build", "./...")
		cmd.Env = append(os.Environ(), "GOOS="+goos, "GOARCH="+goarch, "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", target, err, out)
		}
	}
}
