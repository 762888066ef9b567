package upgrade

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/zdt-dev/zdt/release"
)

// PlanStep is one phase of the transaction that would be.
type PlanStep struct {
	Phase Phase  `json:"phase"`
	Text  string `json:"text"`
	// Within bounds it (nanoseconds); 0: nothing does. What follows when that time is over says Then.
	Within time.Duration `json:"within,omitempty"`
	Then   string        `json:"then,omitempty"`
	// Skipped: it would not be done; Text says why.
	Skipped bool `json:"skipped,omitempty"`
	// Hooks are the administrator's programs that run in it, in their order.
	Hooks []PlanHook `json:"hooks,omitempty"`
}

// PlanHook is a hook that would run.
type PlanHook struct {
	Point HookPoint `json:"point"`
	Path  string    `json:"path"`
	// Within bounds it (nanoseconds). What follows when it objects, or takes longer, says Else.
	Within time.Duration `json:"within"`
	Else   string        `json:"else"`
}

// planSteps are the steps of what was looked at, in order.
func (r *run) planSteps(l *looked) []PlanStep {
	steps := []PlanStep{r.stageStep(l)}
	if s, ok := l.rehearseStep(); ok {
		steps = append(steps, s)
	}
	if r.strategy() == PlanHandoff {
		steps = append(steps, r.handoffSteps(l)...)
	} else {
		steps = append(steps, r.exchangeSteps()...)
	}
	if o := r.Options; o.Retain != nil && o.Kind == release.KindUpgrade {
		steps[len(steps)-1].Then = fmt.Sprintf("old releases are deleted: the newest stay (Keep=%s, KeepFailed=%s), and what zdt prune never deletes", howMany(o.Retain.Keep), howMany(o.Retain.KeepFailed))
	}
	return r.hookSteps(steps)
}

// howMany is a number of releases as the unit says it.
func howMany(n int) string {
	if n == math.MaxInt {
		return "infinity"
	}
	return strconv.Itoa(n)
}

func (l *looked) rehearseStep() (PlanStep, bool) {
	switch {
	case l.rehearsed:
		return PlanStep{Phase: Rehearse, Text: "try the new program beside the service, out of the clients' sight: it gets ready, accepts, passes the gates and ends",
			Within: l.rehearsedWithin, Then: "refused, nothing was changed"}, true
	case l.unrehearsed != "":
		return PlanStep{Phase: Rehearse, Text: "none: " + l.unrehearsed, Skipped: true}, true
	}
	return PlanStep{}, false
}

// hookSteps puts the hooks into the steps in which they run. Those for a rollback get one of their own.
func (r *run) hookSteps(steps []PlanStep) []PlanStep {
	if r.Hooks == nil {
		return steps
	}
	last := Commit
	if r.strategy() != PlanHandoff {
		last = Record
	}
	undone := "the upgrade is undone"
	for _, p := range []struct {
		point   HookPoint
		phase   Phase
		follows string
	}{
		{HookPreUpgrade, Stage, "refused, nothing was changed"},
		{HookPostListen, Listen, undone},
		{HookPreCommit, last, undone},
		{HookPostCommit, last, "a warning"},
		{HookRollback, Rollback, "a warning"},
	} {
		var hooks []PlanHook
		for _, path := range r.Hooks.Found[p.point] {
			hooks = append(hooks, PlanHook{p.point, path, r.Hooks.Each, p.follows})
		}
		at := slices.IndexFunc(steps, func(s PlanStep) bool { return s.Phase == p.phase })
		switch {
		case len(hooks) == 0:
		case at < 0:
			steps = append(steps, PlanStep{Phase: p.phase, Text: "only if it has to be undone", Hooks: hooks})
		default:
			steps[at].Hooks = append(steps[at].Hooks, hooks...)
		}
	}
	return steps
}

func (r *run) stageStep(l *looked) PlanStep {
	s := PlanStep{Phase: Stage}
	switch {
	case l.to == nil:
		s.Text = "find the release to go to"
	case l.to.ID != "":
		s.Text = "use release " + l.to.ID + ", which is there"
	default:
		s.Text = "copy " + r.Options.Binary + " into the release store"
	}
	return s
}

