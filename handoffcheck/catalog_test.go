package handoffcheck

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write docs/checks.md")

// What is said about a check is said in full, once, and under an ID of its own.
func TestCatalog(t *testing.T) {
	id := regexp.MustCompile(`^ZDT0\d\d$`)
	seen := map[string]bool{}
	for _, c := range Catalog() {
		switch {
		case !id.MatchString(c.ID) || seen[c.ID]:
			t.Errorf("%q is no ID of its own", c.ID)
		case c.Severity.rank() < 0:
			t.Errorf("%s: severity %q", c.ID, c.Severity)
		case c.Family == "" || c.Title == "" || c.Why == "":
			t.Errorf("%s: words are missing: %+v", c.ID, c)
		case strings.HasSuffix(c.Why, ".") || strings.HasSuffix(c.Title, "."):
			t.Errorf("%s: title and reason are parts of a sentence", c.ID)
		}
		seen[c.ID] = true
		if got, ok := Find(strings.ToLower(c.ID)); !ok || got.ID != c.ID {
			t.Errorf("%s is not found", c.ID)
		}
	}
	if _, ok := Find("ZDT000"); ok {
		t.Error("ZDT000 is found")
	}
}

// docs/checks.md has what the catalog has. -update writes it.
func TestDocument(t *testing.T) {
	var want bytes.Buffer
	want.WriteString(`# What zdt check finds

This page is made from the checks themselves (go test ./handoffcheck -run Document -update); "zdt explain ID" prints a section of it.

A **blocker** means that an upgrade is bound to fail: "zdt check" exits with 10. A **risk** may make it fail, lose requests, or
leave the service without protection. A **note** is worth knowing.
`)
	all := Catalog()
	var families []Family // a family may have come by more IDs later
	for _, c := range all {
		if !slices.Contains(families, c.Family) {
			families = append(families, c.Family)
		}
	}
	slices.SortStableFunc(all, func(a, b Check) int { return slices.Index(families, a.Family) - slices.Index(families, b.Family) })
	var family Family
	for _, c := range all {
		if c.Family != family {
			family = c.Family
			fmt.Fprintf(&want, "\n## The %s\n", family)
		}
		fmt.Fprintf(&want, "\n### %s: %s\n\n%s. %s.\n", c.ID, c.Title, upper(string(c.Severity)), upper(c.Why))
		if c.More != "" {
			fmt.Fprintf(&want, "\n%s\n", c.More)
		}
	}
	const path = "../docs/checks.md"
	if *update {
		if err := os.WriteFile(path, want.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want.Bytes()) {
		t.Errorf("%s is not what the checks say (%v): go test ./handoffcheck -run Document -update", path, err)
	}
}

func upper(s string) string { return strings.ToUpper(s[:1]) + s[1:] }
