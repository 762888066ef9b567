package handoff

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/internal/wire"
)

// node is a generation that lives in the test's process: sockets, connections
// and servers are real, only the machine is left out.
type node struct {
	t    *testing.T
	name string
	h    *Handoff
	addr string
	ln   net.Listener
	srv  *http.Server
	wg   sync.WaitGroup
}

// newNode serves HTTP, which says the node's name and echoes what is posted,
// and the line protocol of lineSession on tracked connections.
func newNode(t *testing.T, name string) *node {
	n := &node{t: t, name: name, h: bareHandoff(t, Options{DrainTimeout: patience})}
	n.h.tracker.movesHTTP = true
	n.h.OnConn("line/1", func(c net.Conn, session json.RawMessage) {
		var s lineSession
		if err := json.Unmarshal(session, &s); err != nil {
			t.Error(err)
		}
		n.serveLines(c, s, nil)
	})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n.ln, n.addr = ln, ln.Addr().String()
	n.srv = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/lines" {
			c, rw, err := w.(http.Hijacker).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			ahead, _ := rw.Peek(rw.Reader.Buffered())
			n.serveLines(c, lineSession{}, ahead)
			return
		}
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("Node", name)
		fmt.Fprintf(w, "%s %s", r.URL.RequestURI(), body)
	})}
	n.h.adopt(n.srv)
	in := newArrivals(ln)
	n.h.mu.Lock()
	n.h.httpServers["http"] = []*arrivals{in}
	n.h.mu.Unlock()
	n.h.taking.Store(true)
	n.wg.Go(func() { n.srv.Serve(in) })
	n.wg.Go(func() { n.srv.Serve(nodeListener{n}) })
	t.Cleanup(func() {
		n.srv.Close()
		open, _, _ := n.h.tracker.snapshot()
		for _, c := range open {
			c.end()
		}
		n.wg.Wait()
		n.h.Close()
	})
	return n
}

// nodeListener tracks what it accepts, as a Listener does.
type nodeListener struct{ *node }

func (l nodeListener) Accept() (net.Conn, error) {
	c, err := l.ln.Accept()
	if err != nil {
		return nil, err
	}
	return l.h.tracker.track(c, "http", nil), nil
}

func (l nodeListener) Close() error   { return l.ln.Close() }
func (l nodeListener) Addr() net.Addr { return l.ln.Addr() }

// lineSession is what a connection of the line protocol is about: each line is
// answered with its number.
type lineSession struct{ Lines int }

func (n *node) serveLines(c net.Conn, s lineSession, ahead []byte) {
	defer c.Close()
	t, err := n.h.Track(c, Codec{Protocol: "line/1", Session: func() (any, error) { return s, nil }, Ahead: ahead})
	if err != nil {
		n.t.Error(err)
		return
	}
	r := bufio.NewReader(t)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		s.Lines++
		if _, err := fmt.Fprintf(t, "%d %s", s.Lines, line); err != nil {
			return
		}
		t.Boundary(r.Buffered())
	}
}

// passage moves connections from one node to another.
type passage struct {
	m      *mover
	from   *wire.Link
	to     *wire.Link
	ended  sync.WaitGroup
	crash  chan struct{} // closed: the receiver dies before it acknowledges
	batch  atomic.Int32
	closed sync.Once
}

func pass(t *testing.T, from, to *node, adjust func(*wire.Link, wire.Message)) *passage {
	a, b := pair(t)
	p := &passage{from: a, to: b, crash: make(chan struct{})}
	p.m = newMover(from.h.tracker, from.h.events.Logger(), to.h.takes(), batchesTo(p.from))
	p.m.verify = true
	p.to.Taker = func(l *wire.Link, msg wire.Message) {
		p.batch.Add(1)
		select {
		case <-p.crash:
			msg.CloseFiles()
			l.Conn.Close() // as the kernel does
			return
		default:
		}
		if adjust != nil {
			adjust(l, msg)
		}
		to.h.receive(l, msg)
	}
	stop := make(chan struct{})
	none := make(chan wire.Message)
	p.ended.Go(func() { p.to.Pump(none, stop) })
	heard := make(chan wire.Message)
	p.ended.Go(func() { p.from.Pump(heard, stop) })
	p.ended.Go(func() {
		for msg := range heard {
			p.m.acknowledged(msg)
		}
		p.m.peerDied()
	})
	p.m.look()
	p.ended.Go(p.m.run)
	return p
}

// die ends the receiver: what it has not acknowledged stays with the sender.
func (p *passage) die() {
	close(p.crash)
	p.to.Close()
	p.ended.Wait()
	p.from.Close()
}

// finish ends the moving once all that was sent is acknowledged.
func (p *passage) finish(from *node) {
	from.h.tracker.wishFor(nil)
	eventually(from.t, "everything parked has moved or stayed", func() bool {
		open, _, _ := from.h.tracker.snapshot()
		for _, c := range open {
			if c.isParked() {
				return false
			}
		}
		return true
	})
	p.m.halt()
	p.to.Close()
	p.ended.Wait()
	p.from.Close()
}

// Random interleavings of requests, lines, moves to and fro, and deaths of the
// receiver, against what a single process would answer: byte for byte.
func TestMovesAgainstModel(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			moveAtRandom(t, seed, 200)
		})
	}
}

