package handoff

import (
	"net"
	"sync"
	"time"
)

// gate stops and resumes everything that takes new work: Accept on listeners,
// reads on packet sockets. A paused gate makes them wait without telling the
// program, which is what lets an incumbent resume as if nothing had happened.
type gate struct {
	mu      sync.Mutex
	state   gateState
	opened  bool          // it was open once
	changed chan struct{} // closed and replaced at every change of state
	kicked  map[deadliner]struct{}
}

type gateState int

const (
	gateOpen gateState = iota
	gatePaused
	gateClosed
)

// deadliner is the part of a socket that wakes its blocked calls. Deadlines
// live in the Go poller of this process alone: unlike shutdown(2) or
// O_NONBLOCK they cannot be felt by the other generation that shares the socket.
type deadliner interface{ SetDeadline(t time.Time) error }

func newGate(state gateState) *gate {
	return &gate{state: state, opened: state == gateOpen, changed: make(chan struct{}), kicked: make(map[deadliner]struct{})}
}

// add registers a socket whose blocked calls a pause must wake.
func (g *gate) add(s deadliner) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.kicked[s] = struct{}{}
	if g.state != gateOpen {
		s.SetDeadline(time.Unix(1, 0))
	}
}

func (g *gate) remove(s deadliner) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.kicked, s)
}

// admit lets calls on s wait again whose deadline was made to pass for another
// reason than the gate's, if the gate lets them.
func (g *gate) admit(s deadliner) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.state == gateOpen {
		s.SetDeadline(time.Time{})
	}
}

// wasOpen reports whether the gate has been open at some time.
func (g *gate) wasOpen() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.opened
}

func (g *gate) open()  { g.set(gateOpen) }
func (g *gate) pause() { g.set(gatePaused) }
func (g *gate) close() { g.set(gateClosed) }

func (g *gate) set(state gateState) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.state == state || g.state == gateClosed {
		return
	}
	g.state = state
	g.opened = g.opened || state == gateOpen
	deadline := time.Unix(1, 0)
	if state == gateOpen {
		deadline = time.Time{}
	}
	for s := range g.kicked {
		s.SetDeadline(deadline)
	}
	close(g.changed)
	g.changed = make(chan struct{})
}

// pass returns once the gate is open; with net.ErrClosed when it is closed or
// stop is. A call that passes may still be kicked out by a timeout: the caller
// asks isOpen whether to come back here.
func (g *gate) pass(stop <-chan struct{}) error {
	for {
		g.mu.Lock()
		state, changed := g.state, g.changed
		g.mu.Unlock()
		switch state {
		case gateOpen:
			return nil
		case gateClosed:
			return net.ErrClosed
		}
		select {
		case <-changed:
		case <-stop:
			return net.ErrClosed
		}
	}
}
