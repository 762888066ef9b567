//go:build linux

package helper

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/takeover"
	"github.com/zdt-dev/zdt/internal/wire"
	"github.com/zdt-dev/zdt/journal"
)

// This file is the side of the helper that is asked for its service.

// guest is the process that asked. It stays after the commit, until this helper ends.
type guest struct {
	neighbour
	started, readyAt, committed time.Time
	deadline                    timer // to be READY, to be committed, to be gone, or of this helper to stay
	sharesControl               bool  // it answers on this one's control socket after the commit
	spare                       bool  // it was told to stop, with the service: its end is no failure
}

// settleTime is how long a helper stays at least after it has handed over. With no connection to finish
// it would be gone at once, and a successor for which READY was the last thing it did right
// would find nobody to take over from it.
const settleTime = 50 * time.Millisecond

// exeLimit bounds what a process says that it runs, in bytes: it is for people.
const exeLimit = 4096

// asked decides about a process that asks for the service. With why == "" it is the candidate from here on, and l
// is its.
func (k *keeper) asked(l *wire.Link, ask wire.Message, pid int) (code, why string) {
	code, why = k.refuse()
	if a := k.armed; why == "" && a != nil && (a.Exe != "" || len(a.Command) > 0 || len(a.Environ) > 0) {
		code, why = control.CodeBusy, "a handoff that was prepared is about to begin"
	}
	if why == "" && !k.app.Overlap { // a reload can have made it such a program
		code, why = control.CodeNotReady, "its program cannot run twice at a time (--strategy restart): stop this one first"
	}
	if _, err := wire.ChooseVersion(ask.Version, ask.MinVersion); why == "" && err != nil {
		code, why = wire.CodeVersion, err.Error()
	}
	if why != "" {
		k.turnDown(why)
		return code, why
	}
	a := &attempt{app: k.app, started: time.Now(), candidate: pid}
	if k.armed != nil { // by whoever wants to decide about the next handoff, however it begins
		a.arm = *k.armed
		k.disarm()
	}
	a.exe = cleanText(ask.Exe, exeLimit)
	k.attempts++
	k.attempt, k.tookOver = a, false
	g := &guest{neighbour: neighbour{link: l, pid: pid}, started: a.started}
	if err := k.give(g); err != nil && !wire.BrokenPipe(err) { // how that ended follows, and says more
		k.failed(journal.ReasonResources, err.Error(), nil)
		k.attempt = nil
		return control.CodeFailed, err.Error()
	}
	k.crossing.guest, k.phase = g, control.Forked
	k.hearNeighbour(&g.neighbour, k.guestSaid, k.guestGone)
	timeout := k.app.ReadyTimeout
	if a.arm.ReadyTimeout > 0 {
		timeout = a.arm.ReadyTimeout
	}
	g.deadline.set(timeout)
	e := k.event(journal.Fork, k.serving, journal.Str(journal.FieldExe, a.exe))
	e.PeerPID = pid
	e.Message = fmt.Sprintf("%s: generation %d (%s) was asked for its service by %s (%s)",
		k.opt.Service, k.number, control.Process(k.serving.leader()), a.exe, control.Process(pid))
	k.events.Write(e)
	return "", ""
}

// give sends the sockets, and then hello.
func (k *keeper) give(g *guest) error {
	gift := takeover.Gift{Takeover: k.crossing.server.FD(), Control: k.server.FD()}
	for _, s := range k.sockets {
		gift.Names, gift.FDs = append(gift.Names, s.Name), append(gift.FDs, s.FD)
	}
	return gift.Send(g.link, k.opt.ControlSocket, wire.Message{
		Type: wire.Hello, Version: wire.Version, MinVersion: wire.MinVersion, Generation: k.number + 1, TxID: k.attempt.arm.TxID,
	})
}

