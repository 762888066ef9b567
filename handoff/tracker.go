package handoff

import (
	"net"
	"sync"
	"sync/atomic"
)

// tracker knows every open connection that came in through a Listener, from a
// predecessor, or that the program tracks itself.
type tracker struct {
	accepting atomic.Int32 // Accepts that may still come back with a connection
	movesHTTP bool         // see probeServer; set before the first connection
	tasks     taskPool     // of Handoff.Go: what a drain waits for beside connections

	mu      sync.Mutex
	conns   map[*conn]struct{}
	changed chan struct{} // one token: the last connection ended
	wish    *mover        // wants every connection, those to come as well
	// ended counts connections that ended since reset, moved those of them that moved.
	ended, moved int
}

func newTracker() *tracker {
	return &tracker{conns: make(map[*conn]struct{}), changed: make(chan struct{}, 1)}
}

// track wraps a connection that came in through the socket called listener. peer
// is its client, where net may not know it; else nil.
func (t *tracker) track(c net.Conn, listener string, peer net.Addr) net.Conn {
	switch c := c.(type) {
	case *net.TCPConn:
		w := &tcpConn{TCPConn: c}
		w.peer = peer
		t.add(&w.conn, c, listener)
		return w
	case *net.UnixConn:
		w := &unixConn{UnixConn: c}
		t.add(&w.conn, c, listener)
		return w
	}
	return c
}

// trackAtRest does the same for a descriptor, which it takes over.
func (t *tracker) trackAtRest(fd int, network, listener string, peer net.Addr) net.Conn {
	r := &rested{fd: fd}
	if network == "unix" {
		w := &unixConn{}
		r.owner = w
		t.add(&w.conn, r, listener)
		return w
	}
	w := &tcpConn{}
	w.peer = peer
	r.owner = w
	t.add(&w.conn, r, listener)
	return w
}

func (t *tracker) add(c *conn, under net.Conn, listener string) {
	c.tracker, c.net, c.listener = t, under, listener
	c.set(connStream)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.conns[c] = struct{}{}
	c.wish.Store(t.wish)
}

func (t *tracker) remove(c *conn, moved bool) {
	t.mu.Lock()
	delete(t.conns, c)
	t.ended++
	if moved {
		t.moved++
	}
	last := len(t.conns) == 0
	t.mu.Unlock()
	if last {
		t.wake()
	}
}

func (t *tracker) wake() {
	select {
	case t.changed <- struct{}{}:
	default:
	}
}

// wishFor makes m the one that every connection is offered to, nil nobody. It
// returns the connections of this moment.
func (t *tracker) wishFor(m *mover) []*conn {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.wish = m
	open := make([]*conn, 0, len(t.conns))
	for c := range t.conns {
		c.wish.Store(m)
		if m == nil {
			c.awaited.Store(false)
		}
		open = append(open, c)
	}
	return open
}

// resetEnded starts the counts of ended connections anew.
func (t *tracker) resetEnded() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended, t.moved = 0, 0
}

// snapshot returns the open connections, and how many have ended since
// resetEnded and how many of those were moved.
func (t *tracker) snapshot() (open []*conn, ended, moved int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	open = make([]*conn, 0, len(t.conns))
	for c := range t.conns {
		open = append(open, c)
	}
	return open, t.ended, t.moved
}

// counts returns the numbers of connections by what they do.
func (t *tracker) counts() (idle, active, streams int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for c := range t.conns {
		switch connState(c.state.Load()) {
		case connIdle:
			idle++
		case connActive:
			active++
		default:
			streams++
		}
	}
	return idle, active, streams
}
