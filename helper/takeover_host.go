//go:build linux

package helper

import (
	"fmt"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/takeover"
	"github.com/zdt-dev/zdt/internal/wire"
	"github.com/zdt-dev/zdt/journal"
)

// This file is the side of the helper that asks another process for its service.

// host is that process. It stays until it is gone: after the commit it drains.
type host struct {
	neighbour
	hello     wire.Message
	committed bool // this one is the service
	bye       bool // it has said its last word
	counts    control.Counts
}

// first is the number of the first generation here.
func (k *keeper) first() int {
	if h := k.crossing.host; h != nil {
		return h.hello.Generation
	}
	return 1
}

// onProbation reports whether another process decides about this one.
func (k *keeper) onProbation() bool {
	h := k.crossing.host
	return h != nil && !h.committed
}

// greet answers the process that was asked, once everything else is open, and begins to listen to it.
func (k *keeper) greet() error {
	h := k.crossing.host
	if h == nil {
		return nil
	}
	if err := takeover.Greet(h.link, h.hello, wire.Message{SharesControl: k.crossing.shared}); err != nil {
		return err
	}
	k.hearNeighbour(&h.neighbour, k.hostSaid, k.hostGone)
	k.events.Logger().Info(fmt.Sprintf("take over %d sockets from the process at %s", k.crossing.given, k.opt.Takeover),
		"service", k.opt.Service, "generation", h.hello.Generation)
	return nil
}

// candidateReady: the program can serve, and has begun to.
func (k *keeper) candidateReady() {
	k.phase = control.Candidate
	k.tellSystemd()
	// If it cannot be sent the other one is gone. That news follows.
	k.crossing.host.link.Send(wire.Message{Type: wire.Ready})
}

// hostSaid acts on a message.
func (k *keeper) hostSaid(m wire.Message) {
	h := k.crossing.host
	switch m.Type {
	case wire.Commit:
		if k.phase == control.Candidate {
			h.committed = true
			k.taken()
		}
	case wire.Abort:
		if k.onProbation() && !k.stopped {
			k.sentAway(m.Reason)
		}
	case wire.Progress, wire.Bye:
		if m.Connections != nil {
			h.counts = *m.Connections
		}
		h.bye = h.bye || m.Type == wire.Bye
	}
}

// taken: this is the service now. The manager of this container has waited for that.
func (k *keeper) taken() {
	k.phase = control.Idle
	k.events.Logger().Info("this process is the service now", "service", k.opt.Service, "generation", k.number)
	k.up(k.serving)
	k.own()
}

// sentAway: the other process serves on. The program here is not wanted: it finishes what it has accepted, and
// this helper ends with a status that says so.
func (k *keeper) sentAway(reason string) {
	detail := fmt.Sprintf("the takeover was undone (%s); the process at %s serves on", cleanText(reason, statusLimit), k.opt.Takeover)
	if reason == string(journal.ReasonStopping) {
		detail = "the service stops"
	}
	e := k.event(journal.Abort, k.serving, journal.Str(journal.FieldReason, cleanText(reason, statusLimit)))
	e.PeerPID, e.Message = k.crossing.host.pid, k.opt.Service+": "+detail
	k.events.Write(e)
	grace := killGrace
	if k.phase == control.Candidate {
		grace = k.serving.app.DrainTimeout
	}
	k.waneWithin(Exit{cldExited, 1}, grace)
	k.checkFinished()
}

// giveIn is what a program's end, or failure, means for a takeover that is not decided: the other process is told why, and the
// status must not look like a success. After READY nothing is said: the other one may have committed at this very moment,
// and would take the word for that of the service, which ends; that this process dies it understands either way.
func (k *keeper) giveIn(end Exit, why string) Exit {
	h := k.crossing.host
	switch {
	case h == nil:
		return end
	case h.committed || k.phase == control.Candidate:
		h.release() // so that the program there is started again before this one has ended
		k.crossing.host = nil
		k.crossing.owner = false
	default:
		k.declineTakeover(fmt.Errorf("%s", why))
	}
	if !h.committed && end == (Exit{cldExited, 0}) {
		end = Exit{cldExited, 1}
	}
	return end
}

// stopHost passes on that this process was told to stop: as the service, or as one that is not committed.
func (k *keeper) stopHost() {
	if h := k.crossing.host; h != nil {
		h.link.Send(wire.Message{Type: wire.Stop})
	}
}

// quitHost ends the other process too, if it only drains, and does not wait for it.
func (k *keeper) quitHost() {
	h := k.crossing.host
	if h == nil {
		return
	}
	if h.committed {
		h.link.Send(wire.Message{Type: wire.Quit})
	}
	h.release()
	k.crossing.host = nil
}

// hostDrains reports whether the process that served before is to be waited for when this service stops.
func (k *keeper) hostDrains() bool {
	h := k.crossing.host
	return h != nil && h.committed
}

// hostGone: the other process has let go of the link.
func (k *keeper) hostGone() {
	h := k.crossing.host
	if !h.bye && !k.stopped {
		// Its last progress is what is known: what was open then is cut.
		cut := h.counts.Cut + h.counts.Open()
		e := k.event(journal.Exit, k.serving, journal.Int(journal.FieldConnsCut, int64(cut)),
			journal.Str(journal.FieldExitCode, "unknown"), journal.Str(journal.FieldExitStatus, "unknown"))
		e.Generation, e.PID, e.PeerPID = uint64(h.hello.Generation-1), h.pid, k.serving.leader()
		e.Message = fmt.Sprintf("%s: generation %d (%s) ended without a word; %d connections that it still had are lost",
			k.opt.Service, e.Generation, control.Process(h.pid), cut)
		k.events.Write(e)
	}
	h.release()
	k.crossing.host = nil
	switch {
	case k.stopped:
	case k.phase == control.Candidate: // nobody else has the sockets
		k.taken()
	case k.phase == control.Starting && !h.committed: // it starts up as the service that it was to become
		k.own()
	}
	k.tellSystemd()
	k.checkFinished()
}
