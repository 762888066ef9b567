package handoffcheck

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// serviceFacts are those of a service that runs with the host's root directory as a user that owns nothing.
func serviceFacts() Facts {
	f := good()
	f.Service.Properties["AmbientCapabilities"], f.Service.Properties["CapabilityBoundingSet"] = uint64(0), uint64(0)
	f.Process = Process{PID: os.Getpid(), UID: 4711, GIDs: []uint32{4711, 4712}, Root: "/", Environ: true}
	return f
}

func mustFind(t *testing.T, path string, f Facts, want string) string {
	t.Helper()
	var ids, seen []string
	for _, found := range CandidateFor(path, f) {
		ids, seen = append(ids, found.ID), append(seen, found.Seen+"; fix: "+found.Fix)
	}
	if got := strings.Join(ids, " "); got != want {
		t.Errorf("got %q (%s), want %q", got, seen, want)
	}
	return strings.Join(seen, "\n")
}

// What a program needs is looked for in the root directory of the service.
func TestCandidateInRoot(t *testing.T) {
	const program = "/bin/ls"
	f := serviceFacts()
	f.Helper = true
	if _, ok := newLoader(tree{"/"}, "/lib64/ld-linux-x86-64.so.2", nil); !ok {
		t.Skip("not a host of the GNU C library on amd64")
	}
	mustFind(t, program, f, "")

	root := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		name = filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	f.Process.Root = root
	if text := mustFind(t, program, f, CandidateInterpreter); !strings.Contains(text, "BindReadOnlyPaths=") {
		t.Errorf("not seen that the host has it: %s", text)
	}
	write("lib64/ld-linux-x86-64.so.2", "")
	mustFind(t, program, f, "") // of another C library nothing is known
	write("etc/ld.so.cache", "glibc-ld.so.cache1.1\x00\x00libselinux.so.1\x00/opt/lib/libselinux.so.1\x00")
	if text := mustFind(t, program, f, CandidateLibraries); !strings.Contains(text, "libc.so.6") {
		t.Errorf("got %s", text)
	}
	for _, dir := range []string{"opt/lib", "usr/lib/x86_64-linux-gnu", "srv/lib"} { // by the cache, by default, by LD_LIBRARY_PATH=
		f.Process.LibraryPath = []string{"/srv/lib"}
		for _, name := range []string{"libselinux.so.1", "libc.so.6", "libcap.so.2"} {
			write(filepath.Join(dir, name), "")
		}
		mustFind(t, program, f, "")
		os.RemoveAll(filepath.Join(root, dir))
	}
	f.Process.Root = ""
	mustFind(t, program, f, "")
	f.Process.Root = filepath.Join(root, "gone")
	mustFind(t, program, f, "")
}

// Where the interpreter of a script is may be up to the service's PATH=.
func TestCandidateScript(t *testing.T) {
	for line, want := range map[string]string{
		"#!/usr/bin/env zdt-nosuch":              CandidateInterpreter,
		"#! /usr/bin/env -S zdt-nosuch --flag":   CandidateInterpreter,
		"#!/usr/bin/env sh":                      "",
		"#!/usr/bin/env -S sh -e":                "",
		"#!/usr/bin/env -i zdt-nosuch":           "",
		"#!/usr/bin/env -S A=b zdt-nosuch":       "",
		"#!/usr/bin/env zdt-nosuch is not split": "",
		"#!/bin/sh zdt-nosuch":                   "",
	} {
		path := filepath.Join(t.TempDir(), "web")
		if err := os.WriteFile(path, []byte(line+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		f := serviceFacts()
		mustFind(t, path, f, "") // no PATH is known
		f.Process.SearchPath = []string{"/usr/local/bin", "/usr/bin", "/bin"}
		mustFind(t, path, f, want)
		f.Process.SearchPath = append(f.Process.SearchPath, "")
		mustFind(t, path, f, "") // the working directory
	}
}

func TestCandidateWithoutHandoff(t *testing.T) {
	program, err := exec.LookPath("go")
	if err != nil {
		t.Skip(err)
	}
	f := serviceFacts()
	mustFind(t, program, f, CandidateWithout)
	f.Helper = true
	mustFind(t, program, f, "")
	f = serviceFacts()
	f.Runtime.Version = 0
	mustFind(t, program, f, "")
	self, err := os.Executable() // has the name of the variable
	if err != nil {
		t.Fatal(err)
	}
	mustFind(t, self, serviceFacts(), "")
	for _, n := range []int{0, 1<<20 - 5, 3<<20 - 11} {
		text := strings.Repeat("x", n) + inheritance
		if !contains(strings.NewReader(text), inheritance) || contains(strings.NewReader(text[1:len(text)-1]), inheritance) {
			t.Errorf("not found as it is at %d", n)
		}
	}
}

// Root can give files away; others have only their own.
func TestCandidateExchangeable(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	file, link := filepath.Join(dir, "in", "web"), filepath.Join(dir, "link")
	for _, err := range []error{
		os.Mkdir(filepath.Dir(file), 0o755), os.WriteFile(file, []byte("#!/bin/sh\n"), 0o755), os.Symlink("in/web", link),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name     string
		of       string
		uid, gid int
		mode     os.FileMode
		want     string
	}{
		{"nothing", file, 0, 0, 0o755, ""},
		{"its own", file, 4711, 0, 0o555, CandidateExchangeable},
		{"its group's", file, 0, 4712, 0o775, CandidateExchangeable},
		{"read by its group", file, 0, 4712, 0o755, ""},
		{"another group's", file, 0, 4713, 0o775, ""},
		{"everybody's", file, 0, 0, 0o757, CandidateExchangeable},
		{"its own directory", filepath.Dir(file), 4711, 0, 0o755, CandidateExchangeable},
		{"everybody's directory", filepath.Dir(file), 0, 0, 0o777, CandidateExchangeable},
		{"a sticky directory", filepath.Dir(file), 0, 0, 0o777 | os.ModeSticky, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			defer os.Chmod(tt.of, 0o755)
			defer os.Chown(tt.of, 0, 0)
			if err := os.Chown(tt.of, tt.uid, tt.gid); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(tt.of, tt.mode); err != nil {
				t.Fatal(err)
			}
			mustFind(t, link, serviceFacts(), tt.want)
			f := serviceFacts()
			f.Process.Root = dir // does not see it
			f.Process.LibraryPath = nil
			if got := f.exchangeable(link); len(got) > 0 {
				t.Errorf("out of sight: %+v", got)
			}
		})
	}
}

func TestCapabilities(t *testing.T) {
	if got := capabilityNames(1<<10 | 1<<13 | 1<<40); got != "CAP_NET_BIND_SERVICE CAP_NET_RAW CAP_CHECKPOINT_RESTORE" {
		t.Errorf("got %q", got)
	}
}
