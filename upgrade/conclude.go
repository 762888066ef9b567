package upgrade

import (
	"context"
	"fmt"

	"github.com/zdt-dev/zdt/journal"
)

// conclude completes the report from the error that ended the transaction, and
// closes the record. The lock is still held, if it ever was.
func (r *run) conclude(err error) {
	rep := &r.report
	if err != nil {
		f := asFailure(err)
		switch {
		case f.Outcome == "": // before there was anything to undo
			f.Outcome = Refused
			fallthrough
		case f.Outcome == Refused || f.Outcome == Locked:
			if r.endedBy(err) {
				f = &Failure{Outcome: Interrupted, Reason: reasonInterrupted, Hint: "run the same command again",
					Err: fmt.Errorf("interrupted before anything was changed: %w", context.Cause(r.ctx))}
			}
		}
		if f.Hint == "" {
			f.Hint = "look: " + r.zdt("status", r.Options.Service)
		}
		rep.Outcome, rep.Cause, rep.Reason, rep.Hint = f.Outcome, f.Error(), f.Reason, f.Hint
		if rep.Phase == "" {
			rep.Phase = r.phase
			r.end(Failed, f.Error())
		}
	}
	r.unprefer()
	switch {
	case r.txn.TxID == "":
	case r.keep:
		r.warn("the record of this upgrade stays open; the next zdt upgrade closes it")
	default:
		if err := r.forget(); err != nil {
			r.warn("%v", err)
		}
	}
	if r.txn.TxID != "" {
		r.Host.Write(r.event(journal.UpgradeEnd, journal.Str(journal.FieldOutcome, string(rep.Outcome)),
			journal.Usec(journal.FieldElapsed, r.now().Sub(rep.StartedAt))))
	}
	rep.EndedAt = r.now()
	r.retain()
	rep.ExitCode = r.ExitCode(*rep)
}

// closeEvidence ends the watching goroutines and takes the story down.
func (r *run) closeEvidence() {
	if r.ev != nil {
		r.ev.close()
	}
	if r.story != nil {
		r.report.Story, r.report.Journal = r.story.finish(context.WithoutCancel(r.ctx), ending{r.report.Outcome == Upgraded, r.committing})
	}
	if r.ev != nil {
		r.settleCounts()
	}
}