func (r *run) handoffSteps(l *looked) []PlanStep {
	o := r.Options
	helper := isHelper(r.before)
	undone := "undone, the old program serves on as if nothing had been"
	trigger := PlanStep{Phase: Trigger, Text: fmt.Sprintf("SIGUSR2 to process %d, which starts the new program with its sockets", r.unit.MainPID)}
	switch {
	case helper && slices.Contains(r.unit.ExecReload, "handoff"):
		trigger.Text = fmt.Sprintf("systemd reloads the service: helper %d starts the new program, with the unit's present arguments and environment", r.unit.MainPID)
	case helper:
		trigger.Text = fmt.Sprintf("SIGUSR2 to helper %d, which starts the new program with the arguments and the environment of the running one", r.unit.MainPID)
	}
	if o.Kind == release.KindRollback {
		trigger.Text = "from here on a restart would start the earlier release; " + trigger.Text
	}
	bake := PlanStep{Phase: Bake, Text: "watch it for " + round(r.probation()) + ", both run and new connections go to the new one", Then: undone}
	if o.OnFailure == OnFailureFreeze {
		bake.Then = "undone if it has ended, else frozen until somebody decides, " + round(o.Freeze) + " at most"
	}
	if r.Gates != nil || r.Sight != nil && len(r.Sight.Gates) > 0 {
		bake.Text = "watch it for " + round(r.probation()) + " and ask the gates; both run and new connections go to the new one"
		if r.Gates != nil {
			bake.Within = r.Gates.Within
		}
	}
	if !r.overlaps() {
		bake.Text = "the old program has ended before; nobody else serves while the new one is watched for " + round(r.probation())
		bake.Then = "the old release is started again"
	}
	commit := PlanStep{Phase: Commit, Text: "the new program becomes the service's main process"}
	drain := PlanStep{Phase: Drain, Text: "the old program finishes its requests; its idle connections move to the new one", Within: o.DrainTimeout, Then: "what is still busy is cut"}
	if helper {
		commit.Text = fmt.Sprintf("the new program is the service; the main process stays %d", r.unit.MainPID)
		drain.Text, drain.Then = "the old program gets its stop signal, finishes its requests and ends", "it is killed"
	}
	if !r.overlaps() {
		trigger.Text += "; the old one is stopped first, and clients wait in the sockets"
		drain.Text, drain.Within, drain.Then = "nothing is left to finish", 0, ""
	}
	exit := PlanStep{Phase: Exit, Text: "the old program has ended"}
	if t := l.stopTimeout; t > 0 && t <= o.DrainTimeout {
		exit.Then = fmt.Sprintf("a stop of the unit meanwhile kills after %s (TimeoutStopSec=), before the drain is over", round(t))
	}
	record := PlanStep{Phase: Record, Text: "a restart starts the new release from now on"}
	if o.Kind == release.KindRollback {
		record.Text = "one line in the history"
	}
	return []PlanStep{trigger,
		{Phase: Listen, Text: "the new program says that it is ready", Within: o.ReadyTimeout, Then: undone},
		bake, commit, drain, exit, record}
}

// overlaps reports whether both programs run at a time. A helper that was told that its program cannot (--strategy restart) stops
// one before it starts the other.
func (r *run) overlaps() bool {
	if !isHelper(r.before) {
		return true
	}
	words := r.unit.ExecStart
	if i := slices.Index(words, "--"); i >= 0 {
		words = words[:i]
	}
	i := slices.Index(words, "--strategy")
	return !slices.Contains(words, "--strategy=restart") && (i < 0 || i+1 >= len(words) || words[i+1] != "restart")
}

// exchangeSteps are those of a restart, or of a start.
func (r *run) exchangeSteps() []PlanStep {
	o := r.Options
	back := "the earlier release is started again"
	trigger := PlanStep{Phase: Trigger, Text: "the new release becomes the current one, and systemd restarts the service"}
	switch {
	case r.down:
		trigger.Text = fmt.Sprintf("the service is %s: the new release becomes the current one, and systemd starts it", r.unit.ActiveState)
		back = "the earlier release becomes the current one again"
	case r.unit.Socket:
		trigger.Text += "; clients wait in its sockets meanwhile"
	default:
		trigger.Text += "; clients are refused meanwhile, as the unit has no socket"
	}
	return []PlanStep{trigger,
		{Phase: Listen, Text: "the new program serves", Within: o.DrainTimeout + o.ReadyTimeout, Then: back},
		{Phase: Bake, Text: "watch it for " + round(r.probation()), Then: back},
		{Phase: Record, Text: "one line in the history"}}
}
