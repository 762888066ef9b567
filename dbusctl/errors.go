package dbusctl

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/godbus/dbus/v5"
)

// Conditions that callers tell apart, with errors.Is. A call that ended
// because of its context matches context.Canceled or context.DeadlineExceeded.
var (
	// ErrNoBus: no bus, no systemd on it, or the connection was lost.
	ErrNoBus = errors.New("systemd cannot be reached")
	// ErrNoUnit: systemd knows no unit of that name.
	ErrNoUnit = errors.New("no such unit")
	// ErrNotAuthorised: systemd, polkit or the bus refused the caller.
	ErrNotAuthorised = errors.New("not authorised")
	// ErrBusy: another job of the unit is in the way.
	ErrBusy = errors.New("another job is in progress")
	// ErrUnitExists: a transient unit cannot have the name of one that there is.
	ErrUnitExists = errors.New("there is such a unit already")
	// ErrNoProcess: the unit has no main process that could be signalled.
	ErrNoProcess = errors.New("no main process")
)

// Error is the error of every method of this package.
type Error struct {
	Op     string // what was attempted, a verb phrase: "start", "read"
	Unit   string // unit name, "" when no single unit is concerned
	Err    error  // a sentinel of this package, a *JobError, a context's error, or another cause
	Detail string // what the other side said, on one line; may be ""
	Hint   string // what the operator can do next; may be "". Not part of Error()
}

// Error tells what failed and why, not what to do about it.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	if e.Unit != "" {
		b.WriteString(" " + e.Unit)
	}
	fmt.Fprintf(&b, ": %v", e.Err)
	if e.Detail != "" {
		b.WriteString(": " + e.Detail)
	}
	return b.String()
}

// Unwrap returns Err.
func (e *Error) Unwrap() error { return e.Err }

// JobError is a job that systemd ran and that did not end well. It arrives
// inside an [Error].
type JobError struct {
	Unit string
	Op   string // "start", "stop", "restart", "reload"
	// Result is systemd's word: canceled, timeout, failed, dependency,
	// skipped, invalid, assert, unsupported, collected, once, frozen or
	// concurrency. ResultLost is ours.
	Result string
	// UnitResult is the unit's own word after the job, where there is one:
	// exit-code, signal, timeout, protocol, start-limit-hit, resources …
	UnitResult string
}

// ResultLost is the Result of a job whose end was missed: systemd re-executed
// itself at that moment. The job is over; whether it succeeded is to be seen
// from the unit's state.
const ResultLost = "lost"

// Error names the job's result and the unit's.
func (e *JobError) Error() string {
	s := "job result " + e.Result
	if e.UnitResult != "" && e.UnitResult != "success" {
		s += " (" + e.UnitResult + ")"
	}
	return s
}

// explain turns what a D-Bus call returned into an *Error. ctx is the context
// of that call: its end shows in the library's error only sometimes.
func explain(ctx context.Context, op, unit string, err error) error {
	e := &Error{Op: op, Unit: unit}
	var done *Error
	var reply dbus.Error
	switch {
	case errors.As(err, &done):
		return err
	case errors.As(err, &reply):
		e.Err, e.Hint = classify(reply.Name, unit)
		e.Detail = oneLine(reply.Error())
		if e.Err == nil {
			e.Err, e.Detail = errors.New(e.Detail), ""
		}
	case ctx.Err() != nil:
		e.Err = ctx.Err()
		e.Detail = "no answer from systemd"
	default:
		// Whatever is left comes from the transport: EOF, EPIPE, closed.
		e.Err, e.Detail = ErrNoBus, "the connection to the bus was lost: "+oneLine(err.Error())
		e.Hint = hintNoBus
	}
	return e
}

const hintNoBus = "see whether systemd and its bus are up: systemctl is-system-running; systemctl status dbus"

// classify maps the name of a D-Bus error to a sentinel of this package (nil
// where nobody has to branch on it) and a hint.
func classify(name, unit string) (sentinel error, hint string) {
	const systemd = "org.freedesktop.systemd1."
	const bus = "org.freedesktop.DBus.Error."
	switch name {
	case systemd + "NoSuchUnit", bus + "FileNotFound":
		return ErrNoUnit, "systemctl list-unit-files shows the units there are; after writing a unit file run systemctl daemon-reload"
	case systemd + "NoSuchProcess", systemd + "NoSuchUnitProcess":
		return ErrNoProcess, "systemctl status " + unit + " shows whether it runs"
	case systemd + "TransactionIsDestructive", systemd + "TransactionJobsConflicting":
		return ErrBusy, "wait for it to end; systemctl list-jobs shows it"
	case systemd + "UnitExists":
		return ErrUnitExists, "systemctl status " + unit + "; one that failed goes with systemctl reset-failed " + unit
	case systemd + "JobTypeNotApplicable":
		return nil, "the unit has no ExecReload=, or its type cannot be started or stopped"
	case systemd + "UnitMasked":
		return nil, "systemctl unmask " + unit
	case systemd + "LoadFailed", systemd + "BadUnitSetting":
		return nil, "systemd-analyze verify " + unit + " names the line"
	case bus + "AccessDenied", bus + "InteractiveAuthorizationRequired", bus + "AuthFailed",
		bus + "SELinuxAccessDenied", "org.freedesktop.PolicyKit1.Error.NotAuthorized":
		return ErrNotAuthorised, "run it as root, or let polkit allow org.freedesktop.systemd1.manage-units for this user and unit"
	case bus + "ServiceUnknown", bus + "NameHasNoOwner", bus + "NoReply", bus + "Disconnected", bus + "NoServer":
		return ErrNoBus, "systemd is not on this bus: was the machine booted with it? (ps -p 1)"
	}
	if strings.HasPrefix(name, bus+"Spawn.") {
		return ErrNoBus, "systemd is not on this bus: was the machine booted with it? (ps -p 1)"
	}
	return nil, ""
}

// away tells that systemd was not on the bus. undelivered: it never saw the
// call, which may therefore be repeated whatever it does.
func away(err error) (isAway, undelivered bool) {
	var reply dbus.Error
	if !errors.As(err, &reply) {
		return false, false
	}
	switch reply.Name {
	case "org.freedesktop.DBus.Error.ServiceUnknown", "org.freedesktop.DBus.Error.NameHasNoOwner":
		return true, true
	case "org.freedesktop.DBus.Error.NoReply":
		return true, false
	}
	return false, false
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
