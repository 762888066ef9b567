package release

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const nobody = 65534

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes files of another user")
	}
}

func do(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestOpenUntrustedDirectory(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		root bool
		make func(t *testing.T, base string) string // returns the store's directory
		want string
	}{
		{"symlink", false, func(t *testing.T, base string) string {
			do(t, os.Mkdir(filepath.Join(base, "real"), 0o755))
			do(t, os.Symlink("real", filepath.Join(base, "web")))
			return filepath.Join(base, "web")
		}, "symbolic link"},
		{"writable for everybody", false, func(t *testing.T, base string) string {
			dir := filepath.Join(base, "web")
			do(t, os.Mkdir(dir, 0o755))
			do(t, os.Chmod(dir, 0o777))
			return dir
		}, "writable for everybody"},
		{"sticky is not enough", false, func(t *testing.T, base string) string {
			dir := filepath.Join(base, "web")
			do(t, os.Mkdir(dir, 0o755))
			do(t, os.Chmod(dir, 0o777|os.ModeSticky))
			return dir
		}, "writable for everybody"},
		{"writable for group", false, func(t *testing.T, base string) string {
			dir := filepath.Join(base, "web")
			do(t, os.Mkdir(dir, 0o755))
			do(t, os.Chmod(dir, 0o775))
			return dir
		}, "writable for group"},
		{"parent writable for everybody", false, func(t *testing.T, base string) string {
			do(t, os.MkdirAll(filepath.Join(base, "a", "web"), 0o755))
			do(t, os.Chmod(filepath.Join(base, "a"), 0o777))
			return filepath.Join(base, "a", "web")
		}, "writable for everybody"},
		{"other owner", true, func(t *testing.T, base string) string {
			dir := filepath.Join(base, "web")
			do(t, os.Mkdir(dir, 0o755))
			do(t, os.Chown(dir, nobody, nobody))
			return dir
		}, "belongs to uid 65534"},
		{"parent of other owner", true, func(t *testing.T, base string) string {
			do(t, os.MkdirAll(filepath.Join(base, "a", "web"), 0o755))
			do(t, os.Chown(filepath.Join(base, "a"), nobody, nobody))
			return filepath.Join(base, "a", "web")
		}, "belongs to uid 65534"},
		{"link of other owner on the way", true, func(t *testing.T, base string) string {
			do(t, os.MkdirAll(filepath.Join(base, "real", "web"), 0o755))
			do(t, os.Symlink("real", filepath.Join(base, "link")))
			do(t, os.Lchown(filepath.Join(base, "link"), nobody, nobody))
			return filepath.Join(base, "link", "web")
		}, "symbolic link of uid 65534"},
		{"group of other on the way", true, func(t *testing.T, base string) string {
			do(t, os.MkdirAll(filepath.Join(base, "a", "web"), 0o755))
			do(t, os.Chown(filepath.Join(base, "a"), 0, nobody))
			do(t, os.Chmod(filepath.Join(base, "a"), 0o775))
			return filepath.Join(base, "a", "web")
		}, "writable for group 65534"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.root {
				needRoot(t)
			}
			dir := tc.make(t, t.TempDir())
			for what, open := range map[string]func(string, Options) (*Store, error){"open": Open, "create": Create} {
				s, err := open(dir, Options{})
				if err == nil {
					s.Close()
				}
				if !errors.Is(err, ErrUntrusted) || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("%s: error = %v, want %q", what, err, tc.want)
				}
				var h interface{ Hint() string }
				if !errors.As(err, &h) || h.Hint() == "" {
					t.Errorf("%s: no hint in %v", what, err)
				}
			}
			_, err := Acquire(t.Context(), filepath.Join(dir, "web.lock"), Holder{}, 0)
			if !errors.Is(err, ErrUntrusted) {
				t.Errorf("acquire: %v", err)
			}
		})
	}
	if _, err := Open("relative/dir", Options{}); err == nil {
		t.Error("relative path accepted")
	}
}

