package handoffcheck

import (
	"debug/elf"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestCandidate(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	foreign := append([]byte(nil), program...)
	foreign[18], foreign[19] = byte(elf.EM_S390), 0
	object := append([]byte(nil), program...)
	object[16], object[17] = byte(elf.ET_REL), 0

	absent := func(string) (fs.FileInfo, error) { return nil, fs.ErrNotExist }
	for _, c := range []struct {
		name string
		data []byte
		mode fs.FileMode
		stat func(string) (fs.FileInfo, error)
		want string
	}{
		{"program", program, 0o755, os.Stat, ""},
		{"not executable", program, 0o644, os.Stat, CandidateMode},
		{"empty", nil, 0o755, os.Stat, CandidateFormat},
		{"text", []byte("hello\n"), 0o755, os.Stat, CandidateFormat},
		{"cut short", program[:40], 0o755, os.Stat, CandidateFormat},
		{"object file", object, 0o755, os.Stat, CandidateFormat},
		{"script", []byte("#!/bin/sh\n"), 0o755, os.Stat, ""},
		{"script with arguments", []byte("#! /bin/sh -e\n"), 0o755, os.Stat, ""},
		{"script without interpreter", []byte("#!\n"), 0o755, os.Stat, CandidateFormat},
		{"script, interpreter absent", []byte("#!/opt/python\n"), 0o755, absent, CandidateInterpreter},
		{"tar", []byte(strings.Repeat("x", 257) + "ustar\x0000" + strings.Repeat("y", 600)), 0o644, os.Stat, ""},
		{"tar.gz", []byte("\x1f\x8b\x08"), 0o644, os.Stat, ""},
		{"zip", []byte("PK\x03\x04"), 0o755, os.Stat, CandidateFormat},
		{"another architecture", foreign, 0o755, os.Stat, CandidateArch},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "candidate")
			if err := os.WriteFile(path, c.data, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, c.mode); err != nil {
				t.Fatal(err)
			}
			want := elf.Machine(program[18]) | elf.Machine(program[19])<<8
			got := ""
			for _, f := range candidate(path, want, c.stat) {
				got = f.ID
				if f.Seen == "" || f.Why == "" || f.Fix == "" {
					t.Errorf("finding without words: %+v", f)
				}
			}
			if got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestCandidateMissingOrSpecial(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o755); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{filepath.Join(dir, "none"): CandidateMissing, fifo: CandidateKind} {
		got := Candidate(path)
		if len(got) != 1 || got[0].ID != want {
			t.Errorf("%s: got %+v, want %s", path, got, want)
		}
	}
	if got := Candidate(dir); got != nil { // becomes a release as a whole
		t.Errorf("directory: got %+v", got)
	}
}

func TestBlockers(t *testing.T) {
	if err := Blockers([]Finding{{ID: "ZDT000", Severity: Risk}}); err != nil {
		t.Errorf("a risk blocks: %v", err)
	}
	err := Blockers([]Finding{{ID: "ZDT001", Severity: Blocker, Seen: "x", Why: "y", Fix: "z"}})
	var e *Error
	if !errors.As(err, &e) || e.Hint() != "z" || e.Error() != "x: y (ZDT001)" {
		t.Errorf("got %v", err)
	}
}
