package handoff

import (
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/internal/netfd"
	"github.com/zdt-dev/zdt/internal/wire"
	"golang.org/x/sys/unix"
)

// bareConnection returns the descriptor of a connection, which is the caller's, and the client's end of it.
func bareConnection(t *testing.T, network, address string) (fd int, client net.Conn) {
	t.Helper()
	ln, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	client, err = net.Dial(network, ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fd, err = netfd.Dup(c.(syscall.Conn))
	if err != nil {
		t.Fatal(err)
	}
	return fd, client
}

// inn is arrivals with a tracker, and what its server would do.
type inn struct {
	*arrivals
	t       *testing.T
	tracker *tracker
}

func openInn(t *testing.T) *inn {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := &inn{newArrivals(ln), t, newTracker()}
	t.Cleanup(func() { n.Close(); ln.Close() })
	return n
}

// guest brings a connection to rest and returns the client's end of it.
func (n *inn) guest(network, address string, load cargo) (net.Conn, net.Conn) {
	n.t.Helper()
	fd, client := bareConnection(n.t, network, address)
	nc := n.tracker.trackAtRest(fd, network, "http", nil)
	load.Protocol = protocolHTTP1
	n.add(nc, load)
	return nc, client
}

func (n *inn) rests(nc net.Conn) bool {
	c, _ := baseConn(nc)
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.net.(*rested)
	return ok
}

func (n *inn) open() int {
	open, _, _ := n.tracker.snapshot()
	return len(open)
}

// A connection rests until its client speaks, and is a whole one then.
func TestRestUntilRequest(t *testing.T) {
	t.Parallel()
	for network, address := range map[string]string{"tcp": "127.0.0.1:0", "unix": t.TempDir() + "/s"} {
		n := openInn(t)
		nc, client := n.guest(network, address, cargo{IdleLeft: patience.Milliseconds()})
		if !n.rests(nc) {
			t.Errorf("%s: does not rest", network)
		}
		io.WriteString(client, "GET")
		got, err := n.Accept()
		if err != nil || got != nc || n.rests(nc) {
			t.Fatalf("%s: %v, %v", network, got, err)
		}
		b := make([]byte, 8)
		if k, err := got.Read(b); string(b[:k]) != "GET" || err != nil {
			t.Errorf("%s: read %q, %v", network, b[:k], err)
		}
		io.WriteString(got, "answer")
		if k, err := client.Read(b); string(b[:k]) != "answer" || err != nil {
			t.Errorf("%s: answered %q, %v", network, b[:k], err)
		}
		got.SetReadDeadline(time.Now().Add(-time.Second))
		if _, err := got.Read(b); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: deadline: %v", network, err)
		}
		got.Close()
		if n.open() != 0 {
			t.Errorf("%s: still tracked", network)
		}
	}
}

// Whoever ends a rest closes the connection once: the client, the deadline, the drain, the server.
func TestRestEnds(t *testing.T) {
	t.Parallel()
	ends := map[string]func(n *inn, nc, client net.Conn){
		"client": func(n *inn, nc, client net.Conn) {
			client.Close()
			if got, err := n.Accept(); got != nc || err != nil { // the server finds the end of the stream
				n.t.Errorf("%v, %v", got, err)
			}
			nc.Close()
		},
		"drain":  func(n *inn, nc, client net.Conn) { c, _ := baseConn(nc); c.end() },
		"owner":  func(n *inn, nc, client net.Conn) { nc.Close() },
		"server": func(n *inn, nc, client net.Conn) { n.Close() },
		"deadline": func(n *inn, nc, client net.Conn) {
			c, _ := baseConn(nc)
			c.setReadDeadline(time.Now().Add(time.Millisecond))
		},
	}
	for name, end := range ends {
		n := openInn(t)
		_, other := n.guest("tcp", "127.0.0.1:0", cargo{})
		nc, client := n.guest("tcp", "127.0.0.1:0", cargo{})
		c, _ := baseConn(nc)
		end(n, nc, client)
		eventually(t, name+" ended it", c.closed.Load)
		if name != "client" {
			client.SetReadDeadline(time.Now().Add(patience))
			if _, err := client.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("%s: the client reads %v", name, err)
			}
		}
		if name != "server" {
			// The other one is not touched.
			io.WriteString(other, "GET")
			if got, err := n.Accept(); err != nil {
				t.Errorf("%s: %v", name, err)
			} else {
				got.Close()
			}
		}
		n.Close() // waits for all
		if n.open() != 0 || len(n.resting) != 0 {
			t.Errorf("%s: %d tracked, %d rest", name, n.open(), len(n.resting))
		}
	}
}

