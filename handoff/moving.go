package handoff

import (
	"slices"

	"github.com/zdt-dev/zdt/internal/wire"
)

// This file joins the mover to the state of the generation.

// capabilities is what a hello of this version offers.
func capabilities() []string { return []string{wire.CapabilityMove} }

// canMove reports whether the sender of a hello understands takes, move and moved.
func canMove(hello wire.Message) bool {
	return slices.Contains(hello.Capabilities, wire.CapabilityMove)
}

// moverTo returns a mover to the other end of l, whose greeting was hello; nil when
// that cannot take anything. Of what it takes it may say more while the mover works.
func (m *machine) moverTo(l *wire.Link, hello wire.Message, takes []wire.Take) *mover {
	if !canMove(hello) {
		return nil
	}
	mover := newMover(m.h.tracker, m.h.events.Logger(), takes, batchesTo(l))
	mover.verify = m.h.opt.VerifyMoves
	return mover
}

// peerTakes passes on that the other generation has changed what it takes.
func (m *machine) peerTakes(takes []wire.Take) {
	if m.drain != nil && m.drain.mover != nil {
		m.drain.mover.accept(takes)
	}
}

// acknowledged passes an answer to a batch on to the mover that sent it.
func (m *machine) acknowledged(msg wire.Message) {
	if m.drain != nil && m.drain.mover != nil {
		m.drain.mover.acknowledged(msg)
	}
}

// peerDied ends the moving: the process that connections were moved to is
// gone, and everything it has said was heard. What it did not acknowledge is served here.
func (m *machine) peerDied() {
	if m.drain != nil && m.drain.mover != nil {
		m.drain.mover.peerDied()
	}
}

// tellTakes tells the other generation which connections this one can go on with.
func (m *machine) tellTakes() {
	takes := wire.Message{Type: wire.Takes, Takes: m.h.takes()}
	if m.predecessor != nil {
		m.predecessor.link.Send(takes)
	}
	if m.attempt != nil && !m.attempt.gone {
		m.attempt.candidate.link.Send(takes)
	}
}
