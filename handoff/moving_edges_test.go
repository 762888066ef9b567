package handoff

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/netfd"
	"github.com/zdt-dev/zdt/internal/wire"
)

// Moves at the edges, where two rules meet: names and addresses, deaths and
// counts, hooks and deadlines.

// adopter is a node that listens and serves as a program does, with Listen and Serve.
type adopter struct {
	node
	served int
	hook   func(net.Conn, http.ConnState)
}

func newAdopter(t *testing.T) *adopter {
	p := &adopter{node: node{t: t, h: bareHandoff(t, Options{DrainTimeout: patience, ManualReady: true})}}
	p.h.tracker.movesHTTP = true
	p.h.taking.Store(true)
	t.Cleanup(func() { p.h.Close() })
	return p
}

// serve answers with says until the listener ends, and returns once
// connections that have moved here are taken.
func (p *adopter) serve(name, addr, says string) (ln *Listener, ended chan error) {
	p.t.Helper()
	ln, err := p.h.Listen(name, "tcp", addr)
	if err != nil {
		p.t.Fatal(err)
	}
	srv := &http.Server{ConnState: p.hook, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, says) })}
	ended = make(chan error, 1)
	go func() { ended <- p.h.Serve(srv, ln) }()
	p.t.Cleanup(func() { srv.Close() })
	p.served++
	eventually(p.t, "the server takes connections", func() bool {
		p.h.mu.Lock()
		defer p.h.mu.Unlock()
		return len(p.h.httpServers[ln.Name()]) == p.served
	})
	return ln, ended
}

func connect(t *testing.T, addr string) *httpConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &httpConn{c, bufio.NewReader(c)}
}

// says expects the next request's answer, on a connection that is kept.
func (h *httpConn) says(t *testing.T, want string) {
	t.Helper()
	if got, closing, err := h.get("/"); got != want || closing || err != nil {
		t.Errorf("answer %q, closing %v, %v; want %q and an open connection", got, closing, err, want)
	}
}

// idlers opens connections and has a request answered on each.
func (n *node) idlers(count int) []*httpConn {
	n.t.Helper()
	var all []*httpConn
	for i := range count {
		all = append(all, connect(n.t, n.addr))
		all[i].says(n.t, "/ ")
	}
	return all
}

// moveAll moves every connection of from, of which there are count.
func moveAll(t *testing.T, from, to *node, count int) {
	t.Helper()
	p := pass(t, from, to, nil)
	eventually(t, "all have moved", func() bool {
		_, _, moved := from.h.tracker.snapshot()
		return moved == count
	})
	p.finish(from)
}

