package upgrade

import (
	"context"
	"errors"
	"fmt"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/journal"
)

// judgeDrain fails when the new main process is lost. Until the incumbent has
// exited only the incumbent can see that: systemd is not the candidate's parent.
func (r *run) judgeDrain() (verdict, error) {
	ev, s := r.ev, r.ev.status
	switch {
	case undone(s, r.report.TxID): // TookOver says the same of any handoff before
		return failed, r.account(*s.Last)
	case ev.unit.ActiveState == "deactivating" || ev.unit.ActiveState == "inactive":
		return failed, r.stopping()
	case ev.candidateGone() && (ev.over() || ev.deaf()):
		return failed, failure(string(journal.ReasonCrashed), "the new main process %d ended right after the commit", ev.candidate.pid)
	}
	return undecided, nil
}

// drain waits until the incumbent has finished its connections.
func (r *run) drain() (string, error) {
	if err := r.writeAhead(Drain); err != nil {
		r.warn("%v", err) // committed: the record is behind, the service is not
	}
	var last string
	limit := r.Options.DrainTimeout + 2*r.slack
	err := r.ev.until(r.ctx, limit, func() (verdict, error) {
		if s := r.ev.status; s.Phase == control.Draining || s.Phase == control.Exited {
			c := s.Connections
			r.report.Connections = &c
			if text := drainText(c); text != last {
				last = text
				r.progress(text)
			}
		}
		if v, err := r.judgeDrain(); v != undecided {
			return v, err
		}
		if (r.ev.status.Phase == control.Exited || r.ev.over()) && !r.ev.candidateGone() {
			return reached, nil
		}
		return undecided, nil
	})
	switch {
	case errors.Is(err, errLimit):
		r.warn("the previous process %d still drains after %s; it ends by itself, see: %s", r.ev.incumbent.pid, limit, r.zdt("status", r.Options.Service))
	case r.endedBy(err):
		r.warn("interrupted while the previous process %d drains; it ends by itself, see: %s", r.ev.incumbent.pid, r.zdt("status", r.Options.Service))
	case err != nil:
		return last, err
	case r.ev.status.Phase != control.Exited:
		return fmt.Sprintf("pid %d ended without its last word", r.ev.incumbent.pid), nil
	}
	return last, nil
}

// exit makes sure of the end: the incumbent is gone, the candidate is the main
// process of an active unit and answers as such.
func (r *run) exit() (string, error) {
	if err := r.writeAhead(Exit); err != nil {
		r.warn("%v", err)
	}
	still := r.ctx.Err() != nil || !r.ev.incumbent.isGone() && r.ev.status.Phase != control.Exited
	ctx := context.WithoutCancel(r.ctx)
	if !still {
		err := r.ev.until(ctx, r.slack, func() (verdict, error) {
			if r.ev.incumbent.isGone() {
				return reached, nil
			}
			return undecided, nil
		})
		if err != nil {
			r.warn("the previous process %d has finished but does not exit; if it stays: kill %d", r.ev.incumbent.pid, r.ev.incumbent.pid)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 2*r.slack)
	defer cancel()
	if err := r.proveNew(ctx); err != nil {
		return "", err
	}
	if still || !r.ev.incumbent.isGone() {
		return fmt.Sprintf("pid %d still drains", r.ev.incumbent.pid), nil
	}
	return fmt.Sprintf("pid %d ended", r.ev.incumbent.pid), nil
}

// proveNew returns nil only if the candidate is systemd's main process, alive,
// and answers as the service.
func (r *run) proveNew(ctx context.Context) error {
	u, err := r.Host.Unit(ctx)
	if err != nil {
		return &Failure{Reason: reasonSystemdLost, Err: fmt.Errorf("ask systemd for the main process: %w", err), Hint: hintOf(err)}
	}
	pid := r.ev.candidate.pid
	switch {
	case u.ActiveState == "deactivating" || u.ActiveState == "inactive":
		return r.stopping()
	case r.ev.candidate.isGone():
		return failure(string(journal.ReasonCrashed), "the new main process %d ended right after the commit", pid)
	case u.MainPID != pid || u.ActiveState != "active":
		return failure(reasonMainPID, "systemd has %d as the main process of %s (%s), and not %d", u.MainPID, u.Name, u.ActiveState, pid)
	}
	c, err := r.Host.Control(ctx)
	if err != nil {
		return failure(reasonControlLost, "ask the new process %d: %w", pid, err)
	}
	defer c.Close()
	s, err := c.Status(ctx)
	switch {
	case err != nil:
		return failure(reasonControlLost, "ask the new process %d: %w", pid, err)
	case s.PID != pid:
		return failure(reasonControlLost, "process %d answers on the control socket, and not the main process %d", s.PID, pid)
	case s.Phase != control.Idle:
		return failure(reasonControlLost, "the new process %d is %s", pid, s.Phase)
	}
	r.report.Generation = s.Generation
	r.tellRefused(s.Moves)
	return nil
}

// record makes the release the current one: last, when nothing can fail any more.
func (r *run) record() (string, error) {
	if err := r.writeAhead(Record); err != nil {
		r.warn("%v", err)
	}
	r.report.Changed = true
	if err := r.Store.Flip(r.to); err != nil {
		if current, cerr := r.Store.Current(); cerr != nil || current.ID != r.to.ID {
			// The record stays: the next zdt finishes this one.
			r.keep = true
			return "", &Failure{Outcome: NotRestored, Reason: reasonRecord, Err: fmt.Errorf("the new release serves, but a restart would start the old one: %w", err),
				Hint: "mend the cause, then run the same zdt upgrade again: it finishes this one"}
		}
		r.warn("%v; it is current, but may not survive a power cut", err)
	}
	r.report.Outcome = Upgraded
	return "current → " + r.to.ID, nil
}

// drainText is how a drain gets on, and how it ended.
func drainText(c control.Counts) string {
	if c.Open()+c.Tasks > 0 {
		return c.Progress()
	}
	return c.Summary()
}
