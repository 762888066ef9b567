//go:build linux

package helper

import (
	"fmt"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/journal"
)

// This file is what the program says with sd_notify(3), and what is done about it.

// noticed acts on a notice of g. The keeper owns its descriptors.
func (k *keeper) noticed(g *generation, n notice) {
	d := relay(n, standing{Role: k.role(g), Stopping: k.stopped})
	if d.Trouble != "" {
		g.trouble = d.Trouble
	}
	if d.Ready && !g.ready {
		g.ready = true
		close(g.said)
	}
	if d.HasStatus {
		g.words = d.Status
		k.tellSystemd()
	}
	// A candidate has no say in how long a decision about it may take, nor in how
	// long it is still there when it is not wanted.
	if d.Extend > 0 && g.timer != nil && (g != k.next || k.phase == control.Forked || k.crew.roll != nil) {
		g.extend(d.Extend)
	}
	k.courier.pass(d.Now)
	if !g.later.add(d.Later) {
		g.dropped++
	}
	if d.Beat {
		k.beats(g)
	}
	switch {
	case !d.Broken:
	case g == k.next && k.crew.roll != nil:
		k.rollFailed(journal.ReasonHealth, k.whose(g)+" asked to be ended (WATCHDOG=trigger)", nil)
	case g == k.next && k.undecided():
		k.undo(journal.ReasonHealth, "the candidate asked to be ended (WATCHDOG=trigger)")
	case g.stopping || k.several():
		g.kill()
	}
	if d.Barrier >= 0 {
		k.courier.barrier(d.Barrier)
	}
	closeAll(d.Close)
}

// role is what g is to the unit.
func (k *keeper) role(g *generation) role {
	switch {
	case k.isWorker(g) && k.stopped && !g.readyAt.IsZero():
		return roleServing // nobody has taken over: what it saves at its end is for the unit's next start
	case g.stopping:
		return roleDraining
	case g == k.next:
		return roleCandidate
	case k.phase == control.Starting:
		return roleStarting
	case g.readyAt.IsZero(): // one of several, started again
		return roleCandidate
	case k.several():
		return roleBeside
	}
	return roleServing
}

// sayLater passes on what g had to say once it serves.
func (k *keeper) sayLater(g *generation) {
	g.later.keep(k.courier)
	if g.dropped > 0 {
		k.events.Logger().Warn(fmt.Sprintf("%d words of the program for systemd were dropped", g.dropped))
	}
	g.dropped = 0
}

// heartbeat is what keeps systemd's watchdog from barking.
const heartbeat = "WATCHDOG=1"

// heartbeat ticks while the helper has to speak for a program that is not there: between
// the end of one and READY of the next, and while one drains that another container has replaced. Each of
// these times has a bound. In all others a program that hangs is systemd's business.
func (k *keeper) heartbeat() <-chan time.Time {
	absent := false
	switch {
	case k.stopped:
	case k.handedOver(), k.phase == control.Starting && k.tookOver:
		absent = true
	case k.several():
		absent = k.crew.roll != nil && k.ready() == 0
	default:
		absent = k.serving.stopping
	}
	switch {
	case k.watchdog == 0 || !absent:
		if k.beat != nil {
			k.beat.Stop()
			k.beat = nil
		}
		return nil
	case k.beat == nil:
		k.courier.say(heartbeat)
		k.beat = time.NewTicker(k.watchdog / 2)
	}
	return k.beat.C
}
