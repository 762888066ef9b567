package upgrade

import (
	"cmp"
	"fmt"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/release"
)

// looked is what a run has found without changing anything.
type looked struct {
	r        *run
	problems []Problem
	notes    []string
	runtime  string
	from, to *PlanRelease
	target   string // what tells the content of to from any other
	txn      release.Txn
	hold     *release.Hold

	stopTimeout time.Duration // TimeoutStopSec=

	rehearsed       bool          // it would be
	rehearsedWithin time.Duration // and take that long at most
	unrehearsed     string        // why not
}

// look makes the checks of preflight and stage, each whatever the others say.
func (r *run) look() *looked {
	l := &looked{r: r}
	r.looking = true
	if h, alive, err := release.ReadHolder(r.LockPath); err == nil && alive && r.Options.Wait == 0 && r.lock == nil {
		held := &release.HeldError{Path: r.LockPath, Holder: h}
		l.refused(&Failure{Outcome: Locked, Err: held, Hint: fmt.Sprintf("wait for it with --wait, or look at it: %s", r.zdt("status", r.Options.Service))})
	}
	if !l.refused(r.findCurrent()) {
		return l
	}
	if h, err := r.Store.Hold(); err == nil {
		l.hold = &h
	}
	l.refused(r.checkHold())
	l.refused(r.checkRequest())
	surveyed := l.survey()
	var err error
	if l.txn, err = r.openTxn(); l.refused(err) && surveyed && l.txn.TxID != "" && l.refused(r.checkFrozen(l.txn)) {
		l.note("%s %s was cut short in phase %s: it is finished or undone first", l.txn.Kind, l.txn.TxID, l.txn.Phase)
	}
	known := surveyed && l.findRunning()
	l.fillFrom()
	l.findTarget(known)
	if known {
		l.refused(r.checkFindings())
	}
	if known && r.report.Outcome != Unchanged {
		l.findRehearsal()
	}
	return l
}

// refused notes a failed check and returns whether it is passed.
func (l *looked) refused(err error) bool {
	if err == nil {
		return true
	}
	f := asFailure(err)
	p := Problem{Outcome: f.Outcome, Reason: f.Reason, Cause: f.Error(), Hint: cmp.Or(f.Hint, "look: "+l.r.zdt("status", l.r.Options.Service))}
	if p.Outcome != Locked {
		p.Outcome = Refused
	}
	l.problems = append(l.problems, p)
	return false
}

func (l *looked) note(format string, args ...any) {
	l.notes = append(l.notes, fmt.Sprintf(format, args...))
}

func (l *looked) survey() bool {
	r := l.r
	var err error
	if r.unit, err = r.Host.Unit(r.ctx); err != nil {
		return l.refused(&Failure{Outcome: Refused, Err: err, Hint: hintOf(err)})
	}
	return l.refused(r.checkUnit())
}

// findRunning finds out who serves, and whether a handoff could begin now, as putInOrder does, but leaves everything as
// it is.
func (l *looked) findRunning() bool {
	r := l.r
	if r.down {
		return true
	}
	if r.Options.Strategy == StrategyRestart && !r.unit.Runtime {
		return l.refused(r.withoutRuntime(release.Txn{}))
	}
	s, err := l.answer()
	if err != nil {
		return l.refused(r.unreachable(err))
	}
	r.before, r.report.Generation = s, s.Generation
	l.runtime = "library"
	if isHelper(s) {
		l.runtime = control.RuntimeHelper
	}
	switch {
	case s.PID == r.unit.MainPID:
		busy, err := r.quieten(r.ctx, s, "")
		if !l.refused(err) {
			return false
		}
		if busy == "" && r.unit.ActiveState == "reloading" {
			busy = "waiting for a reload to end"
		}
		if busy != "" && l.txn.TxID == "" {
			l.note("the upgrade begins later: %s", busy)
		}
	case s.TookOver:
		l.note("process %d serves, but systemd has lost it: it is given back first", s.PID)
	default:
		return l.refused(refuse(r.systemctl("status", r.unit.Name), "process %d answers on the control socket, but the main process of %s is %d", s.PID, r.unit.Name, r.unit.MainPID))
	}
	r.report.Incumbent = serving(s)
	if !l.refused(r.findRunning()) {
		return false
	}
	return l.refused(r.findFrom())
}

// answer is the status of the main process. While a handoff commits, another process may answer for a moment.
func (l *looked) answer() (s control.Status, err error) {
	r := l.r
	for range 25 {
		if s, err = r.ask(r.ctx, (*control.Client).Status); err != nil || s.PID == r.unit.MainPID || s.TookOver {
			break
		}
		r.hangUp()
		pause(r.ctx, poll)
		u, err := r.Host.Unit(r.ctx)
		if err != nil {
			return s, err
		}
		r.unit = u
	}
	return s, err
}

// fillFrom describes what serves.
func (l *looked) fillFrom() {
	r := l.r
	rel := r.current
	switch {
	case r.running != "" && r.running != rel.ID:
		rel, _ = r.Store.Get(r.running)
		rel.ID = r.running
	case r.running == "" && r.report.Incumbent != 0:
		exe, err := r.Host.Exe(r.report.Incumbent)
		if err != nil {
			return
		}
		l.from = &PlanRelease{Program: exe}
		return
	}
	l.from = planned(rel)
}

func planned(rel release.Release) *PlanRelease {
	return &PlanRelease{ID: rel.ID, SHA256: rel.SHA256, Size: rel.Size, Path: rel.Path, Build: rel.Build}
}

// findTarget finds what would be gone to. known: it is known what runs.
func (l *looked) findTarget(known bool) {
	r := l.r
	o := r.Options
	switch {
	case o.Kind == release.KindRollback && !known:
		return // where to depends on it
	case o.Kind == release.KindRollback || o.Binary == "":
		if !l.refused(r.stage()) {
			return
		}
		l.to, l.target = planned(r.to), r.to.SHA256
		return
	case r.Sight == nil:
		return
	}
	p, err := r.Sight.Peek(r.ctx, o.Binary, r.stageOptions())
	if !l.refused(wrapStage(err)) {
		return
	}
	rel := p.Release
	l.to, l.target = planned(rel), rel.SHA256
	for _, name := range rel.Dropped {
		r.warn("the release does not carry %s of %s; does the program need it?", name, o.Binary)
	}
	if p.Staged {
		r.to = rel
		if known && r.current.ID == rel.ID && r.running == rel.ID {
			r.report.Outcome = Unchanged
		}
		return
	}
	l.to.Path = rel.Source
	switch {
	case rel.Archive != nil:
		l.to.SHA256, l.target = rel.Archive.SHA256, rel.Archive.SHA256
	case rel.Tree != nil:
		l.target, err = treeTarget(rel.Source)
		l.refused(err)
	}
}

func wrapStage(err error) error {
	if err == nil {
		return nil
	}
	return &Failure{Outcome: Refused, Err: fmt.Errorf("stage release: %w", err), Hint: hintOf(err)}
}
