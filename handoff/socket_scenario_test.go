package handoff

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/listenfds"
	"github.com/zdt-dev/zdt/internal/load"
)

// What becomes of sockets and descriptors from one generation to the next.

// One failed request in 25 handoffs is one too many.
func TestLoad(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds of full load")
	}
	s := newStage(t, serviceConfig{Sockets: []socketSpec{{"http", "tcp", "127.0.0.1:0"}}, DrainTimeout: patience})
	s.startReady()
	// What is compared is what a later generation has: the first one was
	// given nothing.
	s.nextWorks()
	before := s.report("")
	l := load.Start(load.Config{
		KeepAlive: 32, Fresh: 4,
		Dial: func(ctx context.Context) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", s.addr)
		},
	})
	for range 25 {
		st := s.mustStatus()
		s.signal(st.PID, syscall.SIGUSR2)
		s.awaitGeneration(st.Generation + 1)
		s.awaitExit(st.PID, "exited 0")
	}
	r := l.Stop()
	t.Log(r)
	if r.Failed != 0 || r.Refused != 0 || r.Requests < 1000 {
		t.Errorf("clients noticed: %s", r)
	}
	if got := len(s.processes()); got != 1 {
		t.Errorf("%d processes", got)
	}
	// No more than before; less, if a connection of this test to the control socket was still closing then.
	eventually(t, "the connections of the load are gone", func() bool {
		after := s.report("")
		return len(after.FDs) <= len(before.FDs) && after.Goroutines <= before.Goroutines
	})
}

// Every kind of socket, bound by hand, goes from generation to generation.
func TestKindsOfSockets(t *testing.T) {
	t.Parallel()
	s := newStage(t, quick(serviceConfig{}))
	path := func(name string) string { return filepath.Join(s.dir, name) }
	// What a process that was killed has left behind.
	for _, stale := range []struct{ network, path string }{{"unix", path("u.sock")}, {"unixpacket", path("p.sock")}} {
		ln, err := net.ListenUnix(stale.network, &net.UnixAddr{Name: stale.path, Net: stale.network})
		if err != nil {
			t.Fatal(err)
		}
		ln.SetUnlinkOnClose(false)
		ln.Close()
	}
	pc, err := net.ListenPacket("unixgram", path("g.sock"))
	if err != nil {
		t.Fatal(err)
	}
	pc.Close()
	s.cfg.Sockets = []socketSpec{
		{"http", "tcp", "127.0.0.1:0"}, {"six", "tcp6", "[::1]:0"}, {"unix", "unix", path("u.sock")}, {"packet", "unixpacket", path("p.sock")},
		{"udp", "udp", "127.0.0.1:0"}, {"gram", "unixgram", path("g.sock")}, {"abstract", "unix", "@zdt-test" + filepath.Base(s.dir)},
	}
	first := s.startReady()
	check := func(generation int) {
		t.Helper()
		st := s.mustStatus()
		if len(st.Sockets) != len(s.cfg.Sockets) {
			t.Fatalf("sockets: %+v", st.Sockets)
		}
		for i, sock := range st.Sockets {
			if sock.Name != s.cfg.Sockets[i].Name || sock.Address != first.Sockets[i].Address {
				t.Errorf("generation %d: socket %+v, the first generation had %+v", generation, sock, first.Sockets[i])
			}
			switch sock.Network {
			case "udp", "unixgram":
				want := fmt.Sprintf("%d ping", generation)
				eventually(t, fmt.Sprintf("%s answers %q", sock.Name, want), func() bool { return s.ping(sock) == want })
			default:
				if got, want := getOver(t, sock), fmt.Sprintf("%d %d", generation, st.PID); got != want {
					t.Errorf("GET / over %s: %q, want %q", sock.Name, got, want)
				}
			}
		}
		if r := s.report(""); len(r.Blocking) > 0 {
			t.Errorf("generation %d: blocking sockets %v", generation, r.Blocking)
		}
	}
	check(1)
	s.nextWorks()
	check(2)
	s.nextWorks()
	check(3)
}

