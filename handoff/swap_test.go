package handoff

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/internal/netfd"
	"golang.org/x/sys/unix"
)

func listenTCP(t *testing.T) *net.TCPListener {
	t.Helper()
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// queued returns how many connections wait in a listening socket: TCP_INFO
// gives that number as tcpi_unacked.
func queued(t *testing.T, s syscall.Conn) int {
	t.Helper()
	raw, err := s.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			t.Error(err)
			return
		}
		n = int(info.Unacked)
	})
	return n
}

// dialers connects n clients, which are in the queue of the socket when it returns.
func dialers(t *testing.T, l *Listener, n int) []net.Conn {
	t.Helper()
	before := queued(t, l.current().(syscall.Conn))
	var out []net.Conn
	for range n {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		out = append(out, c)
	}
	eventually(t, "the kernel has accepted all", func() bool { return queued(t, l.current().(syscall.Conn)) == before+n })
	return out
}

// answer accepts n connections and says hello to each.
func answer(ln net.Listener, n int) error {
	for range n {
		c, err := ln.Accept()
		if err != nil {
			return err
		}
		if _, err := c.Write([]byte("x")); err != nil {
			return err
		}
		c.Close()
	}
	return nil
}

func answered(t *testing.T, clients []net.Conn) {
	t.Helper()
	for i, c := range clients {
		c.SetReadDeadline(time.Now().Add(patience))
		if n, err := c.Read(make([]byte, 1)); n != 1 {
			t.Errorf("client %d of %d got no answer: %v", i, len(clients), err)
		}
	}
}

func allAnswered(t *testing.T, answers chan error) {
	t.Helper()
	select {
	case err := <-answers:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Error("Accept waits for connections that are lost")
	}
}

// registered returns the address under a name, as a successor would find it.
func registered(t *testing.T, h *Handoff, name string) (address string) {
	t.Helper()
	h.sockets.pass(func(names []string, fds []int) error {
		for i := range names {
			if names[i] == name {
				var err error
				if _, address, err = netfd.Info(fds[i]); err != nil {
					t.Error(err)
				}
			}
		}
		return nil
	})
	return address
}

// Who waits in the queue of a socket that is replaced is served, and so is who
// comes to the new one; before READY nobody is.
func TestSwapDeliversTheQueue(t *testing.T) {
	h := bareHandoff(t, Options{DrainTimeout: time.Second})
	before := fdTargets()
	l, err := h.Listen("http", "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	clients := dialers(t, l, 20)
	old := l.Addr().String()
	next := listenTCP(t)
	next.SetDeadline(time.Now().Add(-time.Second)) // the program's own affairs with it
	answers := make(chan error, 1)
	go func() { answers <- answer(l, 25) }()
	if err := l.Swap(next); err != nil {
		t.Fatal(err)
	}
	clients = append(clients, dialers(t, l, 5)...)
	if l.Addr().String() == old || registered(t, h, "http") != l.Addr().String() || h.sockets.list()[0].Address != l.Addr().String() {
		t.Errorf("listener %s, registry %s, status %+v; before %s", l.Addr(), registered(t, h, "http"), h.sockets.list(), old)
	}
	if c, err := net.Dial("tcp", old); err == nil {
		c.Close()
		t.Errorf("the old address %s still takes connections", old)
	}
	select {
	case err := <-answers:
		t.Errorf("accepted before READY: %v", err)
	default:
	}
	if n := len(l.queue); n != 20 {
		t.Errorf("%d connections taken before READY", 20-n)
	}
	h.Ready()
	answered(t, clients)
	allAnswered(t, answers)
	l.Close()
	for _, c := range clients {
		c.Close()
	}
	h.Close()
	eventually(t, "no descriptor is left", func() bool { return len(fdTargets()) <= len(before) })
}

// A pause keeps new connections out and not those that only this process has.
func TestSwapThenPause(t *testing.T) {
	h := bareHandoff(t, Options{DrainTimeout: time.Second})
	defer h.Close()
	l, err := h.Listen("http", "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h.Ready()
	clients := dialers(t, l, 3)
	if err := l.Swap(listenTCP(t)); err != nil {
		t.Fatal(err)
	}
	h.gate.Pause()
	late := dialers(t, l, 1)
	answers := make(chan error, 1)
	go func() { answers <- answer(l, 4) }()
	answered(t, clients)
	late[0].SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := late[0].Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("accepted through a paused gate: %v", err)
	}
	h.gate.Open()
	answered(t, late)
	allAnswered(t, answers)
}

// Everything at once. Unix sockets, because a connect that has returned is in
// the queue then: each client that has connected must get its answer.
func TestSwapWhileAccepting(t *testing.T) {
	dir, err := os.MkdirTemp("", "zdt")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	h := bareHandoff(t, Options{DrainTimeout: time.Second})
	l, err := h.Listen("http", "unix", filepath.Join(dir, "0"))
	if err != nil {
		t.Fatal(err)
	}
	h.Ready()
	before := fdTargets()
	const swaps, clients = 60, 6
	var current sync.RWMutex // held for writing while the address changes
	var acceptors, dialing sync.WaitGroup
	var closing atomic.Bool
	for range 4 {
		acceptors.Go(func() {
			for {
				if err := answer(l, 1); err != nil {
					if !errors.Is(err, net.ErrClosed) || !closing.Load() {
						t.Error(err)
					}
					return
				}
			}
		})
	}
	stop := make(chan struct{})
	for range clients {
		dialing.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				current.RLock()
				c, err := net.Dial("unix", l.Addr().String())
				current.RUnlock()
				if err != nil {
					t.Error(err)
					return
				}
				c.SetReadDeadline(time.Now().Add(patience))
				if n, err := c.Read(make([]byte, 1)); n != 1 {
					t.Errorf("lost: %v", err)
				}
				c.Close()
			}
		})
	}
	flipped := make(chan struct{})
	go func() {
		defer close(flipped)
		for {
			select {
			case <-stop:
				return
			default:
				h.gate.Pause()
				h.gate.Open()
			}
		}
	}()
	for i := range swaps {
		next, err := net.Listen("unix", filepath.Join(dir, fmt.Sprint(i+1)))
		if err != nil {
			t.Fatal(err)
		}
		current.Lock()
		err = l.Swap(next)
		current.Unlock()
		if err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	dialing.Wait()
	<-flipped
	eventually(t, "all descriptors but the listener's are closed", func() bool { return len(fdTargets()) <= len(before) })

	// Close comes between any Swap and any Accept.
	var swapping sync.WaitGroup
	for i := range 4 {
		swapping.Go(func() {
			for j := range 10 {
				next, err := net.Listen("unix", filepath.Join(dir, fmt.Sprintf("c%d-%d", i, j)))
				if err != nil {
					t.Error(err)
					return
				}
				if err := l.Swap(next); err != nil {
					if !errors.Is(err, net.ErrClosed) {
						t.Error(err)
					}
					// Still the caller's, and it works.
					go net.Dial("unix", next.Addr().String())
					if _, err := next.Accept(); err != nil {
						t.Errorf("a refused socket: %v", err)
					}
					next.Close()
				}
				if i == 0 && j == 5 {
					closing.Store(true)
					l.Close()
				}
			}
		})
	}
	swapping.Wait()
	acceptors.Wait()
	h.Close()
	if got := h.sockets.list(); len(got) != 0 {
		t.Errorf("in the registry after Close: %+v", got)
	}
}

