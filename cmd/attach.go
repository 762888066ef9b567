package cmd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/zdt-dev/zdt/release"
	"github.com/zdt-dev/zdt/upgrade"
)

func newAttachCmd(f *factory) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "attach NAME [TXID]",
		Short: "Watch an upgrade that runs elsewhere as if it ran here",
		Long: `Show the phases of an upgrade that is under way, whoever started it, print its
report when it is over, and exit as it did. Without a TXID it is the one that
is under way, or else the last one.

Ctrl-C leaves the upgrade alone. A second one within three seconds aborts it,
as zdt abort does.`,
		Example: `  zdt attach web
  zdt attach web -o ndjson`,
		Args:              arguments(1, 2, "the NAME of the service"),
		ValidArgsFunction: f.completeServices(1),
	}
	f.withEvents(cmd)
	return f.command(cmd, func(ctx context.Context, args []string) error {
		name, txid, err := transactionArgs(args)
		if err != nil {
			return err
		}
		return runAttach(ctx, f, name, txid)
	}, followCodes()...)
}

// second is how long after a Ctrl-C another one aborts the upgrade.
const second = 3 * time.Second

// watched is the end of a transaction, as a follower saw it.
type watched struct {
	ending ending
	err    error
}

func runAttach(ctx context.Context, f *factory, name, txid string) error {
	// Each of them counts, here; the first one ends ctx as well, which is nothing new then.
	interrupts := make(chan os.Signal, 4)
	signal.Notify(interrupts, syscall.SIGINT)
	defer signal.Stop(interrupts)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}

	updates := make(chan upgrade.Update)
	following, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	w, err := f.openFollower(name, txid, func(u upgrade.Update) {
		select {
		case updates <- u:
		case <-following.Done():
		}
	})
	if err != nil {
		return err
	}
	ended := make(chan watched, 1)
	go func() {
		defer close(ended)
		e, err := w.wait(following)
		ended <- watched{e, err}
	}()
	defer func() {
		cancel()
		for range ended { // the goroutine is done with w
		}
		w.close()
	}()
	a := &attached{f: f, w: w, updates: updates, ended: ended, interrupts: interrupts}
	e, err := a.watch(ctx)
	if !errors.Is(err, errInterrupted) {
		return a.tell(e, err)
	}
	if ctx.Err() != nil && !ctrlC(ctx) {
		return w.left(ctx, context.Cause(ctx))
	}
	f.say("upgrade %s of %s goes on; Ctrl-C again within %v aborts it", w.txid, name, second)
	late := time.NewTimer(second)
	defer late.Stop()
	select {
	case <-interrupts:
	case <-late.C:
		return w.left(ctx, context.Cause(ctx))
	case e := <-ended:
		return a.tell(e.ending, e.err)
	}
	if err := f.abortOf(following, w); err != nil {
		return err
	}
	if e, err = a.watch(ctx); errors.Is(err, errInterrupted) {
		return w.left(ctx, context.Cause(ctx))
	}
	return a.tell(e, err)
}

// ctrlC tells whether that is what has ended ctx.
func ctrlC(ctx context.Context) bool {
	return errors.Is(context.Cause(ctx), signalled{syscall.SIGINT})
}

// abortOf orders the zdt that works on w's transaction to undo it, as zdt abort does.
func (f *factory) abortOf(ctx context.Context, w *follower) error {
	s, err := f.openAnySite(ctx, w.service)
	if err != nil {
		return err
	}
	defer s.close()
	holder, alive, err := release.ReadHolder(s.paths.Lock(w.service))
	switch {
	case err != nil:
		return err
	case !alive || holder.TxID != w.txid:
		return nil // it has just ended; how, the follower says
	case !holder.Orders:
		return fail(ExitBusy, f.zdt()+" watch "+w.service, "pid %d works on %s (%s) and takes no orders", holder.PID, w.service, holder.Who)
	}
	f.say("pid %d is told to abort upgrade %s", holder.PID, w.txid)
	if err := s.tell(holder, upgrade.Abort); err != nil && holder.Alive() {
		return &Failure{Code: ExitRefused, Err: fmt.Errorf("tell pid %d, which works on %s: %w", holder.PID, w.service, err), Hint: f.zdt() + " abort " + w.service}
	}
	return nil
}

// attached is the terminal's side of zdt attach.
type attached struct {
	f       *factory
	w       *follower
	updates <-chan upgrade.Update
	ended   <-chan watched
	seen    []upgrade.Update

	interrupts <-chan os.Signal
}

var errInterrupted = errors.New("interrupted")

// watch shows the transaction until it is over. The error is errInterrupted when somebody wants something else before.
func (a *attached) watch(ctx context.Context) (ending, error) {
	stop := ctx.Done()
	if ctrlC(ctx) {
		stop = nil
	}
	p := a.f.showProgress(a.w.service, nil)
	defer p.close()
	if a.f.live() && a.f.globals.output != outputNDJSON && a.f.events == nil {
		for _, u := range a.seen { // a picture that was taken away is drawn anew
			p.observe(u)
		}
	}
	for {
		select {
		case u := <-a.updates:
			a.seen = append(a.seen, u)
			p.observe(u)
		case e := <-a.ended:
			return e.ending, e.err
		case <-a.interrupts:
			return ending{}, errInterrupted
		case <-stop:
			if !ctrlC(ctx) {
				return ending{}, errInterrupted
			}
			stop = nil // it comes as an interrupt
		}
	}
}

func (a *attached) tell(e ending, err error) error {
	if err != nil {
		return err
	}
	return a.f.present(e)
}
