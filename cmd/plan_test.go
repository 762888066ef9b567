package cmd

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/charmbracelet/lipgloss"
	"github.com/spf13/pflag"

	"github.com/zdt-dev/zdt/dbusctl"
	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/release"
	"github.com/zdt-dev/zdt/unitgen"
	"github.com/zdt-dev/zdt/upgrade"
)

// planDocs are plans of all kinds.
func planDocs() map[string]planDoc {
	old := &upgrade.PlanRelease{ID: "20260701T090000Z-3f2a9c81d0be", SHA256: strings.Repeat("3", 64), Size: 12_700_000, Build: &release.Build{GoVersion: "go1.26.0", Version: "v1.4.2"}}
	next := &upgrade.PlanRelease{SHA256: "9be01f6c2a77" + strings.Repeat("0", 52), Size: 13_000_000, Path: "/srv/web-1.4.3",
		Build: &release.Build{GoVersion: "go1.26.1", Version: "v1.4.3", Revision: "0123456789abcdef", Modified: true}}
	base := upgrade.Plan{Schema: "zdt.plan/1", Outcome: upgrade.PlanUpgrade, Service: "web", Kind: release.KindUpgrade, ID: "p1.0123456789.abcdefghijklmnopqrstuvwxyzABCD.0123456789",
		From: old, To: next, Strategy: upgrade.PlanHandoff, Runtime: "library", MainPID: 812, Incumbent: 812, Generation: 3}
	undone := "undone, the old program serves on as if nothing had been"
	steps := []upgrade.PlanStep{
		{Phase: upgrade.Stage, Text: "copy /srv/web-1.4.3 into the release store"},
		{Phase: upgrade.Rehearse, Text: "try the new program beside the service, out of the clients' sight: it gets ready, accepts, passes the gates and ends",
			Within: 95 * time.Second, Then: "refused, nothing was changed"},
		{Phase: upgrade.Trigger, Text: "SIGUSR2 to process 812, which starts the new program with its sockets"},
		{Phase: upgrade.Listen, Text: "the new program says that it is ready", Within: 30 * time.Second, Then: undone},
		{Phase: upgrade.Bake, Text: "watch it for 2m0s and ask the gates; both run and new connections go to the new one", Then: undone},
		{Phase: upgrade.Commit, Text: "the new program becomes the service's main process"},
		{Phase: upgrade.Drain, Text: "the old program finishes its requests; its idle connections move to the new one", Within: 30 * time.Second, Then: "what is still busy is cut"},
	}
	settings := func(helper bool) *planSettings {
		before := []unitgen.UnitText{{Unit: "web.service", Files: []unitgen.File{{Path: "/etc/systemd/system/web.service", Data: []byte("[Service]\nUser=web\nEnvironment=SECRET=1\nMemoryMax=1G\n")}}},
			{Unit: "web.socket", Files: []unitgen.File{{Path: "/etc/systemd/system/web.socket", Data: []byte("[Socket]\nListenStream=80\n")}}}}
		after := []unitgen.UnitText{{Unit: "web.service", Files: append(slices.Clone(before[0].Files),
			unitgen.File{Path: "/etc/systemd/system/web.service.d/x.conf", Data: []byte("[Service]\nUser=shop\nEnvironment=SECRET=2\nMemoryMax=2G\nTimeoutStopSec=9\n")})},
			{Unit: "web.socket", Files: []unitgen.File{{Path: "/etc/systemd/system/web.socket", Data: []byte("[Socket]\nListenStream=80\nListenStream=81\n")}}}}
		s := &planSettings{Known: "snapshot", Since: day.Add(-50 * time.Hour), takes: unitgen.Takes{Unit: helper}}
		for _, c := range unitgen.Changes(before, after, s.takes) {
			s.add(c, true, false, upgrade.PlanHandoff)
		}
		return s
	}
	library := planDoc{Plan: base, Settings: settings(false)}
	library.Steps, library.Gates = steps, []string{"http://127.0.0.1:8080/ready"}
	library.Room = upgrade.Footprint{Generation: 45 << 20, Processes: 1, Used: 60 << 20, Max: 100 << 20, HostAvailable: 3 << 30, Tasks: 9, TasksMax: 4915}.Rooms()

	helper := planDoc{Plan: base, Settings: settings(true)}
	helper.Runtime, helper.MainPID, helper.Steps = "helper", 800, []upgrade.PlanStep{
		{Phase: upgrade.Stage, Text: "use release 20260728T101500Z-9be01f6c2a77, which is there", Hooks: []upgrade.PlanHook{
			{Point: upgrade.HookPreUpgrade, Path: "/etc/zdt/hooks.d/web.d/pre-upgrade/50-migration", Within: 30 * time.Second, Else: "refused, nothing was changed"}}},
		{Phase: upgrade.Rehearse, Text: "none: the program cannot run twice at a time (--strategy=restart)", Skipped: true},
		{Phase: upgrade.Record, Text: "a restart starts the new release from now on", Then: "old releases are deleted: the newest stay (Keep=10, KeepFailed=3), and what zdt prune never deletes"},
	}
	helper.Room = upgrade.Footprint{Generation: 45 << 20, Resident: true, HostAvailable: 50 << 20}.Rooms()
	helper.Settings.DaemonReload = true

	refused := planDoc{Plan: base, Settings: &planSettings{Known: "times", Since: day.Add(-time.Hour),
		Files: []planUnitFile{{"/etc/systemd/system/web.service.d/x.conf", day, false}}, DaemonReload: true}}
	refused.Outcome, refused.ExitCode, refused.Strategy, refused.To, refused.Runtime = upgrade.PlanRefused, 10, "", nil, ""
	refused.Problems = []upgrade.Problem{
		{Outcome: upgrade.Refused, Cause: "/srv/web-1.4.3 is built for another architecture\x1b[31m", Hint: "build it for GOARCH=amd64"},
		{Outcome: upgrade.Locked, Cause: "held by anna since 2026-07-28 10:00:00: black friday", Hint: "ask them; zdt hold web --off ends it"}}

	unchanged := planDoc{Plan: base, Settings: &planSettings{Known: "snapshot", Since: day.Add(-time.Hour)}}
	unchanged.Outcome = upgrade.PlanUnchanged
	unchanged.Notes = []string{"release x runs, but a restart would start y"}
	return map[string]planDoc{"library": library, "helper": helper, "refused": refused, "unchanged": unchanged}
}

