package upgrade

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/zdt-dev/zdt/journal"
	"github.com/zdt-dev/zdt/release"
)

// A restart makes the new release current and serves with it before anybody has judged it. That it runs says nothing, then:
// without the last phase in the record it is unjudged, and what is unjudged is undone, at the price of another restart.

// unjudged reports whether a transaction left a release behind that nobody has judged, or that was found wanting.
func unjudged(old release.Txn) bool {
	return old.Restart && old.From != old.To &&
		(old.Undo || old.Kind == release.KindUpgrade && old.Phase.Before(release.PhaseRecord)) // what a rollback goes to has proved itself
}

// startsNew reports whether the service has been started since the record was begun, as far as its processes tell. A
// script has no file of its own to be known by.
func (r *run) startsNew(old release.Txn) bool {
	if r.running != "" {
		return r.running == old.To
	}
	p, err := release.ProcOf(r.unit.MainPID)
	boot, berr := release.BootID()
	return err != nil || berr != nil || old.Rebooted(boot) || p != old.Incumbent // start times begin anew with each boot
}

// awaitRestart waits for systemd's job of a restart whose zdt is gone: it goes on without it, and nothing can be told before its end.
func (r *run) awaitRestart(old release.Txn) {
	if !old.Restart {
		return
	}
	limit := time.Now().Add((&exchange{r: r}).limit())
	for told := false; r.ctx.Err() == nil && time.Now().Before(limit); pause(r.ctx, poll) {
		u, err := r.Host.Unit(r.ctx)
		if err != nil || !u.Job {
			return // the survey says what there is to say
		}
		if !told {
			told = true
			r.progress("waiting for the restart of " + u.Name + " to end")
		}
	}
}

// undoRestart puts back what a restart has left: the earlier release becomes current and is started, if another one runs.
func (r *run) undoRestart(old release.Txn) error {
	undo := fmt.Sprintf("undo %s %s", old.Kind, old.TxID)
	if r.current.ID != old.From {
		err := r.flipTo(old.From)
		if errors.Is(err, release.ErrNoRelease) { // it ran, and was deleted by hand before: the last one that committed has to do
			var previous release.Release
			if previous, err = r.Store.Previous(); err == nil {
				r.warn("release %s is not there any more; release %s takes its place", old.From, previous.ID)
				err = r.flipTo(previous.ID)
			}
		}
		if err != nil {
			return &Failure{Outcome: Refused, Err: fmt.Errorf("%s: %w", undo, err), Hint: hintOf(err)}
		}
	}
	if !r.startsNew(old) {
		r.warn("%s %s was cut short before its commit; it is undone", old.Kind, old.TxID)
		return nil
	}
	r.progress("starting release " + r.current.ID + " again")
	gap, err := r.startAgain()
	if err != nil {
		// The record stays: the next zdt sees what became of it.
		f := asFailure(err)
		f.Outcome, f.Err = NotRestored, fmt.Errorf("%s: %w", undo, f.Err)
		f.Hint = fmt.Sprintf("look: %s; then %s starts release %s", r.systemctl("status", r.unit.Name), r.systemctl("restart", r.unit.Name), r.current.ID)
		return f
	}
	why := "nobody had judged its release yet"
	if old.Undo {
		why = "its release was found wanting (" + old.Reason + ")"
	}
	r.warn("%s %s was cut short after a restart, and %s; it is undone: nobody served for %s", old.Kind, old.TxID, why, round(gap))
	return nil
}

// startAgain restarts the service, waits until it serves, and looks at it anew. It returns how long nobody served at most.
func (r *run) startAgain() (time.Duration, error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.ctx)) // half of it would leave nobody
	x := &exchange{r: r, since: r.now()}
	defer func() {
		cancel()
		x.jobs.Wait()
		x.main.close()
	}()
	var err error
	if x.units, err = r.Host.WatchUnit(ctx); err != nil {
		return 0, fmt.Errorf("watch the service: %w", err)
	}
	x.job(ctx)
	if err := x.awaitJob(ctx); err != nil {
		return 0, err
	}
	if _, err := x.awaitServing(ctx, ctx); err != nil {
		return 0, err
	}
	gap := r.now().Sub(x.since)
	r.report.Candidate = 0 // who came up is none
	r.hangUp()             // who was asked before has ended
	if r.unit, err = r.Host.Unit(ctx); err != nil {
		return gap, err
	}
	r.down = false
	return gap, r.putInOrder(release.Txn{})
}

// markWanting remembers of a release why its upgrade was undone, for a zdt that could not.
func (r *run) markWanting(old release.Txn) {
	if !old.Undo || old.Kind != release.KindUpgrade || !releasesFault(old.Reason) {
		return
	}
	if err := r.Store.MarkFailed(old.To, release.Failed{TxID: old.TxID, Reason: old.Reason}); err != nil && !errors.Is(err, release.ErrNoRelease) {
		r.warn("%v", err)
	}
}

// releasesFault reports whether a reason is one that the release itself gave.
func releasesFault(reason string) bool {
	switch journal.Reason(reason) {
	case journal.ReasonStart, journal.ReasonExited, journal.ReasonCrashed, journal.ReasonReadyTimeout, journal.ReasonHealth:
		return true
	}
	return false
}
