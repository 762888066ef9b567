//go:build linux

package helper

import (
	"fmt"
	"os/signal"
	"slices"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/journal"
)

// This file is how groups end, and the helper with the last of them.

// fail ends a program that does not come up where there is no other, and the service
// with it.
func (k *keeper) fail() {
	k.wane(Exit{cldExited, 1})
}

// leaderEnded: the first process of a group has ended. What it left behind
// goes with it.
func (k *keeper) leaderEnded(g *generation) {
	alone := !g.stopping
	g.orphan()
	switch {
	case g == k.next && k.crew.roll != nil:
		k.rollLost(g)
	case g == k.next && k.undecided():
		k.lost(g)
	case !k.isWorker(g):
	case k.stopped:
		k.endsAs(g.exit())
	case !alone: // it makes room
	case k.several() && k.phase != control.Starting:
		k.workerDied(g)
	case k.attempt != nil && k.old != nil && !k.old.isGone():
		k.fallBack(g)
	default:
		k.died(g)
	}
}

// died: the program that serves has ended by itself. The service is what its program
// is: it ends, and systemd does with the program's own status what the unit says.
func (k *keeper) died(g *generation) {
	exit := g.exit()
	if k.phase == control.Starting && k.tookOver && exit == (Exit{cldExited, 0}) {
		exit = Exit{cldExited, 1} // the service was to go on
	}
	if k.undecided() && !k.bequeath() {
		k.undo(journal.ReasonStopping, "the program that serves has ended")
	}
	k.wane(k.giveIn(exit, fmt.Sprintf("the program ended (%s)", exit)))
}

// wane begins the end of a service whose program is gone. systemd learns of it by this
// process's exit and by nothing before: it would take STOPPING=1 for a stop that
// somebody wanted.
func (k *keeper) wane(end Exit) { k.waneWithin(end, killGrace) }

// waneWithin is wane for a program that has time to finish.
func (k *keeper) waneWithin(end Exit, grace time.Duration) {
	k.stopped, k.phase, k.end, k.settled = true, control.Stopping, end, true
	k.crew.roll = nil
	k.tellSystemd()
	for _, g := range k.groups() { // nobody serves until all have ended
		g.end(g.app.Stop, grace)
	}
}

// ended: nothing of a group is left.
func (k *keeper) ended(g *generation) {
	g.clearDeadline()
	k.tellExit(g)
	g.close()
	switch g {
	case k.next:
		k.next = nil
		if k.phase == control.Aborting {
			k.settle(g)
		}
	case k.old:
		k.old = nil
		k.lastLeft()
		k.tellSystemd()
	default:
		switch {
		case k.crew.left(g):
			k.lastLeft()
			k.tellSystemd()
		case k.several() && k.isWorker(g):
			k.workerGone(g)
		case g == k.serving:
			k.madeRoom()
		}
	}
	if k.handedOver() {
		k.drained()
	}
	k.checkFinished()
	k.spent = true
}

// stop begins the graceful end of the service.
func (k *keeper) stop() {
	if k.stopped {
		return
	}
	if k.undecided() {
		k.undo(journal.ReasonStopping, "the service stops")
	}
	k.stopped, k.phase = true, control.Stopping
	k.stopHost()
	// This is the main process, so that systemd may know that it stops, also when it
	// was not systemd that said so.
	k.said = k.statusText()
	k.courier.say("STOPPING=1", "STATUS="+k.said)
	for _, g := range k.workers() {
		switch {
		case !g.stopping:
			k.tellDrain(g)
		case g.isOver() && !k.several(): // to make room, for a program that is not wanted any more
			k.end = Exit{cldExited, 0}
		}
	}
	for _, g := range append(k.workers(), k.leaving()...) {
		g.end(g.app.Stop, g.app.DrainTimeout) // not later than that, whatever it has asked for
	}
	if g := k.next; g != nil && k.crew.roll != nil {
		g.end(g.app.Stop, killGrace)
	}
	k.crew.roll = nil
	k.checkFinished()
}

// quit ends everything at once. That the program is killed is no failure of it.
func (k *keeper) quit() {
	k.stop()
	k.quitHost()
	if k.end == (Exit{}) {
		k.end = Exit{cldExited, 0}
	}
	k.settled = true
	for _, g := range k.groups() {
		g.kill()
	}
}

// checkFinished: the service has stopped when of every group the end was told.
func (k *keeper) checkFinished() {
	lives := func(g *generation) bool { return !g.shut }
	k.finished = k.finished || k.stopped && !slices.ContainsFunc(k.all(), lives) && !k.hostDrains()
}

// close says the last words and releases everything.
func (k *keeper) close() {
	k.phase = control.Exited
	k.publish()
	for _, g := range k.all() {
		g.close()
	}
	k.release()
	for _, c := range k.signals {
		signal.Stop(c)
	}
}
