package cmd

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/zdt-dev/zdt/dbusctl"
	"github.com/zdt-dev/zdt/handoffcheck"
)

// What an operator reads of all services, in a terminal without colours.
func TestChecksText(t *testing.T) {
	doc := func(name string, properties map[string]any, unknown ...string) checkDoc {
		d := checkDoc{Outcome: "clean", Service: name, Unknown: unknown, Findings: handoffcheck.Look(handoffcheck.Facts{Service: handoffcheck.Unit{Name: name + ".service", Properties: properties}})}
		d.judge()
		return d
	}
	for name, services := range map[string][]checkDoc{
		"all-clean": {doc("api", nil), doc("web", nil)},
		"all-blocked": {
			doc("api", map[string]any{"Type": "simple", "Restart": "no"}), doc("mail", nil, "the running program: there is none"),
			unlooked("old", dbusctl.ErrNoUnit), unlooked("shop", errors.New("connection timed out")), doc("web", map[string]any{"ExecStartPost": [][]any{{"/usr/bin/choom", []string{"/usr/bin/choom", "-p", "$MAINPID"}}}}),
		},
	} {
		t.Run(name, func(t *testing.T) {
			all := checksDoc{Outcome: "clean"}
			for _, d := range services {
				all.add(d)
			}
			golden(t, "check/"+name, checksText(newStyle(nil, false, true), all))
		})
	}
}

// All services are looked at, whatever is wrong with one of them; what is said of each is what is said of it alone.
func TestCheckAll(t *testing.T) {
	f, out, _ := testFactory(t, false)
	h := newHost(t, f)
	f.globals.output = outputJSON
	look := func(broken string) (doc checksDoc, code ExitCode) {
		t.Helper()
		f.dialSystemd = func(context.Context, bool) (systemd, error) {
			return doctorSystemd{fakeSystemd{units: h.units}, broken}, nil
		}
		out.Reset()
		code = codeOf(runCheckAll(t.Context(), f))
		if err := json.Unmarshal(out.Bytes(), &doc); err != nil || doc.ExitCode != code {
			t.Fatalf("exit code %d: %v\n%s", code, err, out)
		}
		return doc, code
	}
	if doc, code := look(""); code != ExitOK || len(doc.Services) != 0 || doc.Outcome != "clean" {
		t.Errorf("of no service: %d, %+v", code, doc)
	}
	for _, name := range []string{"api", "gone", "web"} {
		h.deploy(t, name)
	}
	h.running("api")
	h.running("web")
	doc, code := look("")
	if code != ExitOK || doc.Outcome != "risks" || len(doc.Services) != 3 {
		t.Fatalf("%d, %+v", code, doc)
	}
	if gone := doc.Services[1]; gone.Service != "gone" || gone.Outcome != outcomeUnknown || len(gone.Unknown) == 0 || gone.Schema != "zdt.check/1" {
		t.Errorf("of a service without a unit: %+v", gone)
	}
	if doc, code := look("api.service"); code != ExitUnexpected || doc.Services[0].Outcome != outcomeUnknown || doc.Services[2].Outcome != "risks" {
		t.Errorf("of one that cannot be looked at: %d, %+v", code, doc)
	}

	f.globals.output = outputNDJSON
	out.Reset()
	if err := runCheckAll(t.Context(), f); codeOf(err) != ExitUnexpected {
		t.Errorf("got %v", err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 4 || !strings.Contains(lines[0], `"zdt.check/1"`) || !strings.Contains(lines[3], `"zdt.checks/1"`) {
		t.Errorf("lines %q", lines)
	}
}

// A file alone needs no systemd.
func TestCheckFile(t *testing.T) {
	f, out, _ := testFactory(t, false)
	f.dialSystemd = func(context.Context, bool) (systemd, error) {
		t.Error("systemd is asked")
		return nil, dbusctl.ErrNoBus
	}
	file := filepath.Join(t.TempDir(), "web")
	if err := os.WriteFile(file, []byte("#!/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if code := execute(t.Context(), f, []string{"check", "--binary", file}); code != ExitRefused || !strings.Contains(out.String(), handoffcheck.CandidateMode) {
		t.Errorf("exit code %d\n%s", code, out)
	}
	if err := os.Chmod(file, 0o755); err != nil {
		t.Fatal(err)
	}
	out.Reset()
	if code := execute(t.Context(), f, []string{"check", "--binary", file}); code != ExitOK || !strings.Contains(out.String(), file+": nothing") {
		t.Errorf("exit code %d\n%s", code, out)
	}
}
