package handoff

// This file joins the mover to the state of the generation.

// capabilities is what a hello of this version offers.
func capabilities() []string { return []string{capabilityMove} }

// moverTo returns a mover to the other end of l, nil when that takes nothing.
func (m *machine) moverTo(l *link, takes []take) *mover {
	if len(takes) == 0 {
		return nil
	}
	mover := newMover(m.h.tracker, m.h.events.logger, takes, l.sendBatch)
	mover.verify = m.h.opt.VerifyMoves
	return mover
}

// acknowledged passes an answer to a batch on to the mover that sent it.
func (m *machine) acknowledged(msg message) {
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
	takes := message{Type: msgTakes, Takes: m.h.takes()}
	if m.predecessor != nil {
		m.predecessor.link.send(takes)
	}
	if m.attempt != nil && !m.attempt.gone {
		m.attempt.candidate.link.send(takes)
	}
}
