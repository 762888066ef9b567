package handoff

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
)

// Codec says how connections of a protocol of the program's own move.
type Codec struct {
	// Protocol names what is spoken and the format of the session, as in
	// "chat/1". A connection moves to a generation that called OnConn with
	// this very name, and stays otherwise.
	Protocol string
	// Session returns what the other generation must know to go on, to be
	// encoded as JSON. It is called while no Read and no Write of the connection
	// runs, and describes the last Boundary. It must take no lock that is held around
	// Write or Do: they wait for it. An error keeps the connection here.
	// nil: there is nothing to know.
	Session func() (any, error)
	// Ahead is what was read from the connection before Track and is not
	// processed: the Buffered bytes of a hijacked connection's bufio.Reader. The
	// first reads of the Tracked return it.
	Ahead []byte
}

// Tracked is a connection that moves to the successor, or back to the
// predecessor after an abort, without the client noticing.
//
// One goroutine reads it, and is in Read whenever it has nothing else to do:
// that is where the connection moves, unless a read deadline has passed that Read
// has to tell of first. Any number may write. Each Write is one message: it
// happens as a whole before the move, or not at all and says ErrMoved. A
// goroutine that does not read and whose writes Session tells of uses Do, so that no
// move falls between the two.
type Tracked struct {
	innerConn // the wrapper of the connection
	c         *conn
	codec     Codec
	writing   sync.Mutex
	moved     bool // guarded by writing
}

// innerConn hides the field: who wrote past the Tracked would write past a move.
type innerConn = net.Conn

// Track makes conn movable. It comes from a Listener of h, from OnConn, was
// hijacked from a server of h, or is a *net.TCPConn or *net.UnixConn of any
// other origin. From now on the program uses the Tracked in its place, which owns it.
// Call it before the first Read in the goroutine that will read.
func (h *Handoff) Track(conn net.Conn, codec Codec) (*Tracked, error) {
	if !ownProtocol(codec.Protocol) {
		return nil, fmt.Errorf("track connection: %q is no name for a protocol of the program's own", codec.Protocol)
	}
	c, bare := baseConn(conn)
	if c == nil {
		conn = h.tracker.track(conn, "", nil)
		c, bare = baseConn(conn)
	}
	if c == nil || !bare {
		return nil, fmt.Errorf("track connection: a %T cannot move, only TCP and unix stream connections can", conn)
	}
	t := &Tracked{innerConn: conn, c: c, codec: codec}
	c.protocol, c.tracked = codec.Protocol, t
	c.rec.begin()
	if len(codec.Ahead) > 0 {
		c.replay = slices.Concat(codec.Ahead, c.replay)
	}
	c.set(connStream)
	c.eager.Store(true)
	return t, nil
}

func ownProtocol(name string) bool { return name != "" && name != protocolHTTP1 }

// OnConn registers f for connections of a protocol that another generation had
// tracked. Register before Ready, since the predecessor moves only what is asked
// for. f runs in a goroutine of its own for each connection, which it owns; its
// first reads return what the other generation had read ahead. It usually calls
// Track again. session is what Codec.Session had returned. Deadlines and socket
// options do not travel: f sets them as for a new connection. OnConn panics for a
// protocol that Track refuses.
func (h *Handoff) OnConn(protocol string, f func(conn net.Conn, session json.RawMessage)) {
	if !ownProtocol(protocol) {
		panic(fmt.Sprintf("handoff: OnConn: %q is no name for a protocol of the program's own", protocol))
	}
	h.mu.Lock()
	h.onConn[protocol] = f
	h.mu.Unlock()
	h.tellTakes()
}

// Boundary says that everything read so far has been processed, and is part of
// what Session describes, except for the last buffered bytes: those a
// bufio.Reader holds (its Buffered), or those of a message that is not complete.
func (t *Tracked) Boundary(buffered int) { t.c.rec.boundary(buffered) }

// Write writes b as a whole before the connection moves, or returns ErrMoved. While the
// connection is on its way Write waits for the other generation, also beyond a write deadline.
func (t *Tracked) Write(b []byte) (n int, err error) {
	err = t.Do(func(w io.Writer) error {
		n, err = w.Write(b)
		return err
	})
	return n, err
}

// Do runs f before the connection moves, or returns ErrMoved and does not run
// it. The connection does not move while f runs: what f writes to w, and what it
// changes of what Session returns, happen in one step. f must not call Write or Do.
func (t *Tracked) Do(f func(w io.Writer) error) error {
	err := t.exclusively(f)
	if t.c.wish.Load() != nil {
		t.c.wake() // the reader has passed by while f ran
	}
	return err
}

func (t *Tracked) exclusively(f func(w io.Writer) error) error {
	t.writing.Lock()
	defer t.writing.Unlock()
	if t.moved {
		return &net.OpError{Op: "write", Net: t.LocalAddr().Network(), Source: t.LocalAddr(), Addr: t.RemoteAddr(), Err: ErrMoved}
	}
	return f(t.innerConn)
}

// Read reads on; it returns ErrMoved once the connection has moved.
func (t *Tracked) Read(b []byte) (int, error) {
	n, err := t.innerConn.Read(b)
	if errors.Is(err, net.ErrClosed) && t.isGone() {
		err = ErrMoved
	}
	return n, err
}

// Close ends the connection, also if it is on its way to another generation.
func (t *Tracked) Close() error {
	err := t.innerConn.Close()
	t.c.hangUp()
	return err
}

func (t *Tracked) isGone() bool {
	t.writing.Lock()
	defer t.writing.Unlock()
	return t.moved
}

func (t *Tracked) session() (json.RawMessage, error) { return encodeSession(t.codec.Session) }
