package handoff

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/wire"
	"github.com/zdt-dev/zdt/journal"
)

// machine is the state of a generation. The goroutine in run owns it; all
// others send it functions (Handoff.do) or messages.
//
//	starting ─Ready─▶ idle ─SIGUSR2─▶ forked ─READY─▶ held ─commit─▶ draining ─▶ exited
//	    │             ▲  ▲              │ crash, timeout │ abort         │ successor dies
//	    ▼             │  └──aborting◀───┴────────────────┘               │
//	candidate ─commit─┘  ◀───────────────────────────────────────────────┘
type machine struct {
	h       *Handoff
	phase   control.Phase
	signals [4]chan os.Signal // one for each of watchedSignals' kinds, see watch
	service bool              // this generation is the service: the first one, or committed

	armed    *control.Arm
	armTimer *time.Timer

	attempt  *attempt
	last     *control.Outcome
	attempts uint64
	refused  uint64
	refusal  string
	tookOver bool

	predecessor *predecessor // nil when there is none, or it is gone
	peer        *control.Peer
	bye         bool // the predecessor said goodbye

	drain       *drainer
	drainCancel context.CancelFunc
	drainTick   *time.Ticker
	drained     bool

	said     saying
	watchers control.Watchers
	finished bool
	stopped  bool // the service stops, not only this generation
	over     bool // a candidate was told that the service stops: nobody takes its connections back
}

// armTimeout is how long an arming waits for its signal.
const armTimeout = 10 * time.Second

// killGrace is how long a candidate that is not READY has between SIGTERM and SIGKILL.
const killGrace = 2 * time.Second

func newMachine(h *Handoff) *machine {
	m := &machine{
		h: h, phase: control.Starting, service: h.predecessor == nil,
		watchers: make(control.Watchers), predecessor: h.predecessor,
	}
	for i := range m.signals {
		m.signals[i] = make(chan os.Signal, 1)
	}
	if p := h.predecessor; p != nil {
		m.peer = &control.Peer{PID: p.pid, Generation: h.generation - 1}
	}
	return m
}

// watch begins to receive signals. Each kind has a channel of its own: a
// channel that is full loses what comes next, and a storm of SIGUSR2 must not
// be what a SIGTERM is lost in. One place is enough, because the kernel too
// keeps no more than one pending signal of a kind.
func (m *machine) watch() {
	for i, kind := range watchedSignals() {
		signal.Notify(m.signals[i], kind...)
	}
	surviveBrokenOutput()
}

func (m *machine) run() {
	defer close(m.h.done)
	for !m.finished {
		m.publish()
		select {
		case f := <-m.h.calls:
			f(m)
		case s := <-m.signals[0]:
			m.signal(s)
		case s := <-m.signals[1]:
			m.signal(s)
		case s := <-m.signals[2]:
			m.signal(s)
		case s := <-m.signals[3]:
			m.signal(s)
		case msg, ok := <-m.predecessorMessages():
			m.fromPredecessor(msg, ok)
		case msg, ok := <-m.candidateMessages():
			m.fromCandidate(msg, ok)
		case exit := <-m.candidateExit():
			m.candidateExited(exit)
		case err := <-m.healthResult():
			m.healthChecked(err)
		case <-m.deadline():
			m.expired()
		case <-m.armExpiry():
			m.disarm()
		case <-m.drainDone():
			m.drained = true
			m.checkFinished()
		case <-m.ticks():
			m.progress()
		}
	}
	m.end()
}

func (m *machine) signal(s os.Signal) {
	switch s {
	case sigHandoff:
		m.start()
	case sigAbort:
		if m.undecided() {
			m.undo(journal.ReasonSignal, "SIGUSR1")
		}
	case sigQuit:
		m.quit()
	default:
		m.stop()
	}
}

// ready says READY.
func (m *machine) ready() error {
	if m.phase != control.Starting {
		return nil
	}
	m.h.taking.Store(true)
	if m.predecessor != nil {
		m.tellTakes()
		if err := m.predecessor.link.Send(wire.Message{Type: wire.Ready}); err != nil {
			return fmt.Errorf("tell predecessor: %w", err)
		}
		m.phase = control.Candidate
	} else {
		if err := m.h.notifier.Ready(m.statusText()); err != nil {
			return err
		}
		m.phase = control.Idle
	}
	m.h.gate.Open()
	return nil
}

// stop begins the graceful end of the service: this generation and, in order,
// a candidate or a predecessor that still drains.
func (m *machine) stop() {
	m.stopped = true
	if m.attempt != nil && m.attempt.committed {
		m.attempt.candidate.spare.Store(true)
	}
	switch m.phase {
	case control.Stopping, control.Draining:
		m.drain.hurry(m.h.opt.StopGrace)
		m.checkFinished()
		return
	case control.Forked, control.Held:
		m.undo(journal.ReasonStopping, "the service stops")
	case control.Aborting:
		m.attempt.candidate.signal(sigStop) // it ends anyway: sooner now
	}
	m.leave(m.h.opt.StopGrace)
}

// leave begins the end of this generation that is not a handoff: the service
// stops, or this candidate is not wanted. A predecessor that waits for it is
// told, since it has to end too, or to accept again.
func (m *machine) leave(grace time.Duration) {
	var back *mover
	if p := m.predecessor; p != nil {
		p.link.Send(wire.Message{Type: wire.Stop})
		if !m.service && !m.over {
			back = m.moverTo(p.link, p.hello, p.takes) // it accepts again, and takes back what it can
		}
	}
	m.h.gate.Pause()
	m.phase = control.Stopping
	m.beginDrain(grace, back)
	m.checkFinished()
}

