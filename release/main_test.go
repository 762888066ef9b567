package release

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"
)

// The test binary also plays the processes that die or hold a lock.
const roleEnv = "ZDT_RELEASE_TEST_ROLE"

func TestMain(m *testing.M) {
	switch role := os.Getenv(roleEnv); role {
	case "":
		os.Exit(m.Run())
	case "crash":
		crashChild(os.Args[1:])
	case "hold":
		holdChild(os.Args[1:])
	default:
		fmt.Fprintf(os.Stderr, "unknown role %q\n", role)
		os.Exit(2)
	}
}

const testProgram = "web"

// newStore makes an empty store in a directory of its own.
func newStore(t *testing.T) *Store {
	t.Helper()
	return createStore(t, filepath.Join(t.TempDir(), "zdt", "web"))
}

func createStore(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Create(dir, Options{Program: testProgram})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// writeSource writes a program for staging and returns its path.
func writeSource(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "build-output")
	writeFile(t, path, content, 0o644)
	return path
}

func writeFile(t *testing.T, path, content string, perm os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), perm); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, perm); err != nil {
		t.Fatal(err)
	}
}

func mustStage(t *testing.T, s *Store, content string) Release {
	t.Helper()
	r, err := s.Stage(t.Context(), writeSource(t, content), StageOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// stageAt stages content as if at that time, so that IDs sort as a test needs it.
func stageAt(t *testing.T, s *Store, content string, at time.Time) Release {
	t.Helper()
	old := s.now
	s.now = func() time.Time { return at }
	defer func() { s.now = old }()
	return mustStage(t, s, content)
}

func pruneFor(t *testing.T, s *Store, keep int, protect ...string) ([]Release, error) {
	t.Helper()
	p, err := s.Prune(t.Context(), PruneOptions{Keep: keep, Protect: protect})
	return p.Removed, err
}

func mustFlip(t *testing.T, s *Store, r Release) {
	t.Helper()
	if err := s.Flip(r); err != nil {
		t.Fatal(err)
	}
}

// testTxID is a valid ID that differs by n.
func testTxID(n byte) string {
	return txID(time.Date(2026, 1, 2, 3, 4, int(n)%60, 0, time.UTC), [4]byte{0, 0, 0, n})
}

func mustAppend(t *testing.T, s *Store, e Entry) {
	t.Helper()
	if e.TxID == "" {
		e.TxID = testTxID(1)
	}
	if err := s.AppendHistory(e); err != nil {
		t.Fatal(err)
	}
}

// snapshot renders everything below dir that somebody could find: names, modes,
// link targets, sizes, times of files. The empty lock file is no content.
func snapshot(t *testing.T, dir string) string {
	t.Helper()
	var lines []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		if rel == lockFile {
			return nil
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		line := fmt.Sprintf("%s %s", fi.Mode(), rel)
		switch {
		case fi.Mode().IsRegular():
			line += fmt.Sprintf(" %d %s", fi.Size(), fi.ModTime().Format(time.RFC3339Nano))
		case fi.Mode()&fs.ModeSymlink != 0:
			target, _ := os.Readlink(path)
			line += " -> " + target
		}
		lines = append(lines, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	sort.Strings(lines)
	return strings.Join(lines, "\n")
}

// checkSound asserts what must hold for a store at any moment, after any crash.
func checkSound(t *testing.T, s *Store) {
	t.Helper()
	list, err := s.List()
	if err != nil {
		t.Fatalf("list: %v", err)
	}
	for _, r := range list {
		if r.Damage != nil {
			t.Errorf("release %s: %v", r.ID, r.Damage)
		} else if err := s.Verify(context.Background(), r); err != nil {
			t.Errorf("release %s: %v", r.ID, err)
		}
	}
}

// checkTidy asserts that no temporary file is left.
func checkTidy(t *testing.T, s *Store) {
	t.Helper()
	snap := snapshot(t, s.dir)
	if strings.Contains(snap, tempPrefix) || strings.Contains(snap, ".tmp") {
		t.Errorf("temporary files are left:\n%s", snap)
	}
}

func bigContent(seed byte, n int) string {
	return string(bytes.Repeat([]byte{seed, 'x', 'y', '\n'}, n/4))
}
