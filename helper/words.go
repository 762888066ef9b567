//go:build linux

package helper

import (
	"fmt"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/journal"
)

// This file is what the program says with sd_notify(3), and what is done about it.

// noticed acts on a notice of g. The keeper owns its descriptors.
func (k *keeper) noticed(g *generation, n notice) {
	d := relay(n, standing{Role: k.role(g), Stopping: k.stopped})
	if d.Ready && !g.ready {
		g.ready = true
		close(g.said)
	}
	if d.HasStatus {
		g.words = d.Status
		k.tellSystemd()
	}
	if d.Extend > 0 && g.timer != nil {
		g.extend(d.Extend)
	}
	k.courier.pass(d.Now)
	if !d.Later.empty() {
		g.keep(d.Later)
	}
	switch {
	case !d.Broken:
	case g == k.next && k.undecided():
		k.undo(journal.ReasonHealth, "the candidate asked to be ended (WATCHDOG=trigger)")
	case g.stopping:
		g.group.Kill()
	}
	if d.Barrier >= 0 {
		k.courier.barrier(d.Barrier)
	}
	closeAll(d.Close)
}

// role is what g is to the unit.
func (k *keeper) role(g *generation) role {
	switch {
	case g.stopping:
		return roleDraining
	case g == k.next:
		return roleCandidate
	case k.phase == control.Starting:
		return roleStarting
	}
	return roleServing
}

// laterMax bounds what a candidate may say for the time when it serves, in messages.
const laterMax = 64

// keep keeps a message until g serves.
func (g *generation) keep(m message) {
	if len(g.later) == laterMax {
		g.dropped++
		closeAll(m.FDs)
		return
	}
	g.later = append(g.later, m)
}

// sayLater passes on what g had to say once it serves.
func (k *keeper) sayLater(g *generation) {
	for _, m := range g.later {
		k.courier.pass(m)
	}
	if g.dropped > 0 {
		k.events.Logger().Warn(fmt.Sprintf("%d words of the program for systemd were dropped", g.dropped))
	}
	g.later, g.dropped = nil, 0
}
