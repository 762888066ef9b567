package upgrade

import (
	"context"
	"fmt"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/journal"
	"github.com/zdt-dev/zdt/release"
)

// OnFailure is what follows when a probation fails.
type OnFailure string

const (
	// OnFailureRollback undoes the upgrade.
	OnFailureRollback OnFailure = "rollback"
	// OnFailureFreeze leaves both processes as they are until somebody decides: for releases that have changed what the
	// old one cannot live with, a database for one.
	OnFailureFreeze OnFailure = "freeze"
)

// DefaultFreeze is how long a frozen upgrade waits for its decision; then it is undone, as
// every handoff that nobody decides.
const DefaultFreeze = 24 * time.Hour

// freezes reports whether the failure of a probation leaves a choice: the candidate lives and is held.
func (r *run) freezes(f *Failure) bool {
	return r.Options.OnFailure == OnFailureFreeze && r.phase == Bake && f.Reason == string(journal.ReasonHealth) &&
		r.ev.candidate != nil && !r.ev.candidateGone() && r.ctx.Err() == nil
}

// freeze has the runtime wait for a person, and leaves the record to whoever carries out what that one decides. It returns
// false when it cannot: then the upgrade is undone.
func (r *run) freeze(f *Failure) bool {
	s, err := r.ask(context.WithoutCancel(r.ctx), func(c *control.Client, ctx context.Context) (control.Status, error) {
		return c.Extend(ctx, r.report.TxID, r.Options.Freeze)
	})
	if err == nil && !held(s, r.report.TxID) {
		err = fmt.Errorf("%s does not hold it any more", r.incumbent())
	}
	if err == nil {
		until := r.Host.Now().Add(r.Options.Freeze)
		frozen := r.txn
		frozen.Frozen, frozen.Reason, frozen.Deadline = true, f.Reason, until
		if err = r.Store.WriteTxn(frozen); err == nil {
			r.txn, r.keep = frozen, true
			f.Outcome = Frozen
			f.Hint = fmt.Sprintf("decide: %s or %s; undecided it is undone at %s",
				r.zdt("promote", r.Options.Service), r.zdt("abort", r.Options.Service), until.Local().Format(time.DateTime))
			r.report.Deadline = &until
			r.report.Action = fmt.Sprintf("new connections go to pid %d, the old ones stay with pid %d", r.ev.candidate.pid, r.ev.server.pid)
			r.report.CandidateLog, r.report.LogCut = r.lastWords()
			return true
		}
	}
	r.warn("the upgrade could not be frozen and is undone: %v", err)
	return false
}

// checkFrozen refuses to touch a transaction that waits for a decision.
func (r *run) checkFrozen(old release.Txn) error {
	if !old.Frozen {
		return nil
	}
	s, err := r.ask(r.ctx, (*control.Client).Status)
	if err != nil || !held(s, old.TxID) {
		return nil // it was decided by its deadline, or by the end of the process: it is like any other that was cut short
	}
	name := r.Options.Service
	return refuse(fmt.Sprintf("decide about it first: %s or %s", r.zdt("promote", name), r.zdt("abort", name)),
		"upgrade %s of %s is frozen (%s) until %s", old.TxID, name, old.Reason, old.Deadline.Local().Format(time.DateTime))
}
