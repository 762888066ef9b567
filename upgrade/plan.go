package upgrade

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/release"
)

// Plan is what an upgrade would do. Fields are only ever added.
type Plan struct {
	Schema   string       `json:"schema"` // zdt.plan/1
	Outcome  PlanOutcome  `json:"outcome"`
	ExitCode int          `json:"exit_code"`
	Changed  bool         `json:"changed"` // always false
	Service  string       `json:"service"`
	Kind     release.Kind `json:"kind"`
	// ID stands for everything that the plan depends on: zdt upgrade --plan-id refuses when it has changed. Empty when that
	// could not be found out.
	ID string `json:"plan_id,omitempty"`

	From *PlanRelease `json:"from,omitempty"` // what serves or, of a service that is down, what a start would start
	To   *PlanRelease `json:"to,omitempty"`

	Strategy   PlanStrategy `json:"strategy,omitempty"`
	Runtime    string       `json:"runtime,omitempty"` // library or helper; empty when nobody answers
	MainPID    int          `json:"main_pid,omitempty"`
	Incumbent  int          `json:"incumbent,omitempty"` // pid that serves
	Generation int          `json:"generation,omitempty"`

	Steps []PlanStep `json:"steps,omitempty"`
	Gates []string   `json:"gates,omitempty"`
	Room  []Room     `json:"room,omitempty"` // for two generations

	// Problems are what the upgrade would be refused for, the first one first.
	Problems []Problem `json:"problems,omitempty"`
	// Notes are what it would put in order, or wait for, before it begins.
	Notes []string `json:"notes,omitempty"`
}

// PlanOutcome is what would become of the upgrade.
type PlanOutcome string

const (
	PlanUpgrade   PlanOutcome = "upgrade"   // there is something to do
	PlanUnchanged PlanOutcome = "unchanged" // that content serves already
	PlanRefused   PlanOutcome = "refused"
	PlanLocked    PlanOutcome = "locked" // somebody works on the service, or holds it
)

// PlanStrategy is how the new program would take the place of the other.
type PlanStrategy string

const (
	PlanHandoff PlanStrategy = "handoff"
	PlanRestart PlanStrategy = "restart"
	PlanStart   PlanStrategy = "start" // the service is down
)

// PlanRelease is a release with all that tells two of them apart.
type PlanRelease struct {
	ID     string `json:"id,omitempty"` // empty: it would be staged
	SHA256 string `json:"sha256,omitempty"`
	Size   int64  `json:"size,omitempty"` // bytes
	Path   string `json:"path,omitempty"` // of the program or, of what would be staged, of the source
	// Program: the process runs this file, which is no release.
	Program string         `json:"program,omitempty"`
	Build   *release.Build `json:"build,omitempty"`
}

// Problem is a reason to refuse.
type Problem struct {
	Outcome Outcome `json:"outcome"` // refused or locked
	Reason  string  `json:"reason,omitempty"`
	Cause   string  `json:"cause"`
	Hint    string  `json:"hint,omitempty"`
}

// Sight is what a plan sees beyond what a transaction has to look at.
type Sight struct {
	// Peek looks at a source as Store.Stage does.
	Peek func(ctx context.Context, src string, o release.StageOptions) (release.Peek, error)
	// World is the rest of what a plan depends on.
	World func(ctx context.Context) (World, error)
	// Footprint measures what the processes of the unit take; nil: nobody wants to know. helper is the pid of the helper, which
	// stays one, or 0.
	Footprint func(ctx context.Context, helper int) Footprint
	// Gates are the gates of the policy, as they are written.
	Gates []string
}

// Plan says what Run would do, by the same checks. It changes nothing and takes no lock.
func (e Engine) Plan(ctx context.Context) Plan {
	r := e.newRun(ctx)
	r.Observe = func(Update) {}
	defer r.hangUp()
	l := r.look()
	p := Plan{
		Schema: "zdt.plan/1", Service: r.Options.Service, Kind: r.Options.Kind,
		From: l.from, To: l.to, Runtime: l.runtime, MainPID: r.unit.MainPID, Incumbent: r.report.Incumbent, Generation: r.report.Generation,
		Problems: l.problems, Notes: append(l.notes, r.report.Warnings...),
	}
	if r.unit.Name != "" {
		p.Strategy = r.strategy()
	}
	if id, err := l.identify(); err == nil {
		p.ID = id.String()
	} else {
		p.Notes = append(p.Notes, fmt.Sprintf("this plan has no plan-id: %v", err))
	}
	switch {
	case len(p.Problems) > 0 && p.Problems[0].Outcome == Locked:
		p.Outcome, p.ExitCode = PlanLocked, r.ExitCode(Report{Outcome: Locked})
	case len(p.Problems) > 0:
		p.Outcome, p.ExitCode = PlanRefused, r.ExitCode(Report{Outcome: Refused})
	case r.report.Outcome == Unchanged:
		p.Outcome, p.ExitCode = PlanUnchanged, r.ExitCode(Report{Outcome: Unchanged})
	default:
		p.Outcome, p.ExitCode = PlanUpgrade, r.ExitCode(Report{Outcome: Unchanged})
	}
	if p.Outcome == PlanUnchanged || p.Strategy == "" {
		return p
	}
	if r.Sight != nil {
		p.Gates = r.Sight.Gates
		if r.Sight.Footprint != nil && p.Strategy == PlanHandoff && r.overlaps() {
			p.Room = r.Sight.Footprint(ctx, helperOf(r.before)).Rooms()
		}
	}
	p.Steps = r.planSteps(l)
	return p
}

// strategy is how a transaction would go on behind the staging.
func (r *run) strategy() PlanStrategy {
	switch {
	case r.down:
		return PlanStart
	case r.Options.Strategy == StrategyRestart:
		return PlanRestart
	}
	return PlanHandoff
}

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

// checkPlan refuses when the world is not the one that the plan was made of.
func (r *run) checkPlan() error {
	if r.Options.PlanID == "" {
		return nil
	}
	want, err := ParsePlanID(r.Options.PlanID)
	if err != nil {
		return refuse(r.zdt("plan", r.Options.Service)+" prints one", "%w", err)
	}
	// A look of its own, so that nothing of it is taken for what this run finds later.
	e := r.Engine
	q := e.newRun(r.ctx)
	q.Observe, q.lock = func(Update) {}, r.lock
	defer q.hangUp()
	l := q.look()
	got, err := l.identify()
	if err != nil {
		return refuse(r.zdt("plan", r.Options.Service), "hold the plan against the world: %w", err)
	}
	if moved := want.Moved(got); len(moved) > 0 {
		f := refuse(r.zdt("plan", r.Options.Service)+" makes a new one", "the world has moved since the plan was made: %s", joinWords(moved))
		f.Reason = reasonMoved
		return f
	}
	if l.to != nil && r.Options.Stage.SHA256 == "" && r.Options.Binary != "" && len(l.to.SHA256) == 64 && l.to.Path != "" && filepath.IsAbs(l.to.Path) {
		r.Options.Stage.SHA256 = l.target // the file that is staged is the one that was looked at
	}
	return nil
}

func joinWords(words []string) string {
	switch len(words) {
	case 0:
		return ""
	case 1:
		return words[0]
	}
	text := words[0]
	for _, w := range words[1:] {
		text += "; " + w
	}
	return text
}

var errNoSight = errors.New("it was not looked at")

// worldPatience bounds the questions about the world.
const worldPatience = 10 * time.Second
