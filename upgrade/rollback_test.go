package upgrade

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/release"
)

// rollback is a rollback to the release id, "" for the last committed one.
func (w *world) rollback(id string) Report {
	e := w.engine("")
	e.Options.Kind, e.Options.Release = release.KindRollback, id
	e.Options.Bake = time.Hour // of no account
	return e.Run(w.t.Context())
}

// committed upgrades to each version in turn and returns their releases.
func (w *world) committed(versions ...string) []string {
	w.t.Helper()
	var ids []string
	for _, v := range versions {
		rep := w.upgrade(program(w.t, "good", v))
		w.want(rep, Upgraded, "", "")
		ids = append(ids, rep.To.ID)
	}
	return ids
}

// Each rollback goes one committed release further back, and never forward to one that was given up.
func TestRollback(t *testing.T) {
	w := newWorld(t)
	ids := w.committed("v2", "v3")
	for _, to := range []struct{ id, version string }{{ids[0], "v2"}, {w.v1.ID, "v1"}} {
		rep := w.rollback("")
		w.want(rep, Upgraded, "", "")
		w.wantServing(to.version)
		w.wantSmooth(rep)
		if rep.To.ID != to.id || rep.Kind != release.KindRollback {
			t.Errorf("rolled back to %s, want %s: %s", rep.To.ID, to.id, asJSON(rep))
		}
	}
	rep := w.rollback("")
	w.want(rep, Refused, Stage, "")
	wantText(t, "cause", rep.Cause, "no earlier committed release")
	w.wantServing("v1")
	for i, e := range w.wantHistory(Upgraded, Upgraded, Upgraded, Upgraded) {
		if (e.Kind == release.KindRollback) != (i > 1) {
			t.Errorf("history %+v", e)
		}
	}
	// Forward again by name: v3 has served.
	rep = w.rollback(ids[1])
	w.want(rep, Upgraded, "", "")
	w.wantServing("v3")
}

func TestRollbackOnlyToWhatHasServed(t *testing.T) {
	w := newWorld(t)
	w.committed("v2")
	failed := w.upgrade(program(t, "crash-after-ready", "v3"))
	if failed.Outcome != RolledBack {
		t.Fatal(asJSON(failed))
	}
	rep := w.rollback(failed.To.ID)
	w.want(rep, Refused, Stage, "")
	wantText(t, "cause", rep.Cause, "has never served web")
	rep = w.rollback("20260101T000000Z-000000000000")
	w.want(rep, Refused, Stage, "")
	w.wantServing("v2")
	// What was undone is not what a rollback goes back from.
	w.want(w.rollback(""), Upgraded, "", "")
	w.wantServing("v1")
}

// Another release runs than the current one: it was never committed, and the current one was.
func TestRollbackFromWhatWasNeverCommitted(t *testing.T) {
	w := newWorld(t)
	w.committed("v2")
	if err := w.store.Flip(w.v1); err != nil {
		t.Fatal(err)
	}
	rep := w.rollback("")
	w.want(rep, Upgraded, "", "")
	w.wantServing("v1")
	if rep.To.ID != w.v1.ID {
		t.Errorf("to %s", rep.To.ID)
	}
}

// An upgrade to a release that is in the store.
func TestUpgradeToARelease(t *testing.T) {
	w := newWorld(t)
	ids := w.committed("v2")
	e := w.engine("")
	e.Options.Release = w.v1.ID
	rep := e.Run(t.Context())
	w.want(rep, Upgraded, "", "")
	w.wantServing("v1")
	e = w.engine("")
	e.Options.Release = "20260101T000000Z-000000000000"
	w.want(e.Run(t.Context()), Refused, Preflight, "")
	e = w.engine(program(t, "good", "v2"))
	e.Options.Release = ids[0]
	w.want(e.Run(t.Context()), Refused, Preflight, "")
}

