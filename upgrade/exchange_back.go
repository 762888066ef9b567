package upgrade

import (
	"context"
	"fmt"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/journal"
	"github.com/zdt-dev/zdt/release"
)

// putBack makes the old release the current one again and has systemd start it, unless the service was down before.
func (x *exchange) putBack(ctx context.Context, cause error) error {
	r := x.r
	f := asFailure(cause)
	if f.Outcome == Refused {
		if err := x.flipBack(); err != nil {
			r.warn("nothing was restarted, but a restart would start release %s: %v", r.to.ID, err)
		}
		return f
	}
	r.end(Failed, f.Error())
	interrupted := r.endedBy(cause)
	if interrupted {
		f = &Failure{Reason: reasonInterrupted, Err: fmt.Errorf("interrupted: %w", cause), Hint: "run the same command again to go on"}
	}
	r.report.Phase = r.phase
	r.begin(Rollback, "")
	r.txn.Undo, r.txn.Reason = true, f.Reason
	if err := r.Store.WriteTxn(r.txn); err != nil {
		r.warn("%v", err)
	}
	r.Host.Write(r.event(journal.UpgradeRollback, journal.Str(journal.FieldReason, f.Reason)))
	r.report.CandidateLog, r.report.LogCut = r.lastWords()
	failed := func(err error) error {
		r.end(Failed, err.Error())
		f.Outcome = NotRestored
		f.Err = fmt.Errorf("%w; and the service could not be restored: %w", f.Err, err)
		f.Hint = fmt.Sprintf("look: %s and %s; then %s starts release %s",
			r.systemctl("status", r.unit.Name), r.journalctl("-u", r.unit.Name), r.systemctl("restart", r.unit.Name), r.current.ID)
		return f
	}
	if err := x.flipBack(); err != nil {
		return failed(err)
	}
	if f.Reason == string(journal.ReasonStopping) { // who stops it does not want it started
		r.report.Action = fmt.Sprintf("release %s is what a start would start", r.current.ID)
		r.end(Done, r.report.Action)
		f.Outcome = NotRestored
		return f
	}
	if x.down {
		if err := r.Host.Stop(ctx); err != nil {
			r.warn("stop %s again: %v", r.unit.Name, err)
		}
		r.end(Done, "stopped again")
		f.Outcome = NotRestored
		r.report.Action = fmt.Sprintf("%s was %s before and is down again; release %s is what a start would start", r.unit.Name, r.unit.ActiveState, r.current.ID)
		f.Hint = "nobody serves: " + r.systemctl("start", r.unit.Name) + " starts the old release"
		return f
	}
	x.job(ctx)
	err := x.awaitJob(ctx)
	var s control.Status
	if err == nil {
		s, err = x.awaitServing(ctx, ctx)
	}
	if err != nil {
		return failed(err)
	}
	pid := x.main.pid
	if s.PID != 0 {
		pid, r.report.Generation = serving(s), s.Generation
	}
	r.report.Gap = r.now().Sub(x.since)
	r.report.Action = fmt.Sprintf("systemd started the old release again as pid %d; in all nobody served for up to %s", pid, round(r.report.Gap))
	r.end(Done, r.report.Action)
	r.remark(HookRollback, f.Reason)
	f.Outcome = RolledBack
	switch {
	case interrupted:
		f.Outcome = Interrupted
	case f.Reason == string(journal.ReasonRequested):
		f.Outcome = Aborted
	}
	if f.Hint == "" {
		f.Hint = nextStep(f.Reason)
	}
	return f
}

// flipBack makes what was current that again.
func (x *exchange) flipBack() error {
	r := x.r
	now, err := r.Store.Current()
	if err == nil && now.ID == r.current.ID {
		return nil
	}
	if err == nil {
		err = r.Store.Flip(r.current)
	}
	if err != nil {
		r.keep = true
		return fmt.Errorf("make the old release the current one again: %w", err)
	}
	return nil
}

// recoverDown closes the record of a transaction whose service is down: systemd has nothing, and starts what is current.
func (r *run) recoverDown(old release.Txn) error {
	outcome := Interrupted
	switch {
	case old.Phase == release.PhaseRecord && !old.Undo && r.current.ID == old.To:
		outcome = Upgraded
	case r.current.ID == old.To && old.From != old.To && old.Kind == release.KindUpgrade:
		// A restart that was under way: what is current was never seen to serve for long.
		if err := r.flipTo(old.From); err != nil {
			return &Failure{Outcome: Refused, Err: fmt.Errorf("undo %s %s: %w", old.Kind, old.TxID, err), Hint: hintOf(err)}
		}
	}
	r.warn("%s %s was cut short, and %s is %s; a start would start release %s", old.Kind, old.TxID, r.unit.Name, r.unit.ActiveState, r.current.ID)
	return r.closeRecord(old, outcome)
}
