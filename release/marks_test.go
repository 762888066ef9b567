package release

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestMarks(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	r := mustStage(t, s, "v1")
	do(t, s.Pin(t.Context(), r.ID, Pinned{Why: "before the migration"}))
	do(t, s.MarkFailed(r.ID, Failed{TxID: testTxID(1), Reason: "gate"}))
	got, err := s.Get(r.ID)
	if err != nil || got.Pinned == nil || got.Pinned.Why != "before the migration" || got.Pinned.At.IsZero() ||
		got.Failed == nil || got.Failed.Reason != "gate" || got.Failed.TxID != testTxID(1) {
		t.Fatalf("got %+v, %+v, %v", got.Pinned, got.Failed, err)
	}
	if again := mustStage(t, s, "v1"); again.ID != r.ID || again.Failed == nil {
		t.Errorf("staged again as %s, failed %v", again.ID, again.Failed)
	}
	if was, err := s.Unpin(t.Context(), r.ID); !was || err != nil {
		t.Errorf("unpin: %t, %v", was, err)
	}
	if was, err := s.Unpin(t.Context(), r.ID); was || err != nil {
		t.Errorf("unpin again: %t, %v", was, err)
	}
	mustFlip(t, s, r)
	do(t, s.MarkFailed(r.ID, Failed{TxID: testTxID(2)})) // of the current one: not noted
	if got, err = s.Current(); err != nil || got.Pinned != nil || got.Failed != nil {
		t.Errorf("current: %+v, %v", got, err)
	}
	checkTidy(t, s)

	const none = "20260101T000000Z-0123456789ab"
	for what, err := range map[string]error{
		"pin":  s.Pin(t.Context(), none, Pinned{}),
		"fail": s.MarkFailed(none, Failed{TxID: testTxID(1)}),
		"odd":  s.Pin(t.Context(), "../x", Pinned{}),
	} {
		if !errors.Is(err, ErrNoRelease) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := s.MarkFailed(r.ID, Failed{}); err == nil {
		t.Error("a failure without a transaction")
	}
}

// A failed mark keeps Previous away until the release is committed again.
func TestPreviousPassesOverFailed(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	a, b, c := mustStage(t, s, "a"), mustStage(t, s, "b"), mustStage(t, s, "c")
	mustAppend(t, s, Entry{Kind: KindInit, To: a.ID, Committed: true})
	mustAppend(t, s, Entry{Kind: KindUpgrade, From: a.ID, To: b.ID, Committed: true})
	mustAppend(t, s, Entry{Kind: KindUpgrade, From: b.ID, To: c.ID, Committed: true})
	mustFlip(t, s, c)
	do(t, s.MarkFailed(b.ID, Failed{TxID: testTxID(3), Reason: "died"}))
	if got, err := s.Previous(); err != nil || got.ID != a.ID {
		t.Errorf("previous = %s, %v, want %s", got.ID, err, a.ID)
	}
	mustFlip(t, s, b)
	mustFlip(t, s, c)
	if got, err := s.Previous(); err != nil || got.ID != b.ID {
		t.Errorf("previous = %s, %v, want %s", got.ID, err, b.ID)
	}
}

func TestMarksPlanted(t *testing.T) {
	t.Parallel()
	for _, name := range []string{failedFile, pinnedFile} {
		for what, plant := range map[string]func(path string) error{
			"link":    func(path string) error { return os.Symlink("/etc/hosts", path) },
			"garbage": func(path string) error { return os.WriteFile(path, []byte("{"), 0o444) },
			"empty":   func(path string) error { return os.WriteFile(path, []byte("{}"), 0o444) },
		} {
			s := newStore(t)
			r := mustStage(t, s, "v1")
			do(t, plant(filepath.Join(filepath.Dir(r.Path), name)))
			if _, err := s.Get(r.ID); !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrUntrusted) {
				t.Errorf("%s %s: %v", name, what, err)
			}
			// Setting it again mends it.
			do(t, s.Pin(t.Context(), r.ID, Pinned{}))
			do(t, s.MarkFailed(r.ID, Failed{TxID: testTxID(1)}))
			if got, err := s.Get(r.ID); err != nil || got.Failed == nil || got.Pinned == nil {
				t.Errorf("%s %s: %+v, %v", name, what, got, err)
			}
		}
	}
}

// Each step of setting and clearing marks fails once; the release stays usable.
func TestMarkSteps(t *testing.T) {
	t.Parallel()
	run := func(s *Store, r Release) error {
		return errors.Join(s.Pin(t.Context(), r.ID, Pinned{}), s.MarkFailed(r.ID, Failed{TxID: testTxID(1)}),
			func() error { _, err := s.Unpin(t.Context(), r.ID); return err }(), s.Flip(r))
	}
	var labels []string
	s := newStore(t)
	s.step = func(l string, f func() error) error { labels = append(labels, l); return f() }
	do(t, run(s, mustStage(t, s, "v1")))
	for i, label := range labels {
		s := newStore(t)
		r := mustStage(t, s, "v1")
		n := strings.Count(strings.Join(labels[:i], "\n"), "stage: ") // staged without the step function
		if strings.HasPrefix(label, "stage: ") {
			continue
		}
		at := n
		s.step = func(l string, f func() error) error {
			at++
			if at-1 == i {
				return errInjected
			}
			return f()
		}
		if err := run(s, r); !errors.Is(err, errInjected) && !strings.HasPrefix(label, "unpin: ") {
			t.Errorf("%s: %v", label, err)
		}
		s.step = func(_ string, f func() error) error { return f() }
		checkSound(t, s)
		checkTidy(t, s)
		do(t, run(s, r))
	}
}

func TestFind(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	a, b := stageAt(t, s, "a", at), stageAt(t, s, "b", at.Add(time.Hour))
	for _, tc := range []struct{ ref, want string }{
		{a.ID, a.ID}, {a.SHA256[:12], a.ID}, {a.SHA256[:4], a.ID}, {"sha256:" + strings.ToUpper(b.SHA256), b.ID},
		{"20260101T01", b.ID}, {" " + b.ID + "\n", b.ID},
	} {
		if r, err := s.Find(tc.ref); err != nil || r.ID != tc.want || r.Path == "" {
			t.Errorf("%q: %s, %v, want %s", tc.ref, r.ID, err, tc.want)
		}
	}
	for _, tc := range []struct {
		ref  string
		want error
	}{
		{"20260101", ErrAmbiguous}, {"", ErrNoRelease}, {a.SHA256[:3], ErrNoRelease}, {"current", ErrNoRelease},
		{"zzzzzz", ErrNoRelease}, {"../../etc/passwd", ErrNoRelease}, {"20260101T000000Z-0123456789ab", ErrNoRelease},
	} {
		var h interface{ Hint() string }
		if r, err := s.Find(tc.ref); !errors.Is(err, tc.want) || r.ID != "" || !errors.As(err, &h) {
			t.Errorf("%q: %+v, %v, want %v", tc.ref, r, err, tc.want)
		}
	}
	do(t, os.Remove(b.Path))
	if r, err := s.Find(b.SHA256[:8]); !errors.Is(err, ErrDamaged) || r.ID != b.ID || errors.Is(err, fs.ErrPermission) {
		t.Errorf("damaged: %+v, %v", r, err)
	}
}
