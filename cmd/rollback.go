package cmd

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/zdt-dev/zdt/release"
)

func newRollbackCmd(f *factory) *cobra.Command {
	o := rollOptions{upgradeOptions: upgradeOptions{Kind: release.KindRollback, run: f.transact}}
	cmd := &cobra.Command{
		Use:   "rollback NAME... [--to RELEASE] [FLAGS]",
		Short: "Go back to the last release that served well",
		Long: `Go back to the release that was committed before the one that serves, or to a
named one that has served before, as gaplessly as an upgrade and without a bake.

A second rollback goes one release further back, never forward to the one that
was just given up. A release that was never committed is nothing to go back to.
From the first moment on a restart would start the release that is gone back to.

Of a template, NAME@, the release that was brought to its instances last is
taken back from those that run it, one after the other.`,
		Example: `  zdt rollback web
  zdt rollback web --to 20261120T101500Z-4f2a91c0d37b -m "502s since 10:20"
  zdt rollback web@`,
		Args:              arguments(1, -1, "the NAME of the service"),
		ValidArgsFunction: f.completeSets(false),
	}
	flags := cmd.Flags()
	flags.StringVar(&o.Release, "to", "", "a `RELEASE` that has served: its ID or how that begins (default: the last one)")
	flags.Var(maybeDuration{&o.ReadyTimeout}, "ready-timeout", "time for the earlier program to get ready (default: the unit's)")
	flags.Var(maybeDuration{&o.DrainTimeout}, "drain-timeout", "time for the program that serves to finish (default: the unit's)")
	flags.Var((*durationFlag)(&o.Timeout), "timeout", "undo the rollback unless the earlier program has taken over by then")
	flags.Var((*waitFlag)(&o.Wait), "wait", "wait for another upgrade of the service to end, at most D")
	flags.Lookup("wait").NoOptDefVal = "forever"
	addRollFlags(flags, &o)
	flags.BoolVar(&o.IgnoreHold, "ignore-hold", false, "go on although somebody holds the service")
	flags.Var((*planIDFlag)(&o.PlanID), "plan-id", "refuse when anything has changed that the plan of this `ID` depends on; zdt plan --rollback prints it")
	flags.StringVarP(&o.Why, "message", "m", "", "why: a `TEXT` for the history")
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
		if operator, err := f.asOperator(o.Service); err != nil || operator {
			return f.operate(ctx, cmd, o.upgradeOptions, err)
		}
		if o.Detach {
			return f.detach(ctx, cmd, o.Service)
		}
		return f.answer(o.as, o.Service, runUpgrade(ctx, f, o.upgradeOptions))
	}, rollCodes()...)
}
