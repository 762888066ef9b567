package release

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestHold(t *testing.T) {
	s, err := Create(filepath.Join(t.TempDir(), "web"), Options{Program: "web"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Hold(); !errors.Is(err, ErrNoHold) {
		t.Fatal(err)
	}
	if was, err := s.ClearHold(); was || err != nil {
		t.Errorf("cleared %t, %v", was, err)
	}
	for _, why := range []string{"black friday", "still"} {
		if err := s.SetHold(Hold{Who: Who{User: "anna"}, Why: why}); err != nil {
			t.Fatal(err)
		}
		h, err := s.Hold()
		if err != nil || h.Why != why || h.Who.User != "anna" || h.Since.IsZero() {
			t.Errorf("%+v, %v", h, err)
		}
	}
	// What nobody can read holds all the same, until it is taken away.
	if err := os.WriteFile(filepath.Join(s.Dir(), holdFile), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Hold(); !errors.Is(err, ErrDamaged) {
		t.Errorf("damaged: %v", err)
	}
	if was, err := s.ClearHold(); !was || err != nil {
		t.Errorf("cleared %t, %v", was, err)
	}
	if _, err := s.Hold(); !errors.Is(err, ErrNoHold) {
		t.Error(err)
	}
}
