package upgrade

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
)

// poll is how often a state is looked at again that nobody announces to us.
const poll = 20 * time.Millisecond

// becomeIdle brings the runtime to where a handoff can start: a main process
// that systemd lost is given back, what the dead zdt behind the transaction
// old had armed or held is undone, and a handoff or a drain that goes on is
// waited for. It asks everybody anew each time: the process that answers and
// the one that is the main process change while it waits.
func (r *run) becomeIdle(old string) error {
	ctx, cancel := context.WithTimeout(r.ctx, r.Options.DrainTimeout+2*r.slack)
	defer cancel()
	var strangeSince time.Time
	told, reclaimed := "", 0
	var last control.Status
	for {
		s, err := r.ask(ctx, (*control.Client).Status)
		switch {
		case err != nil && ctx.Err() != nil && r.ctx.Err() == nil && last.PID != 0:
			return r.stillBusy(last) // the time was over while it was asked
		case err != nil:
			return r.unreachable(err)
		}
		last = s
		busy := ""
		switch {
		case s.PID == r.unit.MainPID:
			strangeSince = time.Time{}
			if busy, err = r.quieten(ctx, s, old); err != nil {
				return err
			}
			if busy == "" && r.unit.ActiveState == "reloading" {
				busy = "waiting for a reload to end"
			}
			if busy == "" {
				r.before, r.report.Generation = s, s.Generation
				return nil
			}
		case s.TookOver && reclaimed < reclaimTries:
			reclaimed++
			if err := r.reclaim(ctx); err != nil && reclaimed == reclaimTries {
				return refuse(r.systemctl("restart", r.unit.Name)+" (clients will notice)", "process %d serves, but systemd has lost it: %w", s.PID, err)
			}
			busy = "giving systemd its main process back"
		default:
			// For a moment that is what a commit looks like.
			if strangeSince.IsZero() {
				strangeSince = time.Now()
			}
			if time.Since(strangeSince) > r.slack {
				return refuse(r.systemctl("status", r.unit.Name), "process %d answers on the control socket, but the main process of %s is %d", s.PID, r.unit.Name, r.unit.MainPID)
			}
			busy = "waiting for an earlier handoff to end"
		}
		if busy != told {
			told = busy
			r.progress(busy)
		}
		pause(ctx, poll)
		if r.ctx.Err() != nil {
			return context.Cause(r.ctx)
		}
		if ctx.Err() != nil {
			return r.stillBusy(s)
		}
		if s.PID != r.unit.MainPID || s.Phase == control.Draining {
			r.hangUp() // somebody else may answer by now
		}
		if r.unit, err = r.Host.Unit(ctx); err != nil {
			return &Failure{Outcome: Refused, Err: err, Hint: hintOf(err)}
		}
		if !up(r.unit) || r.unit.MainPID == 0 {
			return r.checkUnit()
		}
	}
}

// stillBusy says what the runtime is busy with when the time is over.
func (r *run) stillBusy(s control.Status) error {
	what, hint := string(s.Phase), r.zdt("status", r.Options.Service)
	if p := s.Predecessor; p != nil {
		what = fmt.Sprintf("process %d still drains", p.PID)
		if p.Connections.Open() > 0 {
			what += ": " + p.Connections.Progress()
		}
		// Nobody is told to kill what only the service says is its own.
		if inside, err := r.Host.InUnit(p.PID, r.unit); err == nil && inside {
			hint += fmt.Sprintf("; if it stays: kill %d", p.PID)
		}
	}
	return refuse(hint, "%s is still busy with an earlier handoff after %s (%s)", r.Options.Service, r.Options.DrainTimeout+2*r.slack, what)
}

func (r *run) unreachable(err error) error {
	if r.ctx.Err() != nil {
		return context.Cause(r.ctx)
	}
	return refuse("the program has to use the handoff library or run under zdt run, and the unit needs RuntimeDirectory=zdt/"+r.Options.Service+"; after a change: "+r.systemctl("restart", r.unit.Name),
		"main process %d of %s does not answer on its control socket: %w", r.unit.MainPID, r.unit.Name, err)
}

