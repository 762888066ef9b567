package upgrade

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/zdt-dev/zdt/release"
)

// Rehearsal tries a release beside the service before anything is changed.
type Rehearsal struct {
	// Off is why there is none, in the words of whoever wants that; "": there is one.
	Off string
	// Must: where there can be none the upgrade is refused. Else it goes on, and that is told.
	Must bool
	// Look says whether there could be one now, and how long it would take at most, and starts nothing; its errors are those of Play. nil:
	// nobody knows before.
	Look func(ctx context.Context) (time.Duration, error)
	// Play plays it. Its error is *NoRehearsal where there can be none, else that the release did not pass; it may have LastWords. progress gets
	// one line at a time.
	Play func(ctx context.Context, to release.Release, txid string, progress func(string)) (Rehearsed, error)
}

// Rehearsed is what is worth knowing of a rehearsal that was played.
type Rehearsed struct {
	Text     string   // one line
	Warnings []string // about this host
}

// NoRehearsal says why a service cannot be rehearsed. Nothing is wrong with the release as far as is known.
type NoRehearsal struct {
	Why string
	Fix string // may be empty
}

func (e *NoRehearsal) Error() string { return "a rehearsal is not possible: " + e.Why }

// Hint returns what to do about it.
func (e *NoRehearsal) Hint() string { return e.Fix }

// RehearsalState is what became of the rehearsal of an upgrade.
type RehearsalState string

const (
	RehearsalPassed  RehearsalState = "passed"
	RehearsalFailed  RehearsalState = "failed"   // and the upgrade was refused
	RehearsalLeftOut RehearsalState = "left-out" // it was not possible, and the upgrade went on
)

// RehearsalReport is the rehearsal of an upgrade.
type RehearsalReport struct {
	State RehearsalState `json:"state"`
	// Text says what was found out, or why it was left out, in one line.
	Text string `json:"text"`
}

var errAborted = errors.New("an operator aborted the upgrade")

// rehearse tries the release beside the service. A rollback goes to one that has served, and a service that is down has nobody
// whom a bad release could harm: its own start is the better rehearsal.
func (r *run) rehearse() error {
	if r.Rehearsal == nil || r.Rehearsal.Off != "" || r.Options.Kind == release.KindRollback || r.down {
		return nil
	}
	r.begin(Rehearse, "")
	played, err := Rehearsed{}, r.apart()
	if err == nil {
		played, err = r.play()
	}
	r.report.Warnings = append(r.report.Warnings, played.Warnings...)
	var no *NoRehearsal
	switch {
	case r.earlier == Abort:
		f := r.aborted()
		f.Outcome = Aborted
		r.report.Action = "the rehearsal was ended, and the service never touched"
		return f
	case err == nil:
		r.report.Rehearsal = &RehearsalReport{RehearsalPassed, played.Text}
		r.end(Done, played.Text)
		return nil
	case r.endedBy(err):
		return err
	case errors.As(err, &no) && !r.Rehearsal.Must:
		r.report.Rehearsal = &RehearsalReport{RehearsalLeftOut, no.Why}
		r.end(Skipped, "not possible: "+no.Why)
		return nil
	}
	r.report.Rehearsal = &RehearsalReport{RehearsalFailed, err.Error()}
	if !errors.As(err, &no) {
		r.didNotPass()
	}
	var words interface{ LastWords() ([]string, int) }
	if errors.As(err, &words) {
		r.report.CandidateLog, r.report.LogCut = words.LastWords()
	}
	return unrehearsed(err)
}

// didNotPass notes that nobody should count on the release: it is not one of those that stay because they are the newest. There is
// no record yet that could say so later.
func (r *run) didNotPass() {
	if r.to.ID == r.running {
		return
	}
	if err := r.Store.MarkFailed(r.to.ID, release.Failed{TxID: r.report.TxID, Reason: reasonRehearsal}); err != nil {
		r.warn("%v", err)
	}
}

// unrehearsed is what the upgrade is refused with.
func unrehearsed(err error) *Failure {
	hint := "--no-rehearse upgrades without one"
	if h := hintOf(err); h != "" {
		hint = h + "; " + hint
	}
	return &Failure{Outcome: Refused, Reason: reasonRehearsal, Err: err, Hint: hint}
}

// wantedRehearsal is what a plan-id has of the rehearsal: what somebody wants. Whether there is the room for one
// changes by the minute, and an upgrade that goes on without one is not another upgrade.
func (r *run) wantedRehearsal() string {
	q := r.Rehearsal
	if q == nil || q.Off != "" || r.Options.Kind == release.KindRollback || r.down {
		return "none"
	}
	return fmt.Sprint("wanted ", q.Must)
}

// findRehearsal finds out whether there would be one.
func (l *looked) findRehearsal() {
	r, q := l.r, l.r.Rehearsal
	switch {
	case q == nil:
		return
	case r.Options.Kind == release.KindRollback:
		l.unrehearsed = "a rollback goes to a release that has served"
		return
	case r.down:
		l.unrehearsed = "the service is " + r.unit.ActiveState + ", and its start is the rehearsal"
		return
	case q.Off != "":
		l.unrehearsed = q.Off
		return
	}
	err := r.apart()
	if err == nil && q.Look != nil {
		l.rehearsedWithin, err = q.Look(r.ctx)
	}
	var no *NoRehearsal
	switch {
	case err == nil:
		l.rehearsed = true
	case errors.As(err, &no) && !q.Must:
		l.unrehearsed = no.Why
	default:
		l.refused(unrehearsed(err))
	}
}

// apart tells whether two of the program may run at a time, for all that this upgrade says itself.
func (r *run) apart() error {
	if r.Options.Strategy == StrategyRestart {
		return &NoRehearsal{Why: "with --strategy restart two of the program may not run at a time"}
	}
	return nil
}

// play plays the rehearsal, which ends when an operator aborts the upgrade. That the bake is to be short is kept for then.
func (r *run) play() (Rehearsed, error) {
	ctx, cancel := context.WithCancelCause(r.ctx)
	defer cancel(nil)
	over, joined := make(chan struct{}), make(chan struct{})
	go func() { // owns r.earlier until it has joined
		defer close(joined)
		for r.earlier != Abort {
			select {
			case r.earlier = <-r.Orders:
			case <-over:
				return
			}
		}
		cancel(errAborted)
	}()
	played, err := r.Rehearsal.Play(ctx, r.to, r.report.TxID, r.progress)
	close(over)
	<-joined
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return played, err
}
