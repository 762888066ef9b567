package upgrade

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/release"
)

// preflight proves that the service can do a handoff now, and finishes or
// undoes what an earlier zdt left.
func (r *run) preflight() error {
	if err := r.Check(r.Options.Binary); err != nil {
		return &Failure{Outcome: Refused, Err: err, Hint: hintOf(err)}
	}
	var err error
	if r.unit, err = r.Host.Unit(r.ctx); err != nil {
		return &Failure{Outcome: Refused, Err: err, Hint: hintOf(err)}
	}
	if err := r.checkUnit(); err != nil {
		return err
	}
	current, err := r.Store.Current()
	switch {
	case errors.Is(err, release.ErrNoCurrent):
		return refuse("zdt init "+r.Options.Service, "%s has no release yet", r.Options.Service)
	case err != nil:
		return &Failure{Outcome: Refused, Err: fmt.Errorf("read current release: %w", err), Hint: hintOf(err)}
	}
	r.report.From = describe(current)
	r.report.Incumbent = r.unit.MainPID

	if r.client, err = r.Host.Control(r.ctx); err != nil {
		return refuse("the program has to use the handoff library (or run under zdt run), and the unit needs RuntimeDirectory=zdt/"+r.Options.Service,
			"main process %d of %s does not answer on its control socket: %w", r.unit.MainPID, r.unit.Name, err)
	}
	if err := r.becomeIdle(); err != nil {
		r.client.Close()
		return err
	}
	return nil
}

func (r *run) checkUnit() error {
	u := r.unit
	name := r.Options.Service
	switch {
	case u.Job:
		return refuse("wait for it: systemctl list-jobs", "a job of systemd is queued or running for %s", u.Name)
	case u.ActiveState != "active":
		return refuse("start it first: systemctl start "+u.Name, "%s is %s (%s): there is nothing to hand over", u.Name, u.ActiveState, u.Result)
	case u.MainPID == 0:
		return refuse("systemctl status "+u.Name, "%s has no main process", u.Name)
	case u.Type != "notify" && u.Type != "notify-reload":
		return refuse("zdt init "+name+" writes a unit that works", "%s has Type=%s; a handoff needs notify", u.Name, u.Type)
	case u.NotifyAccess == "none":
		return refuse("set NotifyAccess=main", "%s has NotifyAccess=none: systemd would not hear of the new main process and would end the service", u.Name)
	}
	want := filepath.Join(r.Store.Dir(), "current") + "/"
	if !strings.HasPrefix(u.ExecStartPath, want) {
		return refuse("zdt init "+name+" --exec "+u.ExecStartPath, "%s starts %s, not a release below %s: a restart would not follow the upgrade", u.Name, u.ExecStartPath, want)
	}
	return nil
}

// becomeIdle brings the runtime to where a handoff can start: a main process
// that systemd lost is given back, an open transaction is finished or undone, a
// predecessor that still drains is waited for.
func (r *run) becomeIdle() error {
	s, err := r.status()
	if err != nil {
		return err
	}
	if s.TookOver && s.PID != r.unit.MainPID {
		if s, err = r.reclaim(r.ctx); err != nil {
			return &Failure{Outcome: Refused, Err: err, Hint: "systemctl restart " + r.unit.Name}
		}
		r.report.Incumbent = r.unit.MainPID
	}
	if s.PID != r.unit.MainPID {
		return refuse("systemctl status "+r.unit.Name, "process %d answers on the control socket, but the main process is %d", s.PID, r.unit.MainPID)
	}
	r.report.Generation = s.Generation
	if err := r.recover(s); err != nil {
		return err
	}
	if err := r.waitIdle(); err != nil {
		return err
	}
	return r.findFrom()
}

func (r *run) status() (control.Status, error) {
	s, err := r.client.Status(r.ctx)
	if err != nil {
		return s, &Failure{Outcome: Refused, Err: fmt.Errorf("ask the runtime: %w", err), Hint: "zdt status " + r.Options.Service}
	}
	return s, nil
}

// waitIdle waits for the end of another handoff or drain.
func (r *run) waitIdle() error {
	watch, err := r.Host.Control(r.ctx)
	if err != nil {
		return &Failure{Outcome: Refused, Err: err}
	}
	defer watch.Close()
	ctx, cancel := context.WithTimeout(r.ctx, r.Options.DrainTimeout+slack)
	defer cancel()
	told := false
	for s, err := range watch.Watch(ctx) {
		if err != nil {
			if r.ctx.Err() != nil {
				return context.Cause(r.ctx)
			}
			return refuse("zdt status "+r.Options.Service, "the service is still busy with an earlier handoff: %w", err)
		}
		switch {
		case s.Phase == control.Idle && s.Predecessor == nil:
			r.report.Generation = s.Generation
			return nil
		case s.Phase == control.Starting || s.Phase == control.Stopping || s.Phase == control.Exited:
			return refuse("zdt status "+r.Options.Service, "the service is %s", s.Phase)
		}
		if !told {
			told = true
			r.progress("waiting for an earlier handoff to end")
		}
	}
	return refuse("zdt status "+r.Options.Service, "the runtime went away")
}

