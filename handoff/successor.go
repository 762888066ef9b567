package handoff

import (
	"fmt"
	"os"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/wire"
	"github.com/zdt-dev/zdt/journal"
)

// This file is the candidate's side of a handoff, until its predecessor is gone.

// fromPredecessor handles a message; !ok means the predecessor is gone.
func (m *machine) fromPredecessor(msg wire.Message, ok bool) {
	if !ok {
		m.predecessorGone()
		return
	}
	switch msg.Type {
	case wire.Commit:
		m.committed()
	case wire.Abort:
		if m.phase == control.Stopping && msg.Reason == string(journal.ReasonStopping) {
			m.drain.hurry(m.h.opt.StopGrace)
		}
		if m.phase == control.Candidate || m.phase == control.Starting {
			if m.predecessor.asked {
				m.h.undone = fmt.Errorf("%w (%s); the process at %s serves on", ErrUndone, msg.Reason, m.h.opt.Takeover)
			}
			grace := m.h.opt.IdleGrace // the clients' service goes on
			if msg.Reason == string(journal.ReasonStopping) {
				grace, m.over = m.h.opt.StopGrace, true
			}
			m.leave(grace)
		}
	case wire.Takes:
		m.predecessor.takes = msg.Takes
		m.peerTakes(msg.Takes)
	case wire.Moved:
		m.acknowledged(msg)
	case wire.Progress, wire.Bye:
		if msg.Connections != nil {
			peer := *m.peer // the old value may be on its way to a client
			peer.Connections = *msg.Connections
			m.peer = &peer
		}
		m.bye = m.bye || msg.Type == wire.Bye
		if m.phase == control.Idle && !m.bye {
			m.tellSystemd() // the predecessor cannot: NotifyAccess=main
		}
	}
}

// committed: this process is the service now, and systemd knows it.
func (m *machine) committed() {
	if m.phase != control.Candidate {
		return
	}
	m.phase = control.Idle
	m.serve()
}

// serve makes this generation the service.
func (m *machine) serve() {
	m.service = true
	m.listenAdded()
	m.h.control.Own()
	m.h.takeover.Own()
	if m.h.predecessor.asked && m.phase == control.Idle {
		// The predecessor has a supervisor of its own. This one has waited until now.
		if err := m.h.notifier.Ready(m.statusText()); err != nil {
			m.h.events.Logger().Error("say READY", "error", err)
		}
	}
}

// predecessorGone: its process has ended.
func (m *machine) predecessorGone() {
	p := m.predecessor
	p.release()
	m.predecessor = nil
	m.peerDied()
	if !m.bye {
		// Its last progress is what is known: what was open then is cut.
		c := m.peer.Connections
		c.Idle, c.Active, c.Streams, c.Cut = 0, 0, 0, c.Cut+c.Open()
		e := m.event(journal.Exit, append(endFields(c),
			journal.Str(journal.FieldExitCode, "unknown"), journal.Str(journal.FieldExitStatus, "unknown"))...)
		e.Generation, e.PID, e.PeerPID = uint64(m.h.generation-1), p.pid, os.Getpid()
		e.Message = fmt.Sprintf("%s: generation %d (%s) ended without a word; the connections that it still had are lost (last known: %s)",
			m.h.opt.Service, m.h.generation-1, control.Process(p.pid), c.Summary())
		m.h.events.Write(e)
	}
	m.peer = nil
	switch m.phase {
	case control.Candidate:
		// It died without a decision. Either systemd was already told that
		// this is the main process: then serving is right. Or it was not: then
		// systemd sees its main process dead and ends the whole unit, this
		// process included, and starts the committed release. Serving on is
		// right in both cases.
		m.committed()
	case control.Starting:
		if !p.asked {
			m.stop()
			return
		}
		// Nobody else has the sockets, and nobody ends this process with its
		// predecessor: it starts up as the service that it was to become.
		m.serve()
	}
	switch {
	case m.phase != control.Idle:
	case p.asked:
		m.h.notifier.Hint(m.statusText())
	default:
		m.h.notifier.Sole(m.statusText())
	}
	m.checkFinished()
}
