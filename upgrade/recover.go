package upgrade

import (
	"fmt"
	"slices"
	"time"

	"github.com/zdt-dev/zdt/journal"
	"github.com/zdt-dev/zdt/release"
)

// recover closes the record of a transaction whose zdt is gone; holding the
// lock proves that it is. The service is idle by now, so what decides after a
// handoff is what runs: the release it wanted (it had committed: current
// follows), or another (it is undone). After a restart the record decides.
func (r *run) recover(old release.Txn) error {
	history, err := r.Store.History()
	if err != nil {
		return &Failure{Outcome: Refused, Err: err, Hint: hintOf(err)}
	}
	if slices.ContainsFunc(history.Entries, func(e release.Entry) bool { return e.TxID == old.TxID }) {
		return r.clear(old) // it died between its last two steps
	}
	outcome := Interrupted
	switch {
	case unjudged(old):
		if err := r.undoRestart(old); err != nil {
			return err
		}
	case r.running != "" && r.running == old.To && (old.From != old.To || !old.Phase.Before(release.PhaseCommit)):
		// Committed, and only the last step is missing.
		to, err := r.Store.Get(r.running)
		if err == nil {
			err = r.Store.Flip(to)
		}
		if err != nil {
			return &Failure{Outcome: Refused, Err: fmt.Errorf("finish %s %s: %w", old.Kind, old.TxID, err), Hint: hintOf(err)}
		}
		r.setCurrent(to)
		outcome = Upgraded
		r.warn("%s %s had committed and was cut short; it is finished now", old.Kind, old.TxID)
	case r.running == old.From && old.From != old.To && r.current.ID == old.To:
		// It began with current: a rollback, see prefer.
		if err := r.flipTo(old.From); err != nil {
			return &Failure{Outcome: Refused, Err: fmt.Errorf("undo %s %s: %w", old.Kind, old.TxID, err), Hint: hintOf(err)}
		}
		r.warn("%s %s was cut short before its commit; it is undone", old.Kind, old.TxID)
	case old.Phase.Before(release.PhaseDrain):
		r.warn("%s %s was cut short before its commit; it is undone", old.Kind, old.TxID)
	default:
		// systemd started the earlier release: a crash, a restart, a reboot.
		r.warn("%s %s had committed and was cut short; the service was started again since, from release %s: it is undone", old.Kind, old.TxID, r.current.ID)
	}
	return r.closeRecord(old, outcome)
}

// flipTo makes an earlier release the current one.
func (r *run) flipTo(id string) error {
	to, err := r.Store.Get(id)
	if err == nil {
		err = r.Store.Flip(to)
	}
	if err == nil {
		r.setCurrent(to)
	}
	return err
}

// closeRecord writes the line of history that is missing, and removes the record.
func (r *run) closeRecord(old release.Txn, outcome Outcome) error {
	reason := reasonZdtDied
	if (old.Undo || old.Frozen) && old.Reason != "" && outcome != Upgraded {
		reason = old.Reason
	}
	if r.aborting && outcome == Interrupted {
		outcome, reason = Aborted, string(journal.ReasonRequested)
	}
	r.settled = outcome
	r.markWanting(old)
	entry := release.Entry{TxID: old.TxID, Kind: old.Kind, From: old.From, To: old.To,
		Committed: outcome == Upgraded, Outcome: string(outcome), ExitCode: r.ExitCode(Report{Outcome: outcome}),
		Started: old.Started, Ended: later(r.Host.Now(), old.Started), Who: old.Who, Why: old.Why, Reason: reason, AcceptedRisks: old.AcceptedRisks}
	if err := r.Store.AppendHistory(entry); err != nil {
		return &Failure{Outcome: Refused, Err: fmt.Errorf("close %s %s: %w", old.Kind, old.TxID, err), Hint: hintOf(err)}
	}
	return r.clear(old)
}

func (r *run) clear(old release.Txn) error {
	if err := r.Store.ClearTxn(); err != nil {
		return &Failure{Outcome: Refused, Err: fmt.Errorf("close %s %s: %w", old.Kind, old.TxID, err), Hint: hintOf(err)}
	}
	return nil
}

// later is t, or since if the clock was set back behind that: another process has begun, and by what clock is not known.
func later(t, since time.Time) time.Time {
	if t.Before(since) {
		return since
	}
	return t
}

// forget closes this transaction: one line of history, and the record is gone.
func (r *run) forget() error {
	rep := r.report
	e := release.Entry{TxID: r.txn.TxID, Kind: r.txn.Kind, From: r.txn.From, To: r.txn.To,
		Committed: rep.Outcome == Upgraded, Outcome: string(rep.Outcome), ExitCode: r.ExitCode(rep),
		Started: rep.StartedAt, Ended: r.now(), Who: r.Who, Why: r.Options.Why, Reason: rep.Reason, AcceptedRisks: r.txn.AcceptedRisks}
	e.FromRecovered = r.recovered
	if c := rep.Connections; c != nil {
		e.Conns = &release.Conns{Moved: c.Moved, Drained: c.Drained + c.Closed, Cut: c.Cut}
	}
	err := r.Store.AppendHistory(e)
	if err == nil {
		err = r.Store.ClearTxn()
	}
	if releaseFailed(rep) {
		if err := r.Store.MarkFailed(r.txn.To, release.Failed{TxID: r.txn.TxID, Reason: rep.Reason}); err != nil {
			r.warn("%v", err)
		}
	}
	if err != nil {
		return fmt.Errorf("%w; the next zdt upgrade closes this one's record", err)
	}
	return nil
}

// releaseFailed reports whether an upgrade came to nothing by the release's own fault.
func releaseFailed(rep Report) bool {
	return releasesFault(rep.Reason) && (rep.Outcome == RolledBack || rep.Outcome == NotRestored)
}