// guestSaid acts on a message. Those about connections that move do not concern a helper.
func (k *keeper) guestSaid(m wire.Message) {
	g := k.crossing.guest
	switch {
	case m.Type == wire.Hello && k.phase == control.Forked:
		g.sharesControl = m.SharesControl
		if _, err := wire.ChooseVersion(m.Version, m.MinVersion); err != nil {
			k.undo(journal.ReasonProtocol, err.Error())
		}
	case m.Type == wire.Ready && k.phase == control.Forked:
		k.guestReady()
	case m.Type == wire.Stop && k.undecided():
		detail := "the process that asked was told to stop"
		if m.Reason != "" {
			detail = "the process that asked could not take over: " + cleanText(m.Reason, 4*statusLimit)
		}
		k.undo(journal.ReasonExited, detail)
	case m.Type == wire.Stop && !g.committed.IsZero(): // the service as a whole; this one ends already
		g.spare = true
	case m.Type == wire.Quit && !g.committed.IsZero():
		g.spare = true
		k.quit()
	}
}

// guestReady: the guest accepts from now on, and so does the program here, unless it can be told to pause.
func (k *keeper) guestReady() {
	a, g := k.attempt, k.crossing.guest
	g.readyAt = time.Now()
	k.phase = control.Held
	for _, w := range k.workers() {
		w.pause()
	}
	var names []string
	for _, s := range k.sockets {
		names = append(names, s.Name)
	}
	e := k.event(journal.Listen, k.serving,
		journal.Int(journal.FieldListenPID, int64(g.pid)),
		journal.Int(journal.FieldListenFDs, int64(len(names))),
		journal.Str(journal.FieldListenFDNames, strings.Join(names, ":")),
		journal.Usec(journal.FieldElapsed, g.readyAt.Sub(g.started)))
	e.Generation, e.PID, e.PeerPID = uint64(k.number+1), g.pid, k.serving.leader()
	e.Message = fmt.Sprintf("%s: candidate %s (%s) is ready with %d listeners", k.opt.Service, a.exe, control.Process(g.pid), len(names))
	k.events.Write(e)
	if !a.arm.Hold {
		k.handOver()
		return
	}
	hold := k.opt.HoldTimeout
	if a.arm.HoldFor > 0 {
		hold = a.arm.HoldFor
	}
	g.deadline.set(hold)
}

// handOver commits: the guest is the service. The program here drains, and when nothing of it is left this helper
// ends, with status 0: whoever runs containers shall not start it again.
func (k *keeper) handOver() {
	a, g := k.attempt, k.crossing.guest
	// If it cannot be sent the guest is gone. That news follows, and is a death in the drain.
	g.link.Send(wire.Message{Type: wire.Commit})
	g.committed = time.Now()
	g.deadline.clear()
	k.crossing.owner, k.crossing.shared = false, g.sharesControl
	k.crossing.server.Pause()
	if g.sharesControl {
		k.server.Pause()
	}
	k.phase, k.end, k.settled = control.Draining, Exit{cldExited, 0}, true
	k.last = &control.Outcome{
		TxID: a.arm.TxID, Exe: a.exe, Candidate: g.pid, Committed: true,
		ReadyAfter: g.readyAt.Sub(g.started), EndedAt: time.Now(),
	}
	var counts control.Counts
	for _, w := range k.workers() {
		if !w.shut {
			counts.Active += k.tellDrain(w)
			w.end(w.app.Stop, w.app.DrainTimeout)
		}
	}
	g.link.Send(wire.Message{Type: wire.Progress, Connections: &counts})
	k.tellSystemd()
}

// handedOver reports whether another process is the service.
func (k *keeper) handedOver() bool {
	g := k.crossing.guest
	return g != nil && !g.committed.IsZero()
}

// drained ends this helper when nothing is left of the program that served here, and the guest has not died for a while.
func (k *keeper) drained() {
	g := k.crossing.guest
	if slices.ContainsFunc(k.workers(), func(w *generation) bool { return !w.shut }) {
		return
	}
	if left := settleTime - time.Since(g.committed); left > 0 && !k.stopped {
		g.deadline.set(left)
		return
	}
	k.stopped, k.phase = true, control.Stopping
	k.checkFinished()
}

// dismiss takes a takeover back before its commit. The guest ends: it is told so, and nothing else can be done about it.
// It cannot take the end of the link for the death of this process, because abort comes first.
func (k *keeper) dismiss(reason journal.Reason, detail string) {
	g := k.crossing.guest
	k.resume()
	k.phase = control.Aborting
	k.failed(reason, detail, nil)
	g.link.Send(wire.Message{Type: wire.Abort, Reason: string(reason)})
	if g.readyAt.IsZero() {
		g.deadline.set(killGrace)
		return
	}
	g.deadline.set(k.app.DrainTimeout + killGrace) // it has accepted connections: it may finish them
}

