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

func TestFlip(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	if _, err := s.Current(); !errors.Is(err, ErrNoCurrent) {
		t.Errorf("current: %v", err)
	}
	v1, v2 := mustStage(t, s, "v1"), mustStage(t, s, "v2")
	for _, r := range []Release{v1, v2, v2, v1} {
		mustFlip(t, s, r)
		got, err := s.Current()
		if err != nil || got.ID != r.ID || got.Path != r.Path {
			t.Errorf("current = %+v, %v, want %s", got, err, r.ID)
		}
		target, err := os.Readlink(filepath.Join(s.dir, currentLink))
		if err != nil || target != "releases/"+r.ID {
			t.Errorf("link leads to %q, %v", target, err)
		}
		a, errA := os.Stat(s.CurrentPath())
		b, errB := os.Stat(r.Path)
		if errA != nil || errB != nil || !os.SameFile(a, b) {
			t.Errorf("%s is not %s: %v, %v", s.CurrentPath(), r.Path, errA, errB)
		}
	}
	if err := s.Flip(Release{ID: "20261122T124005Z-0123456789ab"}); !errors.Is(err, ErrNoRelease) {
		t.Errorf("flip to nothing: %v", err)
	}
	checkTidy(t, s)
}

// Readers must find a release at any moment of many flips.
func TestFlipIsAtomic(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	v1, v2 := mustStage(t, s, "v1"), mustStage(t, s, "v2")
	mustFlip(t, s, v1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 50 {
			if err := errors.Join(s.Flip(v2), s.Flip(v1)); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	for n := 0; ; n++ {
		select {
		case <-done:
			return
		default:
		}
		if data, err := os.ReadFile(s.CurrentPath()); err != nil || string(data) != "v1" && string(data) != "v2" {
			t.Fatalf("read %d: %q, %v", n, data, err)
		}
	}
}

func TestFlipSweeps(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	v1 := mustStage(t, s, "v1")
	do(t, os.Symlink("releases/x", filepath.Join(s.dir, ".current.0011223344556677.tmp")))
	writeFile(t, filepath.Join(s.dir, ".current.mine"), "", 0o644)
	mustFlip(t, s, v1)
	checkTidy(t, s)
	if _, err := os.Stat(filepath.Join(s.dir, ".current.mine")); err != nil {
		t.Errorf("removed what is not ours: %v", err)
	}
}

func TestCurrentByHand(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	r := mustStage(t, s, "v1")
	link := filepath.Join(s.dir, currentLink)
	for name, tc := range map[string]struct {
		make func() error
		want error
	}{
		"absolute":  {func() error { return os.Symlink(filepath.Dir(r.Path), link) }, ErrDamaged},
		"outside":   {func() error { return os.Symlink("releases/../..", link) }, ErrDamaged},
		"dangling":  {func() error { return os.Symlink("releases/20261122T124005Z-0123456789ab", link) }, ErrNoRelease},
		"directory": {func() error { return os.Mkdir(link, 0o755) }, ErrDamaged},
	} {
		do(t, tc.make())
		if _, err := s.Current(); !errors.Is(err, tc.want) {
			t.Errorf("%s: error = %v, want %v", name, err, tc.want)
		}
		do(t, os.Remove(link))
	}
}

// rid makes the ID of a release that does not exist.
func rid(n string) string { return "20260101T000000Z-" + strings.Repeat(n, 12) }

func TestLine(t *testing.T) {
	t.Parallel()
	up := func(from, to string) Entry {
		return Entry{Kind: KindUpgrade, From: rid(from), To: rid(to), Committed: true}
	}
	back := func(from, to string) Entry {
		return Entry{Kind: KindRollback, From: rid(from), To: rid(to), Committed: true}
	}
	failed := func(from, to string) Entry { return Entry{Kind: KindUpgrade, From: rid(from), To: rid(to)} }
	first := func(to string) Entry { return Entry{Kind: KindInit, To: rid(to), Committed: true} }
	for _, tc := range []struct {
		name    string
		entries []Entry
		line    string
		current string
		before  string
	}{
		{"nothing", nil, "", "1", ""},
		{"first", []Entry{first("1")}, "1", "1", ""},
		{"upgrades", []Entry{first("1"), up("1", "2"), up("2", "3")}, "123", "3", "21"},
		{"failed ones do not count", []Entry{first("1"), up("1", "2"), failed("2", "3"), failed("2", "4")}, "12", "2", "1"},
		{"retried", []Entry{first("1"), failed("1", "2"), up("1", "2")}, "12", "2", "1"},
		{"rolled back goes on backwards", []Entry{first("1"), up("1", "2"), up("2", "3"), back("3", "2")}, "12", "2", "1"},
		{"rolled back twice", []Entry{first("1"), up("1", "2"), up("2", "3"), back("3", "2"), back("2", "1")}, "1", "1", ""},
		{"rolled back, then forward", []Entry{first("1"), up("1", "2"), back("2", "1"), up("1", "3")}, "13", "3", "1"},
		{"forward to what was given up", []Entry{first("1"), up("1", "2"), back("2", "1"), up("1", "2")}, "12", "2", "1"},
		{"named one outside the line", []Entry{first("1"), up("1", "2"), back("2", "1"), back("1", "2")}, "12", "2", "1"},
		{"upgraded to an old one", []Entry{first("1"), up("1", "2"), up("2", "1")}, "121", "1", "2"},
		{"same again", []Entry{first("1"), up("1", "2"), up("2", "2")}, "12", "2", "1"},
		{"begun late", []Entry{up("1", "2")}, "12", "2", "1"},
		{"flip without record", []Entry{first("1"), up("1", "2")}, "12", "3", "21"},
		{"flip back by hand", []Entry{first("1"), up("1", "2"), up("2", "3")}, "123", "2", "1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ids := line(tc.entries)
			if got := short(ids); got != tc.line {
				t.Errorf("line = %s, want %s", got, tc.line)
			}
			if got := short(before(ids, rid(tc.current))); got != tc.before {
				t.Errorf("before %s = %s, want %s", tc.current, got, tc.before)
			}
		})
	}
}

func short(ids []string) string {
	var b strings.Builder
	for _, id := range ids {
		b.WriteByte(id[len(id)-1])
	}
	return b.String()
}

func TestPrevious(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var r []Release
	for i, content := range []string{"v0", "v1", "v2", "v3"} {
		// Backwards, as a clock that was set would have it.
		r = append(r, stageAt(t, s, content, at.Add(-time.Duration(i)*time.Hour)))
	}
	if _, err := s.Previous(); !errors.Is(err, ErrNoPrevious) {
		t.Errorf("previous: %v", err)
	}
	mustAppend(t, s, Entry{Kind: KindInit, To: r[0].ID, Committed: true})
	mustAppend(t, s, Entry{Kind: KindUpgrade, From: r[0].ID, To: r[1].ID, Committed: true})
	mustAppend(t, s, Entry{Kind: KindUpgrade, From: r[1].ID, To: r[2].ID, Committed: true})
	mustAppend(t, s, Entry{Kind: KindUpgrade, From: r[2].ID, To: r[3].ID})
	mustFlip(t, s, r[2])
	if got, err := s.Previous(); err != nil || got.ID != r[1].ID {
		t.Errorf("previous = %s, %v, want %s", got.ID, err, r[1].ID)
	}
	do(t, os.RemoveAll(filepath.Dir(r[1].Path)))
	if got, err := s.Previous(); err != nil || got.ID != r[0].ID {
		t.Errorf("previous = %s, %v, want %s", got.ID, err, r[0].ID)
	}
}

func TestPruneProtects(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var r []Release
	for i := range 12 {
		r = append(r, stageAt(t, s, "version "+string(rune('a'+i)), at.Add(time.Duration(i)*time.Hour)))
	}
	// 0 previous, 1 current, 2 and 3 of the open txn, 4 named by the caller.
	mustAppend(t, s, Entry{Kind: KindInit, To: r[0].ID, Committed: true})
	mustAppend(t, s, Entry{Kind: KindUpgrade, From: r[0].ID, To: r[1].ID, Committed: true})
	mustFlip(t, s, r[1])
	do(t, s.WriteTxn(Txn{TxID: testTxID(1), Phase: PhaseBake, From: r[2].ID, To: r[3].ID}))
	do(t, os.Mkdir(filepath.Join(s.dir, releasesDir, tempPrefix+"left"), 0o700))

	removed, err := pruneFor(t, s, 2, r[4].ID)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, x := range removed {
		got = append(got, x.ID)
	}
	var want []string
	for _, x := range r[5:10] { // the oldest first, two are kept
		want = append(want, x.ID)
	}
	if !slices.Equal(got, want) {
		t.Errorf("removed %q, want %q", got, want)
	}
	list, err := s.List()
	if err != nil || len(list) != 7 {
		t.Errorf("%d left, %v", len(list), err)
	}
	checkSound(t, s)
	checkTidy(t, s)
	if removed, err := pruneFor(t, s, 2, r[4].ID); err != nil || len(removed) != 0 {
		t.Errorf("again: %v, %v", removed, err)
	}
}

// Not knowing is a reason to keep everything.
func TestPruneRefuses(t *testing.T) {
	t.Parallel()
	for name, harm := range map[string]func(s *Store) error{
		"txn":     func(s *Store) error { return os.WriteFile(filepath.Join(s.dir, txnFile), []byte("{"), 0o644) },
		"current": func(s *Store) error { return os.Symlink("elsewhere", filepath.Join(s.dir, currentLink)) },
		"history": func(s *Store) error { return os.Symlink("/etc/hosts", filepath.Join(s.dir, historyFile)) },
	} {
		s := newStore(t)
		mustStage(t, s, "v1")
		do(t, harm(s))
		if removed, err := pruneFor(t, s, 0); err == nil || len(removed) > 0 {
			t.Errorf("%s: removed %v, error %v", name, removed, err)
		}
	}
}

func TestPruneStep(t *testing.T) {
	t.Parallel()
	for _, label := range []string{"prune: rename", "prune: remove"} {
		s := newStore(t)
		mustStage(t, s, "v1")
		s.step = func(l string, f func() error) error {
			if l == label {
				return errInjected
			}
			return f()
		}
		if _, err := pruneFor(t, s, 0); !errors.Is(err, errInjected) {
			t.Errorf("%s: %v", label, err)
		}
		checkSound(t, s)
		s.step = func(_ string, f func() error) error { return f() }
		if _, err := pruneFor(t, s, 0); err != nil {
			t.Error(err)
		}
		checkTidy(t, s)
	}
}
