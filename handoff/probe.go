package handoff

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"time"
)

// probes are what clients send before they pause, and what of it net/http then
// holds unprocessed.
var probes = [...]struct {
	sent, held string
	known      bool // and the record has to know it
}{
	{sent: "GET /probe HTTP/1.1\r\nHost: a", held: "GET /probe HTTP/1.1\r\nHost: a", known: true},
	{sent: probeRequest, held: "", known: true},
	{sent: probeRequest + "GE", held: "GE", known: true},
	{sent: probeRequest + "GET", held: "GET", known: true},
	{sent: probeRequest + probeRequest, held: "", known: true},
	{sent: probeRequest + "GET ", held: "GET "},
	{sent: probeRequest + "GET /probe HTTP/1.1\r\n", held: "GET /probe HTTP/1.1\r\n"},
	{sent: probeRequest + "GET /probe HTTP/1.1\r\nHost: a", held: "GET /probe HTTP/1.1\r\nHost: a"},
}

const probeRequest = "GET /probe HTTP/1.1\r\nHost: a\r\n\r\n"

// probeServer checks that the net/http this program was built with reads as
// the record believes. It costs a fraction of a millisecond, and it is what stands
// between a change in a version of Go to come and requests that arrive mangled:
// with an error connections are closed politely in place of moved.
func probeServer() error {
	for _, p := range probes {
		held, known := probeHeld(p.sent)
		if known != p.known && !known || known && held != p.held {
			return fmt.Errorf("net/http does not read as expected: after %q it holds %q (known: %v), want %q", p.sent, held, known, p.held)
		}
	}
	return nil
}

// probeHeld serves one connection that sends and then pauses. It returns what
// the record says at that moment.
func probeHeld(sent string) (held string, known bool) {
	client, server := net.Pipe()
	defer client.Close()
	c := &probeConn{Conn: server, left: len(sent), ended: make(chan struct{})}
	c.conn.tracker = newTracker()
	c.conn.tracker.movesHTTP = true
	c.conn.net = probeSocket{server, c}
	go client.Write([]byte(sent))  // ends with the pipe at the latest
	go io.Copy(io.Discard, client) // likewise
	srv := &http.Server{
		Handler:   http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}),
		ConnState: httpState,
		ErrorLog:  log.New(io.Discard, "", 0),
	}
	srv.Serve(&probeListener{conn: c})
	<-c.ended
	return c.held, c.known
}

// probeConn is a tracked connection as net/http gets it.
type probeConn struct {
	net.Conn
	conn
	left  int // bytes that the client has sent and net/http has not been given
	held  string
	known bool
	ended chan struct{} // closed by Close
}

func (c *probeConn) Read(b []byte) (int, error)        { return c.conn.read(b) }
func (c *probeConn) SetDeadline(t time.Time) error     { return c.conn.setDeadline(t) }
func (c *probeConn) SetReadDeadline(t time.Time) error { return c.conn.setReadDeadline(t) }

func (c *probeConn) Close() error {
	if c.conn.closed.CompareAndSwap(false, true) {
		c.Conn.Close()
		close(c.ended)
	}
	return nil
}

// probeSocket is what is under a probeConn.
type probeSocket struct {
	net.Conn
	c *probeConn
}

func (s probeSocket) Read(b []byte) (int, error) {
	// A read within a request watches for the end of the connection. The one
	// between two requests, after all that was sent, is what this is about.
	if s.c.left == 0 && connState(s.c.conn.state.Load()) == connIdle {
		s.c.held, s.c.known = string(s.c.conn.rec.pending), s.c.conn.rec.known()
		return 0, io.EOF
	}
	n, err := s.Conn.Read(b)
	s.c.left -= n
	return n, err
}

// probeListener has one connection to accept.
type probeListener struct{ conn net.Conn }

func (l *probeListener) Accept() (net.Conn, error) {
	if c := l.conn; c != nil {
		l.conn = nil
		return c, nil
	}
	return nil, net.ErrClosed
}

func (l *probeListener) Close() error   { return nil }
func (l *probeListener) Addr() net.Addr { return &net.TCPAddr{} }
