package upgrade

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/zdt-dev/zdt/handoffcheck"
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
	// Findings are what zdt check finds in the unit and the running program, the worst first.
	Findings []handoffcheck.Finding `json:"findings,omitempty"`
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
		Problems: l.problems, Findings: r.report.Findings, Notes: append(l.notes, r.report.Warnings...),
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
