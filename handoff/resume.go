package handoff

import (
	"fmt"
	"os"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/journal"
)

// takeOver: the successor died while this generation still drained. systemd
// cannot see that, because the dead process was this one's child and not its
// own; so this generation serves again.
func (m *machine) takeOver(exit control.Exit) {
	h := m.h
	// First, so that the answers on connections that come back keep them open.
	h.draining.Store(m.stopped)
	m.drain.keep.Store(!m.stopped)
	m.peerDied()
	_, _, lost := h.tracker.snapshot()
	c := m.attempt.candidate
	m.failed(journal.ReasonCrashed, successorDied(c.ended(exit), lost), c.exit(exit), journal.Int(journal.FieldConnsLost, int64(lost)))
	m.last.Lost = lost
	if m.stopped {
		return // nothing to serve for: the drain goes on to its end
	}
	m.drainCancel()
	<-m.drain.done
	m.drainTick.Stop()
	m.drain, m.drainTick = nil, nil
	h.taking.Store(true)
	m.tookOver = true
	m.phase = control.Idle
	h.gate.Open()
	h.resumeTasks()
	h.control.Own()
	h.takeover.Own()
	if !c.newcomer() { // systemd was never told of that one
		m.reclaim()
	}
}

// successorDied is the account of a death in the drain. Connections that had
// moved are told: their clients were promised not to notice anything.
func successorDied(how string, lost int) string {
	text := fmt.Sprintf("the new main process %s while its predecessor still drained, which serves again", how)
	switch lost {
	case 0:
		return text
	case 1:
		return text + "; the connection that had moved to it is lost"
	}
	return fmt.Sprintf("%s; the %d connections that had moved to it are lost", text, lost)
}

// reclaim tells systemd that this process is the main one. Versions before 254
// do not listen; zdt lends a hand there.
func (m *machine) reclaim() error {
	if m.h.notifier.Socket != "" {
		os.Setenv("NOTIFY_SOCKET", m.h.notifier.Socket)
	}
	return m.h.notifier.Reclaim(os.Getpid(), m.statusText())
}
