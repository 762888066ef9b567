package cmd

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/zdt-dev/zdt/release"
	"github.com/zdt-dev/zdt/unitgen"
	"github.com/zdt-dev/zdt/upgrade"
)

// upgradeOptions are the flags of zdt upgrade. A nil duration was not given:
// the unit's policy decides.
type upgradeOptions struct {
	Service string
	Kind    release.Kind
	Binary  string // neither: the current release, which finishes what was interrupted
	Release string // its ID or the beginning of one
	SHA256  string
	// Exec is the program within an archive or a directory, Signature the file's.
	Exec      string
	Signature string
	Gates     []string // in addition to those of the unit
	SkipGates bool
	Rehearse  *unitgen.Rehearse
	Why       string
	Helper    bool // upgrade zdt run itself

	Strategy   upgrade.Strategy
	OnFailure  *unitgen.OnFailure
	IgnoreHold bool
	AcceptRisk []string
	PlanID     string // refuse unless the world is the one of this plan

	Bake         *time.Duration
	ReadyTimeout *time.Duration
	DrainTimeout *time.Duration
	Wait         time.Duration // for the lock: 0 not at all, negative without bound
	Timeout      time.Duration // of the whole; 0: none

	Detach bool
	as     identity

	// run carries the transaction out. An error means that there was none to
	// report on: systemd could not be reached, nobody may do this.
	run func(ctx context.Context, o upgradeOptions, observe func(upgrade.Update)) (upgrade.Report, error)
}

func newUpgradeCmd(f *factory) *cobra.Command {
	o := rollOptions{upgradeOptions: upgradeOptions{run: f.transact}}
	cmd := &cobra.Command{
		Use:   "upgrade NAME... [--binary FILE] [FLAGS]",
		Short: "Replace a service's program without its clients noticing",
		Long: `Replace the program of a service without its clients noticing.

zdt copies FILE into the release store, tries it beside the service, where no
client sees it (docs/rehearse.md), has the running program start it with its
listening sockets, watches the new one come up (and through the bake), lets it
take over, and waits until the old one has finished its connections. When
anything fails before that, the old program serves on as if nothing had been.
A service that is down is started with the new program.

NAME@ stands for the instances of a template that are not stopped, 'NAME@b*' for
some of them. They are upgraded one after the other, each as if it were the only
one. The first that fails stops the roll; the same command goes on there.

Ctrl-C before the new program has taken over undoes the upgrade.`,
		Example: `  zdt upgrade web --binary ./web-1.4.3
  zdt upgrade web --binary ./web-1.4.3 --bake 2m -m "fix CVE-2026-1234"
  zdt upgrade web --binary ./web-1.4.3 --sha256 "$SUM" --wait=5m -o json
  zdt upgrade web@ --binary ./web-1.4.3 --pause 1m`,
		Args:              arguments(1, -1, "the NAME of the service"),
		ValidArgsFunction: f.completeSets(false),
	}
	flags := cmd.Flags()
	flags.StringVar(&o.Binary, "binary", "", "the new program: a `FILE` (default: the current release)")
	flags.StringVar(&o.Release, "release", "", "a release that is in the store in place of a FILE: its `ID` or how that begins")
	flags.StringVar(&o.SHA256, "sha256", "", "refuse a FILE with a checksum other than `HEX`")
	flags.StringVar(&o.Exec, "exec", "", "the program within FILE, if that is an archive or a directory: a `PATH` in it")
	flags.StringVar(&o.Signature, "signature", "", "the signature of FILE, of minisign or ssh-keygen: a `FILE`")
	flags.StringArrayVar(&o.Gates, "gate", nil, "a `CHECK` that the new program has to pass, beside those of the unit: http://..., tcp:..., exec:... (repeat)")
	addRehearseFlags(flags, &o.Rehearse)
	flags.BoolVar(&o.SkipGates, "skip-gates", false, "ask no gates, also not those of the unit")
	flags.Var((*strategyFlag)(&o.Strategy), "strategy", "handoff, or restart for programs that cannot hand over: clients wait meanwhile (default handoff)")
	flags.Var(maybeDuration{&o.Bake}, "bake", "watch the new program this long before it takes over (default: Bake= of the unit)")
	flags.Var(maybeDuration{&o.ReadyTimeout}, "ready-timeout", "time for the new program to get ready (default: the unit's)")
	flags.Var(maybeDuration{&o.DrainTimeout}, "drain-timeout", "time for the old program to finish (default: the unit's)")
	flags.Var((*durationFlag)(&o.Timeout), "timeout", "undo the upgrade unless the new program has taken over by then")
	flags.Var((*waitFlag)(&o.Wait), "wait", "wait for another upgrade of the service to end, at most D")
	flags.Lookup("wait").NoOptDefVal = "forever"
	flags.Var(maybeOnFailure{&o.OnFailure}, "on-failure", "when the bake fails and the new program lives: rollback, or freeze until somebody decides (default: the unit's)")
	addRollFlags(flags, &o)
	flags.BoolVar(&o.IgnoreHold, "ignore-hold", false, "go on although somebody holds the service")
	addAcceptRisk(flags, &o.AcceptRisk)
	flags.Var((*planIDFlag)(&o.PlanID), "plan-id", "refuse when anything has changed that the plan of this `ID` depends on; zdt plan prints it")
	flags.StringVarP(&o.Why, "message", "m", "", "why: a `TEXT` for the history")
	flags.BoolVar(&o.Helper, "helper", false, "upgrade zdt run itself to the zdt that is installed now; the program goes on")
	f.withEvents(cmd)
	addDetachFlags(flags, &o.Detach, &o.as)

	return f.command(cmd, func(ctx context.Context, args []string) error {
		if isSet(args) {
			return runRoll(ctx, f, o, args)
		}
		var err error
		if o.Service, err = serviceName(args[0]); err != nil {
			return err
		}
		if o.Helper {
			if operator, err := f.asOperator(o.Service); err != nil || operator {
				return f.operate(ctx, cmd, o.upgradeOptions, err)
			}
			for _, name := range []string{"binary", "release", "sha256", "exec", "signature", "gate", "strategy", "bake", "ready-timeout", "drain-timeout", "rehearse", "no-rehearse", "message", "detach", "accept-risk"} {
				if cmd.Flags().Changed(name) {
					return usage("run zdt upgrade twice", "upgrade: --helper and --%s exclude each other", name)
				}
			}
			return f.renewHelper(ctx, o.upgradeOptions)
		}
		if o.Release != "" && (o.Binary != "" || o.SHA256 != "" || o.Exec != "" || o.Signature != "") {
			return usage("", "upgrade: --release excludes --binary and what belongs to it")
		}
		if operator, err := f.asOperator(o.Service); err != nil || operator {
			return f.operate(ctx, cmd, o.upgradeOptions, err)
		}
		if o.Detach {
			return f.detach(ctx, cmd, o.Service)
		}
		return f.answer(o.as, o.Service, runUpgrade(ctx, f, o.upgradeOptions))
	}, rollCodes()...)
}