func FuzzMoves(f *testing.F) {
	f.Add(uint64(1), uint8(10))
	f.Fuzz(func(t *testing.T, seed uint64, moves uint8) { moveAtRandom(t, seed, int(moves)%40) })
}

func moveAtRandom(t *testing.T, seed uint64, moves int) {
	nodes := [2]*node{newNode(t, "a"), newNode(t, "b")}
	stop := make(chan struct{})
	var clients sync.WaitGroup
	var asked atomic.Int64
	for i := range 6 {
		random := func(kind uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 2*uint64(i)+kind)) }
		clients.Go(func() { httpClient(t, nodes[0].addr, random(0), stop, &asked) })
		clients.Go(func() { lineClient(t, nodes[0].addr, random(1), stop, &asked) })
	}
	random := rand.New(rand.NewPCG(seed, 1000))
	at, moved := 0, 0
	for range moves {
		p := pass(t, nodes[at], nodes[1-at], nil)
		// The moving is cut short after some batches, or goes on until nothing is left.
		until := int32(random.IntN(4))
		before := asked.Load()
		eventually(t, "the clients get answers", func() bool { return asked.Load() > before+10 || p.batch.Load() > until && until > 0 })
		if random.IntN(3) == 0 {
			p.die()
		} else {
			p.finish(nodes[at])
		}
		_, _, n := nodes[at].h.tracker.snapshot()
		nodes[at].h.tracker.resetEnded()
		moved += n
		// The other way, whatever has stayed: both generations have some now.
		at = 1 - at
	}
	close(stop)
	clients.Wait()
	for _, n := range nodes {
		if m := n.h.movesIn(); m != nil && (m.Differing > 0 || m.Unverified > 0 || m.Verified < m.Taken) {
			t.Errorf("%s: %+v", n.name, *m)
		}
	}
	if moves > 20 && moved < 3*moves {
		t.Errorf("%d connections moved in %d moves: nothing was tested", moved, moves)
	}
}

// httpClient asks on one connection for ever: plain, with bodies of both
// kinds, pipelined, in pieces.
func httpClient(t *testing.T, addr string, random *rand.Rand, stop chan struct{}, asked *atomic.Int64) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	h := &httpConn{c, bufio.NewReader(c)}
	for n := 0; ; n++ {
		select {
		case <-stop:
			return
		default:
		}
		var out strings.Builder
		var want []string
		for range 1 + random.IntN(3)*random.IntN(2) {
			path := fmt.Sprintf("/%d?%s", n, strings.Repeat("x", random.IntN(200)))
			body := strings.Repeat("y", random.IntN(2)*random.IntN(9000))
			switch random.IntN(3) {
			case 0:
				body = ""
				fmt.Fprintf(&out, "GET %s HTTP/1.1\r\nHost: test\r\n\r\n", path)
			case 1:
				fmt.Fprintf(&out, "POST %s HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n%s", path, len(body), body)
			case 2:
				fmt.Fprintf(&out, "POST %s HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n", path)
				if body != "" {
					fmt.Fprintf(&out, "%x\r\n%s\r\n", len(body), body)
				}
				out.WriteString("0\r\n\r\n")
			}
			want = append(want, path+" "+body)
		}
		if err := writePieces(c, out.String(), random); err != nil {
			t.Errorf("request %d: %v", n, err)
			return
		}
		for _, w := range want {
			got, closing, err := h.answer()
			if err != nil || closing || got != w {
				t.Errorf("request %d: %v, closing %v, got %.60q of %d bytes, want %.60q of %d", n, err, closing, got, len(got), w, len(w))
				return
			}
			asked.Add(1)
		}
		if random.IntN(4) == 0 {
			time.Sleep(time.Duration(random.IntN(3000)) * time.Microsecond) // think time: idle
		}
	}
}

// lineClient sends lines and half lines and expects every one numbered.
func lineClient(t *testing.T, addr string, random *rand.Rand, stop chan struct{}, asked *atomic.Int64) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	// The first lines come with the request, so that they are read ahead.
	const ahead = 2
	fmt.Fprintf(c, "GET /lines HTTP/1.1\r\nHost: test\r\n\r\nline 1\nline 2\nli")
	r := bufio.NewReader(c)
	rest := "ne 3\n"
	for n, sent := 1, ahead; ; n++ {
		for sent < n+2 {
			sent++
			if err := writePieces(c, rest, random); err != nil {
				t.Error(err)
				return
			}
			rest = fmt.Sprintf("line %d\n", sent+1)
		}
		c.SetReadDeadline(time.Now().Add(patience))
		got, err := r.ReadString('\n')
		if want := fmt.Sprintf("%d line %d\n", n, n); err != nil || got != want {
			t.Errorf("line %d: %q, %v", n, got, err)
			return
		}
		asked.Add(1)
		select {
		case <-stop:
			return
		default:
		}
	}
}

// writePieces writes s, now and then in pieces with pauses between them.
func writePieces(w io.Writer, s string, random *rand.Rand) error {
	for len(s) > 0 {
		n := len(s)
		if random.IntN(2) == 0 {
			n = 1 + random.IntN(len(s))
		}
		if _, err := io.WriteString(w, s[:n]); err != nil {
			return err
		}
		s = s[n:]
		if random.IntN(3) == 0 {
			time.Sleep(time.Duration(random.IntN(2000)) * time.Microsecond)
		}
	}
	return nil
}
