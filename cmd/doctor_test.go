package cmd

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"context"

	"github.com/zdt-dev/zdt/handoffcheck"
	"github.com/zdt-dev/zdt/release"
)

// What an operator reads of a host that is in order, and of one that is not.
func TestDoctorText(t *testing.T) {
	host := hostHealth{Zdt: "1.4.0", Systemd: "257.9-1", Kernel: "6.12.0"}
	found := func(properties map[string]any) []handoffcheck.Finding {
		return handoffcheck.Look(handoffcheck.Facts{Service: handoffcheck.Unit{Name: "api.service", Properties: properties}})
	}
	for name, d := range map[string]doctorDoc{
		"healthy": {Host: host, Services: []serviceHealth{{Name: "api", State: stateServing}, {Name: "web", State: stateServing}}},
		"risks":   {Host: host, Services: []serviceHealth{{Name: "api", State: stateServing, Findings: found(map[string]any{"Restart": "no"})}}},
		"none":    {Host: host},
		"blocked": {
			Host: hostHealth{Zdt: "1.4.0", Systemd: "252", Kernel: "6.1.0", Notes: []note{{ID: "reconcile", Text: "nothing settles an upgrade that a power cut interrupts", Next: "systemctl enable zdt-reconcile.service"}}},
			Services: []serviceHealth{
				{Name: "api", State: stateServing, Findings: found(map[string]any{"Type": "simple", "Restart": "no"})},
				{Name: "mail", State: stateStopped, Unknown: []string{"mail.socket: connection timed out"}},
				{Name: "web", State: stateServing, Notes: []note{{ID: "upgrade-open", Text: "an upgrade was interrupted: it stopped in phase bake, and pid 12, which worked on it, is gone", Next: "zdt resume web"}}},
			},
			Leftovers: []leftover{{Path: "/var/lib/zdt/web/releases/.tmp-1", Text: "half of a release: its copy or its deletion was cut short", Next: "zdt prune web"}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			d.judge()
			golden(t, "doctor/"+name, doctorText(newStyle(nil, false, true), d))
		})
	}
}

// doctorSystemd also says what doctor asks for; what it knows of broken units is an error.
type doctorSystemd struct {
	fakeSystemd
	broken string
}

func (d doctorSystemd) Version(context.Context) (int, string, error) { return 257, "257.9", nil }
func (d doctorSystemd) Properties(_ context.Context, name string) (map[string]any, error) {
	if name == d.broken {
		return nil, errors.New("the answer is no unit")
	}
	return map[string]any{"Restart": "no", "Type": "notify"}, nil
}

// One service that cannot be looked at hides no other one; an upgrade that was interrupted waits for somebody.
func TestDoctor(t *testing.T) {
	f, out, _ := testFactory(t, false)
	h := newHost(t, f)
	f.dialSystemd = func(context.Context, bool) (systemd, error) {
		return doctorSystemd{fakeSystemd{units: h.units}, "api.service"}, nil
	}
	for _, name := range []string{"api", "gone", "web"} {
		h.deploy(t, name)
	}
	h.running("api")
	h.running("web")
	half := filepath.Join(h.paths.StateDir("web"), "releases", ".tmp-1")
	if err := os.Mkdir(half, 0o700); err != nil {
		t.Fatal(err)
	}
	f.globals.output = outputJSON
	if err := runDoctor(t.Context(), f); err != nil {
		t.Fatalf("nothing of this waits for somebody: %v", err)
	}
	for _, want := range []string{`"the answer is no unit"`, `"ZDT007"`, `"no-unit"`, half} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%s is missing:\n%s", want, out)
		}
	}

	s, err := release.Open(h.paths.StateDir("web"), release.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	now, err := s.Current()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.WriteTxn(release.Txn{TxID: "20261101T101112123Z-00ff00ff", Kind: release.KindUpgrade, Phase: release.PhaseBake, From: now.ID, To: now.ID, Started: day, Runner: release.Proc{PID: 4194300, Start: 1}}); err != nil {
		t.Fatal(err)
	}
	out.Reset()
	err = runDoctor(t.Context(), f)
	if codeOf(err) != ExitRefused || !strings.Contains(out.String(), `"upgrade-open"`) {
		t.Errorf("an open upgrade: %v\n%s", err, out)
	}
}
