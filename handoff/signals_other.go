//go:build !unix

package handoff

import "os"

// noSignal never arrives: these systems know no handoff.
type noSignal string

func (s noSignal) String() string { return string(s) }
func (noSignal) Signal()          {}

const (
	sigHandoff = noSignal("handoff")
	sigAbort   = noSignal("abort")
	sigQuit    = noSignal("quit")
	sigStop    = noSignal("stop")
)

// watchedSignals: os.Interrupt stops gracefully everywhere. No kind is empty
// because signal.Notify takes that for all signals.
func watchedSignals() [4][]os.Signal {
	return [4][]os.Signal{{sigHandoff}, {sigAbort}, {os.Interrupt}, {sigQuit}}
}

// handoffSignals is not empty because signal.Notify takes that for all signals.
func handoffSignals() []os.Signal { return []os.Signal{sigHandoff} }

func surviveBrokenOutput() {}
