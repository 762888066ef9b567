package dbusctl

import (
	"context"
	"errors"
	"syscall"

	"github.com/godbus/dbus/v5"
)

// Start starts a unit and waits for the result. A start that was under way is
// joined. Like systemctl start it succeeds for a unit whose conditions
// (ConditionPathExists= …) do not hold, which then is not active.
//
// For this and the other jobs: a job that systemd ran without success gives a
// *JobError. When ctx ends first, the job goes on without us.
func (m *Manager) Start(ctx context.Context, name string) error {
	return m.job(ctx, "start", "StartUnit", name, "replace")
}

// Stop stops a unit and waits until it is stopped.
func (m *Manager) Stop(ctx context.Context, name string) error {
	return m.job(ctx, "stop", "StopUnit", name, "replace")
}

// Restart stops the unit, starts it, and waits for the result; a unit that is
// not active is started.
func (m *Manager) Restart(ctx context.Context, name string) error {
	return m.job(ctx, "restart", "RestartUnit", name, "replace")
}

// Reload runs the unit's ExecReload= and waits for its result. It replaces no
// other job: when there is one, the error matches ErrBusy.
func (m *Manager) Reload(ctx context.Context, name string) error {
	const op = "reload"
	u, err := m.Unit(ctx, name)
	if err != nil {
		var e *Error
		if errors.As(err, &e) {
			e.Op = op
		}
		return err
	}
	// Mode "fail" alone does not refuse a second reload: systemd merges it
	// into the first and runs that again. It does refuse what comes to
	// conflict between this look and the request.
	if u.Job != 0 {
		return &Error{Op: op, Unit: name, Err: ErrBusy, Hint: "wait for it to end; systemctl list-jobs shows it"}
	}
	return m.job(ctx, op, "ReloadUnit", name, "fail")
}

func (m *Manager) job(ctx context.Context, op, method, name, mode string) error {
	return m.jobOf(ctx, op, name, managerIface+"."+method, name, mode)
}

// jobOf calls a method that answers with a job, and waits for that one's result.
func (m *Manager) jobOf(ctx context.Context, op, name, method string, args ...any) error {
	if err := checkName(op, name); err != nil {
		return err
	}
	// Listening begins before the request: a short job is announced as
	// removed before its path is known here.
	wait := m.sig.addJob()
	defer m.sig.removeJob(wait)
	var path dbus.ObjectPath
	if err := m.call(ctx, acting, managerPath, method, []any{&path}, args...); err != nil {
		return explain(ctx, op, name, err)
	}
	m.sig.nameJob(wait, path)
	for {
		select {
		case result := <-wait.result:
			return m.outcome(ctx, op, name, result)
		case <-wait.look:
			// systemd re-executed itself. The job has survived, or its end was
			// announced when nobody was subscribed.
			if m.jobExists(ctx, path) {
				continue
			}
			select {
			case result := <-wait.result:
				return m.outcome(ctx, op, name, result)
			default:
				return m.outcome(ctx, op, name, ResultLost)
			}
		case <-ctx.Done():
			return &Error{Op: op, Unit: name, Err: ctx.Err(), Detail: "its job goes on", Hint: "systemctl list-jobs shows it, systemctl cancel ends it"}
		case <-m.Done():
			return m.lost(op, name)
		}
	}
}

func (m *Manager) jobExists(ctx context.Context, path dbus.ObjectPath) bool {
	var state dbus.Variant
	err := m.call(ctx, reading, path, propsIface+".Get", []any{&state}, jobIface, "State")
	var reply dbus.Error
	// Only an answer counts as "gone"; a lost bus shows at the caller.
	return !errors.As(err, &reply)
}

// outcome makes the error of a job's result, adding what the unit says.
func (m *Manager) outcome(ctx context.Context, op, name, result string) error {
	if result == "done" {
		return nil
	}
	j := &JobError{Unit: name, Op: op, Result: result}
	e := &Error{Op: op, Unit: name, Err: j, Hint: "systemctl status " + name + "; journalctl -u " + name + " -e"}
	u, err := m.read(ctx, op, name)
	if err != nil {
		return e // the job's result is worth more than this
	}
	j.UnitResult = u.Result
	switch {
	case op == "reload":
		j.UnitResult = u.ReloadResult
	case u.Result == "start-limit-hit":
		e.Hint = "it was started too often; after mending it run systemctl reset-failed " + name
	}
	return e
}

// Signal sends sig to the main process of the unit, and to no other. When
// there is none the error matches ErrNoProcess.
func (m *Manager) Signal(ctx context.Context, name string, sig syscall.Signal) error {
	op := "send " + signalName(sig) + " to the main process of"
	if err := checkName(op, name); err != nil {
		return err
	}
	// "main-fail", not "main": systemd then reports that it had nobody to
	// signal, whatever the unit's type (252 and later).
	err := m.call(ctx, acting, managerPath, managerIface+".KillUnit", nil, name, "main-fail", int32(sig))
	return m.unlessUnloaded(ctx, op, name, err, ErrNoProcess)
}

// ResetFailed clears the failed state and the start counter of a unit.
func (m *Manager) ResetFailed(ctx context.Context, name string) error {
	const op = "reset the failed state of"
	if err := checkName(op, name); err != nil {
		return err
	}
	err := m.call(ctx, acting, managerPath, managerIface+".ResetFailedUnit", nil, name)
	return m.unlessUnloaded(ctx, op, name, err, nil)
}

// unlessUnloaded explains err. Some methods answer NoSuchUnit for a unit that
// exists but is idle, hence not in memory; instead of that it is reported as.
func (m *Manager) unlessUnloaded(ctx context.Context, op, name string, err, as error) error {
	if err == nil {
		return nil
	}
	err = explain(ctx, op, name, err)
	if !errors.Is(err, ErrNoUnit) {
		return err
	}
	if u, uerr := m.read(ctx, op, name); uerr != nil || u.LoadState == "not-found" {
		return err
	}
	if as == nil {
		return nil
	}
	return &Error{Op: op, Unit: name, Err: as, Hint: "systemctl status " + name + " shows whether it runs"}
}
