package journal

import (
	"errors"
	"go/build"
	"regexp"
	"strings"
	"testing"
	"time"
)

// The IDs are a promise: catalogs, dashboards and log shippers match on them.
func TestMessageIDsNeverChange(t *testing.T) {
	want := map[Kind]string{
		"fork":             "185ea6feb9724408b5f295b5408d5a49",
		"listen":           "fd171a478085481fbb28adffebb6798c",
		"drain":            "e17942d59c29495391976cd7b39f3fe1",
		"exit":             "249ebcf6f77f4b1b8cc3ee511f26c976",
		"abort":            "002c62ab985342d580ea0ea4b581d4a4",
		"upgrade-begin":    "48b38e34e0fb4f58bc388529241f0dc8",
		"upgrade-commit":   "022768fc39754415a68839b82c5e28a1",
		"upgrade-rollback": "690310423fee41c8a9f53fa49252e472",
		"upgrade-end":      "6f7123ee8b23485885ddcf15bdf4fdc1",
	}
	if len(Kinds()) != len(want) {
		t.Errorf("%d kinds, want %d", len(Kinds()), len(want))
	}
	hex := regexp.MustCompile(`^[0-9a-f]{32}$`)
	for _, k := range Kinds() {
		if k.ID() != want[k] || !hex.MatchString(k.ID()) {
			t.Errorf("%s has ID %q, want %q", k, k.ID(), want[k])
		}
		if back, ok := KindOf(k.ID()); !ok || back != k {
			t.Errorf("KindOf(%s) = %q, %v, want %s", k.ID(), back, ok, k)
		}
		if p := k.Priority(); p < PriErr || p > PriDebug {
			t.Errorf("%s has priority %d", k, p)
		}
		if k.Operator() != strings.HasPrefix(string(k), "upgrade-") {
			t.Errorf("%s: Operator() = %v", k, k.Operator())
		}
		for _, name := range k.Fields() {
			if err := checkName(name); err != nil {
				t.Errorf("%s: %v", k, err)
			}
		}
	}
	if _, ok := KindOf(""); ok {
		t.Error("KindOf accepts an empty ID")
	}
}

func TestText(t *testing.T) {
	for _, tt := range []struct {
		event Event
		want  string
	}{
		{Event{Kind: Fork, Message: "own words"}, "own words"},
		{Event{Kind: Fork, Service: "web", Generation: 3, PID: 10, PeerPID: 11, Fields: []Field{Str(FieldExe, "/x/web")}},
			"web: generation 3 (pid 10) started candidate 11 from /x/web"},
		{Event{Kind: Listen, Service: "web", PID: 11, Fields: []Field{Int(FieldListenFDs, 2)}},
			"web: candidate 11 is ready with 2 listeners"},
		{Event{Kind: Drain, Service: "web", PID: 10, Fields: []Field{Int(FieldConnsActive, 3), Int(FieldConnsIdle, 29)}},
			"web: pid 10 drains: 29 idle, 3 active"},
		{Event{Kind: Exit, Service: "web", Generation: 3, PID: 10, Fields: []Field{Str(FieldExitCode, "killed"), Str(FieldExitStatus, "SEGV")}},
			"web: generation 3 (pid 10) ended, killed SEGV"},
		{Event{Kind: Abort, Service: "web", PID: 10, Fields: []Field{Str(FieldReason, string(ReasonReadyTimeout))}},
			"web: handoff undone (ready-timeout), pid 10 serves on"},
		{Event{Kind: UpgradeBegin, Service: "web", Fields: []Field{Str(FieldFrom, "a"), Str(FieldTo, "b")}},
			"web: upgrade from a to b begins"},
		{Event{Kind: UpgradeEnd, Service: "web", Fields: []Field{Str(FieldOutcome, "upgraded")}}, "web: upgrade ended: upgraded"},
		{Event{Kind: UpgradeEnd}, "service: upgrade ended"},
	} {
		if got := tt.event.Text(); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.event.Kind, got, tt.want)
		}
	}
}

func TestFieldHelpers(t *testing.T) {
	e := Event{Fields: []Field{Int("N", -4), Usec("D", 1500*time.Nanosecond), Str("S", "x"), Str("S", "y")}}
	if n, ok := e.Int("N"); n != -4 || !ok {
		t.Errorf("N = %d, %v", n, ok)
	}
	if n, ok := e.Int("D"); n != 1 || !ok {
		t.Errorf("D = %d, %v, want 1 µs", n, ok)
	}
	if _, ok := e.Int("S"); ok {
		t.Error("a text is taken for a number")
	}
	if _, ok := e.Int("absent"); ok || e.Get("S") != "x" {
		t.Error("absent field found, or not the first of two")
	}
}

// handoff imports this package and promises its users no third-party code.
func TestImportsStandardLibraryOnly(t *testing.T) {
	pkg, err := build.ImportDir(".", 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range pkg.Imports {
		if first, _, _ := strings.Cut(path, "/"); strings.Contains(first, ".") {
			t.Errorf("imports %s; only the standard library is allowed", path)
		}
	}
}

func TestErrorsCanBeTold(t *testing.T) {
	if err := explain(errors.New("exit status 1"), "No journal files were opened due to insufficient permissions.\n"); !errors.Is(err, ErrNoAccess) {
		t.Errorf("%v is not ErrNoAccess", err)
	}
	err := explain(errors.New("exit status 1"), "bad \x1b[31mthing\nmore")
	if want := `run journalctl: exit status 1 (bad \x1b[31mthing)`; err.Error() != want {
		t.Errorf("got %q, want %q", err, want)
	}
}
