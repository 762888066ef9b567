package control

import (
	"fmt"
	"path/filepath"
	"time"
)

// Operations a client may ask for.
const (
	OpStatus  = "status"  // answer with the status
	OpWatch   = "watch"   // answer with a status now and at every change
	OpArm     = "arm"     // prepare the next handoff: txid, file, hold
	OpDisarm  = "disarm"  // take the arming with this txid back
	OpCommit  = "commit"  // decide a held handoff
	OpAbort   = "abort"   // undo a handoff that is not committed
	OpExtend  = "extend"  // put the deadline of a held handoff off
	OpReclaim = "reclaim" // tell systemd that this process is the main one (after TookOver)
)

// Error codes in a Response.
const (
	CodeBadRequest = "bad-request" // not understood
	CodeBusy       = "busy"        // a handoff is in progress, or armed by somebody else
	CodeNotReady   = "not-ready"   // this generation cannot hand off (yet, or any more)
	CodeNotHeld    = "not-held"    // nothing to commit or abort
	CodeTxID       = "txid"        // the handoff belongs to another transaction
	CodeFailed     = "failed"      // tried, and it did not work
	CodeDenied     = "denied"      // the client is neither root nor the service's user
)

// Request is one line from a client.
type Request struct {
	Op string `json:"op"`
	// TxID names the transaction; commit and abort with a txid are refused
	// when the handoff belongs to another one.
	TxID string `json:"txid,omitempty"`
	Arm  *Arm   `json:"arm,omitempty"`
	// Reason is kept in the outcome of an abort, for whoever reads the journal.
	Reason string `json:"reason,omitempty"`
	// For is how long from now an extended handoff is held (nanoseconds), at most MaxHold.
	For time.Duration `json:"for,omitempty"`
}

// MaxHold is the longest that a handoff can be put off at a time: who decides is a person, and
// none of them sleeps longer.
const MaxHold = 7 * 24 * time.Hour

// BadFor says what an extension must be refused for; "" if it is right.
func (r Request) BadFor() string {
	if r.For <= 0 || r.For > MaxHold {
		return fmt.Sprintf("extend: a time between 0 and %s is needed, not %s", MaxHold, r.For)
	}
	return ""
}

// Arm prepares the handoff that the next SIGUSR2 starts.
type Arm struct {
	TxID string `json:"txid"`
	// Exe is the absolute path of the file to execute; empty means the path
	// the service was started by.
	Exe string `json:"exe,omitempty"`
	// Hold keeps the candidate on probation until commit or abort.
	Hold bool `json:"hold,omitempty"`
	// HoldFor bounds the probation (nanoseconds); when it ends undecided the
	// handoff is aborted. 0 means the runtime's default.
	HoldFor time.Duration `json:"hold_for,omitempty"`
	// ReadyTimeout overrides the runtime's own (nanoseconds); 0 keeps it.
	ReadyTimeout time.Duration `json:"ready_timeout,omitempty"`
	// Environ (NAME=value) and Command are the service's environment and ExecStart= as they
	// are now. A helper starts the next generation with them, and with its own last ones when they are
	// absent. A program that hands over by itself cannot use them.
	Environ []string `json:"environ,omitempty"`
	Command []string `json:"command,omitempty"`
}

// Bad says what a runtime must refuse a for; "" if it is right.
func (a *Arm) Bad() string {
	switch {
	case a == nil || a.TxID == "":
		return "arm without a txid"
	case a.Exe != "" && !filepath.IsAbs(a.Exe):
		return fmt.Sprintf("arm: %q is not an absolute path", a.Exe)
	case a.HoldFor < 0 || a.ReadyTimeout < 0:
		return "arm: negative duration"
	}
	return ""
}

// Response is one line from a runtime.
type Response struct {
	Code   string  `json:"code,omitempty"`  // empty: done
	Error  string  `json:"error,omitempty"` // a sentence, when Code is set
	Status *Status `json:"status,omitempty"`
}

// Error is a refusal by the runtime.
type Error struct {
	Op, Code, Text string
}

func (e *Error) Error() string { return e.Op + ": " + e.Text }
