package handoff

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/listenfds"
	"github.com/zdt-dev/zdt/internal/wire"
	"github.com/zdt-dev/zdt/journal"
)

// This file is the incumbent's side of a handoff: fork, hold, commit or undo.

// refuse says why no handoff can start now; it returns "" when one can.
func (m *machine) refuse() (code, why string) {
	if pid := m.h.helper; pid != 0 {
		// A successor would be one more process of this group: zdt run would go on to stop this one when it wants to
		// stop the program.
		return control.CodeNotReady, fmt.Sprintf("zdt run (pid %d) starts the generations of this program: send SIGUSR2 to that process, or use zdt upgrade", pid)
	}
	switch m.phase {
	case control.Starting:
		return control.CodeNotReady, "this generation is not READY yet"
	case control.Candidate:
		return control.CodeNotReady, "this generation is itself a candidate that is not committed yet"
	case control.Forked, control.Held:
		return control.CodeBusy, "a handoff is in progress"
	case control.Aborting:
		return control.CodeBusy, "the candidate of the undone handoff is still ending"
	case control.Draining:
		return control.CodeNotReady, "this generation has handed over and drains"
	case control.Stopping, control.Exited:
		return control.CodeNotReady, "the service stops"
	}
	if m.predecessor != nil {
		return control.CodeBusy, "the predecessor still drains"
	}
	return "", ""
}

// start begins a handoff: SIGUSR2.
func (m *machine) start() {
	if _, why := m.refuse(); why != "" {
		m.turnDown(why)
		return
	}
	var arm control.Arm
	if m.armed != nil {
		arm = *m.armed
		m.disarm()
	}
	if arm.Exe == "" {
		arm.Exe = m.h.program.path
	}
	m.attempts++
	a, err := m.fork(arm)
	if err != nil {
		m.couldNotStart(arm, err)
		return
	}
	m.begin(a)
}

// turnDown records and tells that no handoff was started.
func (m *machine) turnDown(why string) {
	m.refused++
	m.refusal = why
	e := m.event(journal.Abort, journal.Str(journal.FieldReason, string(journal.ReasonRefused)))
	e.Message = fmt.Sprintf("%s: handoff refused: %s", m.h.opt.Service, why)
	m.h.events.Write(e)
}

// begin waits for the candidate's READY.
func (m *machine) begin(a *attempt) {
	m.attempt, m.phase = a, control.Forked
	timeout := a.arm.ReadyTimeout
	if timeout <= 0 {
		timeout = m.h.opt.ReadyTimeout
	}
	a.setDeadline(timeout)
	e := m.event(journal.Fork, journal.Str(journal.FieldExe, a.arm.Exe))
	e.PeerPID = a.candidate.pid
	if a.candidate.newcomer() {
		e.Message = fmt.Sprintf("%s: generation %d (pid %d) was asked for its service by %s (%s)", m.h.opt.Service, m.h.generation, e.PID, a.arm.Exe, control.Process(e.PeerPID))
	}
	m.h.events.Write(e)
}

func (m *machine) fork(arm control.Arm) (*attempt, error) {
	h := m.h
	var c *candidate
	err := h.sockets.pass(func(names []string, fds []int) error {
		spec := launchSpec{
			service: h.opt.Service,
			exe:     arm.Exe, dir: h.program.dir, argv: h.program.argv,
			env: successorEnviron(h.program.env, names), fds: fds,
		}
		hello := wire.Message{
			Type: wire.Hello, Version: wire.Version, MinVersion: wire.MinVersion,
			Generation: h.generation + 1, TxID: arm.TxID,
			Capabilities: capabilities(), Takes: h.takes(),
		}
		extra := func(fd int) (number int) {
			if fd < 0 {
				return 0
			}
			spec.extra = append(spec.extra, fd)
			return listenfds.Start + len(fds) + len(spec.extra)
		}
		hello.ControlFD, hello.TakeoverFD = extra(h.control.FD()), extra(h.takeover.FD())
		var err error
		if c, err = startCandidate(spec, h.receive); err != nil {
			return err
		}
		hello.PID = c.pid
		if err := c.link.Send(hello); !wire.BrokenPipe(err) {
			return err
		}
		// It has ended already, or closed its end, before it was spoken to: how
		// it ended follows, and says more than this error.
		return nil
	})
	if err != nil && c != nil {
		c.signal(os.Kill)
		<-c.exited
		c.release()
	}
	return &attempt{arm: arm, candidate: c}, err
}

func (m *machine) couldNotStart(arm control.Arm, err error) {
	reason := journal.ReasonResources
	if cannotExecute(err) {
		reason = journal.ReasonStart
	}
	m.last = &control.Outcome{TxID: arm.TxID, Exe: arm.Exe, Reason: string(reason), Detail: err.Error(), EndedAt: time.Now()}
	e := m.event(journal.Abort, journal.Str(journal.FieldReason, string(reason)), journal.Str(journal.FieldExe, arm.Exe))
	e.TxID = arm.TxID
	e.Message = fmt.Sprintf("%s: candidate could not be started: %v", m.h.opt.Service, err)
	m.h.events.Write(e)
}

