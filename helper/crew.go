//go:build linux

package helper

import (
	"fmt"
	"slices"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/netfd"
	"github.com/zdt-dev/zdt/journal"
)

// crew is what a helper has besides, when it keeps several workers (Options.Workers): groups of
// the same program side by side, each in a slot. Without them it is empty. The first slot's worker
// is keeper.serving, and what it was before a handoff is keeper.old.
//
// A worker that ends by itself is started again in its slot, one after the other, while at least
// one other serves.
type crew struct {
	others  []*generation // of the slots 1, 2, …; what has ended stays until the slot is filled again
	parting []*generation // told to end, of any slot
	roll    *roll         // the workers are being replaced
	starts  int           // how many groups were started; names their notification sockets

	losses   losses
	pause    *time.Timer // until a worker is started again
	restarts int         // of workers that had ended by themselves

	// queues are the sockets of the workers but the first, by the descriptor of the first's (Options.ReusePort).
	queues map[int][]int
}

// several reports whether there is more than one worker.
func (k *keeper) several() bool { return len(k.crew.others) > 0 }

func (k *keeper) slots() int { return 1 + len(k.crew.others) }

// workers are the groups in the slots. A slot has none before begin has filled it.
func (k *keeper) workers() []*generation {
	return slices.DeleteFunc(append([]*generation{k.serving}, k.crew.others...), func(g *generation) bool { return g == nil })
}

// worker is the group in a slot.
func (k *keeper) worker(slot int) *generation {
	if slot == 0 {
		return k.serving
	}
	return k.crew.others[slot-1]
}

// seat puts g into its slot.
func (k *keeper) seat(g *generation) {
	if g.slot == 0 {
		k.serving = g
		return
	}
	k.crew.others[g.slot-1] = g
}

func (k *keeper) isWorker(g *generation) bool { return k.worker(g.slot) == g }

// serves reports whether g is READY and was not told to stop.
func (g *generation) serves() bool { return !g.readyAt.IsZero() && !g.stopping && !g.isOver() }

// ready counts the workers that serve.
func (k *keeper) ready() int {
	n := 0
	for _, g := range k.workers() {
		if g.serves() {
			n++
		}
	}
	return n
}

func (k *keeper) allReady() bool { return k.ready() == k.slots() }

// lead is the worker that a status is about: the first one that serves, of the release that shall.
func (k *keeper) lead() *generation {
	if k.several() {
		for _, g := range k.workers() {
			if g.serves() && !k.crew.roll.replaces(g) {
				return g
			}
		}
	}
	return k.serving
}

// leaving are the groups that served and were told to end.
func (k *keeper) leaving() []*generation {
	if k.old == nil {
		return slices.Clone(k.crew.parting)
	}
	return append([]*generation{k.old}, k.crew.parting...)
}

// sendOff tells g, which has no slot any more, to end.
func (k *keeper) sendOff(g *generation, grace time.Duration) {
	if g.shut {
		return
	}
	k.crew.parting = append(k.crew.parting, g)
	g.end(g.app.Stop, grace)
}

// left forgets g, of which nothing is left. It reports whether it was among those told to end.
func (c *crew) left(g *generation) bool {
	n := len(c.parting)
	c.parting = slices.DeleteFunc(c.parting, func(o *generation) bool { return o == g })
	return len(c.parting) < n
}

// lastLeft ends the account of a handoff when the last group of before has ended.
func (k *keeper) lastLeft() {
	if k.crew.roll == nil && !k.undecided() && len(k.leaving()) == 0 {
		k.attempt = nil
	}
}

// due is the group whose deadline is the next, of those that only a crew has.
func (c *crew) due() *generation {
	var due *generation
	for _, g := range append(slices.Clone(c.others), c.parting...) {
		if g.expiry() != nil && (due == nil || g.deadline.Before(due.deadline)) {
			due = g
		}
	}
	return due
}

// killAll ends the workers of a service that does not come up.
func (k *keeper) killAll() {
	for _, g := range k.workers() {
		g.group.end()
	}
}

// mailNumbers are in the name of the notification socket of the next group: with several workers one
// generation has more than one.
func (k *keeper) mailNumbers(generation int) []int {
	if !k.several() {
		return []int{generation}
	}
	k.crew.starts++
	return []int{generation, k.crew.starts}
}

// socketsFor are the sockets that the group in a slot gets. What systemd has kept for the program, as
// connections, is given once: two would read from it.
func (k *keeper) socketsFor(slot int) []Socket {
	sockets := slices.Clone(k.sockets)
	if slot == 0 {
		return append(sockets, k.stored...)
	}
	for i, s := range sockets {
		if own := k.crew.queues[s.FD]; own != nil {
			sockets[i].FD = own[slot-1]
		}
	}
	return sockets
}

