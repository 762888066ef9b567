package handoff

import (
	"fmt"
	"strings"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/handoff/internal/sockview"
)

// This file applies package sockview to moves (Options.VerifyMoves).

// inspect adds what the kernel says of a parked connection to its record.
func (p *parked) inspect() error {
	fd, err := borrowFD(p.conn.net)
	if err != nil {
		return err
	}
	v, err := sockview.Look(fd, true)
	if err != nil {
		return err
	}
	p.cargo.View = &v
	return nil
}

// restore undoes what a receiver that was killed while it looked may have left.
func (p *parked) restore() error {
	if p.cargo.View == nil {
		return nil
	}
	fd, err := borrowFD(p.conn.net)
	if err != nil {
		return err
	}
	return p.cargo.View.Restore(fd)
}

// verify compares a connection that has arrived as fd with what was sent. It runs
// before the acknowledgement, so that nobody else touches the connection.
func (h *Handoff) verify(fd int, load cargo) {
	before := load.View
	if before == nil || before.Socket == "" {
		return
	}
	// What the sender could not read, this process must not: a sender without
	// the capability could not undo what is left by a receiver that dies.
	after, err := sockview.Look(fd, before.Repair)
	if err != nil {
		h.events.Logger().Warn("look at a connection after its move", "error", err)
		h.countMoves(func(m *control.Moves) { m.Unverified++ })
	} else {
		h.compare(*before, after)
	}
	if err := before.Restore(fd); err != nil {
		h.events.Logger().Error("restore a connection after the look at it", "error", err)
	}
}

func (h *Handoff) compare(before, after sockview.View) {
	differences := before.Compare(after)
	if len(differences) == 0 {
		h.countMoves(func(m *control.Moves) { m.Verified++ })
		return
	}
	text := fmt.Sprintf("%s: %s", before.Remote, strings.Join(differences, "; "))
	h.events.Logger().Error("a connection has changed while it moved", "difference", text)
	h.countMoves(func(m *control.Moves) { m.Differing++; m.LastDifference = text })
}

// countMoves changes the account of connections that came here.
func (h *Handoff) countMoves(f func(*control.Moves)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f(&h.moves)
}

// movesIn is that account; nil as long as none came.
func (h *Handoff) movesIn() *control.Moves {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.moves == (control.Moves{}) {
		return nil
	}
	m := h.moves
	return &m
}
