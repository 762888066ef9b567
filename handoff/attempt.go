package handoff

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/wire"
	"github.com/zdt-dev/zdt/journal"
)

// This file holds an attempt and the ways in which it ends without a commit, or after it.

// attempt is one handoff, from fork until the candidate is gone or this
// process is.
type attempt struct {
	arm       control.Arm
	candidate *candidate
	deadline  *time.Timer // READY, then commit, then the end of an abort
	until     time.Time
	health    chan error
	cancel    context.CancelFunc // of the health check
	hello     wire.Message       // the candidate's greeting
	takes     []wire.Take        // which connections the candidate can go on with
	committed bool
	gone      bool // the candidate's end of the link is closed
}

func (a *attempt) setDeadline(d time.Duration) {
	a.clearDeadline()
	a.deadline, a.until = time.NewTimer(d), time.Now().Add(d)
}

func (a *attempt) clearDeadline() {
	if a.deadline != nil {
		a.deadline.Stop()
	}
	a.deadline, a.until = nil, time.Time{}
}

// undecided reports whether there is a handoff to commit or to undo. One that
// was undone already is none, even while its candidate lives: to undo it again
// would make a service that stops believe that it serves.
func (m *machine) undecided() bool {
	return m.phase == control.Forked || m.phase == control.Held
}

// undo takes a handoff back before its commit: this generation serves again at
// once, the candidate finishes what it accepted and ends.
func (m *machine) undo(reason journal.Reason, detail string) {
	a := m.attempt
	if a.cancel != nil {
		a.cancel()
	}
	held := m.phase == control.Held && !a.gone
	if reason != journal.ReasonStopping {
		m.h.gate.Open()
	}
	m.phase = control.Aborting
	m.failed(reason, detail, nil)
	if held || a.candidate.newcomer() {
		a.candidate.link.Send(wire.Message{Type: wire.Abort, Reason: string(reason)})
	}
	if held {
		// The candidate has accepted connections: it drains them like any other.
		a.setDeadline(max(m.h.opt.DrainTimeout, m.h.opt.StreamTimeout) + m.h.opt.ReleaseTimeout)
		return
	}
	if !a.candidate.newcomer() {
		a.candidate.signal(sigStop)
	}
	a.setDeadline(killGrace)
}

// failed records and tells why a handoff did not come to its commit, or was
// undone after it.
func (m *machine) failed(reason journal.Reason, detail string, exit *control.Exit, more ...journal.Field) {
	a := m.attempt
	m.last = &control.Outcome{
		TxID: a.arm.TxID, Exe: a.arm.Exe, Candidate: a.candidate.pid,
		Reason: string(reason), Detail: detail, Exit: exit, EndedAt: time.Now(),
	}
	if !a.candidate.readyAt.IsZero() {
		m.last.ReadyAfter = a.candidate.readyAt.Sub(a.candidate.started)
	}
	fields := append([]journal.Field{journal.Str(journal.FieldReason, string(reason)), journal.Str(journal.FieldExe, a.arm.Exe)}, exitFields(exit)...)
	e := m.event(journal.Abort, append(fields, more...)...)
	e.PeerPID = a.candidate.pid
	e.Message = fmt.Sprintf("%s: handoff to %s undone (%s): %s", m.h.opt.Service, control.Process(e.PeerPID), reason, detail)
	m.h.events.Write(e)
}

// expired: the deadline of the present stage has come.
func (m *machine) expired() {
	a := m.attempt
	a.clearDeadline()
	switch {
	case a.gone && (m.phase == control.Forked || m.phase == control.Held):
		m.undo(journal.ReasonProtocol, "the candidate closed its handoff and did not end")
	case m.phase == control.Forked:
		m.undo(journal.ReasonReadyTimeout, "the candidate did not say READY in time")
	case m.phase == control.Held:
		m.undo(journal.ReasonHoldTimeout, "nobody committed the candidate in time")
	case m.phase == control.Draining:
		if a.gone {
			m.peerDied()
		}
		m.checkFinished()
	default:
		a.candidate.signal(os.Kill)
	}
}

// candidateExited: the candidate is gone and reaped.
func (m *machine) candidateExited(exit control.Exit) {
	a := m.attempt
	a.clearDeadline()
	if a.cancel != nil {
		a.cancel()
	}
	if m.phase == control.Forked || m.phase == control.Held {
		m.h.gate.Open() // before anything that takes time
	}
	misfit := m.lastWords()
	switch m.phase {
	case control.Forked, control.Held:
		reason := journal.ReasonCrashed
		detail := fmt.Sprintf("the candidate %s before it was committed", a.candidate.ended(exit))
		switch {
		case misfit != nil:
			reason, detail = journal.ReasonProtocol, misfit.Error()
		case exit.Code == "exited" && exit.Status == "0":
			reason = journal.ReasonExited
		}
		m.failed(reason, detail, a.candidate.exit(exit))
		m.phase = control.Idle
	case control.Aborting:
		last := *m.last // the old value may be on its way to a client
		last.Exit = a.candidate.exit(exit)
		m.last = &last
		m.phase = control.Idle
	case control.Draining:
		m.takeOver(exit)
	}
	a.candidate.release()
	m.attempt = nil
	m.checkFinished()
}

// lastWords reads what the dead candidate has still said, of which its exit
// alone would give a wrong account: that it speaks another version, or that it
// was the service and that its end was wanted.
func (m *machine) lastWords() (misfit error) {
	a := m.attempt
	late := time.NewTimer(goneGrace) // a child that it forked may hold the link open
	defer late.Stop()
	for !a.gone {
		select {
		case msg, ok := <-a.candidate.messages:
			switch {
			case !ok:
				a.gone = true
			case msg.Type == wire.Moved:
				m.acknowledged(msg)
			case msg.Type == wire.Hello:
				_, misfit = wire.ChooseVersion(msg.Version, msg.MinVersion)
			case msg.Type == wire.Stop && a.committed, msg.Type == wire.Quit && a.committed:
				m.fromCandidate(msg, true)
			}
		case <-late.C:
			return misfit
		}
	}
	return misfit
}
