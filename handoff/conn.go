package handoff

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
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

// protocolHTTP1 names what h.Serve speaks on connections that can move.
const protocolHTTP1 = "http/1"

// conn is what tracked connections have in common. The descriptor belongs to
// whoever Accept gave the connection to; Close releases it and ends the tracking.
// While the connection is parked the mover uses it, and a Close waits for that.
type conn struct {
	tracker  *tracker
	net      net.Conn // the connection under it; at rest, mu guards it
	listener string   // name of the socket it came in through; empty when there is none
	peer     net.Addr // of TCP, where net does not know it: see tcpConn.RemoteAddr
	state    atomic.Int32
	news     atomic.Uint32 // changes of state and reads so far; no times, since a fast server feels each look at the clock
	closed   atomic.Bool
	wish     atomic.Pointer[mover] // who wants the connection; its reader offers it
	awaited  atomic.Bool           // the mover waits for its offer, or has it: a drain leaves it alone
	eager    atomic.Bool           // tracked by the program: may be woken although it is no idle HTTP connection

	// Owned by the goroutine that reads.
	protocol string // what the peer has to speak to take it; empty: it cannot move
	rec      record
	replay   []byte // read by an earlier generation and not processed there
	stays    *mover // the mover that could not have it
	tracked  *Tracked
	trim     bool // drop line ends before the next request, see trimmed

	mu        sync.Mutex
	deadline  time.Time // of reads, as the reader set it
	settings  int       // of the deadline since the last response
	unbounded bool      // for certain no deadline is in force; see enforce
	woken     bool      // the deadline in force is the mover's
	copying   bool      // WriteTo reads: it is not to be woken
	parked    bool
	given     bool // the peer has it

	// Owned by the drain: the news it has seen, and when it saw that there was some.
	seen   uint32
	seenAt time.Time
}

func (c *conn) set(s connState) {
	c.news.Add(1)
	c.state.Store(int32(s))
}

func (c *conn) base() *conn { return c }

// read reads for the owner of the connection. A wish of the mover is looked
// at before anything is read: what is in the kernel travels with the socket.
func (c *conn) read(b []byte) (int, error) {
	if len(b) == 0 {
		return c.net.Read(b)
	}
	if c.rec.fresh {
		c.rec.offered(len(b), c.deadlinesSince() == 1)
	}
	if len(c.replay) > 0 {
		n := copy(b, c.replay)
		c.replay = c.replay[n:]
		if n = c.trimmed(b[:n]); n > 0 {
			c.gave(b[:n])
			return n, nil
		}
	}
	for {
		if err := c.offer(); err != nil {
			return 0, err
		}
		n, err := c.net.Read(b)
		if n > 0 {
			if n = c.trimmed(b[:n]); n == 0 && err == nil {
				continue
			}
			c.gave(b[:n])
			return n, err
		}
		if err == nil || !c.wokenBy(err) {
			return n, err
		}
	}
}

// trimmed drops line ends in front of the first request after a move. Some
// clients send one too many behind the body of a POST (RFC 9112, section 2.2), and
// net/http skips it only if it has served that POST itself.
func (c *conn) trimmed(b []byte) int {
	if !c.trim {
		return len(b)
	}
	rest := bytes.TrimLeft(b, "\r\n")
	c.trim = len(rest) == 0
	return copy(b, rest)
}

// awaitReadable waits like read until there is something to read, and reads nothing.
func (c *conn) awaitReadable() error {
	for {
		if err := c.offer(); err != nil {
			return err
		}
		if err := readable(c.net); err == nil || !c.wokenBy(err) {
			return err
		}
	}
}

// gave notes that the peer has sent something. An HTTP server calls a
// connection idle until it has read the whole head of a request, which may come
// in pieces: a drain must not take one in the middle of it for idle.
func (c *conn) gave(b []byte) {
	c.news.Add(1)
	if c.protocol != "" {
		c.rec.gave(b)
	}
}

// setReadDeadline sets the reader's deadline. A wake in force stays.
func (c *conn) setReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadline = t
	c.settings++
	if c.woken {
		return nil
	}
	return c.enforce(t)
}

// enforce puts a deadline in force. The caller holds mu. net/http takes the
// deadline away three times in each request that has none.
func (c *conn) enforce(t time.Time) error {
	if t.IsZero() && c.unbounded && !c.closed.Load() {
		return nil
	}
	err := c.net.SetReadDeadline(t)
	c.unbounded = t.IsZero() && err == nil
	return err
}

func (c *conn) deadlinesSince() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.settings
}

func (c *conn) resetDeadlines() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.settings = 0
}

func (c *conn) setDeadline(t time.Time) error {
	return errors.Join(c.setReadDeadline(t), c.net.SetWriteDeadline(t))
}

// wake makes a blocked Read look at the wish. It stays hidden from the reader.
func (c *conn) wake() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.woken && !c.copying && !c.parked && !c.closed.Load() {
		c.woken = true
		c.enforce(time.Unix(1, 0))
	}
}