// quieten says what the main process is busy with, "" when with nothing, and
// ends what the dead zdt behind the transaction old has left in it.
func (r *run) quieten(ctx context.Context, s control.Status, old string) (busy string, err error) {
	switch {
	case s.Phase == control.Stopping || s.Phase == control.Exited:
		return "", refuse(r.systemctl("status", r.unit.Name), "%s is %s", r.Options.Service, s.Phase)
	case old != "" && s.Armed != nil && s.Armed.TxID == old:
		_, err = r.ask(ctx, func(c *control.Client, ctx context.Context) (control.Status, error) { return c.Disarm(ctx, old) })
		busy = "disarming an upgrade that was cut short"
	case old != "" && held(s, old):
		// Not committed: the rule of every undecided handoff is to go back.
		_, err = r.ask(ctx, func(c *control.Client, ctx context.Context) (control.Status, error) {
			return c.Abort(ctx, old, "the zdt that started it is gone")
		})
		busy = "undoing an upgrade that was cut short"
	case s.Armed != nil:
		busy = "armed for another handoff"
	case s.Phase != control.Idle || s.Predecessor != nil:
		busy = "waiting for an earlier handoff to end"
	}
	var refused *control.Error
	if errors.As(err, &refused) {
		err = nil // it was decided in between: look again
	}
	if err != nil {
		return "", r.unreachable(err)
	}
	return busy, nil
}

// mine reports whether the handoff in progress belongs to txid.
func mine(s control.Status, txid string) bool { return s.Handoff != nil && s.Handoff.TxID == txid }

// held reports whether txid's handoff waits for READY or for a decision.
func held(s control.Status, txid string) bool {
	return mine(s, txid) && (s.Phase == control.Forked || s.Phase == control.Held)
}

// undone reports whether txid's handoff came to nothing.
func undone(s control.Status, txid string) bool {
	return s.Last != nil && s.Last.TxID == txid && !s.Last.Committed
}

// reclaimTries bounds reclaim, each of which costs two daemon-reloads.
const reclaimTries = 2

// reclaim makes systemd accept the process that serves as the main one again.
func (r *run) reclaim(ctx context.Context) error {
	c, err := r.Host.Control(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	s, err := c.Status(ctx)
	if err != nil {
		return err
	}
	if inside, err := r.Host.InUnit(s.PID, r.unit); err != nil || !inside {
		return errors.Join(fmt.Errorf("process %d is not in the control group of %s", s.PID, r.unit.Name), err)
	}
	if err := r.Host.Reclaim(ctx, func(ctx context.Context) error {
		_, err := c.Reclaim(ctx)
		return err
	}); err != nil {
		return fmt.Errorf("give systemd its main process back: %w", err)
	}
	u, err := r.Host.Unit(ctx)
	if err != nil {
		return err
	}
	if u.MainPID != s.PID {
		return fmt.Errorf("systemd still believes %d to be the main process, and not %d which serves", u.MainPID, s.PID)
	}
	return nil
}

// ask sends the runtime one command and waits for the answer, but not for
// longer than such an answer can take. A connection whose answer did not come
// is out of step: what it says next would be taken for another answer. It is
// replaced.
func (r *run) ask(ctx context.Context, command func(*control.Client, context.Context) (control.Status, error)) (control.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*r.slack) // a commit waits for systemd twice, 5 s each
	defer cancel()
	if r.client == nil {
		var err error
		if r.client, err = r.Host.Control(ctx); err != nil {
			return control.Status{}, err
		}
	}
	s, err := command(r.client, ctx)
	var refused *control.Error
	if err != nil && !errors.As(err, &refused) {
		r.hangUp()
	}
	return s, err
}

// hangUp closes the connection; ask makes a new one.
func (r *run) hangUp() {
	if r.client != nil {
		r.client.Close()
		r.client = nil
	}
}

// pause waits, but not beyond ctx.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
