//go:build linux

package helper

import (
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/journal"
)

func (k *keeper) status() control.Status {
	lead := k.lead()
	s := control.Status{
		Version: control.Version, Service: k.opt.Service, Runtime: control.RuntimeHelper,
		PID: os.Getpid(), App: lead.leader(), Generation: k.number, Phase: k.phase, Exe: lead.exe,
		StartedAt: lead.started, Armed: k.armed, Last: k.last,
		Refused: k.refused, LastRefusal: k.refusal, Attempts: k.attempts, TookOver: k.tookOver, EventsLost: k.events.Lost(),
		Helper: &control.Helper{Renewals: k.renewals, Failures: k.renewalsFailed, Error: k.renewalError, Version: k.opt.Version, Exe: k.exe},
	}
	for i, sock := range k.sockets {
		s.Sockets = append(s.Sockets, control.Socket{Name: sock.Name, Network: sock.Network, Address: sock.Address, Origin: k.origin(i), InUse: true,
			ReusePort: k.crew.queues[sock.FD] != nil})
	}
	if lead.isOver() {
		s.App = 0 // the number may be another's
	}
	if k.armed != nil { // the environment is not for everybody who may look
		public := *k.armed
		public.Environ = nil
		s.Armed = &public
	}
	if a := k.attempt; a != nil && k.crew.roll == nil && (k.undecided() || k.phase == control.Aborting) {
		s.Handoff = &control.Handoff{TxID: a.arm.TxID, Exe: a.exe, Candidate: a.candidate, Hold: a.arm.Hold, StartedAt: a.started}
		if a.waits {
			s.Handoff.Deadline = k.serving.deadline
		}
		if g := k.next; g != nil {
			s.Handoff.StartedAt, s.Handoff.ReadyAt, s.Handoff.Deadline = g.started, g.readyAt, g.deadline
		}
		if g := k.crossing.guest; g != nil {
			s.Handoff.ReadyAt, s.Handoff.Deadline = g.readyAt, g.deadline.until
		}
		s.Handoff = s.Handoff.Steady(time.Now())
	}
	if g := k.predecessor(); g != nil {
		s.Predecessor = &control.Peer{PID: g.leader(), Generation: g.number}
	}
	if h := k.crossing.host; h != nil {
		s.Predecessor = &control.Peer{PID: h.pid, Generation: h.hello.Generation - 1, Connections: h.counts}
	}
	s.Workers = k.crewStatus()
	return s
}

// predecessor is a group of the generation before, while one is there; nil: none is.
func (k *keeper) predecessor() *generation {
	for _, g := range append(k.leaving(), k.workers()...) {
		if r := k.crew.roll; !k.isWorker(g) || r != nil && !r.back && r.replaces(g) {
			return g
		}
	}
	return nil
}

// crewStatus is nil without several workers.
func (k *keeper) crewStatus() *control.Workers {
	if !k.several() {
		return nil
	}
	w := &control.Workers{Want: k.slots(), Ready: k.ready(), Restarts: k.crew.restarts}
	for _, g := range k.workers() {
		one := control.Worker{Index: g.slot + 1, Generation: g.number, Ready: g.serves()}
		if !g.isOver() {
			one.PID = g.leader()
		}
		if k.crew.roll.replaces(g) {
			w.Left++
		}
		w.List = append(w.List, one)
	}
	return w
}

// publish gives every watcher the present status.
func (k *keeper) publish() {
	if len(k.watchers) > 0 {
		k.watchers.Publish(k.status())
	}
}

// statusText is what systemctl status shows: the helper's words, then the program's.
func (k *keeper) statusText() string {
	text := fmt.Sprintf("generation %d: ", k.number)
	switch k.phase {
	case control.Starting:
		text += "starting"
	case control.Candidate:
		text += "ready to take over"
	case control.Draining:
		text += "handed over, drains"
	case control.Stopping, control.Exited:
		text += "stopping"
	default:
		text += "serving"
	}
	words := k.serving.words
	if k.several() {
		words = ""
		if k.phase != control.Stopping && k.phase != control.Exited {
			text += fmt.Sprintf(", %d workers", k.slots())
			if n := k.ready(); n < k.slots() {
				text += fmt.Sprintf(", %d ready", n)
			}
		}
	}
	if own, found := strings.CutPrefix(words, fmt.Sprintf("generation %d: ", k.number)); found {
		_, words, _ = strings.Cut(own, ": ") // a program with the library says so too, and serving or stopping
	}
	if g := k.predecessor(); g != nil {
		text += fmt.Sprintf("; generation %d drains", g.number)
	}
	if k.hostDrains() {
		text += fmt.Sprintf("; generation %d drains", k.crossing.host.hello.Generation-1)
	}
	if words != "" {
		text += ": " + words
	}
	return text
}

func (k *keeper) tellSystemd() {
	if text := k.statusText(); text != k.said {
		k.said = text
		k.courier.say("STATUS=" + text)
	}
}

// event fills in what all events share. g is whom it is about.
func (k *keeper) event(kind journal.Kind, g *generation, fields ...journal.Field) journal.Event {
	e := journal.Event{Kind: kind, Generation: uint64(g.number), PID: g.leader(), Fields: fields}
	if k.attempt != nil {
		e.TxID = k.attempt.arm.TxID
	}
	return e
}

// tellListen: g, which takes the place of old, is READY.
func (k *keeper) tellListen(g, old *generation) {
	names := make([]string, 0, len(k.sockets))
	for _, s := range k.sockets {
		names = append(names, s.Name)
	}
	e := k.event(journal.Listen, g,
		journal.Int(journal.FieldListenPID, int64(g.leader())),
		journal.Int(journal.FieldListenFDs, int64(len(names))),
		journal.Str(journal.FieldListenFDNames, strings.Join(names, ":")),
		journal.Usec(journal.FieldElapsed, g.readyAt.Sub(g.started)))
	e.PeerPID = old.leader()
	k.events.Write(e)
}

// tellDrain: g was told to finish n connections.
func (k *keeper) tellDrain(g *generation) (n int) {
	n = g.connections()
	e := k.event(journal.Drain, g, journal.Int(journal.FieldConnsActive, int64(n)))
	e.Message = fmt.Sprintf("%s: %s is told to finish (%s): %d connections", k.opt.Service, k.whose(g), signalName(int(g.app.Stop)), n)
	if !k.isWorker(g) {
		e.PeerPID = k.worker(g.slot).leader()
	}
	k.events.Write(e)
	return n
}

// tellExit: nothing of g is left.
func (k *keeper) tellExit(g *generation) {
	exit := g.exit()
	var elapsed time.Duration
	if !g.endsAt.IsZero() {
		elapsed = time.Since(g.endsAt)
	}
	x := exit.words()
	e := k.event(journal.Exit, g, journal.Int(journal.FieldConnsCut, int64(g.cut)), journal.Usec(journal.FieldElapsed, elapsed),
		journal.Str(journal.FieldExitCode, x.Code), journal.Str(journal.FieldExitStatus, x.Status))
	e.Message = fmt.Sprintf("%s: %s ended (%s) after %s: %d connections cut", k.opt.Service, k.whose(g), exit, elapsed.Round(time.Millisecond), g.cut)
	k.events.Write(e)
}

// outcome is the exit as part of an outcome.
func (e Exit) outcome() *control.Exit {
	w := e.words()
	return &w
}
