package upgrade

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/journal"
	"github.com/zdt-dev/zdt/release"
)

// restoreLimit bounds the wait for a healthy service after a failure, over
// and above the unit's own start, in units of slack.
const restoreLimit = 6

// undo takes the handoff back and finds out who serves. It returns the
// failure, completed by what was done about it, or nil when the new release
// turns out to serve after all (then the failure is a warning).
func (r *run) undo(cause error) error {
	f := asFailure(cause)
	if f.Outcome != "" { // it knows: nothing was triggered, or nothing can be undone
		return f
	}
	r.end(Failed, f.Error())
	interrupted := r.endedBy(cause)
	if interrupted {
		f = &Failure{Reason: reasonInterrupted, Err: fmt.Errorf("interrupted before the commit: %w", cause), Hint: "run the same command again to go on"}
	}
	r.report.Phase = r.phase
	if r.freezes(f) && r.freeze(f) {
		return f
	}
	r.begin(Rollback, "")
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.ctx), restoreLimit*r.slack+r.Options.ReadyTimeout+r.rolling())
	defer cancel()
	if !r.committing {
		r.txn.Undo, r.txn.Reason = true, f.Reason
		if err := r.Store.WriteTxn(r.txn); err != nil {
			r.warn("%v", err)
		}
		r.Host.Write(r.event(journal.UpgradeRollback, journal.Str(journal.FieldReason, f.Reason)))
	}
	found, err := r.restore(ctx)
	r.report.CandidateLog, r.report.LogCut = r.lastWords()
	if found.new {
		r.end(Done, found.action)
		r.warn("%s: %v; %s", r.report.Phase, f.Err, found.action)
		r.report.Phase, r.report.CandidateLog, r.report.LogCut = "", nil, 0
		return nil
	}
	r.report.Action = found.action
	if err != nil {
		r.end(Failed, err.Error())
		// Who is stopped first may be the candidate: then its end was told as
		// the cause.
		if final := (*finalError)(nil); errors.As(err, &final) && final.stopped && f.Reason != string(journal.ReasonStopping) {
			f = failure(string(journal.ReasonStopping), "the service was told to stop during the upgrade (%w)", f.Err)
		}
		f.Outcome = NotRestored
		f.Err = fmt.Errorf("%w; and the service could not be restored: %w", f.Err, err)
		f.Hint = fmt.Sprintf("look: %s and %s; then %s starts release %s",
			r.systemctl("status", r.unit.Name), r.journalctl("-u", r.unit.Name), r.systemctl("restart", r.unit.Name), r.current.ID)
		return f
	}
	if r.committing {
		r.Host.Write(r.event(journal.UpgradeRollback, journal.Str(journal.FieldReason, f.Reason)))
	}
	r.end(Done, found.action)
	r.remark(HookRollback, f.Reason)
	f.Outcome = RolledBack
	switch {
	case interrupted:
		f.Outcome = Interrupted
	case r.ev.order == Abort && f.Reason == string(journal.ReasonRequested):
		f.Outcome = Aborted
	}
	if f.Hint == "" {
		f.Hint = nextStep(f.Reason) + "; the whole story: " + r.journalctl("ZDT_TXID="+r.report.TxID)
	}
	return f
}

// nextStep is the advice after a rollback. Not every failure is the release's.
func nextStep(reason string) string {
	switch reason {
	case reasonIncumbentDied, reasonControlLost, reasonSystemdLost, reasonRecord, string(journal.ReasonSignal), string(journal.ReasonRequested), string(journal.ReasonStopping):
		return "the release need not be the cause: run the same zdt upgrade again"
	}
	return "mend the release and run the same zdt upgrade again"
}

// found is who serves.
type found struct {
	new    bool   // the candidate, as systemd's main process
	action string // what was done, in words
}

// finalError is a state that waiting does not mend.
type finalError struct {
	error
	stopped bool // and that somebody wanted
}

