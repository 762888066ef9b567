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
		Moves: h.movesIn(), EventsLost: h.events.Lost(),
	}
	if a := m.attempt; a != nil {
		s.Handoff = &control.Handoff{
			TxID: a.arm.TxID, Exe: a.arm.Exe, Candidate: a.candidate.pid, Hold: a.arm.Hold,
			StartedAt: a.candidate.started, ReadyAt: a.candidate.readyAt, Deadline: a.until,
		}
		if m.phase == control.Draining {
			s.Handoff.Deadline = m.drain.started.Add(m.drain.timeout)
		}
		s.Handoff = s.Handoff.Steady(time.Now())
	}
	return s
}

// statusText is what systemctl status shows. A generation that drains after its
// commit has no say there any more: its successor tells how it gets on.
func (m *machine) statusText() string {
	if m.phase == control.Stopping {
		text := fmt.Sprintf("generation %d: stopping", m.h.generation)
		if c := m.counts(); c.Open() > 0 {
			text += ": " + c.Progress()
		}
		return text
	}
	return servingText(m.h.generation, m.peer)
}

// servingText is the status text of a generation that serves, while
// predecessor, if there is one, drains.
func servingText(generation int, predecessor *control.Peer) string {
	text := fmt.Sprintf("generation %d: serving", generation)
	if predecessor == nil {
		return text
	}
	text += fmt.Sprintf("; generation %d drains", predecessor.Generation)
	if c := predecessor.Connections; c != (control.Counts{}) {
		text += ": " + c.Progress()
	}
	return text
}

// saying is the last progress that systemd was told.
type saying struct {
	text string
	at   time.Time
}

// sayInterval is the time between two messages about a progress: each makes
// systemd send a signal to everybody who watches the unit.
const sayInterval = time.Second

// tellSystemd makes the present progress the status text, if it is another and
// the last one is long enough ago.
func (m *machine) tellSystemd() {
	text := m.statusText()
	if text == m.said.text || time.Since(m.said.at) < sayInterval {
		return
	}
	m.said = saying{text, time.Now()}
	m.h.notifier.Hint(text) // if it does not get through, a later one does
}

// publish gives every watcher the present status.
func (m *machine) publish() {
	if len(m.watchers) > 0 {
		m.watchers.Publish(m.status())
	}
}
