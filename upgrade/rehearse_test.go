package upgrade

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/release"
)

// lastWords is the error of a rehearsal.
type lastWords struct{ error }

func (lastWords) LastWords() ([]string, int) { return []string{"no database"}, 3 }

// A rehearsal comes between stage and trigger; what fails in it has changed nothing.
func TestRehearsal(t *testing.T) {
	w := newWorld(t)
	e := w.engine(program(t, "good", "v2"))
	var seen release.Release
	e.Rehearsal = &Rehearsal{Play: func(_ context.Context, to release.Release, txid string, progress func(string)) (Rehearsed, error) {
		if !release.ValidTxID(txid) {
			t.Errorf("txid %q", txid)
		}
		seen = to
		progress("ready")
		return Rehearsed{Warnings: []string{"a unit is left"}}, lastWords{errors.New("it fell over")}
	}}
	rep := e.Run(t.Context())
	w.want(rep, Refused, Rehearse, "rehearsal")
	wantText(t, "cause", rep.Cause, "it fell over")
	wantText(t, "hint", rep.Hint, "--no-rehearse")
	w.wantOld()
	if seen.ID != rep.To.ID || !slices.Equal(rep.CandidateLog, []string{"no database"}) || rep.LogCut != 3 {
		t.Errorf("rehearsed %s, log %q and %d", seen.ID, rep.CandidateLog, rep.LogCut)
	}
	if rep.Rehearsal == nil || rep.Rehearsal.State != RehearsalFailed || !slices.Contains(rep.Warnings, "a unit is left") {
		t.Errorf("%+v, warnings %q", rep.Rehearsal, rep.Warnings)
	}
	if s := w.status(); s.Attempts != 0 {
		t.Error("a handoff was started")
	}
	failed := func() bool {
		t.Helper()
		r, err := w.store.Get(rep.To.ID)
		if err != nil {
			t.Fatal(err)
		}
		return r.Failed != nil
	}
	if !failed() {
		t.Error("the release counts among the good ones")
	}

	e.Rehearsal.Play = func(context.Context, release.Release, string, func(string)) (Rehearsed, error) {
		return Rehearsed{Text: "fine"}, nil
	}
	rep = e.Run(t.Context())
	if rep.Outcome != Upgraded || rehearsedAs(rep) != Done || rep.Rehearsal == nil || *rep.Rehearsal != (RehearsalReport{RehearsalPassed, "fine"}) {
		t.Errorf("%s, %+v, %+v", rep.Outcome, rep.Timings, rep.Rehearsal)
	}
	if failed() {
		t.Error("the release serves, and does not count among the good ones")
	}
}

// rehearsedAs is how the phase ended; "": there was none.
func rehearsedAs(rep Report) State {
	for _, x := range rep.Timings {
		if x.Phase == Rehearse {
			return x.State
		}
	}
	return ""
}

// Where there can be no rehearsal an upgrade goes on and says why, or is refused when there has to be one.
func TestNoRehearsal(t *testing.T) {
	none := func(context.Context, release.Release, string, func(string)) (Rehearsed, error) {
		return Rehearsed{}, &NoRehearsal{Why: "the sockets are shared", Fix: "share none"}
	}
	for _, c := range []struct {
		name      string
		rehearsal Rehearsal
		change    func(w *world, e *Engine)
		outcome   Outcome
		phase     State
		text      string
	}{
		{"yes", Rehearsal{Play: none}, nil, Upgraded, Skipped, "the sockets are shared"},
		{"always", Rehearsal{Play: none, Must: true}, nil, Refused, Failed, "a rehearsal is not possible: the sockets are shared"},
		{"no", Rehearsal{Play: none, Must: true, Off: "--no-rehearse"}, nil, Upgraded, "", ""},
		{"restart", Rehearsal{}, func(_ *world, e *Engine) { e.Options.Strategy = StrategyRestart }, Upgraded, Skipped, "two of the program may not run"},
		{"restart, always", Rehearsal{Must: true}, func(_ *world, e *Engine) { e.Options.Strategy = StrategyRestart }, Refused, Failed, "two of the program may not run"},
		{"down", Rehearsal{Play: none, Must: true}, func(w *world, _ *Engine) {
			if err := w.systemd.stopJob(t.Context()); err != nil {
				t.Fatal(err)
			}
		}, Upgraded, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			e := w.engine(program(t, "good", "v2"))
			e.Rehearsal = &c.rehearsal
			if c.change != nil {
				c.change(w, &e)
			}
			rep := e.Run(t.Context())
			if rep.Outcome != c.outcome || rehearsedAs(rep) != c.phase {
				t.Fatalf("%s %s, %+v", rep.Outcome, rep.Cause, rep.Timings)
			}
			switch {
			case c.text == "" && rep.Rehearsal != nil:
				t.Errorf("%+v", rep.Rehearsal)
			case c.text != "":
				wantText(t, "rehearsal", rep.Rehearsal.Text, c.text)
			}
			if c.outcome == Refused {
				w.want(rep, Refused, Rehearse, "rehearsal")
				wantText(t, "hint", rep.Hint, "--no-rehearse")
				w.wantOld()
			}
		})
	}
}

// A rollback goes to what has served: it has no time for a rehearsal.
func TestRollbackIsNotRehearsed(t *testing.T) {
	w := newWorld(t)
	e := w.engine(program(t, "good", "v2"))
	if rep := e.Run(t.Context()); rep.Outcome != Upgraded {
		t.Fatalf("%+v", rep)
	}
	e = w.engine("")
	e.Options.Kind = release.KindRollback
	e.Rehearsal = &Rehearsal{Must: true, Play: func(context.Context, release.Release, string, func(string)) (Rehearsed, error) {
		t.Error("it was rehearsed")
		return Rehearsed{}, nil
	}}
	if rep := e.Run(t.Context()); rep.Outcome != Upgraded || rehearsedAs(rep) != "" {
		t.Errorf("%+v", rep)
	}
}

// An operator's order reaches a rehearsal: an abort ends it, and that the bake is to be short is not forgotten.
func TestOrdersInARehearsal(t *testing.T) {
	for _, order := range []Order{Abort, Promote} {
		t.Run(string(order), func(t *testing.T) {
			w := newWorld(t)
			e := w.engine(program(t, "good", "v2"))
			e.Options.Bake = time.Hour
			orders := make(chan Order)
			e.Orders = orders
			e.Rehearsal = &Rehearsal{Play: func(ctx context.Context, _ release.Release, _ string, _ func(string)) (Rehearsed, error) {
				orders <- order
				if order == Abort {
					<-ctx.Done()
					return Rehearsed{}, ctx.Err()
				}
				return Rehearsed{Text: "fine"}, nil
			}}
			rep := e.Run(t.Context())
			if order == Promote {
				w.want(rep, Upgraded, "", "")
				return
			}
			w.want(rep, Aborted, Rehearse, "requested")
			w.wantOld()
			w.wantNextWorks()
		})
	}
}

// Ctrl-C in a rehearsal is no failure of the candidate.
func TestInterruptInARehearsal(t *testing.T) {
	w := newWorld(t)
	e := w.engine(program(t, "good", "v2"))
	ctx, cancel := context.WithCancel(t.Context())
	e.Rehearsal = &Rehearsal{Play: func(ctx context.Context, _ release.Release, _ string, _ func(string)) (Rehearsed, error) {
		cancel()
		<-ctx.Done()
		return Rehearsed{}, &NoRehearsal{Why: "something was cut off"}
	}}
	rep := e.Run(ctx)
	w.want(rep, Interrupted, Rehearse, "interrupted")
	w.wantOld()
}
