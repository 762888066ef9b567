package cmd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/zdt-dev/zdt/release"
	"github.com/zdt-dev/zdt/upgrade"
)

// A roll takes the instances of a template to a release, or back, one after the other. Each is a transaction of its own, with all
// that belongs to one; the next one begins when the one before is over and was good. The first that is not stops the roll.

// rollOptions are what a roll has beyond the transactions of its instances.
type rollOptions struct {
	upgradeOptions               // for each instance; Service is empty
	Pause          time.Duration // between two instances
	AllOrNone      bool          // bring back what was changed when one fails
}

// roll is a roll that goes on.
type roll struct {
	doc *rollDoc
	zdt string // as an operator calls it

	// transact carries the transaction of one instance out, and shows it.
	transact func(ctx context.Context, service string, o upgradeOptions) (upgrade.Report, error)
	// restarts counts the restarts of an instance, and fails when it does not serve.
	restarts func(ctx context.Context, service string) (uint32, error)
}

// run goes through the instances that are pending.
func (r *roll) run(ctx context.Context, o rollOptions) {
	counts := map[string]uint32{} // restarts of those that this roll has changed
	for i := range r.doc.Instances {
		m := &r.doc.Instances[i]
		if m.State != rollPending {
			continue
		}
		if !r.watch(ctx, counts, o.Pause) {
			break
		}
		r.take(ctx, m, o)
		if m.ExitCode != 0 {
			r.stop(m.Service, ExitCode(m.ExitCode), m.Cause)
			break
		}
		if m.State == rollChanged {
			n, err := r.restarts(ctx, m.Service)
			if err != nil {
				r.fell(ctx, m.Service, err)
				break
			}
			counts[m.Service] = n
		}
	}
	if r.doc.Stopped != "" && o.AllOrNone {
		r.bringBack(context.WithoutCancel(ctx), o)
	}
	r.doc.conclude(r.zdt)
}

// take carries the transaction of one instance out.
func (r *roll) take(ctx context.Context, m *rollInstance, o rollOptions) {
	one := o.upgradeOptions
	one.Service, one.Binary, one.SHA256, one.Exec, one.Signature = m.Service, "", "", "", ""
	if m.To != "" {
		one.Release = m.To
	}
	report, err := r.transact(ctx, m.Service, one)
	m.tell(report, err)
	switch {
	case m.ExitCode != 0:
		m.State = rollFailed
	case report.Changed:
		m.State, m.Runs = rollChanged, m.To
		if report.To != nil {
			m.Runs = report.To.ID
		}
	default:
		m.State = rollUnchanged
	}
}

// watch looks at the instances that this roll has changed, for as long as there is to be a pause: a release that dies behind its
// commit must not reach the next one.
func (r *roll) watch(ctx context.Context, counts map[string]uint32, pause time.Duration) bool {
	end := time.NewTimer(pause)
	defer end.Stop()
	look := time.NewTicker(250 * time.Millisecond)
	defer look.Stop()
	for over := pause == 0 || len(counts) == 0; ; {
		if ctx.Err() != nil {
			cause := context.Cause(ctx)
			r.stop("", codeOf(cause), cause.Error())
			return false
		}
		for _, m := range r.doc.Instances {
			was, ok := counts[m.Service]
			if !ok {
				continue
			}
			n, err := r.restarts(ctx, m.Service)
			if err == nil && n != was {
				err = errRestarted
			}
			if err != nil {
				r.fell(ctx, m.Service, err)
				return false
			}
		}
		if over {
			return true
		}
		select {
		case <-look.C:
		case <-end.C:
			over = true
		case <-ctx.Done():
		}
	}
}

var (
	errRestarted = errors.New("it was restarted after its transaction")
	errDown      = errors.New("it does not serve any more")
)

// fell stops the roll because an instance did not stay up that had been good.
func (r *roll) fell(ctx context.Context, service string, err error) {
	code := ExitRolledBack // it serves; which code that makes is for the whole
	if errors.Is(err, errDown) {
		code = ExitNotRestored
	} else if !errors.Is(err, errRestarted) {
		code = codeOf(err)
	}
	if ctx.Err() != nil {
		code = codeOf(context.Cause(ctx))
	}
	r.stop(service, code, err.Error())
}

func (r *roll) stop(service string, code ExitCode, cause string) {
	if r.doc.Stopped = service; service == "" {
		r.doc.Stopped = r.doc.Service
	}
	r.doc.ExitCode, r.doc.Cause = code, cause
}

