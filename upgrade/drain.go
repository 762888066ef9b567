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
	case ev.toldToStop(ev.unit):
		return failed, r.stopping()
	case ev.candidateGone() && (ev.over() || ev.deaf()):
		return failed, failure(string(journal.ReasonCrashed), "the new main process %d ended right after the commit", ev.candidate.pid)
	case ev.helper && ev.over(): // it holds the sockets: nobody serves without it
		return failed, failure(reasonIncumbentDied, "%s ended after the commit", r.incumbent())
	case ev.helper && ev.deaf():
		return failed, failure(reasonControlLost, "the control connection to %s ended: %w", r.incumbent(), ev.watchErr)
	}
	return undecided, nil
}

// drain waits until the incumbent has finished its connections.
func (r *run) drain() (string, error) {
	if err := r.writeAhead(Drain); err != nil {
		r.warn("%v", err) // committed: the record is behind, the service is not
	}
	var last string
	limit := r.Options.DrainTimeout + 2*r.slack + r.rolling()
	err := r.ev.until(r.ctx, limit, func() (verdict, error) {
		if c, known := r.ev.draining(); known {
			r.report.Connections = &c
			if text := drainText(c); text != last {
				last = text
				r.progress(text)
			}
		}
		if text := r.ev.replaced(); text != "" && text != last {
			last = text
			r.progress(text)
		}
		if v, err := r.judgeDrain(); v != undecided {
			return v, err
		}
		if r.ev.finished() && !r.ev.candidateGone() {
			return reached, nil
		}
		return undecided, nil
	})
	switch {
	case errors.Is(err, errLimit):
		r.warn("the previous process %d still drains after %s; it ends by itself, see: %s", r.ev.server.pid, limit, r.zdt("status", r.Options.Service))
	case r.endedBy(err):
		r.warn("interrupted while the previous process %d drains; it ends by itself, see: %s", r.ev.server.pid, r.zdt("status", r.Options.Service))
	case err != nil:
		return last, err
	case r.ev.helper && last == "":
		return fmt.Sprintf("pid %d has finished", r.ev.server.pid), nil
	case !r.ev.helper && r.ev.status.Phase != control.Exited:
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
	old := r.ev.server.pid
	still := r.ctx.Err() != nil || !r.ev.left() && !r.ev.finished()
	ctx := context.WithoutCancel(r.ctx)
	if !still {
		err := r.ev.until(ctx, r.slack, func() (verdict, error) {
			if r.ev.left() {
				return reached, nil
			}
			return undecided, nil
		})
		if err != nil {
			r.warn("the previous process %d has finished but does not exit; if it stays: kill %d", old, old)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 2*r.slack)
	defer cancel()
	if err := r.proveNew(ctx); err != nil {
		return "", err
	}
	if still || !r.ev.left() {
		return fmt.Sprintf("pid %d still drains", old), nil
	}
	return fmt.Sprintf("pid %d ended", old), nil
}

// proveNew returns nil only if the candidate is alive, and the main process of an active unit,
// which is the candidate itself or its helper, answers that it serves.
func (r *run) proveNew(ctx context.Context) error {
	u, err := r.Host.Unit(ctx)
	if err != nil {
		return &Failure{Reason: reasonSystemdLost, Err: fmt.Errorf("ask systemd for the main process: %w", err), Hint: hintOf(err)}
	}
	pid, main := r.ev.candidate.pid, r.ev.newMain()
	switch {
	case r.ev.toldToStop(u):
		return r.stopping()
	case r.ev.candidate.isGone():
		return failure(string(journal.ReasonCrashed), "the new main process %d ended right after the commit", pid)
	case u.MainPID != main || !up(u):
		return failure(reasonMainPID, "systemd has %d as the main process of %s (%s), and not %d", u.MainPID, u.Name, u.ActiveState, main)
	}
	c, err := r.Host.Control(ctx)
	if err != nil {
		return failure(reasonControlLost, "ask the main process %d: %w", main, err)
	}
	defer c.Close()
	s, err := c.Status(ctx)
	switch {
	case err != nil:
		return failure(reasonControlLost, "ask the main process %d: %w", main, err)
	case s.PID != main:
		return failure(reasonControlLost, "process %d answers on the control socket, and not the main process %d", s.PID, main)
	case serving(s) != pid || s.Phase != control.Idle:
		return failure(reasonControlLost, "process %d serves, and not the new one %d; %d is %s", serving(s), pid, s.PID, s.Phase)
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