// getOver gets / over a stream socket.
func getOver(t *testing.T, sock control.Socket) string {
	t.Helper()
	c, err := net.Dial(sock.Network, sock.Address)
	if err != nil {
		t.Error(err)
		return ""
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	fmt.Fprint(c, "GET / HTTP/1.0\r\n\r\n")
	b := make([]byte, 4096)
	n, _ := c.Read(b)
	_, body, _ := strings.Cut(string(b[:n]), "\r\n\r\n")
	return body
}

// ping sends a datagram and returns the answer.
func (s *stage) ping(sock control.Socket) string {
	var c net.Conn
	var err error
	if sock.Network == "udp" {
		c, err = net.Dial("udp", sock.Address)
	} else {
		own := filepath.Join(s.dir, "ping")
		defer os.Remove(own)
		c, err = net.DialUnix("unixgram", &net.UnixAddr{Name: own, Net: "unixgram"}, &net.UnixAddr{Name: sock.Address, Net: "unixgram"})
	}
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Second))
	fmt.Fprint(c, "ping")
	b := make([]byte, 100)
	n, err := c.Read(b)
	if err != nil {
		return err.Error()
	}
	return string(b[:n])
}

func TestSocketsFromSystemd(t *testing.T) {
	t.Parallel()
	s := newStage(t, quick(serviceConfig{}))
	http1, addr1 := bindTCP(t, "http")
	http2, addr2 := bindTCP(t, "http")
	spare, addr3 := bindTCP(t, "spare")
	unit, addr4 := bindTCP(t, "web.socket")
	later, addr5 := bindTCP(t, "later")
	closed, addr6 := bindTCP(t, "closed")
	// The order of the program is not that of the unit.
	s.cfg.Sockets = []socketSpec{{"http", "tcp", addr2}, {"http", "tcp", addr1}, {"admin", "tcp", addr4}, {"later", "tcp", addr5}, {"closed", "tcp", addr6}}
	s.cfg.Skip, s.cfg.Close = []string{"later"}, []string{"closed"}
	st := s.startReady(http1, http2, spare, unit, later, closed)
	s.addr = addr1
	inUse := func(st control.Status) string {
		var out []string
		for _, sock := range st.Sockets {
			out = append(out, fmt.Sprintf("%s=%s %v %s", sock.Name, sock.Address, sock.InUse, sock.Origin))
		}
		return strings.Join(out, "\n")
	}
	want := func(origin string, laterUsed bool) string {
		return fmt.Sprintf("http=%s true %s\nhttp=%s true %s\nspare=%s false %s\nweb.socket=%s true %s\nlater=%s %v %s",
			addr1, origin, addr2, origin, addr3, origin, addr4, origin, addr5, laterUsed, origin)
	}
	if got := inUse(st); got != want(fromSystemd, true) {
		t.Errorf("sockets\n%s\nwant\n%s", got, want(fromSystemd, true))
	}
	r := s.report("?child=" + s.play("list-fds"))
	if len(r.Blocking) > 0 {
		t.Errorf("blocking sockets: %v", r.Blocking)
	}
	check := func(r report) {
		t.Helper()
		for _, kv := range r.Environ {
			if len(listenfds.Strip([]string{kv}, envPredecessor)) == 0 {
				t.Errorf("generation %d has %s", r.Generation, kv)
			}
		}
		for _, fd := range r.ChildFDs {
			// Others may come from whoever started the test.
			if number, to, _ := strings.Cut(fd, "="); atoi(number) > 2 && strings.HasPrefix(to, "socket:") {
				t.Errorf("a program started by generation %d has %s", r.Generation, fd)
			}
		}
		if len(r.ChildFDs) < 3 {
			t.Errorf("the program started by generation %d says %q", r.Generation, r.ChildFDs)
		}
	}
	check(r)
	// The next release does not use "later"; the one after it does, and
	// could not bind it if it had been dropped.
	s.nextWorks()
	if got := inUse(s.mustStatus()); !strings.Contains(got, "later="+addr5+" false predecessor") || strings.Contains(got, "closed=") {
		t.Errorf("sockets of a release that does not use one of them:\n%s", got)
	}
	check(s.report("?child=1"))
	second := s.mustStatus()
	s.flip("service")
	s.cfg.Close = nil
	s.signal(second.PID, syscall.SIGUSR2)
	// This release opens "closed", which was not passed on; systemd is not
	// there to hold it, so it can be bound.
	third := s.awaitGeneration(3)
	if got := inUse(third); got != want(fromPredecessor, true) {
		t.Errorf("sockets\n%s\nwant\n%s", got, want(fromPredecessor, true))
	}
	for _, addr := range []string{addr1, addr2, addr4, addr5} {
		if resp, err := fresh().Get("http://" + addr + "/"); err != nil {
			t.Error(err)
		} else {
			resp.Body.Close()
		}
	}
}

