package release

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"
)

func TestSnapshot(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	if _, err := s.Snapshot(); !errors.Is(err, ErrNoSnapshot) {
		t.Fatal(err)
	}
	want := Snapshot{
		Schema: 1, Invocation: "ab01", TakenAt: time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC),
		Units:            []SnapshotUnit{{"web.service", []SnapshotFile{{Path: "/etc/systemd/system/web.service", Text: "[Service]\n\x00"}}}},
		EnvironmentFiles: []SnapshotFile{{Path: "/etc/default/web", SHA256: "00"}},
	}
	path := filepath.Join(s.Dir(), snapshotFile)
	for _, private := range []bool{false, true} {
		if err := s.SetSnapshot(want, private); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Snapshot(); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%+v, %v", got, err)
		}
		mode := map[bool]fs.FileMode{false: 0o644, true: 0o600}[private]
		if fi, err := os.Stat(path); err != nil || fi.Mode() != mode {
			t.Errorf("private %t: %v, %v", private, fi.Mode(), err)
		}
	}
	if err := s.SetSnapshot(Snapshot{}, false); err == nil {
		t.Error("a snapshot of no invocation was kept")
	}
	for content, target := range map[string]error{"{": ErrDamaged, "{}": ErrDamaged, `{"schema":1}`: ErrDamaged, `{"schema":9}`: nil} {
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		_, err := s.Snapshot()
		var newer *SchemaError
		if target != nil && !errors.Is(err, target) || target == nil && !errors.As(err, &newer) {
			t.Errorf("%s: %v", content, err)
		}
	}
	// What cannot be read does not stand in the way of the next one.
	if err := s.SetSnapshot(want, false); err != nil {
		t.Fatal(err)
	}
}

// When a step fails the earlier snapshot is still there.
func TestSnapshotFails(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	if err := s.SetSnapshot(Snapshot{Invocation: "a"}, false); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broken")
	for _, at := range []string{"snapshot: create", "snapshot: write", "snapshot: fsync", "snapshot: rename"} {
		s.step = func(label string, f func() error) error {
			if label == at {
				return broken
			}
			return f()
		}
		if err := s.SetSnapshot(Snapshot{Invocation: "b"}, false); !errors.Is(err, broken) {
			t.Errorf("%s: %v", at, err)
		}
		if got, err := s.Snapshot(); err != nil || got.Invocation != "a" {
			t.Errorf("%s: %+v, %v", at, got, err)
		}
	}
}

// Peek says what Stage then does, and changes nothing.
func TestPeek(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	names := func() (all []string) {
		filepath.WalkDir(s.Dir(), func(path string, _ fs.DirEntry, _ error) error { all = append(all, path); return nil })
		return all
	}
	src := filepath.Join(t.TempDir(), "web-2")
	if err := os.WriteFile(src, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	before := names()
	p, err := s.Peek(t.Context(), src, StageOptions{})
	if err != nil || p.Staged || p.Release.ID != "" || len(p.Release.SHA256) != 64 || p.Release.Size != 10 {
		t.Fatalf("%+v, %v", p, err)
	}
	if after := names(); !reflect.DeepEqual(after, before) {
		t.Errorf("there was %q, and is %q", before, after)
	}
	if _, err := s.Peek(t.Context(), src, StageOptions{SHA256: digest([]byte("x"))}); !errors.As(err, new(*ChecksumError)) {
		t.Error(err)
	}
	if _, err := s.Peek(t.Context(), src, StageOptions{Require: Require(FormatMinisign)}); !errors.Is(err, ErrUnsigned) {
		t.Error(err)
	}
	r, err := s.Stage(t.Context(), src, StageOptions{})
	if err != nil || r.SHA256 != p.Release.SHA256 {
		t.Fatal(r, err)
	}
	for _, path := range []string{src, r.Path} {
		if again, err := s.Peek(t.Context(), path, StageOptions{SHA256: r.SHA256}); err != nil || !again.Staged || again.Release.ID != r.ID {
			t.Errorf("%s: %+v, %v", path, again, err)
		}
	}
	if p, err := s.Peek(t.Context(), filepath.Dir(src), StageOptions{}); err != nil || p.Staged || p.Release.Tree == nil {
		t.Errorf("a directory: %+v, %v", p, err)
	}
	if _, err := s.Peek(t.Context(), filepath.Join(t.TempDir(), "no"), StageOptions{}); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}