// findFrom corrects the release to go back to: the one that runs, should it
// not be the current one.
func (r *run) findFrom() error {
	running, err := r.Host.Exe(r.unit.MainPID)
	if err != nil {
		return &Failure{Outcome: Refused, Err: fmt.Errorf("find the running release: %w", err)}
	}
	id := releaseOf(r.Store, running)
	switch {
	case id == r.report.From.ID:
		return nil
	case id == "":
		r.warn("process %d runs %s, which is no release; a rollback would start %s", r.unit.MainPID, running, r.report.From.ID)
		return nil
	}
	rel, err := r.Store.Get(id)
	if err != nil {
		return &Failure{Outcome: Refused, Err: fmt.Errorf("read the running release %s: %w", id, err), Hint: hintOf(err)}
	}
	r.warn("release %s runs, but a restart would start %s", id, r.report.From.ID)
	r.report.From = describe(rel)
	return nil
}

// recover deals with the record of a transaction whose zdt is gone; holding
// the lock proves that it is.
func (r *run) recover(s control.Status) error {
	old, err := r.Store.ReadTxn()
	if errors.Is(err, release.ErrNoTxn) {
		return nil
	}
	if err != nil {
		return &Failure{Outcome: Refused, Err: fmt.Errorf("read the record of an earlier upgrade: %w", err), Hint: hintOf(err)}
	}
	outcome := Interrupted
	if mine(s, old.TxID) && s.Phase != control.Draining {
		// Not committed: the rule of every undecided handoff is to go back.
		if _, err := r.client.Abort(r.ctx, old.TxID, "the zdt that started it is gone"); err != nil {
			r.warn("abort the handoff of %s: %v", old.TxID, err)
		}
	}
	running, err := r.Host.Exe(r.unit.MainPID)
	if err != nil {
		return &Failure{Outcome: Refused, Err: err}
	}
	if id := releaseOf(r.Store, running); id != "" && id == old.To {
		// Committed, and only the last step is missing.
		to, err := r.Store.Get(id)
		if err == nil {
			err = r.Store.Flip(to)
		}
		if err != nil {
			return &Failure{Outcome: Refused, Err: fmt.Errorf("finish upgrade %s: %w", old.TxID, err), Hint: hintOf(err)}
		}
		r.report.From = describe(to)
		outcome = Upgraded
		r.warn("upgrade %s had committed and was cut short; it is finished now", old.TxID)
	} else {
		r.warn("upgrade %s was cut short before its commit; it is undone", old.TxID)
	}
	entry := release.Entry{TxID: old.TxID, Kind: old.Kind, From: old.From, To: old.To, Committed: outcome == Upgraded, Outcome: string(outcome), ExitCode: 13,
		Started: old.Started, Ended: r.Host.Now(), Who: old.Who, Why: old.Why, Reason: "zdt-died"}
	if outcome == Upgraded {
		entry.ExitCode = 0
	}
	if err := errors.Join(r.Store.AppendHistory(entry), r.Store.ClearTxn()); err != nil {
		return &Failure{Outcome: Refused, Err: fmt.Errorf("close upgrade %s: %w", old.TxID, err), Hint: hintOf(err)}
	}
	return nil
}

// reclaim makes systemd accept the process that serves as the main one again.
func (r *run) reclaim(ctx context.Context) (control.Status, error) {
	c, err := r.Host.Control(ctx)
	if err != nil {
		return control.Status{}, err
	}
	defer c.Close()
	s, err := c.Status(ctx)
	if err != nil {
		return s, err
	}
	if inside, err := r.Host.InUnit(s.PID, r.unit); err != nil || !inside {
		return s, errors.Join(fmt.Errorf("process %d is not in the control group of %s", s.PID, r.unit.Name), err)
	}
	err = r.Host.Reclaim(ctx, func(ctx context.Context) error {
		s, err = c.Reclaim(ctx)
		return err
	})
	if err != nil {
		return s, fmt.Errorf("give systemd its main process back: %w", err)
	}
	if r.unit, err = r.Host.Unit(ctx); err != nil {
		return s, err
	}
	if r.unit.MainPID != s.PID {
		return s, fmt.Errorf("systemd still believes %d to be the main process, and not %d which serves", r.unit.MainPID, s.PID)
	}
	return s, nil
}
