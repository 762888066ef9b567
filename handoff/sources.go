package handoff

import (
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/wire"
)

// The channels of what may be absent: a nil channel never fires.

func (m *machine) predecessorMessages() <-chan wire.Message {
	if m.predecessor == nil {
		return nil
	}
	return m.predecessor.messages
}

func (m *machine) candidateMessages() <-chan wire.Message {
	if m.attempt == nil || m.attempt.gone {
		return nil
	}
	return m.attempt.candidate.messages
}

func (m *machine) candidateExit() <-chan control.Exit {
	if m.attempt == nil {
		return nil
	}
	return m.attempt.candidate.exited
}

func (m *machine) healthResult() <-chan error {
	if m.attempt == nil {
		return nil
	}
	return m.attempt.health
}

func (m *machine) deadline() <-chan time.Time {
	if m.attempt == nil || m.attempt.deadline == nil {
		return nil
	}
	return m.attempt.deadline.C
}

func (m *machine) armExpiry() <-chan time.Time {
	if m.armTimer == nil {
		return nil
	}
	return m.armTimer.C
}

func (m *machine) drainDone() <-chan struct{} {
	if m.drain == nil || m.drained {
		return nil
	}
	return m.drain.done
}

func (m *machine) ticks() <-chan time.Time {
	if m.drainTick == nil {
		return nil
	}
	return m.drainTick.C
}
