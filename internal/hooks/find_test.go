package hooks

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/zdt-dev/zdt/internal/trustpath"
)

// put writes a hook and the directories on the way to it.
func put(t *testing.T, root, name, text string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFind(t *testing.T) {
	root := t.TempDir()
	for _, name := range []string{
		"pre-commit/50-b", "pre-commit/10-a", "web.d/pre-commit/50-b", "web.d/pre-commit/20-own", "api.d/pre-commit/30-other",
		"rollback/tell", "web@.d/rollback/all", "web@1.d/rollback/one", "web@2.d/rollback/two", "old.d/no-point/x",
		"pre-commit/.hidden", "pre-commit/50-b~", "pre-commit/50-b.bak", "pre-commit/50-b.dpkg-old", "pre-commit/README", "README.md", "web.d/.git",
	} {
		put(t, root, name, "", 0o755)
	}
	put(t, root, "pre-commit/40-off", "", 0o644)
	for service, want := range map[string][]string{
		"web":   {"pre-commit/10-a", "web.d/pre-commit/20-own", "pre-commit/50-b", "web.d/pre-commit/50-b", "rollback/tell"},
		"web@1": {"pre-commit/10-a", "pre-commit/50-b", "web@.d/rollback/all", "web@1.d/rollback/one", "rollback/tell"},
		"plain": {"pre-commit/10-a", "pre-commit/50-b", "rollback/tell"},
	} {
		set, err := Find(root, service)
		var got []string
		for _, p := range Points() {
			for _, h := range set[p] {
				rel, _ := filepath.Rel(root, h.Path)
				got = append(got, rel)
				if h.Point != p {
					t.Errorf("%+v at %s", h, p)
				}
			}
		}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q (%v)", service, got, want, err)
		}
	}
	if _, err := Find(root, "old"); err == nil || !strings.Contains(err.Error(), "find the hooks of old: "+root+"/old.d/no-point would never run") {
		t.Error(err)
	}
	for _, absent := range []string{"", root + "/absent"} {
		if set, err := Find(absent, "web"); err != nil || len(set) != 0 {
			t.Errorf("%q: %v, %v", absent, set, err)
		}
	}
	if _, err := Find(root, "../web"); err == nil {
		t.Error("a path is a service")
	}
}

// What is wrong anywhere is found before anything is changed.
func TestFindRefuses(t *testing.T) {
	for _, tt := range []struct {
		what      string
		make      func(root string)
		want      string
		untrusted bool
	}{
		{"a typing error", func(root string) { put(t, root, "precommit/50-x", "", 0o755) }, "/precommit would never run: a hook is a program in a directory with the name of its point, which is one of pre-upgrade, post-listen", false},
		{"beside the directories", func(root string) { put(t, root, "50-x", "", 0o755) }, "/50-x would never run", false},
		{"a file for a directory", func(root string) { put(t, root, "rollback", "", 0o755) }, "not a directory", false},
		{"a directory for a file", func(root string) { put(t, root, "rollback/x/y", "", 0o755) }, "/rollback/x is not a regular file", false},
		{"writable for others", func(root string) { put(t, root, "rollback/x", "", 0o777) }, "/rollback/x is writable for others", true},
		{"in an open directory", func(root string) {
			put(t, root, "web.d/rollback/x", "", 0o755)
			if err := os.Chmod(root+"/web.d/rollback", 0o777); err != nil {
				t.Fatal(err)
			}
		}, "/web.d/rollback is writable for everybody", true},
		{"an open root", func(root string) {
			if err := os.Chmod(root, 0o770); err != nil {
				t.Fatal(err)
			}
		}, "is writable for group", true},
		{"a link to nowhere", func(root string) {
			put(t, root, "rollback/x", "", 0o755)
			if err := os.Symlink("/no/such", root+"/rollback/y"); err != nil {
				t.Fatal(err)
			}
		}, "no such file", false},
		{"another user's", func(root string) {
			if err := os.Chown(put(t, root, "rollback/x", "", 0o755), 12345, 0); err != nil {
				t.Fatal(err)
			}
		}, "/rollback/x belongs to uid 12345", true},
	} {
		t.Run(tt.what, func(t *testing.T) {
			if tt.what == "another user's" && os.Getuid() != 0 {
				t.Skip("needs root")
			}
			root := t.TempDir()
			tt.make(root)
			set, err := Find(root, "web")
			if err == nil || !strings.Contains(err.Error(), tt.want) || set != nil || errors.Is(err, trustpath.ErrUntrusted) != tt.untrusted {
				t.Errorf("%v, %v; want %q", set, err, tt.want)
			}
		})
	}
}

func TestRoot(t *testing.T) {
	t.Setenv("XDG_CONFIG_HOME", "/home/u/.cfg")
	if got := Root(true); got != "/home/u/.cfg/zdt/hooks.d" {
		t.Error(got)
	}
	t.Setenv("XDG_CONFIG_HOME", "")
	t.Setenv("HOME", "")
	if got := Root(true); got != "" {
		t.Error(got)
	}
	if got := Root(false); got != "/etc/zdt/hooks.d" {
		t.Error(got)
	}
}
