package cmd

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/zdt-dev/zdt/release"
	"github.com/zdt-dev/zdt/upgrade"
)

// planDoc is the document of zdt plan.
type planDoc struct {
	upgrade.Plan
	// Settings are those of the unit that changed since the service was started; absent when it is down.
	Settings *planSettings `json:"settings,omitempty"`
}

func newPlanCmd(f *factory) *cobra.Command {
	var o upgradeOptions
	var rollback bool
	cmd := &cobra.Command{
		Use:   "plan NAME [--binary FILE] [FLAGS]",
		Short: "Show what an upgrade would do, and what it would not apply",
		Long: `Show what zdt upgrade would do with the same flags: from which release to which,
step by step with the deadlines, the rehearsal (or why there is none) and the
hooks, whether two programs have room beside each other, and every reason for
which it would be refused. Changes nothing in the service and takes no lock.

Settings of the unit that were changed since the service was started are listed
with what puts them into force: a handoff applies few of them.

The plan-id stands for everything that the plan depends on. zdt upgrade with
--plan-id refuses when any of it has changed, and says what.`,
		Example: `  zdt plan web --binary ./web-1.4.3
  zdt plan web --rollback
  zdt plan web --binary ./web-1.4.3 -o json | jq -r .plan_id`,
		Args:              arguments(1, 1, "the NAME of the service"),
		ValidArgsFunction: f.completeServices(1),
	}
	flags := cmd.Flags()
	flags.StringVar(&o.Binary, "binary", "", "the new program: a `FILE` (default: the current release)")
	flags.StringVar(&o.Release, "release", "", "a release that is in the store in place of a FILE: its `ID` or how that begins")
	flags.BoolVar(&rollback, "rollback", false, "what zdt rollback would do (with --release: what it would do with --to)")
	flags.StringVar(&o.SHA256, "sha256", "", "refuse a FILE with a checksum other than `HEX`")
	flags.StringVar(&o.Exec, "exec", "", "the program within FILE, if that is an archive or a directory: a `PATH` in it")
	flags.StringVar(&o.Signature, "signature", "", "the signature of FILE, of minisign or ssh-keygen: a `FILE`")
	flags.StringArrayVar(&o.Gates, "gate", nil, "a `CHECK` that the new program has to pass, beside those of the unit: http://..., tcp:..., exec:... (repeat)")
	flags.BoolVar(&o.SkipGates, "skip-gates", false, "ask no gates, also not those of the unit")
	flags.Var((*strategyFlag)(&o.Strategy), "strategy", "handoff, or restart for programs that cannot hand over: clients wait meanwhile (default handoff)")
	flags.Var(maybeDuration{&o.Bake}, "bake", "watch the new program this long before it takes over (default: Bake= of the unit)")
	flags.Var(maybeDuration{&o.ReadyTimeout}, "ready-timeout", "time for the new program to get ready (default: the unit's)")
	flags.Var(maybeDuration{&o.DrainTimeout}, "drain-timeout", "time for the old program to finish (default: the unit's)")
	flags.Var(maybeOnFailure{&o.OnFailure}, "on-failure", "when the bake fails and the new program lives: rollback, or freeze until somebody decides (default: the unit's)")
	addRehearseFlags(flags, &o.Rehearse)
	addAcceptRisk(flags, &o.AcceptRisk)
	flags.BoolVar(&o.IgnoreHold, "ignore-hold", false, "as if nobody held the service")

	return f.command(cmd, func(ctx context.Context, args []string) error {
		var err error
		if o.Service, err = serviceName(args[0]); err != nil {
			return err
		}
		switch {
		case o.Release != "" && (o.Binary != "" || o.SHA256 != "" || o.Exec != "" || o.Signature != ""):
			return usage("", "plan: --release excludes --binary and what belongs to it")
		case rollback && (o.Binary != "" || o.SHA256 != "" || o.Exec != "" || o.Signature != "" || o.Bake != nil || o.OnFailure != nil || o.Rehearse != nil):
			return usage("a rollback goes to a release that has served, without a bake", "plan: --rollback excludes --binary and what belongs to it, --bake, --on-failure and --rehearse")
		case rollback:
			o.Kind = release.KindRollback
		}
		return runPlan(ctx, f, o)
	}, ExitOK, ExitRefused, ExitUsage, ExitUnavailable, ExitBusy, ExitNotAuthorised)
}

func runPlan(ctx context.Context, f *factory, o upgradeOptions) error {
	s, err := f.openSite(ctx, o.Service)
	if err != nil {
		return err
	}
	defer s.close()
	if err := s.nameRelease(&o); err != nil {
		return err
	}
	s.noteUnits(ctx)
	e, err := s.engine(ctx, o, nil)
	if err != nil {
		return err
	}
	doc := planDoc{Plan: e.Plan(ctx)}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	if doc.Settings, err = s.settings(ctx, doc.Plan); err != nil {
		doc.Notes = append(doc.Notes, fmt.Sprintf("what changed in the unit is not known: %v", err))
	}
	if f.globals.output != outputText {
		err = f.print(doc)
	} else {
		err = f.printPlan(doc)
	}
	if err == nil && doc.ExitCode != 0 {
		err = &Failure{Code: ExitCode(doc.ExitCode), Told: true}
	}
	return err
}

// planIDFlag is --plan-id.
type planIDFlag string

// Set takes what zdt plan has printed.
func (p *planIDFlag) Set(s string) error {
	if _, err := upgrade.ParsePlanID(s); err != nil {
		return errors.New("give the plan-id as zdt plan prints it")
	}
	*p = planIDFlag(s)
	return nil
}

func (p *planIDFlag) String() string { return string(*p) }

// Type names the flag's value in --help.
func (p *planIDFlag) Type() string { return "ID" }

// nameRelease completes the ID of --release.
func (s *site) nameRelease(o *upgradeOptions) error {
	if o.Release == "" {
		return nil
	}
	r, err := s.store.Find(o.Release)
	if err != nil {
		return &Failure{Code: ExitRefused, Err: err, Hint: hintOf(err)}
	}
	o.Release = r.ID
	return nil
}
