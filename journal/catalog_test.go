package journal

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/zdt-dev/zdt/templates"
)

// catalogEntry is one entry of the message catalog.
type catalogEntry struct {
	headers map[string]string
	prose   string
}

func parseCatalog(t *testing.T) map[string]catalogEntry {
	t.Helper()
	entries := map[string]catalogEntry{}
	parts := strings.Split("\n"+templates.Catalog(), "\n-- ")
	for line := range strings.SplitSeq(strings.TrimSpace(parts[0]), "\n") {
		if !strings.HasPrefix(line, "#") {
			t.Errorf("before the first entry: %q", line)
		}
	}
	for _, part := range parts[1:] {
		id, rest, _ := strings.Cut(part, "\n")
		head, prose, _ := strings.Cut(rest, "\n\n")
		e := catalogEntry{map[string]string{}, prose}
		for line := range strings.SplitSeq(head, "\n") {
			name, value, ok := strings.Cut(line, ": ")
			if !ok {
				t.Errorf("%s: header %q", id, line)
			}
			e.headers[name] = value
		}
		if _, twice := entries[id]; twice {
			t.Errorf("two entries for %s", id)
		}
		entries[id] = e
	}
	return entries
}

func TestCatalogExplainsEachEvent(t *testing.T) {
	entries := parseCatalog(t)
	if len(entries) != len(Kinds()) {
		t.Errorf("%d entries for %d events", len(entries), len(Kinds()))
	}
	field := regexp.MustCompile(`@([^@\s]+)@`)
	for _, k := range Kinds() {
		e, ok := entries[k.ID()]
		if !ok {
			t.Errorf("no entry for %s", k)
			continue
		}
		for _, name := range []string{"Subject", "Defined-By", "Support", "Documentation"} {
			if e.headers[name] == "" {
				t.Errorf("%s: no %s", k, name)
			}
		}
		if e.headers["Defined-By"] != "zdt" || strings.TrimSpace(e.prose) == "" {
			t.Errorf("%s: defined by %q, prose %q", k, e.headers["Defined-By"], e.prose)
		}
		for line := range strings.SplitSeq(e.prose, "\n") {
			if n := utf8.RuneCountInString(line); n > 76 || strings.TrimRight(line, " \t") != line {
				t.Errorf("%s: %d columns, or blanks at the end: %q", k, n, line)
			}
		}
		// What is not set stays @FIELD@ in the text.
		allowed := append(k.Fields(), FieldService, FieldGeneration, FieldPID, FieldPeerPID, FieldTxID)
		for _, m := range field.FindAllStringSubmatch(e.headers["Subject"]+e.prose, -1) {
			if !slices.Contains(allowed, m[1]) {
				t.Errorf("%s has no field %s", k, m[1])
			}
		}
	}
	// The words are read from the source, so that none can be forgotten.
	src, err := os.ReadFile("event.go")
	if err != nil {
		t.Fatal(err)
	}
	words := regexp.MustCompile(`Reason\w+ +Reason = "(.*)"`).FindAllStringSubmatch(string(src), -1)
	if len(words) < 12 {
		t.Errorf("found %d reasons only", len(words))
	}
	for _, m := range words {
		r := m[1]
		if !strings.Contains(entries[Abort.ID()].prose, "\n  "+r+" ") {
			t.Errorf("the entry for abort does not explain %q", r)
		}
	}
}