// fromCandidate handles a message; !ok means the candidate closed its end.
func (m *machine) fromCandidate(msg wire.Message, ok bool) {
	a := m.attempt
	switch {
	case !ok:
		a.gone = true
		if m.phase == control.Forked || m.phase == control.Held {
			// Its exit follows and decides. If it does not, the candidate has
			// closed its Handoff and lives on: it takes no connections, so
			// this generation must, and it can never be committed.
			m.h.gate.Open()
			a.setDeadline(goneGrace)
		}
		if m.phase == control.Draining {
			// Dead, and its exit makes this generation the service again; or it
			// lives on without a handoff, and serves no connection it had not acknowledged.
			a.setDeadline(goneGrace)
		}
	case msg.Type == wire.Takes:
		a.takes = msg.Takes
		m.peerTakes(a.takes)
	case msg.Type == wire.Moved:
		m.acknowledged(msg)
	case msg.Type == wire.Hello && m.phase == control.Forked:
		if _, err := wire.ChooseVersion(msg.Version, msg.MinVersion); err != nil {
			m.undo(journal.ReasonProtocol, err.Error())
		}
		a.hello = msg
		a.candidate.sharesControl = msg.SharesControl
	case msg.Type == wire.Stop && m.phase == control.Forked && a.candidate.newcomer():
		detail := "the process that asked was told to stop"
		if msg.Reason != "" {
			detail = "the process that asked could not take over: " + msg.Reason
		}
		m.undo(journal.ReasonExited, detail)
	case msg.Type == wire.Ready && m.phase == control.Forked:
		m.held()
	case msg.Type == wire.Stop && m.phase == control.Held:
		m.undo(journal.ReasonExited, "the candidate was told to stop")
	case msg.Type == wire.Stop && m.phase == control.Draining:
		m.stop()
	case msg.Type == wire.Quit && m.phase == control.Draining:
		m.quit()
	}
}

// goneGrace is how long a process may take to end after it closed its link.
const goneGrace = time.Second

// held: the candidate accepts from now on; this generation stops accepting and
// keeps its listeners and its connections.
func (m *machine) held() {
	a := m.attempt
	a.candidate.readyAt = time.Now()
	m.h.gate.Pause()
	m.phase = control.Held
	var names []string
	for _, s := range m.h.sockets.list() {
		names = append(names, s.Name)
	}
	e := m.event(journal.Listen,
		journal.Int(journal.FieldListenPID, int64(a.candidate.pid)),
		journal.Int(journal.FieldListenFDs, int64(len(names))),
		journal.Str(journal.FieldListenFDNames, strings.Join(names, ":")),
		journal.Usec(journal.FieldElapsed, a.candidate.readyAt.Sub(a.candidate.started)))
	e.Generation, e.PID, e.PeerPID = uint64(m.h.generation+1), a.candidate.pid, os.Getpid()
	if a.candidate.newcomer() {
		e.Message = fmt.Sprintf("%s: candidate %s (%s) is ready with %d listeners", m.h.opt.Service, a.arm.Exe, control.Process(a.candidate.pid), len(names))
	}
	m.h.events.Write(e)
	hold := m.h.opt.HoldTimeout
	if a.arm.HoldFor > 0 {
		hold = a.arm.HoldFor
	}
	a.setDeadline(hold)
	switch {
	case a.arm.Hold:
	case m.h.opt.Health == nil:
		m.commit()
	default:
		ctx, cancel := context.WithTimeout(context.Background(), hold)
		health := make(chan error, 1)
		a.health, a.cancel = health, cancel
		go func() { health <- m.h.opt.Health(ctx) }()
	}
}

func (m *machine) healthChecked(err error) {
	a := m.attempt
	a.health = nil
	a.cancel()
	if m.phase != control.Held {
		return
	}
	if err != nil {
		m.undo(journal.ReasonHealth, err.Error())
		return
	}
	m.commit()
}

// commit makes the candidate the service. systemd is told first and has read
// it before anything else happens: from that moment a crash of either side
// leaves a main process that systemd knows.
func (m *machine) commit() error {
	a, h := m.attempt, m.h
	select {
	case exit := <-a.candidate.exited:
		// READY was its last word. systemd must not hear of a dead main process.
		m.candidateExited(exit)
		return errors.New(m.last.Detail)
	default:
	}
	if a.gone {
		return errors.New("the candidate has closed its handoff")
	}
	detail, err := m.announce(a.candidate)
	if err != nil {
		m.undo(journal.ReasonSystemd, err.Error())
		return err
	}
	// A failure to send means that the candidate is gone: its exit follows and
	// is handled as a death in the drain.
	a.candidate.link.Send(wire.Message{Type: wire.Commit})
	a.committed = true
	a.clearDeadline()
	m.last = &control.Outcome{
		TxID: a.arm.TxID, Exe: a.arm.Exe, Candidate: a.candidate.pid, Committed: true, Detail: detail,
		ReadyAfter: a.candidate.readyAt.Sub(a.candidate.started), EndedAt: time.Now(),
	}
	m.yield(a.candidate)
	m.phase = control.Draining
	m.beginDrain(h.opt.IdleGrace, m.moverTo(a.candidate.link, a.hello, a.takes))
	return nil
}
