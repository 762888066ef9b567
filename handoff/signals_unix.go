//go:build unix

package handoff

import (
	"os"
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

func handoffSignals() []os.Signal { return []os.Signal{sigHandoff, sigAbort} }
