package cmd

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/release"
	"github.com/zdt-dev/zdt/upgrade"
)

// The commands that decide about an upgrade that is under way, frozen, or was cut short.

func newPromoteCmd(f *factory) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "promote NAME",
		Short: "End the bake of an upgrade: the new program takes over now",
		Long: `End the probation of a new program before its time: it takes over now. That is
also how an upgrade that is frozen (--on-failure freeze) goes on.`,
		Example:           `  zdt promote web`,
		Args:              arguments(1, 1, "the NAME of the service"),
		ValidArgsFunction: f.completeServices(1),
	}
	return f.command(cmd, func(ctx context.Context, args []string) error {
		return f.decide(ctx, args[0], upgrade.Promote)
	}, upgradeCodes()...)
}

func newAbortCmd(f *factory) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "abort NAME",
		Short: "Undo an upgrade that has not taken over yet",
		Long: `Undo an upgrade whose new program has not taken over yet: one that another zdt
works on, one that is frozen, or one that was cut short. The old program serves
on. What has taken over is undone by zdt rollback.`,
		Example:           `  zdt abort web`,
		Args:              arguments(1, 1, "the NAME of the service"),
		ValidArgsFunction: f.completeServices(1),
	}
	return f.command(cmd, func(ctx context.Context, args []string) error {
		return f.decide(ctx, args[0], upgrade.Abort)
	}, upgradeCodes()...)
}

func newResumeCmd(f *factory) *cobra.Command {
	var all, settle, detach bool
	var as identity
	cmd := &cobra.Command{
		Use:   "resume [NAME] [FLAGS]",
		Short: "Go on with an upgrade that was cut short",
		Long: `Put in order what a zdt that was killed, or a host that went down, has left of
an upgrade, and go on: what had taken over is finished, all else is undone and
run again to the same release, unless it was being undone already. When nothing
is open there is nothing to do.

With --settle nothing is run again. A boot unit does that for all services.`,
		Example: `  zdt resume web
  zdt resume --all --settle`,
		Args:              arguments(0, 1, "the NAME of the service"),
		ValidArgsFunction: f.completeServices(1),
	}
	cmd.Flags().BoolVar(&settle, "settle", false, "finish or undo, but do not run the upgrade again")
	cmd.Flags().BoolVar(&all, "all", false, "all services of this host")
	f.withEvents(cmd)
	addDetachFlags(cmd.Flags(), &detach, &as)
	return f.command(cmd, func(ctx context.Context, args []string) error {
		if all != (len(args) == 0) {
			return usage("zdt resume NAME, or zdt resume --all", "resume: name a service, or all of them")
		}
		if detach {
			if all {
				return usage("", "resume: --all and --detach exclude each other")
			}
			name, err := serviceName(args[0])
			if err != nil {
				return err
			}
			return f.detach(ctx, cmd, name)
		}
		names := args
		if all {
			p, err := f.paths()
			if err != nil {
				return err
			}
			if names, err = p.Services(); err != nil {
				return fmt.Errorf("list services: %w", err)
			}
		}
		var errs []error
		for _, name := range names {
			errs = append(errs, f.answer(as, name, f.resume(ctx, name, settle, as)))
		}
		return errors.Join(errs...)
	}, upgradeCodes()...)
}

// decide has an order carried out, by the zdt that works on the upgrade or, when there is none, by this one.
func (f *factory) decide(ctx context.Context, arg string, order upgrade.Order) error {
	name, err := serviceName(arg)
	if err != nil {
		return err
	}
	if operator, err := f.asOperator(name); err != nil || operator {
		if err != nil {
			return err
		}
		return f.askOrder(ctx, name, order)
	}
	s, err := f.openAnySite(ctx, name)
	if err != nil {
		return err
	}
	defer s.close()
	holder, alive, err := release.ReadHolder(s.paths.Lock(name))
	if err != nil {
		return err
	}
	if alive && holder.TxID != "" {
		return s.relay(ctx, holder, order)
	}
	return s.settle(ctx, order)
}

// settle carries order out on what a zdt that is gone has left.
func (s *site) settle(ctx context.Context, order upgrade.Order) error {
	report, err := s.settled(ctx, order, nil, nil)
	if err != nil {
		return err
	}
	return s.f.conclude(ctx, report, report.Outcome == upgrade.Aborted && order == upgrade.Abort)
}

// settled shows how that is done. who asks for it; nil: who runs this zdt. admit is asked under the lock whether they may; nil: they may.
func (s *site) settled(ctx context.Context, order upgrade.Order, who *release.Who, admit func(context.Context) error) (upgrade.Report, error) {
	as, err := newIdentity()
	if err != nil {
		return upgrade.Report{}, err
	}
	as.Who = who
	p := s.f.startProgress(s.service, as)
	e, err := s.settler(ctx, upgradeOptions{Service: s.service, as: as}, p.observe)
	if err == nil && order == upgrade.Promote { // its hooks may still object
		e.Hooks, err = s.hooks()
	}
	if err != nil {
		p.fail(err)
		return upgrade.Report{}, err
	}
	e.Admit = admit
	report := e.Settle(ctx, order)
	p.finish(report)
	return report, nil
}

// orderDoc is the document of an order that another zdt carries out.
type orderDoc struct {
	Schema   string        `json:"schema"`  // zdt.order/1
	Outcome  string        `json:"outcome"` // that of the upgrade
	ExitCode ExitCode      `json:"exit_code"`
	Changed  bool          `json:"changed"` // the order did it
	Service  string        `json:"service"`
	TxID     string        `json:"txid"`
	Order    upgrade.Order `json:"order"`
	PID      int           `json:"pid"` // of the zdt that carried it out
	Cause    string        `json:"cause,omitempty"`
}

