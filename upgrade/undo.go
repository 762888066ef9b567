package upgrade

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/journal"
	"github.com/zdt-dev/zdt/release"
)

// restoreLimit bounds the wait for a healthy service after a failure, over
// and above the unit's own start.
const restoreLimit = 30 * time.Second

// undo brings the service back to the release it ran before and finds out
// whether that worked. It returns the failure, completed by what was done.
func (r *run) undo(cause error) error {
	f := asFailure(cause)
	if f.Outcome == Refused { // the trigger itself was not delivered
		r.report.Phase = r.phase
		r.end(Failed, f.Error())
		return f
	}
	r.end(Failed, f.Error())
	failedAt := r.phase
	r.report.Phase = failedAt
	r.begin(Rollback, "")
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.ctx), restoreLimit+r.Options.ReadyTimeout)
	defer cancel()
	r.txn.Undo, r.txn.Reason = true, f.Reason
	if err := r.Store.WriteTxn(r.txn); err != nil {
		r.warn("write-ahead record: %v", err)
	}
	e := r.event(journal.UpgradeRollback, journal.Str(journal.FieldReason, f.Reason))
	r.Host.Write(e)
	r.report.CandidateLog = r.lastWords(ctx)
	action, err := r.restore(ctx)
	r.report.Action = action
	if err != nil {
		r.end(Failed, err.Error())
		f.Outcome = NotRestored
		f.Err = fmt.Errorf("%w; and the service could not be restored: %w", f.Err, err)
		f.Hint = fmt.Sprintf("systemctl status %s; journalctl -u %s; systemctl restart %s starts release %s", r.unit.Name, r.unit.Name, r.unit.Name, r.txn.From)
		return f
	}
	r.end(Done, action)
	f.Outcome = RolledBack
	if errors.Is(cause, context.Canceled) || r.ctx.Err() != nil {
		f.Outcome, f.Reason = Interrupted, "interrupted"
		f.Err = errors.New("interrupted before the commit")
		f.Hint = "run the same command again to go on"
		return f
	}
	if f.Hint == "" {
		f.Hint = "mend the release and run the same zdt upgrade again; the whole story: journalctl ZDT_TXID=" + r.report.TxID
	}
	return f
}

// restore ends the handoff and waits until the old release serves as systemd's
// main process. It returns what was done about the failure, in words.
func (r *run) restore(ctx context.Context) (string, error) {
	if s := r.ev.status; r.ev.watchErr == nil && mine(s, r.report.TxID) && (s.Phase == control.Forked || s.Phase == control.Held) {
		if _, err := r.client.Abort(ctx, r.report.TxID, "zdt upgrade failed"); err != nil {
			r.warn("abort: %v", err)
		}
	}
	var why error
	for ; ; pause(ctx, 20*time.Millisecond) {
		if ctx.Err() != nil {
			return "", fmt.Errorf("the old release does not serve: %w", errors.Join(why, ctx.Err()))
		}
		var action string
		if action, why = r.healthy(ctx); why == nil {
			return action, nil
		}
		var final *finalError
		if errors.As(why, &final) {
			return "", why
		}
	}
}

// finalError is a state that waiting does not mend.
type finalError struct{ error }

// healthy reports how the old release serves, or why not (yet).
func (r *run) healthy(ctx context.Context) (string, error) {
	u, err := r.Host.Unit(ctx)
	if err != nil {
		return "", err
	}
	switch u.ActiveState {
	case "inactive":
		if !u.Job {
			return "", &finalError{fmt.Errorf("%s is inactive: it was stopped", u.Name)}
		}
	case "failed":
		return "", &finalError{fmt.Errorf("%s is failed (%s)", u.Name, u.Result)}
	}
	c, err := r.Host.Control(ctx)
	if err != nil {
		return "", err
	}
	defer c.Close()
	s, err := c.Status(ctx)
	if err != nil {
		return "", err
	}
	if s.PID != u.MainPID && s.TookOver {
		if s, err = r.reclaim(ctx); err != nil {
			return "", err
		}
		u = r.unit
	}
	switch {
	case s.PID != u.MainPID:
		return "", fmt.Errorf("process %d answers, the main process is %d", s.PID, u.MainPID)
	case u.ActiveState != "active" || s.Phase != control.Idle:
		return "", fmt.Errorf("%s is %s, its runtime is %s", u.Name, u.ActiveState, s.Phase)
	}
	exe, err := r.Host.Exe(u.MainPID)
	if err != nil {
		return "", err
	}
	if id := releaseOf(r.Store, exe); id != r.txn.From {
		return "", fmt.Errorf("process %d runs release %q, not %q", u.MainPID, id, r.txn.From)
	}
	r.report.Generation = s.Generation
	switch {
	case s.PID != r.report.Incumbent:
		return fmt.Sprintf("systemd started the old release again as pid %d", s.PID), nil
	case s.TookOver:
		return fmt.Sprintf("pid %d took the service back and serves on", s.PID), nil
	}
	return fmt.Sprintf("pid %d never stopped serving", s.PID), nil
}

