//go:build unix

package handoff

import (
	"os"
	"os/signal"
	"syscall"
)

const (
	sigHandoff = syscall.SIGUSR2
	sigAbort   = syscall.SIGUSR1
	sigStop    = syscall.SIGTERM
	sigQuit    = syscall.SIGQUIT
)

// watchedSignals returns the signals by kind.
func watchedSignals() [4][]os.Signal {
	return [4][]os.Signal{{sigHandoff}, {sigAbort}, {sigStop, os.Interrupt}, {sigQuit}}
}

// surviveBrokenOutput makes a write to a standard output whose reader is gone an
// error. Go ends a program there by SIGPIPE, even where the unit's IgnoreSIGPIPE=yes
// (the default) asks for the opposite: it does not keep an inherited SIG_IGN for this
// signal. A journald that was stopped would end the service at its next line.
func surviveBrokenOutput() { signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) }

func handoffSignals() []os.Signal { return []os.Signal{sigHandoff, sigAbort} }
