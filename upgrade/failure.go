package upgrade

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// Failure is an error that knows what it means for the operator.
type Failure struct {
	// Outcome is empty when it depends on how the service is found afterwards.
	Outcome Outcome
	Reason  string // stable word: those of package journal, or one of below
	Err     error
	Hint    string
}

// Reasons that only zdt can have, in addition to those of package journal.
const (
	reasonInterrupted   = "interrupted"    // by a signal or --timeout
	reasonRecord        = "record"         // the write-ahead record could not be written
	reasonIncumbentDied = "incumbent-died" // the running process ended before the commit
	reasonControlLost   = "control-lost"   // its control connection ended, or it does not answer
	reasonSystemdLost   = "systemd-lost"   // systemd does not say any more how the unit is
	reasonMainPID       = "main-pid"       // systemd's main process is not who it has to be
	reasonForeign       = "foreign"        // the candidate is no process of the unit
	reasonRehearsal     = "rehearsal"      // the release did not pass its rehearsal, or there had to be one and could not
	reasonHook          = "hook"           // one of the administrator's programs objected
	reasonZdtDied       = "zdt-died"       // found by a later zdt
)

func (f *Failure) Error() string { return f.Err.Error() }
func (f *Failure) Unwrap() error { return f.Err }

func refuse(hint string, format string, args ...any) *Failure {
	return &Failure{Outcome: Refused, Err: fmt.Errorf(format, args...), Hint: hint}
}

func failure(reason string, format string, args ...any) *Failure {
	return &Failure{Reason: reason, Err: fmt.Errorf(format, args...)}
}

func asFailure(err error) *Failure {
	var f *Failure
	if errors.As(err, &f) {
		return f
	}
	return &Failure{Err: err, Hint: hintOf(err)}
}

// hintOf returns the advice an error carries.
func hintOf(err error) string {
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		return h.Hint()
	}
	return ""
}

// endedBy reports whether err is what the end of the operator's context caused.
func (r *run) endedBy(err error) bool {
	if r.ctx.Err() == nil {
		return false
	}
	return errors.Is(err, context.Cause(r.ctx)) || errors.Is(err, r.ctx.Err())
}

// Commands as the operator types them for the manager of this service.

func (r *run) zdt(args ...string) string        { return r.command("zdt", args) }
func (r *run) systemctl(args ...string) string  { return r.command("systemctl", args) }
func (r *run) journalctl(args ...string) string { return r.command("journalctl", args) }

func (r *run) command(name string, args []string) string {
	if r.Options.User {
		name += " --user"
	}
	return name + " " + strings.Join(args, " ")
}