func TestPlanText(t *testing.T) {
	for name, doc := range planDocs() {
		for _, form := range []string{"tty", "pipe", "json"} {
			f, out, _ := testFactory(t, form == "tty")
			var err error
			if form == "json" {
				f.globals.output = outputJSON
				err = f.print(doc)
			} else {
				err = f.printPlan(doc)
			}
			if err != nil {
				t.Fatal(err)
			}
			golden(t, "plan/"+name+"."+form, out.String())
			if strings.Contains(out.String(), "\x1b[31m/") || strings.Contains(out.String(), "SECRET=") {
				t.Errorf("%s %s shows what it should not:\n%s", name, form, out)
			}
			for line := range strings.Lines(out.String()) {
				if form == "tty" && lipgloss.Width(strings.TrimRight(line, "\n")) > 80 {
					t.Errorf("%s is wider than the terminal: %s", name, line)
				}
			}
		}
	}
}

// The same changes, side by side: with the helper fewer wait for a restart.
func TestPlanSettingsByRuntime(t *testing.T) {
	docs := planDocs()
	var left [2][]string
	for i, name := range []string{"library", "helper"} {
		for _, c := range docs[name].Settings.Changes {
			if !c.Applied {
				left[i] = append(left[i], c.Key)
			}
		}
	}
	if got := strings.Join(left[0], " "); got != "Environment User ListenStream" {
		t.Errorf("library: %s", got)
	}
	if got := strings.Join(left[1], " "); got != "User ListenStream" {
		t.Errorf("helper: %s", got)
	}
}

// loadedSystemd says when it has read its units, and from where.
type loadedSystemd struct {
	fakeSystemd
	load dbusctl.Load
}

func (s loadedSystemd) Load(context.Context) (dbusctl.Load, error) { return s.load, nil }

// planned is a host with a service whose unit lies in one of two directories.
type plannedHost struct {
	testHost
	etc, lib string
	load     dbusctl.Load
	runtime  *fakeRuntime
}

func newPlannedHost(t *testing.T, f *factory) *plannedHost {
	t.Helper()
	h := &plannedHost{testHost: newHost(t, f), etc: filepath.Join(t.TempDir(), "etc"), lib: filepath.Join(t.TempDir(), "lib")}
	f.dialSystemd = func(context.Context, bool) (systemd, error) {
		return loadedSystemd{fakeSystemd{units: h.units}, h.load}, nil
	}
	h.load.Path = []string{h.etc, h.lib}
	h.deploy(t, "web")
	h.write(t, h.lib, "web.service", "[Service]\nUser=web\nEnvironmentFile=-"+h.etc+"/env\n[X-Zdt]\nName=web\n")
	h.start()
	h.runtime = &fakeRuntime{status: idle("web")}
	h.runtime.serve(t, h.paths.Control("web"))
	return h
}

