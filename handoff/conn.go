package handoff

import (
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// connState says what a connection is doing, as far as a drain cares.
type connState int32

const (
	connStream connState = iota // no HTTP server has claimed it, or it was hijacked
	connIdle                    // HTTP, between two requests or before the first
	connActive                  // HTTP, within a request
)

// conn is what tracked connections have in common. The descriptor belongs to
// whoever Accept gave the connection to; Close releases it and ends the tracking.
type conn struct {
	tracker *tracker
	state   atomic.Int32
	news    atomic.Uint32 // changes of state and reads so far; no times, since a fast server feels each look at the clock
	closed  atomic.Bool
	net     net.Conn // the connection under it

	// Owned by the drain: the news it has seen, and when it saw that there was some.
	seen   uint32
	seenAt time.Time
}

func (c *conn) set(s connState) {
	c.news.Add(1)
	c.state.Store(int32(s))
}

func (c *conn) tracked() *conn { return c }

// heard notes that the peer has sent something. An HTTP server calls a
// connection idle until it has read the whole head of a request, which may come
// in pieces: a drain must not take one in the middle of it for idle.
func (c *conn) heard(n int) {
	if n > 0 {
		c.news.Add(1)
	}
}

// ended ends the tracking; it reports false when it had ended before.
func (c *conn) ended() bool {
	first := c.closed.CompareAndSwap(false, true)
	if first {
		c.tracker.remove(c)
	}
	return first
}

// tcpConn embeds the concrete type so that ReadFrom and WriteTo stay visible:
// net/http and io.Copy find sendfile(2) and splice(2) through them.
type tcpConn struct {
	*net.TCPConn
	conn
}

func (c *tcpConn) Close() error { c.ended(); return c.TCPConn.Close() }

func (c *tcpConn) Read(b []byte) (int, error) {
	n, err := c.TCPConn.Read(b)
	c.heard(n)
	return n, err
}

type unixConn struct {
	*net.UnixConn
	conn
}

func (c *unixConn) Close() error { c.ended(); return c.UnixConn.Close() }

func (c *unixConn) Read(b []byte) (int, error) {
	n, err := c.UnixConn.Read(b)
	c.heard(n)
	return n, err
}

// trackedConn finds the tracking under whatever was put around a connection
// (crypto/tls offers NetConn for that).
func trackedConn(c net.Conn) *conn {
	for c != nil {
		if t, ok := c.(interface{ tracked() *conn }); ok {
			return t.tracked()
		}
		inner, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return nil
		}
		c = inner.NetConn()
	}
	return nil
}

// tracker knows every open connection that came in through a Listener.
type tracker struct {
	accepting atomic.Int32 // Accepts that may still come back with a connection

	mu      sync.Mutex
	conns   map[*conn]struct{}
	changed chan struct{} // one token: the last connection ended
	// ended counts connections that ended since reset.
	ended int
}

func newTracker() *tracker {
	return &tracker{conns: make(map[*conn]struct{}), changed: make(chan struct{}, 1)}
}

// track wraps an accepted connection.
func (t *tracker) track(c net.Conn) net.Conn {
	switch c := c.(type) {
	case *net.TCPConn:
		w := &tcpConn{TCPConn: c}
		t.add(&w.conn, c)
		return w
	case *net.UnixConn:
		w := &unixConn{UnixConn: c}
		t.add(&w.conn, c)
		return w
	}
	return c
}

func (t *tracker) add(c *conn, under net.Conn) {
	c.tracker, c.net = t, under
	c.set(connStream)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.conns[c] = struct{}{}
}

func (t *tracker) remove(c *conn) {
	t.mu.Lock()
	delete(t.conns, c)
	t.ended++
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

// resetEnded starts the count of ended connections anew.
func (t *tracker) resetEnded() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended = 0
}

// snapshot returns the open connections and how many have ended since resetEnded.
func (t *tracker) snapshot() (open []*conn, ended int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	open = make([]*conn, 0, len(t.conns))
	for c := range t.conns {
		open = append(open, c)
	}
	return open, t.ended
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

// httpState follows an http.Server's view of its connections.
func httpState(c net.Conn, s http.ConnState) {
	t := trackedConn(c)
	if t == nil {
		return
	}
	switch s {
	case http.StateNew, http.StateIdle:
		t.set(connIdle)
	case http.StateActive:
		t.set(connActive)
	case http.StateHijacked:
		t.set(connStream)
	}
}

// end closes the connection in place of its owner, whose reads and writes
// fail from now on; the owner's own Close stays harmless. It reports false when
// the owner was faster.
func (c *conn) end() bool {
	if !c.ended() {
		return false
	}
	c.net.Close()
	return true
}
