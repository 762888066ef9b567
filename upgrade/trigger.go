package upgrade

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/journal"
	"github.com/zdt-dev/zdt/release"
)

// trigger writes the first record, begins to watch, arms the incumbent and
// signals it. Until the signal may have been sent every failure is Refused:
// nothing was changed.
func (r *run) trigger() (string, error) {
	if err := r.ctx.Err(); err != nil {
		return "", &Failure{Outcome: Refused, Err: context.Cause(r.ctx)}
	}
	if err := r.firstRecord(); err != nil {
		return "", err
	}
	if err := r.prefer(); err != nil {
		return "", err
	}
	r.openStory()
	if err := r.watch(); err != nil {
		return "", err
	}
	if err := r.arm(); err != nil {
		return "", err
	}
	// From here on the answer has to be known, also when the operator
	// interrupts: a signal whose fate is unknown would leave a candidate.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.ctx), 2*r.slack)
	defer cancel()
	text, err := r.deliver(ctx)
	if err == nil {
		return text, nil
	}
	s, disarmErr := r.ask(context.WithoutCancel(r.ctx), func(c *control.Client, ctx context.Context) (control.Status, error) {
		return c.Disarm(ctx, r.report.TxID)
	})
	started := mine(s, r.report.TxID) || undone(s, r.report.TxID)
	if disarmErr == nil && started && r.reloads() {
		return text, nil // ExecReload= came that far: what the helper says is what counts
	}
	if disarmErr == nil && !started { // it did not arrive, and cannot any more
		if why := r.reloadWords(ctx); why != "" {
			return "", refuse(hintOf(err), "start the handoff: %w: %s", err, why)
		}
		return "", refuse(hintOf(err), "start the handoff: %w", err)
	}
	return "", &Failure{Err: errors.Join(err, disarmErr), Hint: hintOf(err)}
}

// reloadWords is the cause that the unit's ExecReload= has logged: systemd knows only that it failed. zdt handoff says it in
// one line; another process of the unit that logs such a line only misleads whoever reads about its own unit.
func (r *run) reloadWords(ctx context.Context) string {
	const cause = "zdt: "
	if !r.reloads() || r.cursor == "" {
		return ""
	}
	lines, err := r.Host.Tail(ctx, 0, r.cursor, logLines)
	if err != nil {
		return ""
	}
	for _, line := range slices.Backward(lines) {
		if why, ok := strings.CutPrefix(line, cause); ok {
			return why
		}
	}
	return ""
}

func (r *run) firstRecord() error {
	r.txn = release.Txn{TxID: r.report.TxID, Kind: r.Options.Kind, From: r.report.From.ID, To: r.to.ID,
		Restart: r.down || r.Options.Strategy == StrategyRestart, Started: r.report.StartedAt, Who: r.Who, Why: r.Options.Why, AcceptedRisks: r.report.AcceptedRisks}
	var err error
	if r.txn.Runner, err = release.ProcOf(os.Getpid()); err == nil && r.unit.MainPID != 0 {
		r.txn.Incumbent, err = release.ProcOf(r.unit.MainPID)
	}
	if err == nil {
		err = r.writeAhead(Trigger)
	}
	if err != nil {
		f := asFailure(err)
		f.Outcome = Refused
		return f
	}
	return nil
}

// watch begins to watch the incumbent, and proves that who is watched is the
// process that systemd will signal: since preflight, a large file was copied.
func (r *run) watch() error {
	ctx, cancel := context.WithTimeout(r.ctx, r.slack)
	defer cancel()
	client, err := r.Host.Control(ctx)
	if err != nil {
		return refuse(r.zdt("status", r.Options.Service), "connect to the runtime: %w", err)
	}
	if r.ev, err = gather(context.WithoutCancel(r.ctx), r.Host, client, r.unit, r.before); err != nil {
		return refuse(hintOf(err), "watch the service: %w", err)
	}
	r.ev.orders, r.ev.order = r.Orders, r.earlier
	err = r.ev.until(ctx, r.slack, func() (verdict, error) {
		switch {
		case r.ev.watchErr != nil:
			return failed, r.ev.watchErr
		case r.ev.status.PID != 0:
			return reached, nil
		}
		return undecided, nil
	})
	if err != nil {
		return refuse(r.zdt("status", r.Options.Service), "watch the runtime: %w", err)
	}
	u, err := r.Host.Unit(ctx)
	if err != nil {
		return refuse(hintOf(err), "watch the service: %w", err)
	}
	s, pid := r.ev.status, r.ev.incumbent.pid
	if s.PID != pid || u.MainPID != pid || u.ActiveState != "active" || r.ev.incumbent.isGone() {
		return refuse("run the same command again; if it comes back: "+r.systemctl("status", r.unit.Name),
			"the main process changed while the release was staged: it was %d, systemd has %d (%s), process %d answers", pid, u.MainPID, u.ActiveState, s.PID)
	}
	if was, is := serving(r.before), serving(s); is != was || isHelper(s) != r.ev.helper {
		return refuse("run the same command again", "the program changed while the release was staged: process %d served, now it is %d", was, is)
	}
	return nil
}

// arm tells the incumbent what the next SIGUSR2 means.
func (r *run) arm() error {
	order := control.Arm{TxID: r.report.TxID, Exe: r.to.Path, Hold: true, HoldFor: r.heldFor(), ReadyTimeout: r.Options.ReadyTimeout}
	if r.reloads() {
		order.Command = r.unit.ExecStart
	}
	s, err := r.ask(context.WithoutCancel(r.ctx), func(c *control.Client, ctx context.Context) (control.Status, error) { return c.Arm(ctx, order) })
	if err == nil && s.PID != r.ev.incumbent.pid {
		err = failure(reasonMainPID, "process %d answered in place of %d", s.PID, r.ev.incumbent.pid)
	}
	if err == nil && r.ctx.Err() != nil {
		err = context.Cause(r.ctx)
	}
	if err == nil {
		return nil
	}
	// Whether it is armed may be unknown. An arming that cannot be taken back
	// ends by itself after 10 s; another's is not touched.
	r.ask(context.WithoutCancel(r.ctx), func(c *control.Client, ctx context.Context) (control.Status, error) {
		return c.Disarm(ctx, r.report.TxID)
	})
	return refuse("see what goes on: "+r.zdt("status", r.Options.Service), "prepare the handoff: %w", err)
}

// probation is how long the candidate is watched between READY and commit.
func (r *run) probation() time.Duration { return max(r.Options.Bake, settle) }

// holdMargin is how much longer than the probation the incumbent waits for
// zdt's decision before it decides by itself and aborts. It has to outlast
// the slow disk on which zdt records the commit.
const holdMargin = 15 * time.Second

// openStory notes where the journal ends now: what follows is about this transaction.
func (r *run) openStory() {
	readable := r.noteJournal()
	r.story = newStory(r.Host, r.cursor, r.report.TxID, r.before, readable)
}

func (r *run) noteJournal() (readable bool) {
	ctx, cancel := context.WithTimeout(r.ctx, r.slack)
	defer cancel()
	var err error
	r.cursor, err = r.Host.Cursor(ctx)
	if err != nil {
		r.cursor = ""
		if r.ctx.Err() == nil {
			r.warn("the journal cannot be read: %v", err)
		}
	}
	r.Host.Write(r.event(journal.UpgradeBegin))
	return err == nil
}
