package handoff

import (
	"fmt"
	"os"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/wire"
	"github.com/zdt-dev/zdt/journal"
)

// asked decides about a process that asks for the service over the takeover
// socket. With why == "" it is the candidate from here on, and l is its; pid is
// for people, and 0 where it cannot be seen.
func (m *machine) asked(l *wire.Link, ask wire.Message, pid int) (code, why string) {
	code, why = m.refuse()
	if why == "" && m.armed != nil && m.armed.Exe != "" {
		code, why = control.CodeBusy, fmt.Sprintf("a handoff to %s is about to begin", m.armed.Exe)
	}
	if _, err := wire.ChooseVersion(ask.Version, ask.MinVersion); why == "" && err != nil {
		code, why = wire.CodeVersion, err.Error()
	}
	if why != "" {
		m.turnDown(why)
		return code, why
	}
	var arm control.Arm // of whoever wants to decide about the next handoff, however it begins
	if m.armed != nil {
		arm = *m.armed
		m.disarm()
	}
	arm.Exe = ask.Exe
	m.attempts++
	c := newcomer(l, pid, ask.Exe, m.h.receive)
	err := m.h.give(l, wire.Message{
		Type: wire.Hello, Version: wire.Version, MinVersion: wire.MinVersion,
		Generation: m.h.generation + 1, TxID: arm.TxID, Capabilities: capabilities(), Takes: m.h.takes(),
	})
	if err != nil && !wire.BrokenPipe(err) { // how it ended follows, and says more
		l.Send(wire.Message{Type: wire.Refused, Version: wire.Version, MinVersion: wire.MinVersion, Code: control.CodeFailed, Reason: err.Error()})
		c.release()
		m.couldNotStart(arm, err)
		return control.CodeFailed, err.Error()
	}
	m.begin(&attempt{arm: arm, candidate: c})
	return "", ""
}

// exitUnknown is the EXIT_CODE of a process whose end nobody could wait for.
const exitUnknown = "unknown"

// newcomer is a candidate that this process did not start. It cannot be
// signalled nor waited for: its end is the end of the link.
func newcomer(l *wire.Link, pid int, exe string, taker func(*wire.Link, wire.Message)) *candidate {
	c := &candidate{
		pid: pid, link: l, started: time.Now(), exe: exe,
		messages: make(chan wire.Message), exited: make(chan control.Exit, 1), stop: make(chan struct{}),
	}
	l.Taker = taker
	go func() {
		l.Pump(c.messages, c.stop)
		c.exited <- control.Exit{Code: exitUnknown}
	}()
	return c
}

// newcomer reports whether the candidate asked over the takeover socket, in
// place of having been started here.
func (c *candidate) newcomer() bool { return c.process == nil }

// dismiss tells a newcomer to end. With force nothing more is heard from it:
// whatever it does, this generation is rid of it. It cannot take that for the
// death of its predecessor, because abort comes first, and what it has not been
// told to be ours stays its own.
func (c *candidate) dismiss(force bool) {
	c.link.Send(wire.Message{Type: wire.Abort, Reason: string(journal.ReasonStopping)})
	if force {
		c.link.Close()
	}
}

// ended says how the candidate ended.
func (c *candidate) ended(exit control.Exit) string {
	if c.newcomer() {
		return "let go of the link"
	}
	return fmt.Sprintf("ended (%s, %s)", exit.Code, exit.Status)
}

// exit is what is known of its end, nil for a process that nobody waits for.
func (c *candidate) exit(exit control.Exit) *control.Exit {
	if c.newcomer() {
		return nil
	}
	return &exit
}

// announce tells systemd of its new main process. A newcomer has a supervisor
// of its own, and this process stays the main one of its unit until it ends.
func (m *machine) announce(c *candidate) (detail string, err error) {
	h := m.h
	if c.newcomer() {
		return "", nil
	}
	if err := h.notifier.MainPID(c.pid, servingText(h.generation+1, &control.Peer{Generation: h.generation})); err != nil {
		return "", err
	}
	// Programs that this one still starts must not talk to systemd for it.
	os.Unsetenv("NOTIFY_SOCKET")
	// Without the barrier's answer the message is still in systemd's queue,
	// which it reads before it looks at processes that ended: there is no way
	// back from here, and none is needed.
	if err := h.notifier.Barrier(); err != nil {
		detail = err.Error()
	}
	return detail, nil
}

// yield stops answering for the service: the candidate does. A newcomer with a
// control socket of its own leaves this generation its own.
func (m *machine) yield(c *candidate) {
	m.h.takeover.Pause()
	if !c.newcomer() || c.sharesControl {
		m.h.control.Pause()
	}
}

// leaves reports whether paths in the file system go with this generation: the
// takeover socket's and the control socket's.
func (m *machine) leaves() (takeover, control bool) {
	a := m.attempt
	passed := a != nil && a.committed
	takeover = m.service && !passed
	control = (m.service || m.h.ownControl) && (!passed || a.candidate.newcomer() && !a.candidate.sharesControl)
	return takeover, control
}