// bringBack takes the instances that were changed back to where they were, the last one first. What needs a person, or waits for
// one, is left as it is, with all the others.
func (r *roll) bringBack(ctx context.Context, o rollOptions) {
	if slices.Contains([]ExitCode{ExitNotRestored, ExitFrozen, ExitInterrupted}, r.doc.ExitCode) {
		return
	}
	for i := range slices.Backward(r.doc.Instances) {
		m := &r.doc.Instances[i]
		if m.State != rollChanged || m.From == "" {
			continue
		}
		back := upgradeOptions{Kind: release.KindRollback, Service: m.Service, Release: m.From, Why: "all or none: " + r.doc.Stopped + " failed",
			IgnoreHold: true, Wait: o.Wait, ReadyTimeout: o.ReadyTimeout, DrainTimeout: o.DrainTimeout}
		if o.Kind == release.KindRollback { // what it is brought back to was given up for a reason, and has served
			back.Why = "all or none: the rollback of " + r.doc.Stopped + " failed"
		}
		report, err := r.transact(ctx, m.Service, back)
		n := rollInstance{Service: m.Service}
		n.tell(report, err)
		m.Back, m.ExitCode = n.Report, n.ExitCode
		if n.ExitCode != 0 {
			m.Cause = "not brought back: " + n.Cause
			if ExitCode(n.ExitCode) != ExitRolledBack {
				r.doc.ExitCode = ExitCode(n.ExitCode)
			}
			return
		}
		m.State, m.Runs = rollBack, m.From
	}
}

// givenUp is the content of the release that a rollback of a set takes back: the one that was brought to an instance last. If
// that was a rollback which has not reached all of them, it is the one that it gave up. histories are those of the
// instances, current what they would start.
func givenUp(histories [][]release.Entry, current []string) string {
	var last *release.Entry
	for _, entries := range histories {
		for i, e := range entries {
			if e.Committed && e.Kind != release.KindInit && (last == nil || e.Ended.After(last.Ended)) {
				last = &entries[i]
			}
		}
	}
	if last == nil {
		return ""
	}
	if last.Kind == release.KindRollback {
		for _, id := range current {
			if last.From != "" && content(id) == content(last.From) {
				return content(last.From)
			}
		}
	}
	return content(last.To)
}

// content is the part of a release's ID that is made of its content: the same release has another time in each store.
func content(id string) string {
	_, sum, _ := strings.Cut(id, "-")
	return sum
}

// rollCode is the exit code of a roll that stopped: failed is that of the instance which stopped it, changed and back how many
// instances it had changed, and how many of these are back. Codes which say that nothing was changed, or that the old release
// serves, are not true of a set half of which has another one.
func rollCode(failed ExitCode, changed, back int) ExitCode {
	switch failed {
	case ExitOK, ExitNotRestored, ExitInterrupted, ExitFrozen, ExitDeadline, ExitHangup, ExitInt, ExitTerm:
		return failed
	}
	switch {
	case changed == 0:
		return failed
	case changed == back:
		return ExitRolledBack
	}
	return ExitHalfway
}

// rollCodes are the exit codes of the commands that roll.
func rollCodes() []ExitCode {
	codes := upgradeCodes()
	return slices.Insert(codes, slices.Index(codes, ExitFrozen)+1, ExitHalfway)
}

// describe is how a roll is called in a sentence.
func describe(kind release.Kind) string {
	if kind == release.KindRollback {
		return "rollback"
	}
	return "roll"
}

// addRollFlags are the flags of a command that can roll.
func addRollFlags(flags *pflag.FlagSet, o *rollOptions) {
	flags.Var((*durationFlag)(&o.Pause), "pause", "of several instances: watch those that are done this long before the next one")
	flags.BoolVar(&o.AllOrNone, "all-or-none", false, "of several instances: bring back those that are done when one fails")
}

func (o rollOptions) check(set fleet) error {
	switch {
	case o.Detach:
		return usage("systemd-run --collect zdt upgrade ..., or one instance after the other", "--detach is for one service")
	case o.PlanID != "":
		return usage("zdt plan is for one service", "--plan-id is for one service")
	case o.Helper:
		return usage("one instance after the other", "--helper is for one service")
	case o.Kind != release.KindRollback && o.Binary == "" && o.Release == "":
		return usage(fmt.Sprintf("zdt upgrade %s --binary FILE", set.Template), "upgrade: --binary or --release is missing")
	}
	return nil
}