// restore ends the handoff, if it is not committed, and waits until it is
// clear who serves: a healthy process that is systemd's main process, and
// runs the old release or is the candidate.
func (r *run) restore(ctx context.Context) (found, error) {
	r.takeBack(ctx)
	w := &wait{r: r, since: time.Now()}
	finals := 0
	for ; ; pause(ctx, poll) {
		f, why := w.look(ctx)
		if why == nil {
			return f, nil
		}
		var final *finalError
		if errors.As(why, &final) {
			// Twice, because systemd goes through "failed" on its way to a restart.
			if finals++; finals > 1 {
				return found{}, why
			}
			continue
		}
		finals = 0
		if ctx.Err() != nil {
			r.keep = w.blind && r.committing // a later zdt sees what became of it
			return found{}, fmt.Errorf("nobody was seen to serve after %s: %w", round(time.Since(w.since)), w.lastWhy(why))
		}
	}
}

// takeBack aborts the handoff. That it is not there any more is no error.
func (r *run) takeBack(ctx context.Context) {
	if r.ev.incumbent.isGone() {
		return
	}
	_, err := r.ask(ctx, func(c *control.Client, ctx context.Context) (control.Status, error) {
		return c.Abort(ctx, r.report.TxID, "zdt upgrade failed")
	})
	var refused *control.Error
	if err != nil && !errors.As(err, &refused) && !r.ev.incumbent.isGone() {
		r.warn("the handoff could not be aborted: %v; %s ends it by itself within %s", err, r.incumbent(), r.heldFor())
	}
}

// wait is the wait for somebody who serves.
type wait struct {
	r         *run
	since     time.Time
	lost      time.Time // since when somebody serves whom systemd does not know
	reclaimed int
	blind     bool  // systemd did not answer
	why       error // the last one that was not the end of ctx
}

func (w *wait) lastWhy(why error) error {
	if w.why != nil && (errors.Is(why, context.DeadlineExceeded) || errors.Is(why, context.Canceled)) {
		return w.why
	}
	return why
}

// look reports who serves, or why nobody does (yet).
func (w *wait) look(all context.Context) (f found, why error) {
	r := w.r
	ctx, cancel := context.WithTimeout(all, r.slack)
	defer cancel()
	defer func() {
		if why != nil && all.Err() == nil {
			w.why = why
		}
	}()
	u, err := r.Host.Unit(ctx)
	if err != nil && all.Err() != nil {
		return found{}, err // the end of the wait, which says nothing about systemd
	}
	if w.blind = err != nil; w.blind {
		return w.withoutSystemd(ctx, err)
	}
	switch {
	case u.Job: // it is on its way to somewhere
	case u.ActiveState == "inactive":
		return found{}, &finalError{fmt.Errorf("%s is inactive: it was stopped", u.Name), true}
	case u.ActiveState == "failed":
		return found{}, &finalError{fmt.Errorf("%s is failed (%s)", u.Name, u.Result), false}
	}
	c, err := r.Host.Control(ctx)
	if err != nil {
		return found{}, err
	}
	defer c.Close()
	s, err := c.Status(ctx)
	switch {
	case err != nil:
		return found{}, err
	case s.Armed != nil && s.Armed.TxID == r.report.TxID:
		// It was told to start the handoff and has not looked yet. What cannot be aborted now will be held in a moment, and
		// disarmed it would start one that nobody decides about.
		return found{}, errors.New("the handoff that was asked for has not begun")
	case held(s, r.report.TxID):
		c.Abort(ctx, r.report.TxID, "zdt upgrade failed")
		return found{}, errors.New("the candidate is still held")
	case s.PID != u.MainPID && s.TookOver:
		return found{}, w.reclaim(ctx, s.PID, u.MainPID)
	case s.PID != u.MainPID:
		return found{}, fmt.Errorf("process %d answers, the main process is %d", s.PID, u.MainPID)
	case !up(u):
		return found{}, fmt.Errorf("%s is %s", u.Name, u.ActiveState)
	}
	return w.judge(s)
}

// reclaim gives systemd its main process back. First the runtime has a moment
// to do so by itself, which it can since systemd 254.
func (w *wait) reclaim(ctx context.Context, pid, mainPID int) error {
	err := fmt.Errorf("process %d took the service back, but systemd believes %d to be the main process", pid, mainPID)
	if w.lost.IsZero() {
		w.lost = time.Now()
	}
	if time.Since(w.lost) < 5*poll || w.reclaimed == reclaimTries {
		return err
	}
	w.reclaimed++
	w.lost = time.Time{}
	if rerr := w.r.reclaim(ctx); rerr != nil {
		w.r.warn("%v", rerr)
		return errors.Join(err, rerr)
	}
	return errors.New("systemd has just been given its main process back")
}