// lastWords are the candidate's last journal lines.
func (r *run) lastWords(ctx context.Context) []string {
	if r.report.Candidate == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, slack)
	defer cancel()
	lines, err := r.Host.Tail(ctx, r.report.Candidate, r.cursor, 20)
	if err != nil {
		r.warn("read the candidate's log: %v", err)
	}
	return lines
}

// conclude completes the report from the error that ended the transaction.
func (r *run) conclude(err error) {
	rep := &r.report
	if err != nil {
		f := asFailure(err)
		if f.Outcome == "" { // failed before the trigger
			f.Outcome = Refused
			if r.ctx.Err() != nil {
				f.Outcome = Interrupted
			}
		}
		rep.Outcome, rep.Cause, rep.Reason, rep.Hint = f.Outcome, f.Error(), f.Reason, f.Hint
		if rep.Phase == "" {
			rep.Phase = r.phase
			r.end(Failed, f.Error())
		}
	}
	if r.txn.TxID != "" {
		if err := r.forget(rep.Outcome); err != nil {
			r.warn("%v", err)
		}
		r.Host.Write(r.event(journal.UpgradeEnd, journal.Str(journal.FieldOutcome, string(rep.Outcome)),
			journal.Usec(journal.FieldElapsed, r.Host.Now().Sub(rep.StartedAt))))
	}
	rep.EndedAt = r.Host.Now()
	rep.ExitCode = r.ExitCode(*rep)
}

// forget closes the transaction: one line of history, and the record is gone.
func (r *run) forget(outcome Outcome) error {
	rep := r.report
	e := release.Entry{TxID: r.txn.TxID, Kind: r.txn.Kind, From: r.txn.From, To: r.txn.To,
		Committed: outcome == Upgraded, Outcome: string(outcome),
		Started: rep.StartedAt, Ended: r.Host.Now(), Who: r.Who, Why: r.Options.Why, Reason: rep.Reason}
	e.ExitCode = r.ExitCode(rep)
	if c := rep.Connections; c != nil {
		e.Conns = &release.Conns{Moved: c.Moved, Drained: c.Drained + c.Closed, Cut: c.Cut}
	}
	if err := r.Store.AppendHistory(e); err != nil {
		return fmt.Errorf("write history: %w", err)
	}
	if err := r.Store.ClearTxn(); err != nil {
		return fmt.Errorf("close the record: %w", err)
	}
	return nil
}

func asFailure(err error) *Failure {
	var f *Failure
	if errors.As(err, &f) {
		return f
	}
	return &Failure{Err: err, Hint: hintOf(err)}
}

// hintOf returns the advice an error carries.
func hintOf(err error) string {
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		return h.Hint()
	}
	return ""
}

func (r *run) lockFailed(err error) error {
	var held *release.HeldError
	if errors.As(err, &held) {
		return &Failure{Outcome: Locked, Err: err, Hint: held.Hint()}
	}
	return &Failure{Outcome: Refused, Err: fmt.Errorf("take the lock: %w", err), Hint: hintOf(err)}
}

func drainText(c control.Counts) string {
	var parts []string
	if c.Active+c.Streams > 0 {
		parts = append(parts, fmt.Sprintf("%d active", c.Active+c.Streams))
	}
	if c.Idle > 0 {
		parts = append(parts, fmt.Sprintf("%d idle", c.Idle))
	}
	if done := c.Drained + c.Closed; done > 0 {
		parts = append(parts, fmt.Sprintf("%d drained", done))
	}
	if c.Moved > 0 {
		parts = append(parts, fmt.Sprintf("%d moved", c.Moved))
	}
	if len(parts) == 0 && c.Cut == 0 {
		return "no open connections"
	}
	return strings.Join(append(parts, fmt.Sprintf("%d cut", c.Cut)), ", ")
}