// A socket unit without FileDescriptorName= gives all its sockets one name
// (systemd.socket(5)). Who came to the public port must not find himself with the
// server of the other, whichever began to serve first.
func TestMoveBetweenSocketsOfOneName(t *testing.T) {
	t.Parallel()
	old, next := newAdopter(t), newAdopter(t)
	addr := map[string]string{}
	names := []string{"admin", "public"}
	for _, name := range names {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		addr[name] = ln.Addr().String()
		for _, p := range []*adopter{old, next} {
			fd, err := netfd.Dup(ln.(*net.TCPListener))
			if err != nil {
				t.Fatal(err)
			}
			p.h.sockets.mu.Lock()
			err = p.h.sockets.take("app.socket", fd, fromSystemd)
			p.h.sockets.mu.Unlock()
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	old.h.gate.Open() // that of the successor stays shut: what it serves has moved
	var clients []*httpConn
	for _, p := range []*adopter{old, next} {
		for _, name := range names {
			p.serve(name, addr[name], name) // waits for as many servers of one name
		}
	}
	for _, name := range names {
		c := connect(t, addr[name])
		c.says(t, name)
		clients = append(clients, c)
	}
	moveAll(t, &old.node, &next.node, len(clients))
	for i, c := range clients {
		c.says(t, names[i])
	}
}

func TestAcceptedAt(t *testing.T) {
	t.Parallel()
	at := func(ip string, port int) net.Addr { return &net.TCPAddr{IP: net.ParseIP(ip), Port: port} }
	for _, c := range []struct {
		addr             net.Addr
		network, address string
		want             bool
	}{
		{at("127.0.0.1", 80), "tcp", "127.0.0.1:80", true},
		{at("127.0.0.1", 80), "tcp", "127.0.0.1:81", false},
		{at("0.0.0.0", 80), "tcp", "192.0.2.1:8080", false},
		{at("::", 80), "tcp", "192.0.2.1:80", true}, // dual stack
		{at("::", 80), "tcp", "", false},            // the kernel would not say
		{at("127.0.0.1", 80), "unix", "127.0.0.1:80", false},
		{&net.UnixAddr{Name: "/run/a", Net: "unix"}, "unix", "/run/b", false},
	} {
		if got := acceptedAt(c.addr, c.network, c.address); got != c.want {
			t.Errorf("acceptedAt(%s %s, %s %q) = %v", c.addr.Network(), c.addr, c.network, c.address, got)
		}
	}
}

// A successor that took connections and died has taken them with it. The
// incumbent says how many as soon as it knows of the death, which is before all
// their readers here have let go.
func TestLossesOfDeadSuccessorAreCounted(t *testing.T) {
	t.Parallel()
	const count = 100
	a, b := newNode(t, "a"), newNode(t, "b")
	for range 3 {
		clients := a.idlers(count)
		a.h.tracker.resetEnded()
		from, to := pair(t)
		m := newMover(a.h.tracker, a.h.events.Logger(), b.h.takes(), batchesTo(from))
		m.look()
		go m.run()
		for got := 0; got < count; {
			msg, err := to.Receive()
			if err != nil {
				t.Fatal(err)
			}
			got += msg.Count
			msg.CloseFiles()
			m.acknowledged(wire.Message{Type: wire.Moved, Batch: msg.Batch, Count: msg.Count})
		}
		m.peerDied()
		if _, _, lost := a.h.tracker.snapshot(); lost != count {
			t.Errorf("%d of %d lost connections are counted", lost, count)
		}
		for _, c := range clients {
			c.Close()
		}
	}
}

// SIGTERM to a held candidate is the end of a handoff and not of its clients.
func TestStoppedCandidateGivesBack(t *testing.T) {
	t.Parallel()
	s := stand(t, serviceConfig{IdleGrace: patience, DrainTimeout: patience})
	held := s.hold("tx")
	c := s.idleConnection()
	defer c.Close()
	s.signal(held.Handoff.Candidate, unix.SIGTERM)
	s.await("back", func(st control.Status) bool {
		return st.Phase == control.Idle && st.Moves != nil && st.Moves.Taken == 1
	})
	if line := s.exitEvent(held.Handoff.Candidate); !strings.Contains(line, "ZDT_CONNS_MOVED=1 ZDT_CONNS_DRAINED=0 ZDT_CONNS_CUT=0") {
		t.Error(line)
	}
	fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: test\r\n\r\n")
	c.answeredBy(t, 1)
	s.nextWorks()
}

// Some clients send a line end behind the body of a POST (RFC 9112, section
// 2.2). A server skips it, wherever a move cuts it off from the POST.
func TestLineEndBehindPostMoves(t *testing.T) {
	t.Parallel()
	a, b := newNode(t, "a"), newNode(t, "b")
	for before := range 3 {
		c := connect(t, a.addr)
		fmt.Fprint(c, "POST /post HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\nhi"+"\r\n"[:before])
		if got, closing, err := c.answer(); got != "/post hi" || closing || err != nil {
			t.Fatalf("answer %q, closing %v, %v", got, closing, err)
		}
		moveAll(t, a, b, 1)
		a.h.tracker.resetEnded()
		fmt.Fprint(c, "\r\n"[before:])
		c.says(t, "/ ")
		c.says(t, "/ ")
		c.Close()
	}
	if m := b.h.movesIn(); m == nil || m.Taken != 3 || m.Differing+m.Unverified > 0 {
		t.Errorf("%+v", m)
	}
}

// One message over the limit cannot travel. The small ones after it can, also
// those of a client that is always ahead, so that no boundary finds the reader with
// nothing; and what is told of a reader is what it holds.
func TestRecordRecoversFromLongMessage(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	for _, ahead := range []int{0, 1, 10, 99} {
		var r record
		var held []byte
		r.begin()
		read := func(n, buffered int) {
			b := make([]byte, n)
			for i := range b {
				b[i] = byte(random.Uint32())
			}
			held = append(held, b...)
			r.gave(b)
			held = bytes.Clone(held[len(held)-buffered:])
			r.boundary(buffered)
			if r.known() && !bytes.Equal(r.pending, held) {
				t.Fatalf("%d ahead: other bytes are told than are held", ahead)
			}
		}
		read(maxPending+1, ahead)
		if ahead > 0 && r.known() {
			t.Errorf("%d ahead: the message was too long to be kept, what it left is told nevertheless", ahead)
		}
		read(100, ahead)
		if !r.known() {
			t.Errorf("%d ahead: a small message after the long one, and the connection still cannot move", ahead)
		}
		for range 100 {
			read(100, random.IntN(100))
		}
	}
}

// A quit while connections are on their way gives them up, here and as far as
// this generation can tell. Each is in the exit event's counts, once.
func TestQuitCountsWhatWasOnItsWay(t *testing.T) {
	t.Parallel()
	const count = 5
	a, b := newNode(t, "a"), newNode(t, "b")
	a.idlers(count)
	from, to := pair(t)
	m := newMover(a.h.tracker, a.h.events.Logger(), b.h.takes(), batchesTo(from))
	var d *drainer
	a.h.do(func(machine *machine) {
		machine.beginDrain(patience, m)
		d = machine.drain
	})
	msg, err := to.Receive() // and no acknowledgement
	if err != nil {
		t.Fatal(err)
	}
	defer msg.CloseFiles()
	a.h.Close()
	if c := *d.counts.Load(); c.Cut != count || c.Moved+c.Drained+c.Closed != 0 {
		t.Errorf("%d connections, told: %+v", count, c)
	}
}

// A program's ConnState hook may set deadlines. They are not those that tell
// when net/http waits for the next request.
func TestMoveWithDeadlineOfHook(t *testing.T) {
	t.Parallel()
	a, b := newAdopter(t), newNode(t, "b")
	a.hook = func(c net.Conn, s http.ConnState) {
		if s == http.StateIdle {
			c.SetDeadline(time.Now().Add(patience))
		}
	}
	a.h.gate.Open()
	ln, _ := a.serve("http", "127.0.0.1:0", "a")
	c := connect(t, ln.Addr().String())
	c.says(t, "a")
	moveAll(t, &a.node, b, 1)
	c.says(t, "/ ")
}

// Listener.Close ends accepting. As with net/http alone the connections stay,
// and so do those that rest because they came from another generation.
func TestListenerCloseKeepsMovedConnections(t *testing.T) {
	t.Parallel()
	a, p := newNode(t, "a"), newAdopter(t)
	p.h.gate.Open()
	ln, ended := p.serve("http", "127.0.0.1:0", "p")
	own, moved := connect(t, ln.Addr().String()), a.idlers(1)[0]
	own.says(t, "p")
	moveAll(t, a, &p.node, 1)
	ln.Close()
	if err := <-ended; err == nil {
		t.Error("Serve returned nil, which says that the generation is done")
	}
	own.says(t, "p")
	moved.says(t, "p")
}

// Clients that have each sent half a head of a megabyte shall not make the
// sender encode them all at once: a batch is bounded by what its records say,
// before they are encoded, and is never empty.
func TestBatchIsBoundedBeforeItIsEncoded(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		what string
		load cargo
		most int // connections in a batch
	}{
		{"idle", cargo{Protocol: protocolHTTP1, Socket: "http"}, maxBatch},
		{"half a small head", cargo{Protocol: protocolHTTP1, Socket: strings.Repeat("n", 255), Pending: make([]byte, 1<<10)}, maxBatch},
		{"half a large head", cargo{Protocol: protocolHTTP1, Pending: make([]byte, 256<<10)}, 8},
		{"the longest head", cargo{Protocol: protocolHTTP1, Pending: make([]byte, maxPending)}, 1},
		{"a session larger than a batch", cargo{Protocol: "x/1", Session: json.RawMessage(`"` + strings.Repeat("s", fullManifest) + `"`)}, 1},
	} {
		m := &mover{size: maxBatch}
		for range 2 * maxBatch {
			m.queue = append(m.queue, &parked{cargo: c.load})
		}
		batch := m.batch()
		if len(batch) == 0 || len(batch) > c.most || c.most == maxBatch && len(batch) < maxBatch {
			t.Errorf("%s: %d in a batch, want up to %d", c.what, len(batch), c.most)
			continue
		}
		var records manifest
		for _, p := range batch {
			records.Connections = append(records.Connections, p.cargo)
		}
		if text, err := json.Marshal(records); err != nil || len(text) > fullManifest && len(batch) > 1 {
			t.Errorf("%s: %d records take %d bytes, %v", c.what, len(batch), len(text), err)
		}
	}
}
