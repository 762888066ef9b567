package upgrade

import (
	"context"
	"fmt"
	"os"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/release"
)

// Settle carries out what is decided about a transaction whose zdt is gone: one that is frozen, or was cut
// short. A transaction whose zdt lives has the lock, and gets its orders by Engine.Orders.
//
//	Promote  commit the candidate that is on probation, and see the handoff through
//	Abort    undo it; what has committed stays
//	Finish   what had committed is finished, all else is undone
//
// Of Options only the service, the deadlines and Wait count.
func (e Engine) Settle(ctx context.Context, order Order) Report {
	r := e.newRun(ctx)
	r.begin(Preflight, "")
	err := r.acquire()
	if err == nil {
		defer r.lock.Release()
		err = r.settle(order)
	}
	r.conclude(err)
	return r.report
}

func (r *run) settle(order Order) error {
	defer r.hangUp()
	if err := r.admitted(); err != nil {
		return err
	}
	if err := r.findCurrent(); err != nil {
		return err
	}
	old, err := r.openTxn()
	if err != nil {
		return err
	}
	if old.TxID == "" {
		return refuse(r.zdt("status", r.Options.Service), "no upgrade of %s is open", r.Options.Service)
	}
	r.report.TxID, r.report.Kind, r.report.Why, r.report.Who = old.TxID, old.Kind, old.Why, old.Who
	if to, err := r.Store.Get(old.To); err == nil {
		r.to, r.report.To = to, describe(to)
	}
	if old.Restart {
		r.Options.Strategy = StrategyRestart // such a service need not be able to hand over
	}
	r.awaitRestart(old)
	if err := r.survey(); err != nil {
		return err
	}
	switch order {
	case Promote:
		if old.Restart {
			return refuse(r.zdt("resume", r.Options.Service)+" undoes it", "%s %s was done by a restart, and nobody watches its release any more", old.Kind, old.TxID)
		}
		return r.promote(old)
	case Finish:
		if err := r.checkFrozen(old); err != nil {
			return err
		}
	case Abort:
		r.aborting = true
	}
	if err := r.putInOrder(old); err != nil {
		return err
	}
	if err := r.findFrom(); err != nil {
		return err
	}
	r.report.Outcome, r.report.Changed = r.settled, r.settled == Upgraded
	switch {
	case order == Abort && r.settled == Upgraded:
		return refuse(r.zdt("rollback", r.Options.Service)+" goes back", "%s %s is not undone: its release serves already", old.Kind, old.TxID)
	case r.settled != Upgraded:
		r.report.Action = fmt.Sprintf("pid %d serves release %s", r.report.Incumbent, r.running)
	}
	r.end(Done, fmt.Sprintf("%s %s", old.TxID, r.settled))
	return nil
}

// promote takes the place of the zdt that is gone, in front of the commit.
func (r *run) promote(old release.Txn) error {
	s, err := r.ask(r.ctx, (*control.Client).Status)
	if err != nil {
		return r.unreachable(err)
	}
	if !mine(s, old.TxID) || s.Phase != control.Held {
		return refuse(r.zdt("resume", r.Options.Service), "nothing of %s %s is on probation any more", old.Kind, old.TxID)
	}
	if r.to.ID != old.To {
		return refuse(r.zdt("abort", r.Options.Service), "release %s of %s %s is not usable any more", old.To, old.Kind, old.TxID)
	}
	r.before, r.report.Generation = s, s.Generation
	r.report.Incumbent = serving(s)
	if err := r.findRunning(); err != nil {
		return err
	}
	if err := r.findFrom(); err != nil {
		return err
	}
	r.end(Done, fmt.Sprintf("%s is on probation", control.Process(s.Handoff.Candidate)))
	r.txn = old
	r.txn.Frozen, r.txn.Reason = false, ""
	r.keep = true // until there is something that this one has to answer for
	defer r.closeEvidence()
	r.openStory()
	if err := r.watch(); err != nil {
		return err
	}
	if err := r.ev.meet(r.Host); err != nil {
		return &Failure{Outcome: Refused, Reason: reasonForeign, Err: err, Hint: r.zdt("abort", r.Options.Service)}
	}
	if r.txn.Runner, err = release.ProcOf(os.Getpid()); err != nil {
		return &Failure{Outcome: Refused, Err: err}
	}
	r.keep = false
	return r.handoff(r.lastSteps())
}