// quit ends this generation at once. What is open is cut and counted.
func (m *machine) quit() {
	m.stopped = true
	if a := m.attempt; a != nil && !a.committed {
		a.candidate.signal(os.Kill)
		select { // reap it; one in an uninterruptible sleep is left to init
		case <-a.candidate.exited:
		case <-time.After(killGrace):
		}
	}
	if m.predecessor != nil && m.service {
		m.predecessor.link.Send(wire.Message{Type: wire.Quit})
	}
	if m.drain == nil {
		m.beginDrain(0, nil)
	}
	m.drainCancel()
	<-m.drain.done
	open, _, _ := m.h.tracker.snapshot()
	c := *m.drain.counts.Load()
	for _, conn := range open {
		count(&c.Cut, conn.end())
	}
	if m.drain.mover != nil {
		c.Cut += m.drain.mover.givenUp
	}
	c.Idle, c.Active, c.Streams = 0, 0, 0
	m.drain.counts.Store(&c)
	m.phase, m.drained = control.Stopping, true
	m.finished = true
}

// beginDrain starts the staged end of this generation's connections. mover is
// nil when nobody is there to have them.
func (m *machine) beginDrain(grace time.Duration, mover *mover) {
	if mover != nil {
		mover.look() // first: a response must not say goodbye on a connection that will move
	}
	m.h.draining.Store(true)
	m.h.taking.Store(false)
	cause := ErrHandedOver
	if m.stopped || m.over || m.phase == control.Stopping && (m.predecessor == nil || m.service) {
		cause = ErrStopping
	}
	m.h.cancel(cause)
	ctx, cancel := context.WithCancel(context.Background())
	m.drainCancel, m.drained = cancel, false
	m.drain = startDrain(ctx, m.h.tracker, m.h.opt, grace, mover, m.h.finishWork)
	m.drainTick = time.NewTicker(progressInterval)
	c := m.drain.counts.Load()
	e := m.event(journal.Drain, drainFields(*c)...)
	if m.attempt != nil {
		e.PeerPID = m.attempt.candidate.pid
	}
	m.h.events.Write(e)
}

// progressInterval is how often a drain's progress is told.
const progressInterval = 200 * time.Millisecond

func (m *machine) progress() {
	if a := m.attempt; a != nil && a.committed && !a.gone {
		c := m.counts()
		a.candidate.link.Send(wire.Message{Type: wire.Progress, Connections: &c})
	}
	if m.phase == control.Stopping && m.service {
		m.tellSystemd()
	}
}

func (m *machine) checkFinished() {
	switch m.phase {
	case control.Draining:
		m.finished = m.finished || m.drained && m.settled()
	case control.Stopping:
		// The service ends with its last generation. A candidate that is not
		// the service ends alone, and its predecessor serves on.
		m.finished = m.finished || m.drained && m.attempt == nil && (m.predecessor == nil || !m.service)
	}
}

// settleTime is how long an incumbent stays at least after the commit. With no
// connection to finish it would be gone within a millisecond, and a successor
// for which READY was the last thing it did right would find nobody to take over.
const settleTime = 50 * time.Millisecond

// settled reports whether a successor that lives may be left alone. While it may
// not, a deadline brings the question up again.
func (m *machine) settled() bool {
	a := m.attempt
	if a == nil || m.stopped {
		return true
	}
	select {
	case exit := <-a.candidate.exited:
		m.candidateExited(exit)
		return false
	default:
	}
	left := settleTime - time.Since(m.drain.started)
	if left > 0 && a.deadline == nil {
		a.setDeadline(left)
	}
	return left <= 0
}

// end says the last words and releases everything.
func (m *machine) end() {
	h := m.h
	close(h.deaf)
	if m.drainTick != nil {
		m.drainTick.Stop()
		m.drainCancel()
	}
	h.release()
	c := m.counts()
	m.phase = control.Exited
	var elapsed time.Duration
	if m.drain != nil {
		elapsed = time.Since(m.drain.started)
	}
	e := m.event(journal.Exit, append(endFields(c), journal.Usec(journal.FieldElapsed, elapsed),
		journal.Str(journal.FieldExitCode, "exited"), journal.Str(journal.FieldExitStatus, "0"))...)
	e.Message = fmt.Sprintf("%s: generation %d (pid %d) ended after %s: %s", h.opt.Service, h.generation, e.PID, inWords(elapsed), c.Summary())
	if a := m.attempt; a != nil {
		e.PeerPID = a.candidate.pid
		if a.committed && !a.gone {
			a.candidate.link.Send(wire.Message{Type: wire.Bye, Connections: &c})
		}
	}
	h.events.Write(e)
	m.publish()
	h.gate.Close()
	takeover, control := m.leaves()
	h.takeover.Close(takeover)
	h.control.Close(control)
	if m.attempt != nil {
		m.attempt.candidate.release()
	}
	if m.predecessor != nil {
		m.predecessor.release()
	}
	h.sockets.close()
	h.events.Close()
	h.cancel(nil)
	// Handoff signals stay caught until the process is gone: their default
	// action would turn a clean exit into a death by signal.
	signal.Notify(make(chan os.Signal, 1), handoffSignals()...)
	for _, c := range m.signals {
		signal.Stop(c)
	}
}

// event fills in what all events share.
func (m *machine) event(kind journal.Kind, fields ...journal.Field) journal.Event {
	e := journal.Event{Kind: kind, Generation: uint64(m.h.generation), PID: os.Getpid(), Fields: fields}
	if m.attempt != nil {
		e.TxID = m.attempt.arm.TxID
	} else if m.h.predecessor != nil && m.predecessor != nil {
		e.TxID = m.h.predecessor.hello.TxID
	}
	return e
}
