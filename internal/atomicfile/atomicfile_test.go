package atomicfile

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func TestWrite(t *testing.T) {
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	dir := t.TempDir()
	path := filepath.Join(dir, "unit.service")
	for _, content := range []string{"one", "", "three"} {
		if err := Write(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != content {
			t.Errorf("read %q, %v", got, err)
		}
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode() != 0o644 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
	if got := names(t, dir); !slices.Equal(got, []string{"unit.service"}) {
		t.Errorf("files %q", got)
	}
	if err := Write(filepath.Join(dir, "none", "x"), nil, 0o644); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
	if err := Write(filepath.Join(dir, ".."), nil, 0o644); err == nil {
		t.Error("wrote ..")
	}
}

// What the name leads to must not be written to, only the name replaced.
func TestWriteReplacesLinks(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	victim, link := filepath.Join(dir, "victim"), filepath.Join(dir, "link")
	if err := errors.Join(os.WriteFile(victim, []byte("old"), 0o600), os.Symlink(victim, link), Write(link, []byte("new"), 0o644)); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(victim); err != nil || string(got) != "old" {
		t.Errorf("victim %q, %v", got, err)
	}
}

func TestEachStepFails(t *testing.T) {
	t.Parallel()
	injected := errors.New("injected")
	steps := []string{"create", "write", "chmod", "fsync", "rename", "fsync directory"}
	var seen []string
	for _, label := range steps {
		dir := t.TempDir()
		path := filepath.Join(dir, "file")
		if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
			t.Fatal(err)
		}
		d, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		seen = nil
		err = WriteAt(d, "file", []byte("new"), 0o644, func(l string, f func() error) error {
			seen = append(seen, l)
			if l == label {
				return injected
			}
			return Run(l, f)
		})
		if !errors.Is(err, injected) {
			t.Errorf("%s: %v", label, err)
		}
		want := "old"
		if label == "fsync directory" {
			want = "new"
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Errorf("%s: read %q, %v", label, got, err)
		}
		if got := names(t, dir); !slices.Equal(got, []string{"file"}) {
			t.Errorf("%s: files %q", label, got)
		}
	}
	if !slices.Equal(seen, steps) {
		t.Errorf("steps %q, want %q", seen, steps)
	}
}

func TestTempName(t *testing.T) {
	t.Parallel()
	a, err := TempName("x.json")
	if err != nil || !IsTemp(a, "x.json") || !strings.HasPrefix(a, ".") {
		t.Errorf("%q, %v", a, err)
	}
	if b, _ := TempName("x.json"); a == b {
		t.Error("the same name twice")
	}
	for _, tc := range []struct{ file, name string }{
		{a, "x"}, {a, "y.json"}, {"x.json", "x.json"}, {".x.json.tmp", "x.json"}, {".x.json.001122334455667g.tmp", "x.json"},
	} {
		if IsTemp(tc.file, tc.name) {
			t.Errorf("%q is temporary for %q", tc.file, tc.name)
		}
	}
}
