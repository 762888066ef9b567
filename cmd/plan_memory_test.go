package cmd

import (
	"os"
	"path/filepath"
	"testing"
)

// The slice that counts is the one with least left, whichever it is of those around the unit; the cache of files does not count.
func TestTightestSlice(t *testing.T) {
	root := t.TempDir()
	write := func(group, file, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(root, group), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, group, file), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	check := func(path string, used, limit uint64) {
		t.Helper()
		if u, l := tightest(root, path); u != used || l != limit {
			t.Errorf("%s: %d of %d, want %d of %d", path, u, l, used, limit)
		}
	}
	check("/a.slice/b.slice", 0, 0) // no controller of memory
	write("a.slice/b.slice", "memory.max", "max\n")
	write("a.slice/b.slice", "memory.current", "700\n")
	check("/a.slice/b.slice", 0, 0)
	write("a.slice", "memory.max", "1000\n")
	write("a.slice", "memory.current", "800\n")
	write("a.slice", "memory.stat", "anon 5\ninactive_file 300\n")
	check("/a.slice/b.slice", 500, 1000)
	write("a.slice/b.slice", "memory.max", "900\n")
	check("/a.slice/b.slice", 700, 900)
	write("a.slice/b.slice", "memory.current", "1000\n") // more than it may: it is being reclaimed
	check("/a.slice/b.slice", 1000, 900)
	check("/", 0, 0)
}
