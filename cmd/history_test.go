package cmd

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/release"
)

// past is a store with upgrades of every ending.
func (h testHost) past(t *testing.T, name string) (ids []string) {
	t.Helper()
	h.deploy(t, name)
	s, err := release.Open(h.paths.StateDir(name), release.Options{Program: name})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	first, err := s.Current()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, []byte("#!/bin/sh\n:\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	second, err := s.Stage(t.Context(), file, release.StageOptions{})
	if err != nil {
		t.Fatal(err)
	}
	anna := release.Who{User: "root", SudoUser: "anna"}
	for i, e := range []release.Entry{
		{Kind: release.KindUpgrade, From: first.ID, To: second.ID, Outcome: "rolled-back", Reason: "crashed", ExitCode: 11, Who: anna, Why: "first try"},
		{Kind: release.KindUpgrade, From: first.ID, To: second.ID, Outcome: "upgraded", Committed: true, Who: anna, Why: "fix CVE-2026-1234\x1b[31m", Conns: &release.Conns{Moved: 30, Cut: 2}},
		{Kind: release.KindRollback, From: second.ID, To: first.ID, Outcome: "upgraded", Committed: true, Who: release.Who{User: "root"}},
	} {
		e.TxID = fmt.Sprintf("20261122T10000%d000Z-01234567", i)
		e.Started = day.Add(time.Duration(i) * time.Hour)
		e.Ended = e.Started.Add(1340 * time.Millisecond)
		if err := s.AppendHistory(e); err != nil {
			t.Fatal(err)
		}
	}
	return []string{first.ID, second.ID}
}

func TestHistory(t *testing.T) {
	f, out, errs := testFactory(t, false)
	h := newHost(t, f)
	ids := h.past(t, "web")
	if code := execute(t.Context(), f, []string{"--user", "history", "web"}); code != ExitOK {
		t.Fatalf("exit %d: %s", code, errs)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 6 {
		t.Fatalf("got:\n%s", out)
	}
	for i, want := range []string{
		"rolled back by hand", "by root", "2 cut", `fix CVE-2026-1234\x1b[31m`, "rolled-back (crashed)", "anna",
	} {
		if !strings.Contains(lines[i], want) {
			t.Errorf("line %d is %q, want %q in it", i, lines[i], want)
		}
	}
	if !strings.Contains(lines[0], shortID(ids[1])+" → "+shortID(ids[0])) || !strings.HasPrefix(lines[0], "●") {
		t.Errorf("the newest is %q", lines[0])
	}
	out.Reset()
	if code := execute(t.Context(), f, []string{"--user", "history", "web", "-n", "1", "-o", "json"}); code != ExitOK {
		t.Fatalf("exit %d: %s", code, errs)
	}
	var doc historyDoc
	if err := json.Unmarshal(out.Bytes(), &doc); err != nil {
		t.Fatal(err)
	}
	if len(doc.Entries) != 1 || doc.Left != 2 || !doc.Entries[0].Current || doc.Entries[0].Kind != release.KindRollback {
		t.Errorf("document %+v", doc)
	}
	if code := execute(t.Context(), f, []string{"--user", "history", "nosuch"}); code != ExitNoService {
		t.Errorf("exit %d for a service that is not there", code)
	}
}
