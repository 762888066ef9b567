package trustpath

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestProgram(t *testing.T) {
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	file := func(name string, mode fs.FileMode) string {
		t.Helper()
		p := filepath.Join(dir, name)
		must(os.MkdirAll(filepath.Dir(p), 0o755))
		must(os.WriteFile(p, []byte("#!/bin/sh\n"), 0o755))
		must(os.Chmod(p, mode))
		return p
	}
	link := func(target, name string) string {
		t.Helper()
		p := filepath.Join(dir, name)
		must(os.Symlink(target, p))
		return p
	}
	good := file("good", 0o755)
	type test struct {
		what, path, want string // want: what the error has; empty: trusted
		untrusted        bool
	}
	tests := []test{
		{what: "a file", path: good},
		{what: "a program of the host, /bin may be a link", path: "/bin/sh"},
		{what: "a link", path: link("good", "link")},
		{what: "an absolute link", path: link(good, "absolute")},
		{what: "a link and back", path: link("sub/../good", "dots"), want: "no such file"},
		{what: "dots", path: dir + "/./x/../good", want: "no such file"},
		{what: "relative", path: "good", want: "not an absolute path"},
		{what: "empty", path: "", want: "not an absolute path"},
		{what: "absent", path: dir + "/absent", want: "no such file"},
		{what: "a directory", path: dir, want: "not a regular file"},
		{what: "through a file", path: good + "/x", want: "not a directory"},
		{what: "not executable", path: file("plain", 0o644), want: "not executable"},
		{what: "writable for others", path: file("others", 0o757), want: "writable for others", untrusted: true},
		{what: "writable for a group", path: file("group", 0o775), want: "writable for others", untrusted: true},
		{what: "a loop", path: link("loop", "loop"), want: "too many levels"},
	}
	inOpen := file("open/x", 0o755)
	must(os.Chmod(dir+"/open", 0o777))
	inSticky := file("sticky/x", 0o755)
	must(os.Chmod(dir+"/sticky", 0o777|fs.ModeSticky))
	tests = append(tests,
		test{what: "in a directory for everybody", path: inOpen, want: "writable for everybody", untrusted: true},
		test{what: "a link to there", path: link("open/x", "tolink"), want: "writable for everybody", untrusted: true},
		test{what: "in a sticky one", path: inSticky})
	if os.Geteuid() == 0 {
		alien := file("alien", 0o755)
		must(os.Chown(alien, 12345, 12345))
		theirs := file("theirs/x", 0o755)
		must(os.Chown(dir+"/theirs", 12345, 12345))
		alienLink := link("good", "alienlink")
		must(os.Lchown(alienLink, 12345, 12345))
		group := file("grouped/x", 0o755)
		must(os.Chown(dir+"/grouped", 0, 12345))
		must(os.Chmod(dir+"/grouped", 0o775))
		tests = append(tests,
			test{what: "somebody else's", path: alien, want: "belongs to uid 12345", untrusted: true},
			test{what: "in somebody else's directory", path: theirs, want: "belongs to uid 12345", untrusted: true},
			test{what: "through somebody else's link", path: alienLink, want: "symbolic link of uid 12345", untrusted: true},
			test{what: "in a group's directory", path: group, want: "writable for group 12345", untrusted: true})
	}
	for _, tt := range tests {
		err := Program(tt.path)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) || errors.Is(err, ErrUntrusted) != tt.untrusted {
			t.Errorf("%s: %v; want %q", tt.what, err, tt.want)
		}
	}
}

func TestNames(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"b", "a"} {
		if err := os.WriteFile(dir+"/"+name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if names, err := Names(dir); err != nil || !slices.Equal(names, []string{"a", "b"}) {
		t.Errorf("%q, %v", names, err)
	}
	if _, err := Names(dir + "/absent"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if _, err := Names(dir + "/a"); err == nil || !strings.Contains(err.Error(), "not a directory") {
		t.Error(err)
	}
	for _, mode := range []fs.FileMode{0o777, 0o777 | fs.ModeSticky, 0o775} {
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := Names(dir); !errors.Is(err, ErrUntrusted) {
			t.Errorf("%v: %v", mode, err)
		}
	}
}

// A file is read as far as was asked for, if nobody else can have written it or put it there.
func TestRead(t *testing.T) {
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	good, open, fifo := filepath.Join(dir, "good"), filepath.Join(dir, "open"), filepath.Join(dir, "fifo")
	must(os.WriteFile(good, []byte("0123456789"), 0o600))
	must(os.WriteFile(open, []byte("x"), 0o600))
	must(os.Chmod(open, 0o666))
	must(unix.Mkfifo(fifo, 0o600))
	must(os.Symlink("good", filepath.Join(dir, "link")))
	for _, tt := range []struct {
		path, want, err string
		most            int
		more            bool
	}{
		{good, "0123456789", "", 10, false},
		{good, "012345678", "", 9, true},
		{filepath.Join(dir, "link"), "0123456789", "", 100, false},
		{open, "", "writable for others", 100, false},
		{fifo, "", "not a regular file", 100, false},
		{dir, "", "not a regular file", 100, false},
		{"/dev/null", "", "not a regular file", 100, false},
		{filepath.Join(dir, "absent"), "", "no such file", 100, false},
	} {
		data, more, err := Read(tt.path, tt.most)
		if string(data) != tt.want || more != tt.more || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("Read(%s, %d) = %q, %t, %v", tt.path, tt.most, data, more, err)
		}
	}
	if os.Geteuid() != 0 {
		return
	}
	must(os.Chown(good, 12345, -1))
	must(os.Lchown(filepath.Join(dir, "link"), 12345, -1))
	for _, path := range []string{good, filepath.Join(dir, "link")} {
		if _, _, err := Read(path, 100); !errors.Is(err, ErrUntrusted) {
			t.Errorf("what belongs to somebody else: %v", err)
		}
	}
}
