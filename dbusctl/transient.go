package dbusctl

import (
	"context"
	"fmt"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// TransientUnit is a unit without a file: it is made and started in one step, and
// is gone for systemd some time after its end.
type TransientUnit struct {
	Name        string // full: web-canary.service; there must be none of that name
	Description string
	Properties  []Property

	// Keep makes systemd remember the unit after its end for as long as this Manager is open, or until
	// Forget: [Manager.End] can tell then how it ended, however short it was. Without it, and always
	// over systemd's private socket (which counts no references), a unit that ended well is forgotten at
	// once, and one that failed by its CollectMode=.
	Keep bool
}

// StartTransient makes and starts a unit, and waits as Start does: with
// Type=notify until it is READY, with Type=exec until its program is executed,
// with Type=oneshot until its end. The error matches ErrUnitExists when there is
// a unit of that name, loaded or only failed and not forgotten yet.
//
// A *JobError means that the unit was made, and failed. That happens with Type=exec also to a
// program that was executed and has failed at once (252); with Type=simple it never does.
func (m *Manager) StartTransient(ctx context.Context, u TransientUnit) error {
	const op = "start transient"
	props := append([]Property{Text("Description", u.Description)}, u.Properties...)
	if u.Description == "" {
		props = props[1:]
	}
	if u.Keep && !m.direct {
		props = append(props, Flag("AddRef", true))
	}
	// The descriptors are duplicated for the time of the call: the D-Bus
	// library wants bare numbers, and os.File.Fd would make them blocking
	// for everybody who shares them.
	var open []int
	defer func() {
		for _, fd := range open {
			unix.Close(fd)
		}
	}()
	type wire struct {
		Name  string
		Value dbus.Variant
	}
	var list []wire
	for _, p := range props {
		value := p.value
		if p.files != nil {
			dups, err := duplicate(p.files)
			open = append(open, dups...)
			if err != nil {
				return &Error{Op: op, Unit: u.Name, Err: fmt.Errorf("pass %s: %w", p.name, err)}
			}
			value = p.passed(dups)
		}
		list = append(list, wire{p.name, value})
	}
	type auxiliary struct { // units to make along with it, of which there are none
		Name       string
		Properties []wire
	}
	return m.jobOf(ctx, op, u.Name, managerIface+".StartTransientUnit", u.Name, "fail", list, []auxiliary{})
}

// Forget ends what Keep began, before the Manager is closed. It is no error when the unit is gone.
func (m *Manager) Forget(ctx context.Context, name string) error {
	const op = "forget"
	if err := checkName(op, name); err != nil {
		return err
	}
	if m.direct {
		return nil
	}
	err := m.call(ctx, acting, managerPath, managerIface+".UnrefUnit", nil, name)
	return m.unlessUnloaded(ctx, op, name, err, nil)
}

// End waits until the unit has ended, and returns its last state: ExecMainCode and
// ExecMainStatus are the end of its main process (see [Unit.Exited]), Result is systemd's verdict.
// A unit that systemd has forgotten by then gives ErrNoUnit.
func (m *Manager) End(ctx context.Context, name string) (Unit, error) {
	const op = "wait for the end of"
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	states, err := m.Watch(ctx, name)
	if err != nil {
		return Unit{}, err
	}
	var last Unit
	for u := range states {
		if u.LoadState == "not-found" && u.ActiveState == "inactive" {
			return u, &Error{Op: op, Unit: name, Err: ErrNoUnit, Detail: "systemd has forgotten it"}
		}
		// A job that waits will start it (again).
		if (u.ActiveState == "inactive" || u.ActiveState == "failed") && u.Job == 0 {
			cancel()
			last = u
			for range states { // joins the watch
			}
			return last, nil
		}
	}
	if err := m.Err(); err != nil {
		return last, err
	}
	return last, &Error{Op: op, Unit: name, Err: context.Cause(ctx)}
}

// Exited tells how the last main process of the unit ended: with an exit status, or (signalled) by
// the signal status. ok is false when none has ended yet.
func (s Service) Exited() (status int, signalled, ok bool) {
	const exited = 1 // CLD_EXITED; 2 is CLD_KILLED, 3 CLD_DUMPED
	return int(s.ExecMainStatus), s.ExecMainCode != exited, s.ExecMainCode != 0
}
