package cmd

import (
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"

	"github.com/zdt-dev/zdt/release"
	"github.com/zdt-dev/zdt/upgrade"
)

func newWaitCmd(f *factory) *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "wait NAME [TXID] [--timeout D]",
		Short: "Wait for the end of an upgrade, and end as it did",
		Long: `Wait until an upgrade or a rollback is over, print its report, and exit as it
did: the one with that TXID, else the one that is under way, else the last one.
It does not matter who started it, and from where. Takes no lock and changes
nothing.`,
		Example: `  TX=$(zdt upgrade web --binary ./web-1.4.3 --detach) && zdt wait web "$TX"
  zdt wait web --timeout 10m -o json`,
		Args:              arguments(1, 2, "the NAME of the service"),
		ValidArgsFunction: f.completeServices(1),
	}
	cmd.Flags().Var((*durationFlag)(&timeout), "timeout", "give up after this long; the upgrade goes on")
	return f.command(cmd, func(ctx context.Context, args []string) error {
		name, txid, err := transactionArgs(args)
		if err != nil {
			return err
		}
		ctx, cancel := timeoutCause(ctx, timeout)
		defer cancel()
		return runWait(ctx, f, name, txid)
	}, followCodes()...)
}

// transactionArgs reads NAME [TXID].
func transactionArgs(args []string) (name, txid string, err error) {
	if name, err = serviceName(args[0]); err != nil {
		return "", "", err
	}
	if len(args) > 1 {
		if txid = args[1]; !release.ValidTxID(txid) {
			return "", "", usage("zdt history "+name+" shows them", "%q is not the ID of an upgrade", txid)
		}
	}
	return name, txid, nil
}

// followCodes are those of the commands that end as another zdt did.
func followCodes() []ExitCode {
	return []ExitCode{ExitOK, ExitNoService, ExitRefused, ExitRolledBack, ExitNotRestored, ExitInterrupted, ExitFrozen, ExitUsage, ExitBusy, ExitNotAuthorised, ExitDeadline, ExitInt, ExitTerm}
}

func runWait(ctx context.Context, f *factory, name, txid string) error {
	w, err := f.openFollower(name, txid, func(upgrade.Update) {})
	if err != nil {
		return err
	}
	defer w.close()
	e, err := w.wait(ctx)
	if err != nil {
		return w.left(ctx, err)
	}
	return f.present(e)
}

// left adds to an error with which the watching ended, and not the transaction, that it goes on.
func (w *follower) left(ctx context.Context, err error) error {
	var failure *Failure
	if ctx.Err() == nil || errors.As(err, &failure) {
		return err
	}
	return fail(codeOf(err), w.f.zdt()+" attach "+w.service+", "+w.f.zdt()+" abort "+w.service, "%w; upgrade %s of %s goes on", err, w.txid, w.service)
}
