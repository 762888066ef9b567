//go:build linux

package helper

import (
	"fmt"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/journal"
)

// roll is the replacement of all workers, one slot after the other: a worker of the other program
// starts in the slot, and when it is READY the one that was there is told to stop. So there are never fewer
// workers that serve than before.
//
// It begins with the commit, when the candidate has taken the first slot. A new worker that
// ends or does not come up turns it round: then the slots that were replaced get
// the program of before again, in the same way.
type roll struct {
	like *generation // whose program the workers get
	back bool
	bad  int // back: the generation that is replaced
}

// replaces reports whether g has to make room for a worker of the other program.
func (r *roll) replaces(g *generation) bool {
	switch {
	case r == nil:
		return false
	case r.back:
		return g.number == r.bad
	}
	return g.number != r.like.number
}

// regains reports whether g was started in place of a worker of a handoff that is undone. If it ends it is started once
// more, and counts as lost: the program of before can come up and not live.
func (r *roll) regains(g *generation) bool {
	return r != nil && r.back && g.number > r.bad
}

// undoes reports whether the end of g, a worker, undoes a handoff: it is of the new program, and not all of
// the old one has gone.
func (k *keeper) undoes(g *generation) bool {
	r := k.crew.roll
	return k.attempt != nil && !k.undecided() && k.phase == control.Idle && (r == nil || !r.back) && g.number == k.number
}

// rollOn starts the next worker of a roll: first where there is none that serves.
func (k *keeper) rollOn() {
	r := k.crew.roll
	if r == nil || k.next != nil || k.stopped {
		return
	}
	slot := -1
	for _, g := range k.workers() {
		if g.isOver() {
			slot = g.slot
			break
		}
		if slot < 0 && r.replaces(g) {
			slot = g.slot
		}
	}
	if slot < 0 {
		k.rollOver()
		return
	}
	g, err := k.spawnLike(r.like, slot, k.number)
	if err != nil {
		k.rollFailed(journal.ReasonStart, fmt.Sprintf("start worker %d: %s", slot+1, err), nil)
		return
	}
	timeout := g.app.ReadyTimeout
	if a := k.attempt; a != nil && a.arm.ReadyTimeout > 0 && !r.back {
		timeout = a.arm.ReadyTimeout
	}
	g.setDeadline(timeout)
	k.next = g
}

// rolled: the worker that was started last is READY.
func (k *keeper) rolled() {
	g := k.next
	old := k.worker(g.slot)
	k.next = nil
	k.seat(g)
	k.joined(g)
	k.tellListen(g, old)
	told := !old.isGone()
	k.sendOff(old, old.app.DrainTimeout)
	if told {
		k.tellDrain(old) // it counts connections, which takes a while where there are many
	}
	k.rollOn()
}

// rollOver: all workers are of the program that they shall be of.
func (k *keeper) rollOver() {
	back := k.crew.roll.back
	k.crew.roll = nil
	if back {
		k.attempt, k.phase = nil, control.Idle
	}
	k.lastLeft()
	k.tellSystemd()
}

// rollLost: the worker that was started last has ended.
func (k *keeper) rollLost(g *generation) {
	exit := g.exit()
	detail := fmt.Sprintf("%s ended (%s) before it was ready", k.whose(g), exit)
	if g.trouble != "" {
		detail += "; it said " + g.trouble
	}
	k.rollFailed(journal.ReasonCrashed, detail, exit.outcome())
}

// rollFailed: the worker that was to be started next does not come up.
func (k *keeper) rollFailed(reason journal.Reason, detail string, exit *control.Exit) {
	end := Exit{cldExited, 1}
	if g := k.next; g != nil {
		if g.isOver() && g.exit() != (Exit{cldExited, 0}) { // the service was to go on
			end = g.exit()
		}
		k.next = nil
		k.sendOff(g, killGrace)
	}
	if !k.crew.roll.back {
		k.rollBack(reason, detail, exit)
		return
	}
	k.events.Logger().Error("start a worker of the earlier program again", "error", detail)
	if k.ready() == 0 {
		k.wane(end)
		return
	}
	k.lose(time.Time{}, end)
}

// rollBack undoes a handoff that was committed: the program of before is started again where it
// has gone.
func (k *keeper) rollBack(reason journal.Reason, detail string, exit *control.Exit) {
	if g := k.next; g != nil {
		k.next = nil
		k.sendOff(g, killGrace)
	}
	before := k.attempt.before
	k.failed(reason, detail+"; the earlier program was started again where it had gone", exit)
	k.phase, k.tookOver = control.Aborting, true
	k.crew.roll = &roll{like: before, back: true, bad: k.number}
	k.number++
	k.app = before.asked
	k.tellSystemd()
	k.rollOn()
}
