// Package gate stops and resumes what takes new work from sockets that another
// process has too.
package gate

import (
	"net"
	"sync"
	"time"
)

// Gate stops and resumes everything that takes new work: Accept on listeners,
// reads on packet sockets. A paused gate makes them wait without telling the
// program, which is what lets an incumbent resume as if nothing had happened. Its
// methods may be called from any goroutine.
type Gate struct {
	mu      sync.Mutex
	state   State
	opened  bool          // it was open once
	changed chan struct{} // closed and replaced at every change of state
	kicked  map[Socket]struct{}
}

// State is what a gate does with those who come.
type State int

// The states of a gate.
const (
	Open   State = iota
	Paused       // they wait
	Closed       // they are turned away; no other state follows
)

// Socket is the part of a socket that wakes its blocked calls. Deadlines
// live in the Go poller of this process alone: unlike shutdown(2) or
// O_NONBLOCK they cannot be felt by the other generation that shares the socket.
type Socket interface{ SetDeadline(t time.Time) error }

// New returns a gate in a state.
func New(state State) *Gate {
	return &Gate{state: state, opened: state == Open, changed: make(chan struct{}), kicked: make(map[Socket]struct{})}
}

// Add registers a socket whose blocked calls a pause must wake.
func (g *Gate) Add(s Socket) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.kicked[s] = struct{}{}
	if g.state != Open {
		s.SetDeadline(time.Unix(1, 0))
	}
}

// Remove forgets a socket, whose deadline stays what it is.
func (g *Gate) Remove(s Socket) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.kicked, s)
}

// Admit lets calls on s wait again whose deadline was made to pass for another
// reason than the gate's, if the gate lets them.
func (g *Gate) Admit(s Socket) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.state == Open {
		s.SetDeadline(time.Time{})
	}
}

// WasOpen reports whether the gate has been open at some time.
func (g *Gate) WasOpen() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.opened
}

// Open lets those pass that wait, and all that come.
func (g *Gate) Open() { g.set(Open) }

// Pause makes all that come wait, and wakes those who are in a call on a socket.
func (g *Gate) Pause() { g.set(Paused) }

// Close turns everybody away for good.
func (g *Gate) Close() { g.set(Closed) }

func (g *Gate) set(state State) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.state == state || g.state == Closed {
		return
	}
	g.state = state
	g.opened = g.opened || state == Open
	deadline := time.Unix(1, 0)
	if state == Open {
		deadline = time.Time{}
	}
	for s := range g.kicked {
		s.SetDeadline(deadline)
	}
	close(g.changed)
	g.changed = make(chan struct{})
}

// Pass returns once the gate is open; with net.ErrClosed when it is closed or
// stop is. A call on a socket that passes may still be kicked out by a timeout, with
// os.ErrDeadlineExceeded: the caller comes back here.
func (g *Gate) Pass(stop <-chan struct{}) error {
	for {
		g.mu.Lock()
		state, changed := g.state, g.changed
		g.mu.Unlock()
		switch state {
		case Open:
			return nil
		case Closed:
			return net.ErrClosed
		}
		select {
		case <-changed:
		case <-stop:
			return net.ErrClosed
		}
	}
}
