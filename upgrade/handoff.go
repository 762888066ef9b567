package upgrade

import (
	"context"
	"errors"
	"fmt"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/journal"
	"github.com/zdt-dev/zdt/release"
)

// listen waits for READY.
func (r *run) listen() (string, error) {
	if err := r.writeAhead(Listen); err != nil {
		return "", err
	}
	err := r.ev.until(r.ctx, r.readyLimit(), func() (verdict, error) {
		if v, err := r.judgeHandoff(); v != undecided {
			return v, err
		}
		if s := r.ev.status; s.Phase == control.Held && mine(s, r.report.TxID) {
			return reached, nil
		}
		return undecided, nil
	})
	if errors.Is(err, errLimit) {
		// The runtime's own deadline comes first, and its word with it.
		err = failure(string(journal.ReasonReadyTimeout), "the candidate was not READY within %s, and %s did not say why", r.Options.ReadyTimeout, r.incumbent())
	}
	if err != nil {
		return "", err
	}
	h := r.ev.status.Handoff // as it was held; what comes next may undo it
	if err := r.reloaded(); err != nil {
		return "", err
	}
	if err := r.objects(r.hook(r.ctx, HookPostListen, "")); err != nil {
		return "", err
	}
	return fmt.Sprintf("pid %d READY after %s", h.Candidate, round(h.ReadyAt.Sub(h.StartedAt))), nil
}

// howItEnded waits for the incumbent's account of a candidate that is gone.
func (r *run) howItEnded() error {
	err := r.ev.until(context.WithoutCancel(r.ctx), r.slack, r.judgeHandoff)
	if err == nil || errors.Is(err, errLimit) {
		return failure(string(journal.ReasonCrashed), "the candidate ended before it was committed")
	}
	return err
}

// judgeHandoff fails as soon as any source says that the handoff in progress
// cannot come to a good end any more.
func (r *run) judgeHandoff() (verdict, error) {
	ev := r.ev
	if err := ev.meet(r.Host); err != nil {
		return failed, &Failure{Reason: reasonForeign, Err: err, Hint: "does the program start itself through something else, as sudo or systemd-run?"}
	}
	if ev.candidate != nil {
		r.report.Candidate = ev.candidate.pid
	}
	s := ev.status
	switch {
	case undone(s, r.report.TxID):
		return failed, r.account(*s.Last)
	case s.Phase == control.Stopping || s.Phase == control.Exited || ev.unit.ActiveState == "deactivating":
		return failed, r.stopping()
	case ev.over():
		return failed, failure(reasonIncumbentDied, "%s ended during the upgrade", r.incumbent())
	case ev.deaf():
		return failed, failure(reasonControlLost, "the control connection to %s ended: %w", r.incumbent(), ev.watchErr)
	case ev.unitsLost:
		return failed, failure(reasonSystemdLost, "the connection to systemd was lost")
	case ev.unit.ActiveState == "active" && ev.unit.MainPID != 0 && ev.unit.MainPID != ev.incumbent.pid && !ev.incumbent.isGone():
		return failed, failure(reasonMainPID, "systemd has %d as the main process of %s, and not %d any more", ev.unit.MainPID, ev.unit.Name, ev.incumbent.pid)
	}
	if ev.order == Abort {
		return failed, r.aborted()
	}
	// A candidate that is gone decides nothing yet: the incumbent reaps it and
	// says how it ended.
	return undecided, nil
}

func (r *run) stopping() *Failure {
	f := failure(string(journal.ReasonStopping), "the service was told to stop during the upgrade")
	f.Hint = "run the same zdt upgrade again once it is up: " + r.systemctl("status", r.unit.Name)
	return f
}

// account is the incumbent's account of a handoff that came to nothing.
func (r *run) account(last control.Outcome) *Failure {
	if last.Candidate != 0 {
		r.report.Candidate = last.Candidate
	}
	if last.Reason == string(journal.ReasonStopping) {
		return r.stopping()
	}
	detail := last.Detail
	if detail == "" {
		detail = r.incumbent() + " undid the handoff"
	}
	return failure(last.Reason, "%s", detail)
}

// commit makes the candidate the service.
func (r *run) commit() (string, error) {
	if r.ev.candidate == nil {
		return "", failure(string(journal.ReasonProtocol), "%s never named its candidate", r.incumbent())
	}
	var err error
	if r.txn.Candidate, err = release.ProcOf(r.ev.candidate.pid); err != nil || r.ev.candidateGone() {
		return "", r.howItEnded()
	}
	if err := r.checkCandidate(); err != nil {
		return "", err
	}
	if err := r.objects(r.hook(r.ctx, HookPreCommit, "")); err != nil {
		return "", err
	}
	if err := r.writeAhead(Commit); err != nil {
		return "", err
	}
	if err := r.ctx.Err(); err != nil {
		return "", context.Cause(r.ctx) // the last moment at which nothing is lost
	}
	// From here on an interrupt does not stop anything half-way.
	ctx := context.WithoutCancel(r.ctx)
	r.committing = true
	s, err := r.ask(ctx, func(c *control.Client, ctx context.Context) (control.Status, error) {
		return c.Commit(ctx, r.report.TxID)
	})
	var refused *control.Error
	switch {
	case errors.As(err, &refused):
		r.committing = false // it says so itself
		if undone(s, r.report.TxID) {
			return "", r.account(*s.Last)
		}
		return "", &Failure{Reason: string(journal.ReasonProtocol), Err: fmt.Errorf("%s refuses to commit: %w", r.incumbent(), err)}
	case err != nil && r.ev.incumbent.endsWithin(endGrace):
		return "", failure(reasonIncumbentDied, "%s ended before it answered to the commit: %w", r.incumbent(), err)
	case err != nil:
		return "", &Failure{Reason: reasonControlLost, Err: fmt.Errorf("no answer to the commit: %w", err)}
	}
	err = r.ev.until(ctx, r.slack, func() (verdict, error) {
		switch {
		case r.ev.committed(r.report.TxID):
			return reached, nil
		case r.ev.unitsLost:
			return failed, failure(reasonSystemdLost, "the connection to systemd was lost")
		}
		return r.judgeDrain()
	})
	if errors.Is(err, errLimit) {
		err = r.notCommitted()
	}
	if err != nil {
		return "", err
	}
	r.Host.Write(r.event(journal.UpgradeCommit))
	r.remark(HookPostCommit, "")
	return r.whatCommitted(), nil
}

// checkCandidate holds the process that the incumbent names against what the
// kernel knows: it must not be the incumbent, and what it executes must not be
// another release. A program outside of the store may be right: a script of
// the release can execute it.
func (r *run) checkCandidate() error {
	pid := r.ev.candidate.pid
	switch pid {
	case r.ev.incumbent.pid:
		return failure(string(journal.ReasonProtocol), "%s names itself as its candidate", r.incumbent())
	case r.ev.server.pid:
		return failure(string(journal.ReasonProtocol), "%s names %d as its candidate, which serves already", r.incumbent(), pid)
	}
	id, exe, err := r.runs(pid, r.ev.said())
	if err != nil {
		if r.ev.candidate.endsWithin(exitGrace) {
			return r.howItEnded()
		}
		return failure(reasonForeign, "find what the candidate %d executes: %w", pid, err)
	}
	switch id {
	case r.to.ID:
	case "":
		r.warn("the new process %d executes %s, which is no release", pid, exe)
	default:
		return failure(reasonForeign, "process %d, named as the candidate, executes %s, and not the new release", pid, exe)
	}
	return nil
}