// relay gives an order to the zdt that works on the service, and waits for the end of its transaction.
func (s *site) relay(ctx context.Context, holder release.Holder, order upgrade.Order) error {
	next := s.f.zdt() + " watch " + s.service
	if !holder.Orders {
		return fail(ExitBusy, next, "pid %d works on %s (%s) and takes no orders", holder.PID, s.service, holder.Who)
	}
	if err := s.tell(holder, order); err != nil {
		return &Failure{Code: ExitRefused, Err: fmt.Errorf("tell pid %d, which works on %s: %w", holder.PID, s.service, err), Hint: next}
	}
	s.f.say("%s is told to %s upgrade %s", fmt.Sprintf("pid %d", holder.PID), order, holder.TxID)
	retry := time.NewTicker(20 * time.Millisecond)
	defer retry.Stop()
	for {
		now, alive, err := release.ReadHolder(s.paths.Lock(s.service))
		if err != nil {
			return err
		}
		if !holder.Alive() || alive && now.TxID != "" && now.TxID != holder.TxID {
			break
		}
		select {
		case <-retry.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return s.tellOutcome(holder, order)
}

// tell sends an order to the process that holds the lock, and to no other that has its pid by now.
func (s *site) tell(holder release.Holder, order upgrade.Order) error {
	fd, err := unix.PidfdOpen(holder.PID, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if !holder.Alive() { // looked at with the pidfd open: what is alive now is what that stands for
		return errors.New("it has just ended")
	}
	sig := syscall.SIGUSR1
	if order == upgrade.Abort {
		sig = syscall.SIGUSR2
	}
	return unix.PidfdSendSignal(fd, sig, nil, 0)
}

// tellOutcome says how the transaction ended that was given an order.
func (s *site) tellOutcome(holder release.Holder, order upgrade.Order) error {
	doc := orderDoc{Schema: "zdt.order/1", Service: s.service, TxID: holder.TxID, Order: order, PID: holder.PID}
	h, err := s.store.History()
	if err != nil {
		return err
	}
	for _, e := range h.Entries {
		if e.TxID == holder.TxID {
			doc.Outcome = e.Outcome
		}
	}
	if doc.Outcome == "" { // it had changed nothing yet
		if data, err := s.store.ReadReport(holder.TxID); err == nil {
			if e, err := decodeEnding(data); err == nil && e.report != nil {
				doc.Outcome = string(e.report.Outcome)
			}
		}
	}
	wanted := map[upgrade.Order]upgrade.Outcome{upgrade.Promote: upgrade.Upgraded, upgrade.Abort: upgrade.Aborted}[order]
	doc.Changed = doc.Outcome == string(wanted)
	switch {
	case doc.Changed:
	case doc.Outcome == "": // it ended before it had begun, or is frozen by now
		doc.Outcome, doc.ExitCode, doc.Cause = string(upgrade.Refused), ExitRefused, "the upgrade ended before it could be told"
	default:
		doc.ExitCode, doc.Cause = ExitRefused, fmt.Sprintf("the upgrade ended as %s all the same", doc.Outcome)
	}
	if s.f.globals.output != outputText {
		if err := s.f.print(doc); err != nil {
			return err
		}
	}
	if doc.Cause != "" {
		return fail(doc.ExitCode, s.f.zdt()+" history "+s.service, "%s", doc.Cause)
	}
	if s.f.globals.output == outputText {
		st := s.f.outStyle()
		words := "is over its bake and has taken over"
		if order == upgrade.Abort {
			words = "is undone; the old program serves on"
		}
		fmt.Fprintf(s.f.Out, "%s %s: upgrade %s %s\n", st.good.Render(st.marks.ok), st.bold.Render(s.service), doc.TxID, words)
	}
	return nil
}

// resume settles what is open and, unless only that is wanted, runs what was undone again.
func (f *factory) resume(ctx context.Context, arg string, settle bool, as identity) error {
	name, err := serviceName(arg)
	if err != nil {
		return err
	}
	s, err := f.openAnySite(ctx, name)
	if err != nil {
		return err
	}
	defer s.close()
	old, err := s.store.ReadTxn()
	if errors.Is(err, release.ErrNoTxn) {
		now := f.now()
		report := upgrade.Report{Schema: "zdt.upgrade/1", Kind: release.KindUpgrade, Service: name, Outcome: upgrade.Unchanged, StartedAt: now, EndedAt: now}
		if as.detached() {
			f.keepReport(name, as.TxID, report)
		}
		return f.conclude(ctx, report, true)
	}
	if err != nil {
		return &Failure{Code: ExitRefused, Err: err, Hint: hintOf(err)}
	}
	report, err := s.settled(ctx, upgrade.Finish, as.Who, nil)
	if err != nil {
		return err
	}
	undone := report.Outcome == upgrade.Interrupted && report.Cause == ""
	if !undone || settle || old.To == "" || old.Undo { // what was to be undone is not tried again
		if as.detached() {
			f.keepReport(name, as.TxID, report)
		}
		return f.conclude(ctx, report, undone)
	}
	for _, w := range report.Warnings {
		f.say("%s %s", f.errStyle().warn.Render("warning:"), clean(w))
	}
	again := upgradeOptions{Service: name, Kind: old.Kind, Release: old.To, Why: old.Why, AcceptRisk: old.AcceptedRisks, as: as, run: f.transact}
	if old.Restart {
		again.Strategy = upgrade.StrategyRestart
	}
	return runUpgrade(ctx, f, again)
}