// From the first record on the earlier release is what systemd starts: the one that serves is the one that was given up.
func TestRestartedInTheMiddleOfARollback(t *testing.T) {
	for _, phase := range []Phase{Listen, Commit} {
		t.Run(string(phase), func(t *testing.T) {
			w := newWorld(t)
			w.committed("v2")
			w.systemd.restart = true
			pid := w.systemd.mainPID()
			w.at(phase, func() { unix.Kill(pid, unix.SIGKILL) })
			rep := w.rollback("")
			w.want(rep, Upgraded, "", "")
			until(t, "the unit is active again", func() bool { u, _, _ := w.systemd.state(); return u.ActiveState == "active" })
			w.wantServing("v1")
			wantText(t, "warnings", strings.Join(rep.Warnings, "\n"), "started the earlier release "+w.v1.ID)
			w.wantNextWorks()
		})
	}
}

// Nobody knows what became of it: then what is known to be good stays what a restart starts.
func TestRollbackWithoutSystemd(t *testing.T) {
	w := newWorld(t)
	w.committed("v2")
	w.at(Drain, func() { w.systemd.hangUp(errors.New("no bus")) })
	e := w.engine("")
	e.Options.Kind = release.KindRollback
	e.slack, e.Options.ReadyTimeout = 200*time.Millisecond, time.Second
	rep := e.Run(t.Context())
	if rep.Outcome != NotRestored || rep.Reason != reasonSystemdLost {
		t.Fatalf("report %s", asJSON(rep))
	}
	if now, err := w.store.Current(); err != nil || now.ID != w.v1.ID {
		t.Errorf("current is %s, %v", now.ID, err)
	}
	w.systemd.hangUp(nil)
	w.wantServing("v1")
	w.wantNextWorks()
	w.wantHistory(Upgraded, Upgraded, Upgraded)
}

// What has served is asked nothing more: time counts.
func TestRollbackAsksNoGates(t *testing.T) {
	w := newWorld(t)
	w.committed("v2")
	var g testGates
	e := w.engine("")
	e.Options.Kind, e.Gates = release.KindRollback, g.gates(time.Hour)
	w.want(e.Run(t.Context()), Upgraded, "", "")
	w.wantServing("v1")
}

// A rollback that comes to nothing leaves everything as it was.
func TestRollbackUndone(t *testing.T) {
	w := newWorld(t)
	ids := w.committed("v2")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w.at(Bake, cancel)
	e := w.engine("")
	e.Options.Kind = release.KindRollback
	rep := e.Run(ctx)
	w.want(rep, Interrupted, Bake, reasonInterrupted)
	w.wantServing("v2")
	if now, err := w.store.Current(); err != nil || now.ID != ids[0] {
		t.Errorf("current is %s, %v", now.ID, err)
	}
	w.want(w.rollback(""), Upgraded, "", "")
	w.wantServing("v1")
}

// A zdt is killed in the middle of a rollback.
func TestKilledInARollback(t *testing.T) {
	for _, tt := range []struct {
		at      string
		outcome Outcome // of the rollback; "": there was no record
		serves  string
	}{
		{"before record trigger", "", "v2"},
		{"after record trigger", Interrupted, "v2"},
		{"before flip", Interrupted, "v2"},
		{"after flip", Interrupted, "v2"},
		{"after signal", Interrupted, "v2"},
		{"after record bake", Interrupted, "v2"},
		{"after record commit", Interrupted, "v2"},
		{"before record drain", Upgraded, "v1"},
		{"after record record", Upgraded, "v1"},
		{"before history", Upgraded, "v1"},
	} {
		t.Run(tt.at, func(t *testing.T) {
			w := newWorld(t)
			v2 := program(t, "good", "v2")
			w.want(w.upgrade(v2), Upgraded, "", "")
			w.killed("", tt.at)
			// To the same release once more: what the other has left is put in order, and told.
			rep := w.upgrade("")
			if rep.Outcome != Unchanged {
				t.Fatal(asJSON(rep))
			}
			w.wantServing(tt.serves)
			if tt.outcome == "" {
				w.wantHistory(Upgraded)
				return
			}
			if e := w.wantHistory(Upgraded, tt.outcome)[1]; e.Kind != release.KindRollback || e.To != w.v1.ID {
				t.Errorf("history %+v", e)
			}
			w.wantNextWorks()
		})
	}
}
