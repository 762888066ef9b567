package dbusctl

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// DaemonReload has systemd read all unit files anew, and returns when it has.
// Since 253 systemd may refuse it when it is asked too often
// (ReloadLimitIntervalSec=).
func (m *Manager) DaemonReload(ctx context.Context) error {
	if err := m.call(ctx, acting, managerPath, managerIface+".Reload", nil); err != nil {
		return explain(ctx, "reload systemd's unit files", "", err)
	}
	return nil
}

// change is one symlink that systemd made or removed.
type change struct{ Type, Path, Source string }

// Enable makes the units start at boot, as their [Install] sections say, or
// only until the next boot when runtime is set. Like systemctl it ends with a
// daemon-reload, because systemd goes on reporting the earlier UnitFileState
// until then.
func (m *Manager) Enable(ctx context.Context, runtime bool, units ...string) error {
	op, err := checkNames("enable", units)
	if err != nil {
		return err
	}
	var installable bool
	var changes []change
	err = m.call(ctx, acting, managerPath, managerIface+".EnableUnitFiles", []any{&installable, &changes}, units, runtime, false)
	if err != nil {
		return explain(ctx, op, "", err)
	}
	if !installable {
		return &Error{Op: op, Err: errors.New("no [Install] section"), Hint: "a unit without one is started by others: WantedBy=multi-user.target or sockets.target is usual"}
	}
	return m.DaemonReload(ctx)
}

// Disable undoes Enable for the boots to come, or with runtime an Enable with
// runtime. It stops nothing. It ends with a daemon-reload, as Enable does.
func (m *Manager) Disable(ctx context.Context, runtime bool, units ...string) error {
	op, err := checkNames("disable", units)
	if err != nil {
		return err
	}
	if err := m.call(ctx, acting, managerPath, managerIface+".DisableUnitFiles", nil, units, runtime); err != nil {
		return explain(ctx, op, "", err)
	}
	return m.DaemonReload(ctx)
}

// checkNames checks every name and gives the operation's name for errors.
func checkNames(verb string, units []string) (op string, err error) {
	op = verb
	for _, name := range units {
		if err := checkName(verb, name); err != nil {
			return "", err
		}
		op += " " + name
	}
	return op, nil
}

// signalName is SIGUSR2 for SIGUSR2 and "signal 40" for a real-time one.
func signalName(sig syscall.Signal) string {
	if name := unix.SignalName(sig); name != "" {
		return name
	}
	return fmt.Sprintf("signal %d", int(sig))
}
