package handoff

import (
	"encoding/json"
	"errors"
	"net"
)

// ErrMoved is what Read and Write of a connection say once it belongs to
// another generation. Its owner here forgets it; Close does nothing.
var ErrMoved = errors.New("the connection has moved to another generation")

// parked is a connection that its reader has offered to the mover. Until the
// verdict comes, the reader waits and the mover alone uses the connection.
type parked struct {
	conn    *conn
	cargo   cargo
	verdict chan verdict // one value
}

type verdict int

const (
	kept  verdict = iota // the reader goes on as if nothing had been
	stays                // the same, and it is not to be offered again
	gone                 // it belongs to the peer: the reader closes this process's copy
)

// offer parks the connection when somebody wants it and it can move now. It
// returns ErrMoved, dressed as net/http expects a dead connection to look,
// when it did. Only the goroutine that reads calls it.
func (c *conn) offer() error {
	m := c.wish.Load()
	if m == nil {
		return nil
	}
	err := c.offerTo(m)
	c.awaited.Store(false)
	return err
}

func (c *conn) offerTo(m *mover) error {
	if m == c.stays || !c.movable() || !m.open() || !m.takes(c.protocol, c.listener) {
		if c.awaited.Load() {
			m.decline()
		}
		return nil
	}
	load := cargo{Protocol: c.protocol, Socket: c.listener, Pending: c.held()}
	if t := c.tracked; t != nil {
		// A Write that blocks must not keep the reader from reading what would
		// unblock it: the end of the Write wakes the reader again.
		if !t.writing.TryLock() {
			return nil
		}
		defer t.writing.Unlock()
		var err error
		if load.Session, err = t.session(); err != nil {
			c.stays = m
			m.report("keep a connection whose session cannot travel", err)
			return nil
		}
	}
	if !c.park(&load) {
		return nil
	}
	c.awaited.Store(true)
	p := &parked{conn: c, cargo: load, verdict: make(chan verdict, 1)}
	select {
	case m.offers <- p:
	case <-m.done:
		c.unpark()
		return nil
	}
	switch <-p.verdict {
	case stays:
		c.stays = m
	case gone:
		c.unpark()
		if c.tracked != nil {
			c.tracked.moved = true
		}
		return &net.OpError{Op: "read", Net: c.net.LocalAddr().Network(), Source: c.net.LocalAddr(), Addr: c.net.RemoteAddr(), Err: ErrMoved}
	}
	return nil
}

// movable reports whether the reader stands between two requests or messages,
// as far as the peer could go on from there.
func (c *conn) movable() bool {
	if c.protocol == "" || c.closed.Load() {
		return false
	}
	return (c.tracked != nil || connState(c.state.Load()) == connIdle) && c.rec.known()
}

// held is what the peer's reader has to be given again: what this reader has
// not processed, and what it was not even given yet.
func (c *conn) held() []byte {
	if len(c.replay) == 0 {
		return c.rec.pending
	}
	return append(append([]byte(nil), c.rec.pending...), c.replay...)
}

// park hands the connection to the mover; it reports false when it is closed
// or its reader has to be told of its deadline.
func (c *conn) park(load *cargo) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed.Load() || c.late() {
		return false
	}
	load.setDeadline(c.deadline)
	c.parked = true
	return true
}

func (c *conn) isParked() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.parked
}

// hangUp ends a connection that is parked for both generations.
func (c *conn) hangUp() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s, ok := c.net.(interface {
		CloseRead() error
		CloseWrite() error
	}); ok && c.parked && !c.given {
		s.CloseRead()
		s.CloseWrite()
	}
}

// unpark gives the connection back to its owner, who may have closed it meanwhile.
func (c *conn) unpark() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.parked = false
	if c.closed.Load() {
		c.net.Close()
	}
}

// account counts a connection that the peer has taken. Its copy here is closed
// with the next unpark.
func (c *conn) account() {
	c.mu.Lock()
	c.given = true // from here on a Close must not shut down what is the peer's
	c.mu.Unlock()
	if c.closed.CompareAndSwap(false, true) {
		c.tracker.remove(c, true)
	}
}

// encodeSession is the JSON that travels beside the descriptor.
func encodeSession(f func() (any, error)) (json.RawMessage, error) {
	if f == nil {
		return nil, nil
	}
	v, err := f()
	if err != nil {
		return nil, err
	}
	return json.Marshal(v)
}
