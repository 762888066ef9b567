package upgrade

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/release"
)

func TestUpgrade(t *testing.T) {
	w := newWorld(t)
	before := w.systemd.mainPID()
	rep := w.upgrade(program(t, "good", "v2"))
	w.want(rep, Upgraded, "", "")
	w.wantServing("v2")
	if rep.Incumbent != before || rep.Candidate != w.systemd.mainPID() || rep.Generation != 2 || rep.From.ID != w.v1.ID {
		t.Errorf("report: %s", asJSON(rep))
	}
	var phases []Phase
	for _, tm := range rep.Timings {
		if tm.State != Done {
			t.Errorf("phase %s is %s", tm.Phase, tm.State)
		}
		phases = append(phases, tm.Phase)
	}
	if !slices.Equal(phases, Phases()) {
		t.Errorf("phases %v", phases)
	}
	if rep.Journal != "absent" || len(rep.Warnings) != 1 {
		t.Errorf("journal %s, warnings %q; without a journal that is all there is to say", rep.Journal, rep.Warnings)
	}
	entry := w.wantHistory(Upgraded)[0]
	if entry.TxID != rep.TxID || entry.From != w.v1.ID || entry.To != rep.To.ID || entry.Conns == nil || entry.Conns.Cut != 0 {
		t.Errorf("history %+v", entry)
	}
}

func TestUnchangedOnlyIfItRunsAndIsCurrent(t *testing.T) {
	w := newWorld(t)
	v1, v2 := program(t, "good", "v1"), program(t, "good", "v2")
	w.want(w.upgrade(v1), Unchanged, "", "")
	w.wantHistory()

	// Current, but something else runs.
	rep := w.upgrade(v2)
	w.want(rep, Upgraded, "", "")
	if err := w.store.Flip(w.v1); err != nil {
		t.Fatal(err)
	}
	rep = w.upgrade(v1)
	w.want(rep, Upgraded, "", "")
	w.wantServing("v1")
	wantText(t, "warnings", strings.Join(rep.Warnings, "\n"), "a restart would start "+w.v1.ID)
	if rep.From.ID == w.v1.ID {
		t.Error("from is the current release, and not the one that ran")
	}

	// It runs, but is not current.
	rep = w.upgrade(v2)
	w.want(rep, Upgraded, "", "")
	if err := w.store.Flip(w.v1); err != nil {
		t.Fatal(err)
	}
	w.want(w.upgrade(v2), Upgraded, "", "")

	// No release runs at all.
	w.host.Exe = func(int) (string, error) { return "/usr/local/bin/web", nil }
	e := w.engine(v2)
	e.Store = unrecoverable{w.store}
	rep = e.Run(t.Context())
	w.want(rep, Upgraded, "", "")
	wantText(t, "warnings", strings.Join(rep.Warnings, "\n"), "which is no release")
}

// unrecoverable is a store for programs of which the kernel knows only the interpreter.
type unrecoverable struct{ *release.Store }

func (unrecoverable) Recover(context.Context, release.Proc, release.StageOptions) (release.Release, error) {
	return release.Release{}, errors.New("a script cannot be recovered")
}

func TestBake(t *testing.T) {
	w := newWorld(t)
	e := w.engine(program(t, "good", "v2"))
	e.Options.Bake = 300 * time.Millisecond
	rep := e.Run(t.Context())
	w.want(rep, Upgraded, "", "")
	for _, tm := range rep.Timings {
		if tm.Phase == Bake && tm.Took < e.Options.Bake {
			t.Errorf("baked for %s", tm.Took)
		}
	}
}

func TestCutConnectionsAreTold(t *testing.T) {
	w := newWorld(t, "ZDT_DRAIN_TIMEOUT=300ms")
	w.block()
	rep := w.upgrade(program(t, "good", "v2"))
	w.want(rep, Upgraded, "", "")
	if rep.Connections == nil || rep.Connections.Cut != 1 {
		t.Errorf("connections %+v", rep.Connections)
	}
	wantText(t, "warnings", strings.Join(rep.Warnings, "\n"), "1 connection was cut", "clients have noticed")
	if c := w.wantHistory(Upgraded)[0].Conns; c == nil || c.Cut != 1 {
		t.Errorf("history tells of %+v", c)
	}
}

func TestWaitsForADrainingPredecessor(t *testing.T) {
	w := newWorld(t)
	end := w.block()
	e := w.engine(program(t, "good", "v2"))
	e.Options.DrainTimeout, e.slack = 100*time.Millisecond, 100*time.Millisecond
	rep := e.Run(t.Context())
	w.want(rep, Upgraded, "", "")
	wantText(t, "warnings", strings.Join(rep.Warnings, "\n"), "still drains")

	// It does not end in time: nothing is changed.
	e = w.engine(program(t, "good", "v3"))
	e.Options.DrainTimeout, e.slack = 100*time.Millisecond, 100*time.Millisecond
	rep = e.Run(t.Context())
	w.want(rep, Refused, Preflight, "")
	wantText(t, "cause", rep.Cause, "still busy with an earlier handoff")
	wantText(t, "cause", rep.Cause, "still drains")
	wantText(t, "hint", rep.Hint, "if it stays: kill ")

	w.on = func(u Update) {
		if u.Phase == Preflight && strings.Contains(u.Text, "earlier handoff") {
			end()
		}
	}
	rep = w.upgrade(program(t, "good", "v3"))
	w.want(rep, Upgraded, "", "")
	w.wantServing("v3")
	w.wantHistory(Upgraded, Upgraded)
}