// upgradeCodes are the exit codes of every command that carries a transaction out.
func upgradeCodes() []ExitCode {
	return []ExitCode{ExitOK, ExitRefused, ExitRolledBack, ExitNotRestored, ExitInterrupted, ExitFrozen, ExitUsage, ExitUnavailable, ExitBusy, ExitNotAuthorised, ExitDeadline, ExitInt, ExitTerm}
}

// timedOut is the cause of a context that --timeout ended.
type timedOut struct{ after time.Duration }

func (t timedOut) Error() string { return fmt.Sprintf("--timeout %v passed", t.after) }

// Is makes it what a deadline is to everybody else.
func (t timedOut) Is(target error) bool { return target == context.DeadlineExceeded }

func runUpgrade(ctx context.Context, f *factory, o upgradeOptions) error {
	ctx, cancel := timeoutCause(ctx, o.Timeout)
	defer cancel()
	if o.as.TxID == "" {
		var err error
		if o.as, err = newIdentity(); err != nil {
			return err
		}
	}
	p := f.startProgress(o.Service, o.as)
	report, err := o.run(ctx, o, p.observe)
	if err != nil {
		p.fail(err)
		return err
	}
	p.finish(report)
	return f.conclude(ctx, report, false)
}

// conclude prints a report and makes it an exit code. fine: it is what was wanted, whatever it is called.
func (f *factory) conclude(ctx context.Context, report upgrade.Report, fine bool) error {
	code := f.upgradeExit(ctx)(report)
	if fine {
		code = 0
	}
	report.ExitCode = code
	return f.present(ending{report: &report})
}

// upgradeExit maps reports to exit codes; ctx is the one the upgrade ran with.
// package upgrade gets it as Engine.ExitCode, so that the history says the same.
func (f *factory) upgradeExit(ctx context.Context) func(upgrade.Report) int {
	return func(r upgrade.Report) int { return int(reportCode(r, context.Cause(ctx))) }
}

// reportCode never gives 0 to what it does not know.
func reportCode(r upgrade.Report, ended error) ExitCode {
	switch r.Outcome {
	case upgrade.Upgraded, upgrade.Unchanged:
		return ExitOK
	case upgrade.Refused:
		return ExitRefused
	case upgrade.RolledBack, upgrade.Aborted:
		return ExitRolledBack
	case upgrade.Frozen:
		return ExitFrozen
	case upgrade.NotRestored:
		return ExitNotRestored
	case upgrade.Locked:
		return ExitBusy
	case upgrade.Interrupted:
		if code := codeOf(ended); ended != nil && code != ExitUnexpected {
			return code
		}
		return ExitInterrupted
	}
	return ExitUnexpected
}