// Hosts where /var or /home is a link work; where it leads is checked.
func TestOpenThroughTrustedLinks(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	do(t, os.MkdirAll(filepath.Join(base, "x", "real", "web"), 0o755))
	do(t, os.Symlink("x/../x/real", filepath.Join(base, "relative")))
	do(t, os.Symlink(filepath.Join(base, "relative"), filepath.Join(base, "absolute")))
	dir := filepath.Join(base, "absolute", "web")
	s := createStore(t, dir)
	r := mustStage(t, s, "v1")
	if r.Path != filepath.Join(dir, "releases", r.ID, testProgram) {
		t.Errorf("path = %s", r.Path)
	}
	do(t, os.Symlink("loop", filepath.Join(base, "loop")))
	if _, err := Open(filepath.Join(base, "loop", "web"), Options{}); !errors.Is(err, unix.ELOOP) {
		t.Errorf("loop: %v", err)
	}
	if os.Geteuid() == 0 {
		do(t, os.Chown(filepath.Join(base, "x"), nobody, nobody))
		if _, err := Open(dir, Options{}); !errors.Is(err, ErrUntrusted) {
			t.Errorf("behind the links: %v", err)
		}
	}
}

// Each file of the store is replaced by what an attacker who got at the
// directory for a moment, or a confused administrator, would leave.
func TestPlantedFiles(t *testing.T) {
	t.Parallel()
	type fixture struct {
		s      *Store
		r      Release
		victim string
	}
	setup := func(t *testing.T) fixture {
		s := newStore(t)
		r := mustStage(t, s, "v1")
		mustFlip(t, s, r)
		mustAppend(t, s, Entry{To: r.ID, Committed: true})
		do(t, s.WriteTxn(Txn{TxID: testTxID(1), Phase: PhaseStage}))
		victim := filepath.Join(t.TempDir(), "victim")
		writeFile(t, victim, "precious", 0o644)
		return fixture{s, r, victim}
	}
	for _, tc := range []struct {
		name string
		path func(f fixture) string
		use  func(t *testing.T, f fixture) error
	}{
		{"txn", func(f fixture) string { return filepath.Join(f.s.dir, txnFile) },
			func(_ *testing.T, f fixture) error { _, err := f.s.ReadTxn(); return err }},
		{"history read", func(f fixture) string { return filepath.Join(f.s.dir, historyFile) },
			func(_ *testing.T, f fixture) error { _, err := f.s.History(); return err }},
		{"history append", func(f fixture) string { return filepath.Join(f.s.dir, historyFile) },
			func(_ *testing.T, f fixture) error { return f.s.AppendHistory(Entry{TxID: testTxID(2)}) }},
		{"releases", func(f fixture) string { return filepath.Join(f.s.dir, releasesDir) },
			func(_ *testing.T, f fixture) error { _, err := f.s.List(); return err }},
		{"releases stage", func(f fixture) string { return filepath.Join(f.s.dir, releasesDir) },
			func(t *testing.T, f fixture) error {
				_, err := f.s.Stage(t.Context(), writeSource(t, "v2"), StageOptions{})
				return err
			}},
		{"release", func(f fixture) string { return filepath.Dir(f.r.Path) },
			func(_ *testing.T, f fixture) error { _, err := f.s.Get(f.r.ID); return err }},
		{"program", func(f fixture) string { return f.r.Path },
			func(_ *testing.T, f fixture) error { _, err := f.s.Current(); return err }},
		{"program verify", func(f fixture) string { return f.r.Path },
			func(t *testing.T, f fixture) error { return f.s.Verify(t.Context(), f.r) }},
		{"program flip", func(f fixture) string { return f.r.Path },
			func(_ *testing.T, f fixture) error { return f.s.Flip(f.r) }},
		{"release.json", func(f fixture) string { return filepath.Join(filepath.Dir(f.r.Path), recordFile) },
			func(_ *testing.T, f fixture) error { _, err := f.s.Get(f.r.ID); return err }},
		{"stage lock", func(f fixture) string { return filepath.Join(f.s.dir, lockFile) },
			func(t *testing.T, f fixture) error {
				_, err := f.s.Stage(t.Context(), writeSource(t, "v2"), StageOptions{})
				return err
			}},
	} {
		for what, plant := range map[string]func(f fixture, path string) error{
			"symlink": func(f fixture, path string) error { return os.Symlink(f.victim, path) },
			"fifo":    func(_ fixture, path string) error { return unix.Mkfifo(path, 0o644) },
			"foreign": func(_ fixture, path string) error {
				return errors.Join(os.WriteFile(path, nil, 0o644), os.Chown(path, nobody, nobody))
			},
			"writable": func(_ fixture, path string) error {
				return errors.Join(os.WriteFile(path, nil, 0o644), os.Chmod(path, 0o666))
			},
		} {
			t.Run(tc.name+" "+what, func(t *testing.T) {
				if what == "foreign" {
					needRoot(t)
				}
				f := setup(t)
				path := tc.path(f)
				do(t, os.RemoveAll(path))
				do(t, plant(f, path))
				if err := tc.use(t, f); !errors.Is(err, ErrUntrusted) {
					t.Errorf("error = %v, want %v", err, ErrUntrusted)
				}
				if data, err := os.ReadFile(f.victim); err != nil || string(data) != "precious" {
					t.Errorf("victim: %q, %v", data, err)
				}
			})
		}
	}

	// What is replaced as a whole is simply replaced, never written through.
	t.Run("write over planted links", func(t *testing.T) {
		f := setup(t)
		for _, name := range []string{txnFile, currentLink} {
			do(t, os.Remove(filepath.Join(f.s.dir, name)))
			do(t, os.Symlink(f.victim, filepath.Join(f.s.dir, name)))
		}
		do(t, f.s.WriteTxn(Txn{TxID: testTxID(1), Phase: PhaseCommit}))
		if _, err := f.s.Current(); !errors.Is(err, ErrDamaged) {
			t.Errorf("current: %v", err)
		}
		mustFlip(t, f.s, f.r)
		if txn, err := f.s.ReadTxn(); err != nil || txn.Phase != PhaseCommit {
			t.Errorf("txn: %+v, %v", txn, err)
		}
		if data, err := os.ReadFile(f.victim); err != nil || string(data) != "precious" {
			t.Errorf("victim: %q, %v", data, err)
		}
	})
}