// O_NONBLOCK belongs to the open file description that all generations and
// systemd share. If it flips for an instant, an Accept elsewhere hangs.
func TestNonblockNeverFlips(t *testing.T) {
	t.Parallel()
	s := newStage(t, quick(serviceConfig{}))
	sock, addr := bindTCP(t, "http")
	s.cfg.Sockets = []socketSpec{{"http", "tcp", addr}}
	mine, err := unix.FcntlInt(sock.file.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(mine)
	s.startReady(sock)
	stop, flips := make(chan struct{}), make(chan int, 1)
	go func() {
		n := 0
		for {
			select {
			case <-stop:
				flips <- n
				return
			default:
			}
			if flags, err := unix.FcntlInt(uintptr(mine), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
				n++
			}
		}
	}()
	for range 3 {
		s.nextWorks()
	}
	s.flip("crash")
	s.signal(s.mustStatus().PID, syscall.SIGUSR2)
	s.awaitFailure("crashed")
	s.hold("t1")
	s.signal(s.mustStatus().PID, syscall.SIGUSR1)
	s.awaitFailure("signal")
	close(stop)
	if n := <-flips; n > 0 {
		t.Errorf("O_NONBLOCK was seen off %d times", n)
	}
}

// A generation opens and closes Handoffs in one process without a trace.
func TestOpenLeavesNothingBehind(t *testing.T) {
	dir, err := os.MkdirTemp("", "zdt")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	round := func() {
		h, err := Open(Options{ControlSocket: filepath.Join(dir, "c"), Service: "t", DrainTimeout: time.Second, Logger: quiet()})
		if err != nil {
			t.Fatal(err)
		}
		ln, err := h.Listen("http", "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		pc, err := h.ListenPacket("udp", "udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan error, 2)
		go func() { served <- h.Serve(&http.Server{}, ln) }()
		go func() { served <- echo(h, pc) }()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		c, err := control.Dial(ctx, filepath.Join(dir, "c"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Status(ctx); err != nil {
			t.Fatal(err)
		}
		resp, err := fresh().Get("http://" + ln.Addr().String() + "/")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		h.Close()
		h.Close() // does nothing
		if err := h.Ready(); err != nil {
			t.Errorf("Ready after the end: %v", err)
		}
		for range 2 {
			if err := <-served; err != nil {
				t.Errorf("serve: %v", err)
			}
		}
		pc.Close()
		c.Close()
	}
	round()
	fds, goroutines := fdTargets(), numGoroutines()
	for range 5 {
		round()
	}
	// Fewer, when something of an earlier test had been ending still.
	eventually(t, "no more descriptors and goroutines than before", func() bool {
		return len(fdTargets()) <= len(fds) && numGoroutines() <= goroutines
	})
}