// closeQueues closes the sockets of the workers but the first.
func (k *keeper) closeQueues() {
	for _, fds := range k.crew.queues {
		for _, fd := range fds {
			netfd.Close(fd)
		}
	}
}

// endsAs notes how a worker ended as the service stops. One that fails counts more than those that do not.
func (k *keeper) endsAs(exit Exit) {
	if k.end == (Exit{}) || k.several() && !k.settled && k.end == (Exit{cldExited, 0}) {
		k.end = exit
	}
}

// workerDied: the first process of a worker, one of several, has ended by itself.
func (k *keeper) workerDied(g *generation) {
	exit := g.exit()
	switch {
	case k.undoes(g):
		k.rollBack(journal.ReasonCrashed, fmt.Sprintf("%s of the new program ended (%s)", k.whose(g), exit), exit.outcome())
	case k.crew.roll.regains(g):
		k.lose(g.readyAt, exit)
		k.tellSystemd()
	case k.ready() == 0 && k.crew.roll == nil:
		k.died(g)
	default:
		k.tellSystemd()
	}
}

// neverReady: a worker that was started again does not come up.
func (k *keeper) neverReady(g *generation, why error) {
	k.events.Logger().Error(fmt.Sprintf("wait for %s to be ready", k.whose(g)), "error", why)
	g.failed = true
	g.end(g.app.Stop, killGrace)
}

// workerGone: nothing is left of a worker that was not told to end, or that did not come up.
func (k *keeper) workerGone(g *generation) {
	if k.stopped || k.crew.roll != nil || k.handedOver() {
		return // who replaces the workers fills the slot
	}
	exit := g.exit()
	if g.failed {
		exit = Exit{cldExited, 1}
	}
	k.lose(g.readyAt, exit)
	if !k.stopped {
		k.events.Logger().Warn(fmt.Sprintf("%s ended (%s) by itself and is started again", k.whose(g), g.exit()))
	}
}

// lose counts the loss of a worker. The service ends with it if they keep dying.
func (k *keeper) lose(readyAt time.Time, exit Exit) {
	if k.crew.losses.add(readyAt, time.Now()) {
		k.events.Logger().Error(fmt.Sprintf("%d workers in a row have ended early: the service ends", lossLimit), "last", exit.String())
		if k.undecided() && !k.bequeath() {
			k.undo(journal.ReasonStopping, "the workers of the program that serves keep ending")
		}
		k.wane(k.giveIn(exit, "the workers of the program keep ending"))
	}
}

// lookAfter begins the pause before a worker that has ended is started again.
func (k *keeper) lookAfter() {
	c := &k.crew
	if !k.several() || k.stopped || k.handedOver() || c.pause != nil || k.phase == control.Starting {
		return
	}
	if c.roll == nil && k.vacancy() == nil || c.roll != nil && k.next != nil {
		return
	}
	c.pause = time.NewTimer(c.losses.pause())
}

// vacancy is a worker of which nothing is left; nil: there is none, or another is just being started.
func (k *keeper) vacancy() *generation {
	var gone *generation
	for _, g := range k.workers() {
		switch {
		case g.shut && gone == nil:
			gone = g
		case !g.shut && g.readyAt.IsZero():
			return nil
		}
	}
	return gone
}

func (c *crew) pauseOver() <-chan time.Time {
	if c.pause == nil {
		return nil
	}
	return c.pause.C
}

// mend starts a worker again.
func (k *keeper) mend() {
	k.crew.pause = nil
	if k.crew.roll != nil {
		k.rollOn()
		return
	}
	gone := k.vacancy()
	if k.stopped || k.handedOver() || gone == nil {
		return
	}
	k.crew.restarts++
	g, err := k.spawnLike(gone, gone.slot, gone.number)
	if err != nil {
		k.events.Logger().Error(fmt.Sprintf("start %s again", k.whose(gone)), "error", err)
		k.lose(time.Time{}, Exit{cldExited, 1})
		return
	}
	k.seat(g)
	g.setDeadline(g.app.ReadyTimeout)
}

// joined: a worker that was started again serves.
func (k *keeper) joined(g *generation) {
	g.beat = true
	k.crew.losses.inVain = 0
	k.sayLater(g)
	k.tellSystemd()
}

// beats: a worker's heartbeat has come. systemd gets one when all workers that serve have had theirs: it
// is the watchdog of each of them.
func (k *keeper) beats(g *generation) {
	g.beat = true
	for _, o := range k.workers() {
		if o.serves() && !o.beat {
			return
		}
	}
	for _, o := range k.workers() {
		o.beat = false
	}
	k.courier.say(heartbeat)
}

// whose names a group in words.
func (k *keeper) whose(g *generation) string {
	if k.several() {
		return fmt.Sprintf("worker %d of generation %d (%s)", g.slot+1, g.number, control.Process(g.leader()))
	}
	return fmt.Sprintf("generation %d (%s)", g.number, control.Process(g.leader()))
}