// A mover's wish wakes a connection, also one that has not come to rest yet.
func TestRestDisturbed(t *testing.T) {
	t.Parallel()
	for _, early := range []bool{false, true} {
		n := openInn(t)
		fd, client := bareConnection(t, "tcp", "127.0.0.1:0")
		nc := n.tracker.trackAtRest(fd, "tcp", "http", nil)
		c, _ := baseConn(nc)
		if early {
			c.wake()
		}
		n.add(nc, cargo{Protocol: protocolHTTP1, IdleLeft: patience.Milliseconds()})
		if !early {
			c.wake()
		}
		eventually(t, "awake", func() bool { return !n.rests(nc) })
		io.WriteString(client, "GET") // nobody takes it: it is served here
		if got, err := n.Accept(); got != nc || err != nil {
			t.Errorf("early %v: %v, %v", early, got, err)
		}
		nc.Close()
	}
}

// Connections at rest need no goroutines.
func TestRestCostsNoGoroutine(t *testing.T) {
	n := openInn(t)
	n.guest("tcp", "127.0.0.1:0", cargo{})
	before := runtime.NumGoroutine()
	for range 50 {
		n.guest("tcp", "127.0.0.1:0", cargo{IdleLeft: patience.Milliseconds()})
	}
	if grown := runtime.NumGoroutine() - before; grown > 10 {
		t.Errorf("%d goroutines for 50 connections", grown)
	}
}

// A ring belongs to a stay, not to a number.
func TestWatchRings(t *testing.T) {
	t.Parallel()
	w, err := newWatch()
	if err != nil {
		t.Fatal(err)
	}
	pipes := func() (read, write int) {
		var p [2]int
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		return p[0], p[1]
	}
	r, wr := pipes()
	defer unix.Close(r)
	defer unix.Close(wr)
	rung := make(chan int, 8)
	first, err := w.add(r, func() { rung <- 1 })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.add(r, func() {}); err == nil {
		t.Error("added twice")
	}
	if !w.remove(first) || w.remove(first) {
		t.Error("not removed once")
	}
	second, err := w.add(r, func() { rung <- 2 })
	if err != nil {
		t.Fatal(err)
	}
	if w.remove(first) {
		t.Error("removed by an old ticket")
	}
	unix.Write(wr, []byte("x"))
	if got := <-rung; got != 2 {
		t.Errorf("rung %d", got)
	}
	if w.remove(second) {
		t.Error("removed after it rang")
	}
	// Many at once, more than one look at the kernel brings.
	const many = 300
	all := make(chan int, many)
	for i := range many {
		r, wr := pipes()
		defer unix.Close(r)
		defer unix.Close(wr)
		if _, err := w.add(r, func() { all <- i }); err != nil {
			t.Fatal(err)
		}
		unix.Write(wr, []byte("x"))
	}
	seen := make(map[int]bool)
	for range many {
		seen[<-all] = true
	}
	if len(seen) != many {
		t.Errorf("%d of %d rang", len(seen), many)
	}
	w.close()
	if _, err := w.add(r, func() { t.Error("rung after close") }); err == nil {
		t.Error("added after close")
	}
	if len(rung) != 0 {
		t.Error("rung again")
	}
}

// What is no stream connection is not taken.
func TestConnectionNetwork(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		domain, typ int
		want        string
	}{
		{unix.AF_INET, unix.SOCK_STREAM, "tcp"},
		{unix.AF_INET6, unix.SOCK_STREAM, "tcp"},
		{unix.AF_UNIX, unix.SOCK_STREAM, "unix"},
		{unix.AF_UNIX, unix.SOCK_SEQPACKET, ""},
		{unix.AF_UNIX, unix.SOCK_DGRAM, ""},
		{unix.AF_INET, unix.SOCK_DGRAM, ""},
		{unix.AF_NETLINK, unix.SOCK_RAW, ""},
	} {
		fd, err := unix.Socket(test.domain, test.typ|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		got, err := connectionNetwork(fd)
		if got != test.want || (err == nil) != (test.want != "") || err != nil && !errors.Is(err, wire.ErrPacket) {
			t.Errorf("%+v: %q, %v", test, got, err)
		}
		unix.Close(fd)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	fd, err := netfd.Dup(listener.(*net.TCPListener))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if got, err := connectionNetwork(fd); err == nil {
		t.Errorf("a listening socket: %q", got)
	}
	if got, err := connectionNetwork(1 << 20); err == nil {
		t.Errorf("no descriptor: %q", got)
	}
}