// guestExpired: the guest's time is over.
func (k *keeper) guestExpired() {
	g := k.crossing.guest
	g.deadline.clear()
	switch {
	case !g.committed.IsZero():
		k.drained()
	case k.phase == control.Forked:
		k.undo(journal.ReasonReadyTimeout, "the process that asked did not say READY in time")
	case k.phase == control.Held:
		k.undo(journal.ReasonHoldTimeout, "nobody committed the candidate in time")
	default: // it does not end, or is stopped: this process is rid of it
		k.guestGone()
	}
}

// extendHold puts off the deadline of a held handoff.
func (k *keeper) extendHold(d time.Duration) {
	if g := k.crossing.guest; g != nil {
		g.deadline.set(d)
		return
	}
	k.next.setDeadline(d)
}

// guestExpiry is nil, which nothing is ever received from, without a deadline.
func (k *keeper) guestExpiry() <-chan time.Time {
	if g := k.crossing.guest; g != nil && g.deadline.t != nil {
		return g.deadline.t.C
	}
	return nil
}

// guestGone: the guest has let go of the link.
func (k *keeper) guestGone() {
	g := k.crossing.guest
	const gone = "the process that asked let go of the link"
	switch {
	case k.undecided():
		k.resume()
		k.failed(journal.ReasonCrashed, gone+" before it was committed", nil)
	case g.committed.IsZero() || k.stopped || g.spare:
	default:
		k.takeBack(gone)
		return
	}
	if g.committed.IsZero() && !k.stopped {
		k.attempt, k.phase = nil, control.Idle
	}
	if !g.committed.IsZero() { // it stays as what this helper ends for
		// One that was told to stop has removed its path, which may be another's by now. One that died has not.
		k.crossing.owner = !g.spare
		g.deadline.clear()
		g.release()
		k.drained()
		return
	}
	k.letGo()
}

// letGo forgets the guest.
func (k *keeper) letGo() {
	g := k.crossing.guest
	g.deadline.clear()
	g.release()
	k.crossing.guest = nil
}

// takeBack: the guest was the service, and is gone while the program here still drained. That cannot be called back,
// so it is started again.
func (k *keeper) takeBack(how string) {
	k.failed(journal.ReasonCrashed, how+" while its predecessor still drained, whose program was started again", nil)
	k.letGo()
	k.nobody, k.end, k.settled = time.Now(), Exit{}, false
	k.number += 2 // one was the guest's
	k.attempt, k.tookOver, k.app, k.phase = nil, true, k.serving.asked, control.Starting
	k.own()
	for _, g := range k.workers() {
		if !g.shut {
			k.crew.parting = append(k.crew.parting, g)
		}
		next, err := k.spawnLike(g, g.slot, k.number)
		if err != nil {
			k.events.Logger().Error("start the earlier program again", "error", err)
			k.wane(Exit{cldExited, 1})
			return
		}
		k.seat(next)
		next.setDeadline(next.app.ReadyTimeout)
	}
	k.tellSystemd()
}

// resume has the workers accept again.
func (k *keeper) resume() {
	for _, w := range k.workers() {
		w.resume()
	}
}

// cut counts the connections that ended with a worker that was killed.
func (k *keeper) cut() (n int) {
	for _, w := range k.workers() {
		n += w.cut
	}
	return n
}

// bequeath leaves the service to a guest, if there is one: the program that served here has ended. Without a word, as if
// this process had died: the guest has the sockets, and nobody else does.
func (k *keeper) bequeath() bool {
	g := k.crossing.guest
	if g == nil || !k.undecided() {
		return false
	}
	k.last = &control.Outcome{
		TxID: k.attempt.arm.TxID, Exe: k.attempt.exe, Candidate: g.pid, Committed: true, EndedAt: time.Now(),
		Detail: "the program that served has ended; the process that asked is the service",
	}
	k.events.Logger().Warn(k.last.Detail, "service", k.opt.Service)
	k.crossing.owner, k.crossing.shared = false, g.sharesControl
	k.crossing.server.Pause()
	if g.sharesControl {
		k.server.Pause()
	}
	k.attempt = nil
	k.letGo()
	return true
}
