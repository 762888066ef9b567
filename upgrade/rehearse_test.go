package upgrade

import (
	"context"
	"errors"
	"slices"
	"testing"

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
	e.Rehearse = func(_ context.Context, to release.Release, txid string, progress func(string)) (string, error) {
		if !release.ValidTxID(txid) {
			t.Errorf("txid %q", txid)
		}
		seen = to
		progress("ready")
		return "", lastWords{errors.New("it fell over")}
	}
	rep := e.Run(t.Context())
	w.want(rep, Refused, Rehearse, "")
	wantText(t, "cause", rep.Cause, "it fell over")
	w.wantOld()
	if seen.ID != rep.To.ID || !slices.Equal(rep.CandidateLog, []string{"no database"}) || rep.LogCut != 3 {
		t.Errorf("rehearsed %s, log %q and %d", seen.ID, rep.CandidateLog, rep.LogCut)
	}
	if s := w.status(); s.Attempts != 0 {
		t.Error("a handoff was started")
	}

	e.Rehearse = func(context.Context, release.Release, string, func(string)) (string, error) { return "fine", nil }
	rep = e.Run(t.Context())
	if rep.Outcome != Upgraded || !slices.ContainsFunc(rep.Timings, func(x Timing) bool { return x.Phase == Rehearse && x.State == Done }) {
		t.Errorf("%s, %+v", rep.Outcome, rep.Timings)
	}
}
