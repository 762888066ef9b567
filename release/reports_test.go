package release

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestReports(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	if ids, err := s.Reports(); err != nil || ids != nil {
		t.Errorf("no reports yet: %v, %v", ids, err)
	}
	if _, err := s.ReadReport(testTxID(1)); !errors.Is(err, ErrNoReport) {
		t.Errorf("no report yet: %v", err)
	}
	for _, text := range []string{"first", "second"} {
		if err := s.WriteReport(testTxID(1), []byte(text)); err != nil {
			t.Fatal(err)
		}
		if got, err := s.ReadReport(testTxID(1)); err != nil || string(got) != text {
			t.Errorf("%q, %v, want %q", got, err, text)
		}
	}
	dir := filepath.Join(s.dir, reportsDir)
	for path, want := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, testTxID(1)+".json"): 0o600} {
		if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != want {
			t.Errorf("%s: %v, %v, want mode %v", path, fi.Mode(), err, want)
		}
	}
	for _, id := range []string{"", "..", "../history", "x"} {
		if err := s.WriteReport(id, nil); err == nil {
			t.Errorf("a report of %q was written", id)
		}
		if _, err := s.ReadReport(id); !errors.Is(err, ErrNoReport) {
			t.Errorf("a report of %q: %v", id, err)
		}
	}
	if err := s.WriteReport(testTxID(2), []byte(strings.Repeat("x", maxReport+1))); err == nil {
		t.Error("a report without end was written")
	}
}

func TestReportsAreBounded(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	dir := filepath.Join(s.dir, reportsDir)
	if err := s.WriteReport(testTxID(0), nil); err != nil {
		t.Fatal(err)
	}
	// What a crash has left goes, what somebody is writing stays, and so does what is not ours.
	old, fresh := "."+testTxID(0)+".json.0123456789abcdef.tmp", "."+testTxID(1)+".json.0123456789abcdef.tmp"
	for _, name := range []string{old, fresh, "notes"} {
		writeFile(t, filepath.Join(dir, name), "", 0o600)
	}
	then := time.Now().Add(-2 * time.Hour)
	if err := os.Chtimes(filepath.Join(dir, old), then, then); err != nil {
		t.Fatal(err)
	}
	var last string
	for i := range byte(maxReports + 7) {
		last = testTxID(i)
		if err := s.WriteReport(last, []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	ids, err := s.Reports()
	if err != nil || len(ids) != maxReports || ids[len(ids)-1] != last || ids[0] != testTxID(7) || !slices.IsSorted(ids) {
		t.Errorf("%d reports, from %s to %s, %v", len(ids), ids[0], ids[len(ids)-1], err)
	}
	if err := s.WriteReport(last, []byte("y")); err != nil {
		t.Fatal(err)
	}
	if ids, _ = s.Reports(); len(ids) != maxReports {
		t.Errorf("%d reports after one was replaced", len(ids))
	}
	for name, want := range map[string]bool{old: false, fresh: true, "notes": true} {
		if _, err := os.Lstat(filepath.Join(dir, name)); (err == nil) != want {
			t.Errorf("%s: %v, want there %t", name, err, want)
		}
	}
}
