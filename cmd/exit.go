package cmd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"

	"github.com/zdt-dev/zdt/dbusctl"
	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/release"
	"github.com/zdt-dev/zdt/unitgen"
)

// ExitCode is what zdt tells its caller in the exit status. Codes are never
// given another meaning; docs/exit-codes.md explains them to scripts.
type ExitCode int

const (
	ExitOK            ExitCode = 0
	ExitUnexpected    ExitCode = 1
	ExitNotRunning    ExitCode = 3
	ExitNoService     ExitCode = 4
	ExitRefused       ExitCode = 10
	ExitRolledBack    ExitCode = 11
	ExitNotRestored   ExitCode = 12
	ExitInterrupted   ExitCode = 13
	ExitFrozen        ExitCode = 14
	ExitHalfway       ExitCode = 15
	ExitUsage         ExitCode = 64
	ExitUnavailable   ExitCode = 69
	ExitBusy          ExitCode = 75
	ExitNotAuthorised ExitCode = 77
	ExitDeadline      ExitCode = 124
	ExitHangup        ExitCode = 129
	ExitInt           ExitCode = 130
	ExitTerm          ExitCode = 143
)

// meaning is the line that --help prints for a code.
func (c ExitCode) meaning() string {
	switch c {
	case ExitOK:
		return "done, or nothing to do"
	case ExitUnexpected:
		return "unexpected error; treat any unknown code as a failure"
	case ExitNotRunning:
		return "the service is not running"
	case ExitNoService:
		return "no such service"
	case ExitRefused:
		return "refused or failed before anything was changed"
	case ExitRolledBack:
		return "failed and rolled back: healthy on the old release"
	case ExitNotRestored:
		return "failed and not restored: page someone"
	case ExitInterrupted:
		return "interrupted; can be resumed"
	case ExitFrozen:
		return "frozen, waits for a decision"
	case ExitHalfway:
		return "a roll stopped half-way: all are healthy, some run the new release"
	case ExitUsage:
		return "wrong usage"
	case ExitUnavailable:
		return "systemd or its bus cannot be reached"
	case ExitBusy:
		return "locked or busy: somebody else works on this service"
	case ExitNotAuthorised:
		return "not authorised"
	case ExitDeadline:
		return "a deadline passed"
	case ExitHangup:
		return "ended by SIGHUP"
	case ExitInt:
		return "ended by SIGINT (Ctrl-C)"
	case ExitTerm:
		return "ended by SIGTERM"
	}
	return ""
}

// exitCodes are all codes in the order of the documentation.
func exitCodes() []ExitCode {
	return []ExitCode{
		ExitOK, ExitUnexpected, ExitNotRunning, ExitNoService, ExitRefused, ExitRolledBack, ExitNotRestored,
		ExitInterrupted, ExitFrozen, ExitHalfway, ExitUsage, ExitUnavailable, ExitBusy, ExitNotAuthorised, ExitDeadline,
		ExitHangup, ExitInt, ExitTerm,
	}
}

// Failure is an error with everything an operator is told about it.
type Failure struct {
	Code    ExitCode
	Err     error    // the cause, in one line
	Details []string // what belongs to it: log lines, paths
	Hint    string   // what to do next, a command where there is one
	// Told means that the operator has seen all this already; only the code is left.
	Told bool
}

func (f *Failure) Error() string {
	if f.Err == nil {
		return f.Code.meaning()
	}
	return f.Err.Error()
}

// Unwrap returns the cause.
func (f *Failure) Unwrap() error { return f.Err }

// fail makes a Failure. The hint may be empty.
func fail(code ExitCode, hint, format string, args ...any) *Failure {
	return &Failure{Code: code, Err: fmt.Errorf(format, args...), Hint: hint}
}

// usage is a Failure about the command line.
func usage(hint, format string, args ...any) *Failure {
	return fail(ExitUsage, hint, format, args...)
}

// signalled is the cause of a context that a signal ended.
type signalled struct{ signal syscall.Signal }

func (s signalled) Error() string {
	switch s.signal {
	case syscall.SIGINT:
		return "SIGINT (Ctrl-C)"
	case syscall.SIGHUP:
		return "SIGHUP (the terminal went away)"
	}
	return "SIGTERM"
}

// codeOf is the one place where an error becomes an exit code.
func codeOf(err error) ExitCode {
	var (
		failure *Failure
		sig     signalled
		held    *release.HeldError
		input   *unitgen.InputError
		refused *control.Error
	)
	switch {
	case err == nil:
		return ExitOK
	case errors.As(err, &failure):
		return failure.Code
	case errors.As(err, &sig):
		return 128 + ExitCode(sig.signal)
	case errors.As(err, &input):
		return ExitUsage
	case errors.Is(err, dbusctl.ErrNoBus):
		return ExitUnavailable
	case errors.Is(err, dbusctl.ErrNotAuthorised), errors.Is(err, fs.ErrPermission):
		return ExitNotAuthorised
	case errors.Is(err, dbusctl.ErrNoUnit):
		return ExitRefused // 4 is for status and watch, which ask
	case errors.As(err, &held), errors.Is(err, dbusctl.ErrBusy):
		return ExitBusy
	case errors.As(err, &refused) && refused.Code == control.CodeBusy:
		return ExitBusy
	case errors.Is(err, context.DeadlineExceeded):
		return ExitDeadline
	}
	return ExitUnexpected
}

// hintOf finds the advice that some error in err's tree carries.
func hintOf(err error) string {
	var failure *Failure
	if errors.As(err, &failure) && failure.Hint != "" {
		return failure.Hint
	}
	var bus *dbusctl.Error
	if errors.As(err, &bus) && bus.Hint != "" {
		return bus.Hint
	}
	var hinter interface{ Hint() string }
	if errors.As(err, &hinter) {
		return hinter.Hint()
	}
	return ""
}

// causeLines splits an error, which may be several joined ones, into lines.
func causeLines(err error) []string {
	return strings.Split(strings.TrimRight(err.Error(), "\n"), "\n")
}
