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
	s := control.Status{
		Version: control.Version, Service: k.opt.Service, Runtime: control.RuntimeHelper,
		PID: os.Getpid(), App: k.serving.leader(), Generation: k.number, Phase: k.phase, Exe: k.serving.exe,
		StartedAt: k.serving.started, Armed: k.armed, Last: k.last,
		Refused: k.refused, LastRefusal: k.refusal, Attempts: k.attempts, TookOver: k.tookOver, EventsLost: k.events.Lost(),
		Helper: &control.Helper{Renewals: k.renewals, Failures: k.renewalsFailed, Error: k.renewalError, Version: k.opt.Version, Exe: k.exe},
	}
	for i, sock := range k.sockets {
		origin := "systemd"
		if i >= len(k.sockets)-k.bound {
			origin = "bound"
		}
		s.Sockets = append(s.Sockets, control.Socket{Name: sock.Name, Network: sock.Network, Address: sock.Address, Origin: origin, InUse: true})
	}
	if k.serving.isOver() {
		s.App = 0 // the number may be another's
	}
	if k.armed != nil { // the environment is not for everybody who may look
		public := *k.armed
		public.Environ = nil
		s.Armed = &public
	}
	if a := k.attempt; a != nil && (k.undecided() || k.phase == control.Aborting) {
		s.Handoff = &control.Handoff{TxID: a.arm.TxID, Exe: a.exe, Candidate: a.candidate, Hold: a.arm.Hold, StartedAt: a.started}
		if a.waits {
			s.Handoff.Deadline = k.serving.deadline
		}
		if g := k.next; g != nil {
			s.Handoff.StartedAt, s.Handoff.ReadyAt, s.Handoff.Deadline = g.started, g.readyAt, g.deadline
		}
	}
	if k.old != nil {
		s.Predecessor = &control.Peer{PID: k.old.leader(), Generation: k.old.number}
	}
	return s
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
	case control.Stopping, control.Exited:
		text += "stopping"
	default:
		text += "serving"
	}
	words := k.serving.words
	if own, found := strings.CutPrefix(words, fmt.Sprintf("generation %d: ", k.number)); found {
		_, words, _ = strings.Cut(own, ": ") // a program with the library says so too, and serving or stopping
	}
	if k.old != nil {
		text += fmt.Sprintf("; generation %d drains", k.old.number)
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

// tellDrain: g was told to finish.
func (k *keeper) tellDrain(g *generation) {
	n := g.connections()
	e := k.event(journal.Drain, g, journal.Int(journal.FieldConnsActive, int64(n)))
	e.Message = fmt.Sprintf("%s: generation %d (%s) is told to finish (%s): %d connections", k.opt.Service, g.number, control.Process(g.leader()), signalName(int(g.app.Stop)), n)
	if g != k.serving {
		e.PeerPID = k.serving.leader()
	}
	k.events.Write(e)
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
	e.Message = fmt.Sprintf("%s: generation %d (%s) ended (%s) after %s: %d connections cut", k.opt.Service, g.number, control.Process(g.leader()), exit, elapsed.Round(time.Millisecond), g.cut)
	k.events.Write(e)
}

// outcome is the exit as part of an outcome.
func (e Exit) outcome() *control.Exit {
	w := e.words()
	return &w
}
