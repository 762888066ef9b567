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
	m.peerDied()
	m.failed(journal.ReasonCrashed, fmt.Sprintf("the new main process ended (%s, %s) while its predecessor still drained, which serves again", exit.Code, exit.Status), &exit)
	if m.stopped {
		return // nothing to serve for: the drain goes on to its end
	}
	m.drainCancel()
	<-m.drain.done
	m.drainTick.Stop()
	m.drain, m.drainTick = nil, nil
	h.draining.Store(false)
	h.taking.Store(true)
	m.tookOver = true
	m.phase = control.Idle
	h.gate.open()
	h.resumeTasks()
	h.control.own()
	m.reclaim()
}

// reclaim tells systemd that this process is the main one. Versions before 254
// do not listen; zdt lends a hand there.
func (m *machine) reclaim() error {
	if m.h.notifier.socket != "" {
		os.Setenv("NOTIFY_SOCKET", m.h.notifier.socket)
	}
	return m.h.notifier.reclaim(os.Getpid(), m.statusText())
}