// judge takes the status of systemd's main process.
func (w *wait) judge(s control.Status) (found, error) {
	r := w.r
	switch {
	case s.Phase == control.Idle:
	case s.Phase == control.Aborting && s.PID == r.ev.incumbent.pid && time.Since(w.since) > 2*r.slack:
		// It serves; only the next upgrade has to wait.
		r.warn("the undone candidate still finishes the connections it has accepted; the next upgrade waits for it")
	default:
		return found{}, fmt.Errorf("process %d is %s", s.PID, s.Phase)
	}
	r.report.Generation = s.Generation
	pid := serving(s)
	switch {
	case pid == r.ev.server.pid && !r.ev.server.isGone():
		if undone(s, r.report.TxID) && r.committing && s.TookOver {
			return found{action: fmt.Sprintf("pid %d took the service back and serves on", pid)}, nil
		}
		return found{action: fmt.Sprintf("pid %d never stopped serving", pid)}, nil
	case r.ev.candidate != nil && pid == r.ev.candidate.pid && !r.ev.candidate.isGone() && r.checkCandidate() == nil:
		if s.Predecessor != nil {
			r.warn("the previous process %d still drains; it ends by itself", s.Predecessor.PID)
		}
		return found{new: true, action: fmt.Sprintf("pid %d serves %s all the same", pid, r.asMain())}, nil
	}
	id, _, err := r.runs(pid, said(s))
	if err != nil {
		return found{}, err
	}
	who := "systemd"
	if s.PID == r.ev.incumbent.pid {
		who = "the helper"
	}
	switch {
	case r.Options.Kind == release.KindRollback && id == r.to.ID:
		return found{new: true, action: fmt.Sprintf("%s started the earlier release %s as pid %d", who, id, pid)}, nil
	case id == r.txn.From:
		return found{action: fmt.Sprintf("%s started the old release again as pid %d", who, pid)}, nil
	case id == r.current.ID:
		return found{action: fmt.Sprintf("%s started the current release %s again as pid %d", who, id, pid)}, nil
	default:
		return found{}, fmt.Errorf("process %d runs release %q, and not %q", pid, id, r.txn.From)
	}
}

// withoutSystemd decides when systemd does not answer. Before the commit the
// incumbent's own word is enough: nobody has told systemd anything yet. After it
// nothing is proved.
func (w *wait) withoutSystemd(ctx context.Context, cause error) (found, error) {
	r := w.r
	if r.committing {
		return found{}, fmt.Errorf("systemd does not say who the main process is: %w", cause)
	}
	s, err := r.ask(ctx, (*control.Client).Status)
	switch {
	case err != nil:
		return found{}, errors.Join(cause, err)
	case serving(s) != r.ev.server.pid || r.ev.server.isGone():
		return found{}, errors.Join(cause, errors.New("the running process is gone"))
	case s.Phase != control.Idle && s.Phase != control.Aborting || time.Since(w.since) < r.slack:
		return found{}, fmt.Errorf("%w (process %d is %s)", cause, s.PID, s.Phase)
	}
	r.warn("systemd could not be asked (%v): that process %d serves is its own word", cause, r.ev.server.pid)
	return found{action: fmt.Sprintf("pid %d never stopped serving", r.ev.server.pid)}, nil
}

// logLines is how many of the candidate's last lines are shown.
const logLines = 20

// lastWords are the candidate's last journal lines. A pid alone says too
// little: without a cursor they could be those of another process.
func (r *run) lastWords() (lines []string, cut int) {
	if r.report.Candidate == 0 || r.cursor == "" {
		return nil, 0
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.ctx), r.slack)
	defer cancel()
	lines, err := r.Host.Tail(ctx, r.report.Candidate, r.cursor, 10*logLines)
	for tries := 0; tries < 5 && err == nil && len(lines) == 0; tries++ {
		// What it wrote to its standard output goes another way to journald than the events do, and may be later.
		pause(ctx, 100*time.Millisecond)
		lines, err = r.Host.Tail(ctx, r.report.Candidate, r.cursor, 10*logLines)
	}
	if err != nil {
		r.warn("read the candidate's log: %v", err)
	}
	if cut = len(lines) - logLines; cut > 0 {
		return lines[cut:], cut
	}
	return lines, 0
}
