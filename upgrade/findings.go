package upgrade

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/zdt-dev/zdt/handoffcheck"
	"github.com/zdt-dev/zdt/release"
)

// checkFindings refuses what is bound to fail by what is known of the unit and the running program. It comes when what an earlier
// zdt left is in order: a defect of the unit must not keep that open. A rollback is never asked: time counts, and what it goes
// back to has served in this unit.
func (r *run) checkFindings() error {
	if r.Findings == nil || r.Options.Kind == release.KindRollback {
		return nil
	}
	found, err := r.Findings(r.ctx)
	if err != nil {
		if r.ctx.Err() == nil { // an interrupt is told by who looks for it
			r.warn("what stands in the way of an upgrade is not known: %v", err)
		}
		return nil
	}
	if r.down || r.Options.Strategy == StrategyRestart {
		found = slices.DeleteFunc(found, func(f handoffcheck.Finding) bool { return handoffcheck.HandoffOnly(f.ID) })
	}
	r.report.Findings = found
	blockers := handoffcheck.Blockers(found)
	if blockers != nil && r.nothingToDo() {
		return nil
	}
	return r.objection(blockers)
}

// nothingToDo: what is asked for serves already, and of what is not done nothing can fail. Who asks again and again (Ansible)
// is told so, and not of a defect that the unit has had for long. A directory is not known until it was staged.
func (r *run) nothingToDo() bool {
	o := r.Options
	switch {
	case r.report.Outcome == Unchanged: // a plan knows
		return true
	case r.down || r.running == "" || r.running != r.current.ID:
		return false
	case o.Release != "":
		return o.Release == r.current.ID
	case o.Binary == "":
		return true
	case r.Sight == nil:
		return false
	}
	p, err := r.Sight.Peek(r.ctx, o.Binary, r.stageOptions())
	return err == nil && p.Staged && p.Release.ID == r.current.ID
}

// objection is the refusal that err is, without the blockers that the operator has accepted.
func (r *run) objection(err error) error {
	if err == nil {
		return nil
	}
	var blocked *handoffcheck.Error
	if !errors.As(err, &blocked) {
		return &Failure{Outcome: Refused, Err: err, Hint: hintOf(err)}
	}
	var left []handoffcheck.Finding
	for _, f := range blocked.Findings {
		switch {
		case !slices.Contains(r.Options.AcceptRisk, f.ID):
			left = append(left, f)
		case !slices.Contains(r.report.AcceptedRisks, f.ID):
			r.report.AcceptedRisks = append(r.report.AcceptedRisks, f.ID)
			r.warn("accepted: %s (%s)", f.Seen, f.ID)
		}
	}
	if len(left) == 0 {
		return nil
	}
	return &Failure{Outcome: Refused, Err: &handoffcheck.Error{Findings: left}, Hint: r.mend(left)}
}

// mend is what to do about blockers: the fix of each, and where more is said.
func (r *run) mend(blockers []handoffcheck.Finding) string {
	var fixes []string
	for _, f := range blockers {
		fixes = append(fixes, f.Fix)
	}
	return fmt.Sprintf("%s; more: %s", strings.Join(fixes, "; "), r.zdt("explain", blockers[0].ID))
}