// wokenBy reports whether a read ended because of wake alone, and puts the
// reader's own deadline back in force.
func (c *conn) wokenBy(err error) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	// In this order, since net/http ends a read of its own in every request.
	if !c.woken || !errors.Is(err, os.ErrDeadlineExceeded) {
		return false
	}
	c.woken = false
	c.enforce(c.deadline)
	return !c.late()
}

// beginCopy makes way for a reader who does not come by the wish of the mover,
// and gives him first what an earlier generation had read. The connection stays.
func (c *conn) beginCopy(w io.Writer) (n int64, err error) {
	c.mu.Lock()
	c.copying = true
	if c.woken {
		c.woken = false
		c.enforce(c.deadline)
	}
	c.mu.Unlock()
	c.protocol = ""
	for len(c.replay) > 0 && err == nil {
		var m int
		m, err = w.Write(c.replay)
		c.replay = c.replay[m:]
		n += int64(m)
	}
	return n, err
}

func (c *conn) endCopy() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.copying = false
}

// late reports whether the reader's own deadline has passed. The caller holds mu.
func (c *conn) late() bool { return !c.deadline.IsZero() && !time.Now().Before(c.deadline) }

// unread is how many bytes wait in the kernel.
func (c *conn) unread() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return unreadBytes(c.net)
}

// close is the owner's Close.
func (c *conn) close() error {
	if c.ended() {
		return c.release()
	}
	return net.ErrClosed
}

// ended ends the tracking; it reports false when it had ended before.
func (c *conn) ended() bool {
	first := c.closed.CompareAndSwap(false, true)
	if first {
		c.tracker.remove(c, false)
	}
	return first
}

// release closes the descriptor, unless the connection is parked: then unpark does.
func (c *conn) release() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.parked {
		return nil
	}
	return c.net.Close()
}

// end closes the connection in place of its owner, whose reads and writes
// fail from now on; the owner's own Close stays harmless. It reports false when
// the owner was faster.
func (c *conn) end() bool {
	if !c.ended() {
		return false
	}
	c.release()
	return true
}

// tcpConn embeds the concrete type so that ReadFrom and WriteTo stay visible:
// net/http and io.Copy find sendfile(2) and splice(2) through them.
type tcpConn struct {
	*net.TCPConn
	conn
}

// RemoteAddr is never nil, as that of an accepted connection never is. Of one that
// came as a descriptor net asks the kernel, who has forgotten it once the client has
// reset the connection.
func (c *tcpConn) RemoteAddr() net.Addr {
	if c.TCPConn != nil {
		if a := c.TCPConn.RemoteAddr(); a != nil {
			return a
		}
	}
	return c.conn.peer
}

func (c *tcpConn) Close() error                      { return c.conn.close() }
func (c *tcpConn) Read(b []byte) (int, error)        { return c.conn.read(b) }
func (c *tcpConn) SetDeadline(t time.Time) error     { return c.conn.setDeadline(t) }
func (c *tcpConn) SetReadDeadline(t time.Time) error { return c.conn.setReadDeadline(t) }

// WriteTo is the way by which io.Copy empties the connection: splice(2) where
// that works. The embedded one would pass by the replay, and fail when it is woken.
func (c *tcpConn) WriteTo(w io.Writer) (int64, error) {
	n, err := c.conn.beginCopy(w)
	defer c.conn.endCopy()
	if err != nil {
		return n, err
	}
	m, err := c.TCPConn.WriteTo(w)
	return n + m, err
}

type unixConn struct {
	*net.UnixConn
	conn
}

func (c *unixConn) Close() error                      { return c.conn.close() }
func (c *unixConn) Read(b []byte) (int, error)        { return c.conn.read(b) }
func (c *unixConn) SetDeadline(t time.Time) error     { return c.conn.setDeadline(t) }
func (c *unixConn) SetReadDeadline(t time.Time) error { return c.conn.setReadDeadline(t) }

// baseConn finds the tracking under whatever was put around a connection
// (crypto/tls offers NetConn for that). bare tells that nothing was.
func baseConn(c net.Conn) (base *conn, bare bool) {
	bare = true
	for c != nil {
		if t, ok := c.(interface{ base() *conn }); ok {
			return t.base(), bare
		}
		bare = false
		inner, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return nil, false
		}
		c = inner.NetConn()
	}
	return nil, false
}

// httpState follows an http.Server's view of its connections. net/http calls
// it from the goroutine that reads the connection, or before that has begun;
// with HTTP/2 from another one, which has to keep away from the record.
func httpState(nc net.Conn, s http.ConnState) {
	c, bare := baseConn(nc)
	if c == nil {
		return
	}
	switch s {
	case http.StateNew:
		if bare && c.tracker.movesHTTP {
			// What is around a connection, TLS or something of the program's
			// own, has a state that cannot travel.
			c.protocol = protocolHTTP1
			c.rec.begin()
		}
		c.set(connIdle)
	case http.StateIdle:
		if c.protocol != "" {
			c.rec.response()
			c.resetDeadlines()
		}
		c.set(connIdle)
	case http.StateActive:
		if c.protocol != "" {
			c.rec.request()
		}
		c.set(connActive)
	case http.StateHijacked:
		c.protocol = ""
		c.rec = record{}
		c.set(connStream)
	}
}
