package handoff

import (
	"fmt"
	"os"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
)

// counts are this generation's connections and tasks.
func (m *machine) counts() control.Counts {
	var c control.Counts
	over := m.finished
	if d := m.drain; d != nil {
		c = *d.counts.Load()
		over = over || time.Since(d.started) >= d.timeout
	} else {
		c.Idle, c.Active, c.Streams = m.h.tracker.counts()
	}
	m.h.tracker.tasks.tell(&c, over)
	return c
}

func (m *machine) status() control.Status {
	h := m.h
	s := control.Status{
		Version: control.Version, Service: h.opt.Service, PID: os.Getpid(), Generation: h.generation,
		Phase: m.phase, Exe: h.program.exe, StartedAt: h.started,
		Sockets: h.sockets.list(), MigrateReq: h.sockets.migrateReq(), Connections: m.counts(),
		Armed: m.armed, Last: m.last, Predecessor: m.peer,
		Refused: m.refused, LastRefusal: m.refusal, Attempts: m.attempts, TookOver: m.tookOver,
		EventsLost: h.events.lost(),
	}
	if a := m.attempt; a != nil {
		s.Handoff = &control.Handoff{
			TxID: a.arm.TxID, Exe: a.arm.Exe, Candidate: a.candidate.process.Pid, Hold: a.arm.Hold,
			StartedAt: a.candidate.started, ReadyAt: a.candidate.readyAt, Deadline: a.until,
		}
		if m.phase == control.Draining {
			s.Handoff.Deadline = m.drain.started.Add(m.drain.timeout)
		}
	}
	return s
}

// statusText is what systemctl status shows.
func (m *machine) statusText() string {
	switch m.phase {
	case control.Stopping:
		return fmt.Sprintf("generation %d: stopping", m.h.generation)
	case control.Draining:
		return fmt.Sprintf("generation %d: draining", m.h.generation)
	}
	return fmt.Sprintf("generation %d: serving", m.h.generation)
}

// publish gives every watcher the present status. A watcher that is slow gets
// the latest and misses those between.
func (m *machine) publish() {
	if len(m.watchers) == 0 {
		return
	}
	s := m.status()
	for w := range m.watchers {
		select {
		case <-w:
		default:
		}
		w <- s
	}
}