// A release can be damaged in many ways; each is told, none hides the others.
func TestDamagedRelease(t *testing.T) {
	t.Parallel()
	for name, harm := range map[string]func(r Release) error{
		"no record":  func(r Release) error { return os.Remove(filepath.Join(filepath.Dir(r.Path), recordFile)) },
		"no program": func(r Release) error { return os.Remove(r.Path) },
		"truncated": func(r Release) error {
			return errors.Join(os.Chmod(r.Path, 0o755), os.Truncate(r.Path, 1), os.Chmod(r.Path, 0o555))
		},
		"mode": func(r Release) error { return os.Chmod(r.Path, 0o444) },
		"garbage": func(r Release) error {
			path := filepath.Join(filepath.Dir(r.Path), recordFile)
			return errors.Join(os.Remove(path), os.WriteFile(path, []byte("{"), 0o444))
		},
		"other ID": func(r Release) error {
			id := newID(time.Now().Add(time.Hour), r.SHA256)
			return os.Rename(filepath.Dir(r.Path), filepath.Join(filepath.Dir(filepath.Dir(r.Path)), id))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStore(t)
			good := mustStage(t, s, "good")
			bad := mustStage(t, s, "bad content")
			do(t, harm(bad))
			list, err := s.List()
			if err != nil || len(list) != 2 {
				t.Fatalf("list: %+v, %v", list, err)
			}
			for _, r := range list {
				if (r.ID == good.ID) != (r.Damage == nil) {
					t.Errorf("%s: damage = %v", r.ID, r.Damage)
				}
				if r.Damage != nil && !errors.Is(r.Damage, ErrDamaged) {
					t.Errorf("%s: damage = %v", r.ID, r.Damage)
				}
			}
			if err := s.Flip(bad); err == nil {
				t.Error("made a damaged release current")
			}
			mustStage(t, s, "bad content") // can be had again
		})
	}
}