func (h *plannedHost) write(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// start is a daemon-reload and a start of the service, later than everything that was written.
func (h *plannedHost) start() {
	u := h.running("web")
	u.Type, u.NotifyAccess, u.InvocationID = "notify", "main", u.InvocationID+"1"
	u.FragmentPath = filepath.Join(h.lib, "web.service")
	u.ExecStartPath = filepath.Join(h.paths.StateDir("web"), "current", "web")
	u.ExecStart = []string{u.ExecStartPath}
	h.load.At = time.Now().Add(time.Second)
	u.InactiveExit, u.ActiveEnter = time.Now().Add(time.Second), time.Now().Add(time.Second)
	h.units["web.service"] = u
}

// reload has systemd read everything, with the drop-ins.
func (h *plannedHost) reload(dropIns ...string) {
	u := h.units["web.service"]
	u.DropInPaths = dropIns
	h.units["web.service"] = u
	h.load.At = time.Now().Add(time.Hour)
}

// started puts the start of the service before everything that is written from now on.
func (h *plannedHost) past() {
	u := h.units["web.service"]
	u.InactiveExit, u.ActiveEnter = time.Now(), time.Now()
	h.units["web.service"] = u
	h.load.At = time.Now()
}

func (h *plannedHost) plan(t *testing.T, args ...string) planDoc {
	t.Helper()
	f := h.f
	var out strings.Builder
	f.Out = &out
	execute(t.Context(), f, append([]string{"--user", "plan", "web", "-o", "json"}, args...))
	f.globals.output = outputText
	var doc planDoc
	if err := json.Unmarshal([]byte(out.String()), &doc); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	return doc
}

func TestPlanKnowsWhatChanged(t *testing.T) {
	f, _, _ := testFactory(t, false)
	h := newPlannedHost(t, f)
	doc := h.plan(t)
	if doc.Settings == nil || doc.Settings.Known != "snapshot" || len(doc.Settings.Changes) > 0 || doc.Settings.DaemonReload {
		t.Fatalf("%+v", doc.Settings)
	}
	store, err := release.Open(h.paths.StateDir("web"), release.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	if snap, err := store.Snapshot(); err != nil || snap.Invocation != "1" || len(snap.Units) != 1 {
		t.Fatalf("%+v, %v", snap, err)
	}
	id := doc.ID
	h.past()

	// A drop-in that systemd has not read.
	dropIn := h.write(t, h.etc, "web.service.d/x.conf", "[Service]\nUser=shop\nTimeoutStopSec=9\n")
	doc = h.plan(t)
	var got []string
	for _, c := range doc.Settings.Changes {
		got = append(got, c.Key+" "+c.When)
	}
	if strings.Join(got, "; ") != "TimeoutStopSec with daemon-reload; User with a restart" || !doc.Settings.DaemonReload || doc.Settings.Changes[0].Path != dropIn {
		t.Errorf("%+v", doc.Settings)
	}
	if doc.ID == id || doc.ID == "" {
		t.Errorf("the plan-id is %q, and was %q", doc.ID, id)
	}
	h.reload(dropIn)
	doc = h.plan(t)
	if c := doc.Settings.Changes; len(c) != 2 || !c[0].InForce || c[1].Applied || doc.Settings.DaemonReload {
		t.Errorf("%+v", doc.Settings)
	}

	// Another start without anything to know it by: only the times tell.
	u := h.units["web.service"]
	u.InvocationID = "2"
	h.units["web.service"] = u
	doc = h.plan(t)
	// The unit itself is as old as a tick of the kernel's clock, and may be among them.
	if doc.Settings.Known != "times" || !slices.ContainsFunc(doc.Settings.Files, func(f planUnitFile) bool { return f.Path == dropIn }) {
		t.Errorf("%+v", doc.Settings)
	}
}

// With the helper, what a handoff takes over is not left for a restart; what an earlier one took over is in force.
func TestPlanUnderTheHelper(t *testing.T) {
	f, _, _ := testFactory(t, false)
	h := newPlannedHost(t, f)
	u := h.units["web.service"]
	u.ExecReload = []string{"/usr/local/bin/zdt", "handoff"}
	h.units["web.service"] = u
	st := idle("web")
	st.Runtime, st.App, st.Helper = control.RuntimeHelper, os.Getpid(), &control.Helper{}
	h.runtime.status = st
	h.plan(t)
	h.past()
	dropIn := h.write(t, h.etc, "web.service.d/x.conf", "[Service]\nEnvironment=A=1\nUser=shop\n")
	h.write(t, h.etc, "env", "B=1\n")
	h.reload(dropIn)
	doc := h.plan(t)
	var got []string
	for _, c := range doc.Settings.Changes {
		got = append(got, c.Key+" "+c.When)
	}
	if want := "Environment with this handoff; User with a restart; EnvironmentFile with this handoff"; strings.Join(got, "; ") != want {
		t.Errorf("%s, %q", strings.Join(got, "; "), doc.Problems)
	}
}

// A hook that comes, goes or is written anew makes another plan.
func TestPlanIDHasTheHooks(t *testing.T) {
	config := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", config)
	f, _, _ := testFactory(t, false)
	h := newPlannedHost(t, f)
	h.past()
	seen := map[string]bool{h.plan(t).ID: true}
	hook := func(text string) {
		t.Helper()
		path := h.write(t, filepath.Join(config, "zdt/hooks.d/web.d/pre-commit"), "50-x", "#!/bin/sh\n"+text)
		if err := os.Chmod(path, 0o755); err != nil {
			t.Fatal(err)
		}
		doc := h.plan(t)
		if doc.ID == "" || seen[doc.ID] {
			t.Errorf("with the hook %q the plan-id is %q again", text, doc.ID)
		}
		seen[doc.ID] = true
	}
	hook("exit 1")
	hook("exit 10")
}

func TestReadUnit(t *testing.T) {
	etc, lib := t.TempDir(), t.TempDir()
	for path, text := range map[string]string{
		etc + "/a-b@.service.d/20.conf": "x", lib + "/a-b@1.service.d/20.conf": "hidden by the one above", lib + "/a-.service.d/10.conf": "y",
		lib + "/service.d/30.conf": "z", etc + "/a-b@1.service.d/no.txt": "no", lib + "/a-b@1.service": "fragment",
	} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	d, err := readUnit(dbusctl.Unit{Name: "a-b@1.service", FragmentPath: "/gone"}, []string{etc, lib})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range d.files {
		got = append(got, string(f.data))
	}
	if strings.Join(got, " ") != "fragment y x z" || d.dirs.IsZero() {
		t.Errorf("%q", got)
	}
	// Without directories it is what systemd has read, as far as it is there.
	d, err = readUnit(dbusctl.Unit{Name: "a.service", FragmentPath: lib + "/a-b@1.service", DropInPaths: []string{lib + "/service.d/30.conf", "/gone"}}, nil)
	if err != nil || len(d.files) != 2 {
		t.Errorf("%+v, %v", d, err)
	}
	if d.current(dbusctl.Load{}) {
		t.Error("a file is gone, and systemd has it still")
	}
}

func TestWrapWords(t *testing.T) {
	if got := wrapWords("aa bb cc-dd e", 5); strings.Join(got, "|") != "aa bb|cc-dd|e" {
		t.Errorf("%q", got)
	}
	if got := wrapWords("", 5); len(got) != 1 {
		t.Errorf("%q", got)
	}
}

// All flags of zdt run are classified: who adds one says whether a handoff takes it anew.
func TestRunFlagsAreClassified(t *testing.T) {
	once := []string{"listen", "service", "control", "log", "hold-timeout", "takeover", "workers", "reuse-port"}
	f, _, _ := testFactory(t, false)
	cmd := newRunCmd(f)
	cmd.Flags().VisitAll(func(flag *pflag.Flag) {
		before := []unitgen.UnitText{{Unit: "w.service", Files: []unitgen.File{{Data: []byte("[Service]\nExecStart=/bin/zdt run -- x\n")}}}}
		after := []unitgen.UnitText{{Unit: "w.service", Files: []unitgen.File{{Data: []byte("[Service]\nExecStart=/bin/zdt run --" + flag.Name + "=1 -- x\n")}}}}
		changes := unitgen.Changes(before, after, unitgen.Takes{Unit: true})
		if len(changes) != 1 || (changes[0].Remedy == unitgen.RemedyHandoff) == slices.Contains(once, flag.Name) {
			t.Errorf("--%s: %v", flag.Name, changes)
		}
	})
}