func TestSwapRefuses(t *testing.T) {
	h := bareHandoff(t, Options{DrainTimeout: time.Second})
	l, err := h.Listen("http", "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h.Ready()
	address := l.Addr().String()
	next := listenTCP(t)
	defer next.Close()
	foreign := &Listener{}
	for _, tt := range []struct {
		name   string
		next   net.Listener
		before func(*machine)
		want   error
	}{
		{name: "no socket", next: foreign},
		{name: "nil", next: nil},
		{name: "its own", next: l.inner},
		{name: "with a successor", next: next, before: func(m *machine) { m.attempt = &attempt{} }, want: ErrHandingOver},
		{name: "with a predecessor", next: next, before: func(m *machine) { m.predecessor = &predecessor{} }, want: ErrHandingOver},
	} {
		h.do(func(m *machine) {
			if tt.before != nil {
				tt.before(m)
				// Undone before the machine looks at it again.
				err = m.swap(l, next, -1)
				m.attempt, m.predecessor = nil, nil
				return
			}
		})
		if tt.before == nil {
			err = l.Swap(tt.next)
		}
		if err == nil || tt.want != nil && !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
	if got := registered(t, h, "http"); got != address || l.Addr().String() != address {
		t.Errorf("after refusals: registry %s, listener %s, want %s", got, l.Addr(), address)
	}
	h.Close()
	if err := l.Swap(next); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
}

// Without a descriptor to spare the swap is refused, and who was taken out of
// the queue until then is served, by an Accept that waits already.
func TestSwapWithoutDescriptors(t *testing.T) {
	h := bareHandoff(t, Options{DrainTimeout: time.Second})
	defer h.Close()
	l, err := h.Listen("http", "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	clients := dialers(t, l, 8)
	next := listenTCP(t)
	defer next.Close()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	for _, spare := range []int{1, 3, 5, 6} {
		low := limit
		low.Cur = firstFree(t, spare)
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
			t.Fatal(err)
		}
		err = l.Swap(next)
		if rerr := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); rerr != nil {
			t.Fatal(rerr)
		}
		if !errors.Is(err, unix.EMFILE) {
			t.Errorf("with %d descriptors: %v", spare, err)
		}
		t.Logf("with %d descriptors: %v; %d taken", spare, err, len(l.queue))
	}
	if len(l.queue) == 0 || len(l.queue) == 8 {
		t.Errorf("%d connections taken out of the queue, want some", len(l.queue))
	}
	h.Ready()
	answers := make(chan error, 1)
	go func() { answers <- answer(l, 9) }()
	answered(t, clients)
	answered(t, dialers2(t, l, 1))
	allAnswered(t, answers)
	if err := l.Swap(next); err != nil {
		t.Error(err)
	}
}

// dialers2 connects clients that somebody accepts at once.
func dialers2(t *testing.T, l *Listener, n int) []net.Conn {
	t.Helper()
	var out []net.Conn
	for range n {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		out = append(out, c)
	}
	return out
}

// firstFree returns the limit with which n more descriptors can be opened.
func firstFree(t *testing.T, n int) uint64 {
	t.Helper()
	var held []int
	for range n + 1 {
		fd, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, fd)
	}
	for _, fd := range held {
		unix.Close(fd)
	}
	return uint64(held[n])
}
