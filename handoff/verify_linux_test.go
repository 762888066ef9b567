package handoff

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// verifyPatience bounds the waits of these tests.
const verifyPatience = 10 * time.Second

// aPair is an accepted connection, a second descriptor of it, as the other
// process of a move has it, and its client.
type aPair struct {
	server, client net.Conn
	fd             int
}

func newPair(t testing.TB, network, address string) *aPair {
	t.Helper()
	ln, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return pairOn(t, ln)
}

func newTCPPair(t testing.TB) *aPair { return newPair(t, "tcp4", "127.0.0.1:0") }

func pairOn(t testing.TB, ln net.Listener) *aPair {
	t.Helper()
	client, err := net.Dial(ln.Addr().Network(), ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	server, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	p := &aPair{server: server, client: client, fd: dupOf(t, server)}
	for _, c := range []net.Conn{server, client} {
		c.SetDeadline(time.Now().Add(verifyPatience))
	}
	return p
}

func dupOf(t testing.TB, c net.Conn) int {
	t.Helper()
	fd, err := dupFD(c.(syscall.Conn))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func mustView(t testing.TB, fd int, repair bool) kernelView {
	t.Helper()
	v, err := viewOf(fd, repair)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// viewWhen looks until the look is as wanted.
func viewWhen(t testing.TB, fd int, repair bool, want func(kernelView) bool) kernelView {
	t.Helper()
	for end := time.Now().Add(verifyPatience); ; runtime.Gosched() {
		v := mustView(t, fd, repair)
		if want(v) {
			return v
		}
		if time.Now().After(end) {
			t.Fatalf("still %+v", v)
		}
	}
}

func repairMode(t testing.TB, fd int) bool {
	t.Helper()
	on, err := unix.GetsockoptInt(fd, unix.SOL_TCP, unix.TCP_REPAIR)
	if err != nil {
		t.Fatal(err)
	}
	return on != 0
}

// enterRepair does what a look does first, and stays.
func enterRepair(t testing.TB, fd, queue int) {
	t.Helper()
	if err := unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_REPAIR, unix.TCP_REPAIR_ON); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_REPAIR_QUEUE, queue); err != nil {
		t.Fatal(err)
	}
}

func needRepair(t testing.TB) {
	t.Helper()
	if !mustView(t, newTCPPair(t).fd, true).Repair {
		t.Skip("no CAP_NET_ADMIN")
	}
}

func write(t testing.TB, c net.Conn, n int) {
	t.Helper()
	if _, err := c.Write(make([]byte, n)); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, c net.Conn, n int) {
	t.Helper()
	if _, err := io.ReadFull(c, make([]byte, n)); err != nil {
		t.Fatal(err)
	}
}

// fill writes until neither the peer nor the kernel takes more.
func fill(t testing.TB, p *aPair) (n int) {
	t.Helper()
	for {
		p.server.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
		m, err := p.server.Write(make([]byte, 64<<10))
		n += m
		if errors.Is(err, os.ErrDeadlineExceeded) {
			p.server.SetWriteDeadline(time.Now().Add(verifyPatience))
			return n
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// talk proves that a connection works in both directions.
func talk(t testing.TB, p *aPair) {
	t.Helper()
	for _, way := range [][2]net.Conn{{p.client, p.server}, {p.server, p.client}} {
		want := []byte("are you there?")
		if _, err := way[0].Write(want); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(want))
		if _, err := io.ReadFull(way[1], got); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%q, want %q (%v)", got, want, err)
		}
	}
}

func closeWrite(t testing.TB, c net.Conn) {
	t.Helper()
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
}

// TestViewsOfMoves looks at real connections to which the peer does things
// between the looks.
func TestViewsOfMoves(t *testing.T) {
	unread := func(n int64) func(kernelView) bool { return func(v kernelView) bool { return v.Unread == n } }
	state := func(s ...tcpState) func(kernelView) bool {
		return func(v kernelView) bool { return slices.Contains(s, v.State) }
	}
	nothing := func(testing.TB, *aPair) {}
	always := func(kernelView) bool { return true }
	type act = func(testing.TB, *aPair)
	for _, tt := range []struct {
		name         string
		before, peer act
		ready, done  func(kernelView) bool
	}{
		{"nothing", nothing, nothing, always, always},
		{"sends", nothing, func(t testing.TB, p *aPair) { write(t, p.client, 10) }, always, unread(10)},
		{"sends more", func(t testing.TB, p *aPair) { write(t, p.client, 10) }, func(t testing.TB, p *aPair) { write(t, p.client, 5) }, unread(10), unread(15)},
		{"sends after some was read", func(t testing.TB, p *aPair) { write(t, p.client, 10); read(t, p.server, 4) },
			func(t testing.TB, p *aPair) { write(t, p.client, 5) }, unread(6), unread(11)},
		{"reads and acknowledges", func(t testing.TB, p *aPair) { fill(t, p) }, func(t testing.TB, p *aPair) { read(t, p.client, 1<<20) },
			func(v kernelView) bool { return v.Unsent > 1<<20 }, always},
		{"ends its stream", nothing, func(t testing.TB, p *aPair) { closeWrite(t, p.client) }, always, state(tcpCloseWait)},
		{"sends and ends", func(t testing.TB, p *aPair) { write(t, p.client, 3) },
			func(t testing.TB, p *aPair) { write(t, p.client, 5); closeWrite(t, p.client) }, unread(3), state(tcpCloseWait)},
		{"had ended", func(t testing.TB, p *aPair) { write(t, p.client, 3); closeWrite(t, p.client) }, nothing, state(tcpCloseWait), always},
		{"had ended and that was read", func(t testing.TB, p *aPair) { closeWrite(t, p.client); p.server.Read(make([]byte, 1)) }, nothing, state(tcpCloseWait), always},
		{"closes", func(t testing.TB, p *aPair) { write(t, p.client, 3) }, func(t testing.TB, p *aPair) { p.client.Close() }, unread(3), state(tcpCloseWait)},
		{"resets", func(t testing.TB, p *aPair) { write(t, p.client, 3) },
			func(t testing.TB, p *aPair) { p.client.(*net.TCPConn).SetLinger(0); p.client.Close() }, unread(3), state(tcpClose)},
		{"sends and resets with unread", func(t testing.TB, p *aPair) { write(t, p.server, 3); write(t, p.client, 3) },
			func(t testing.TB, p *aPair) { write(t, p.client, 4); p.client.Close() }, unread(3), state(tcpClose)},
		{"ends and resets", nothing, func(t testing.TB, p *aPair) {
			write(t, p.client, 4)
			closeWrite(t, p.client)
			viewWhen(t, p.fd, false, state(tcpCloseWait))
			p.client.(*net.TCPConn).SetLinger(0)
			p.client.Close()
		}, always, state(tcpClose, tcpCloseWait)},
		{"ends after we did", func(t testing.TB, p *aPair) { closeWrite(t, p.server) },
			func(t testing.TB, p *aPair) { write(t, p.client, 4); p.client.Close() }, state(tcpFinWait2), state(tcpClose, tcpTimeWait)},
		{"sends urgent data", func(t testing.TB, p *aPair) { write(t, p.client, 3) }, func(t testing.TB, p *aPair) {
			fd := dupOf(t, p.client)
			if err := unix.Sendto(fd, []byte("abc!"), unix.MSG_OOB, nil); err != nil {
				t.Fatal(err)
			}
			viewWhen(t, p.fd, false, func(v kernelView) bool { return v.Urgent })
			write(t, p.client, 8)
		}, unread(3), func(v kernelView) bool { return v.BytesReceived == 15 }},
	} {
		for _, repair := range []bool{false, true} {
			for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
				name := strings.ReplaceAll(tt.name, " ", "-") + map[bool]string{true: "/repair/", false: "/plain/"}[repair] + address
				t.Run(name, func(t *testing.T) {
					p := newPair(t, "tcp", address)
					tt.before(t, p)
					before := viewWhen(t, p.fd, repair, tt.ready)
					tt.peer(t, p)
					after := viewWhen(t, p.fd, repair, tt.done)
					if d := before.compare(throughJSON(t, after)); d != nil {
						t.Errorf("differences %q\n%+v\n%+v", d, before, after)
					}
					if repairMode(t, p.fd) {
						t.Error("still in TCP_REPAIR")
					}
				})
			}
		}
	}
}

func throughJSON(t testing.TB, v kernelView) (back kernelView) {
	t.Helper()
	text, err := json.Marshal(v)
	if err == nil {
		err = json.Unmarshal(text, &back)
	}
	if err != nil {
		t.Fatal(err)
	}
	return back
}

func TestViewsOfUnixMoves(t *testing.T) {
	p := newPair(t, "unix", filepath.Join(t.TempDir(), "s"))
	write(t, p.client, 10)
	write(t, p.server, 5000)
	before := mustView(t, p.fd, true)
	if before.Unread != 10 || before.Unsent < 5000 || before.Repair || before.Inode == 0 || before.Cookie == 0 {
		t.Errorf("view %+v", before)
	}
	write(t, p.client, 3)
	read(t, p.client, 5000)
	after := mustView(t, p.fd, true)
	if d := before.compare(after); d != nil || after.Unread != 13 || after.Unsent != 0 {
		t.Errorf("differences %q, view %+v", d, after)
	}
	p.client.Close()
	if d := before.compare(mustView(t, p.fd, true)); d != nil {
		t.Errorf("differences %q after the peer closed", d)
	}
	read(t, p.server, 1)
	if d := before.compare(mustView(t, p.fd, true)); d != nil {
		t.Errorf("differences %q: one of the bytes sent since was read, which a unix socket does not tell", d)
	}
	read(t, p.server, 3)
	if d := before.compare(mustView(t, p.fd, true)); !slices.Equal(d, []string{"1 unread bytes vanished: 10 before, 9 after"}) {
		t.Errorf("differences %q after 4 of 13 bytes were read", d)
	}
	if err := leaveRepair(p.fd); err != nil {
		t.Error(err)
	}
}

// TestViewsOfMultipathTCP: Go listens for it by default, so a client can choose it.
func TestViewsOfMultipathTCP(t *testing.T) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	dialer := net.Dialer{}
	dialer.SetMultipathTCP(true)
	client, err := dialer.Dial("tcp4", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	if on, err := server.(*net.TCPConn).MultipathTCP(); err != nil || !on {
		t.Skipf("no Multipath TCP here (%v)", err)
	}
	p := &aPair{server: server, client: client, fd: dupOf(t, server)}
	write(t, p.client, 10)
	before := viewWhen(t, p.fd, true, func(v kernelView) bool { return v.Unread == 10 })
	write(t, p.client, 5)
	after := viewWhen(t, p.fd, true, func(v kernelView) bool { return v.Unread == 15 })
	if d := before.compare(after); d != nil || before.Socket != "mptcp" || before.Repair {
		t.Errorf("differences %q, view %+v", d, before)
	}
	if err := leaveRepair(p.fd); err != nil {
		t.Error(err)
	}
	p.client.Close()
	if d := before.compare(mustView(t, p.fd, true)); d != nil {
		t.Errorf("differences %q after the peer closed", d)
	}
}

// TestViewsTell does to real connections what nobody may do between two looks.
func TestViewsTell(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		wrong      func(testing.TB, *aPair)
	}{
		{"a read", "1 unread bytes vanished: 10 before, 9 after", func(t testing.TB, p *aPair) { read(t, p.server, 1) }},
		{"a write", "send sequence number", func(t testing.TB, p *aPair) { write(t, p.server, 1) }},
		{"a shutdown", "FIN_WAIT", func(t testing.TB, p *aPair) { closeWrite(t, p.server) }},
		{"another socket", "another socket", func(t testing.TB, p *aPair) { p.fd = newTCPPair(t).fd }},
		{"bytes put in by a process in TCP_REPAIR", "5 bytes received and 0 acknowledged without a segment", func(t testing.TB, p *aPair) {
			enterRepair(t, p.fd, tcpRecvQueue)
			if _, err := unix.Write(p.fd, []byte("forge")); err != nil {
				t.Fatal(err)
			}
			if err := leaveRepair(p.fd); err != nil {
				t.Fatal(err)
			}
		}},
		{"SO_REUSEADDR", "SO_REUSEADDR: true before, false after", func(t testing.TB, p *aPair) {
			if err := unix.SetsockoptInt(p.fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 0); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			needRepair(t)
			p := newTCPPair(t)
			write(t, p.client, 10)
			before := viewWhen(t, p.fd, true, func(v kernelView) bool { return v.Unread == 10 })
			tt.wrong(t, p)
			if d := before.compare(mustView(t, p.fd, true)); !strings.Contains(strings.Join(d, "\n"), tt.want) {
				t.Errorf("differences %q, want %q", d, tt.want)
			}
		})
	}
}

func TestViewRefuses(t *testing.T) {
	udp, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for name, c := range map[string]syscall.Conn{"a file": null, "a datagram socket": udp.(syscall.Conn), "a listener": ln.(syscall.Conn)} {
		fd, err := dupFD(c)
		if err != nil {
			t.Fatal(err)
		}
		if v, err := viewOf(fd, true); err == nil {
			t.Errorf("%s: %+v", name, v)
		}
		if err := leaveRepair(fd); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		unix.Close(fd)
	}
}

// TestLookLeavesNoTrace: the look sends nothing and changes nothing.
func TestLookLeavesNoTrace(t *testing.T) {
	needRepair(t)
	for _, reuse := range []int{0, 1} {
		p := newTCPPair(t)
		if err := unix.SetsockoptInt(p.fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, reuse); err != nil {
			t.Fatal(err)
		}
		first := mustView(t, p.fd, true)
		for range 100 {
			mustView(t, p.fd, true)
		}
		if last := mustView(t, p.fd, true); last != first {
			t.Errorf("SO_REUSEADDR %d:\n%+v\n%+v", reuse, first, last)
		}
		if first.RcvSeq == 0 || first.SndSeq == 0 || first.ReuseAddr != (reuse == 1) || repairMode(t, p.fd) {
			t.Errorf("view %+v", first)
		}
		talk(t, p)
	}
}

// TestLookKeepsPortFree: leaving TCP_REPAIR turns SO_REUSEADDR off, and one such
// connection keeps everybody from listening on its port anew.
func TestLookKeepsPortFree(t *testing.T) {
	needRepair(t)
	again := func(t *testing.T, spoil func(*aPair)) error {
		ln, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		p := pairOn(t, ln)
		mustView(t, p.fd, true)
		spoil(p)
		ln.Close()
		ln, err = net.Listen("tcp4", ln.Addr().String())
		if err == nil {
			ln.Close()
		}
		return err
	}
	if err := again(t, func(*aPair) {}); err != nil {
		t.Errorf("listen again beside a connection that was looked at: %v", err)
	}
	off := func(p *aPair) {
		enterRepair(t, p.fd, tcpRecvQueue)
		if err := unix.SetsockoptInt(p.fd, unix.SOL_TCP, unix.TCP_REPAIR, unix.TCP_REPAIR_OFF_NO_WP); err != nil {
			t.Fatal(err)
		}
	}
	if err := again(t, off); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("listen again beside a connection without SO_REUSEADDR: %v, want EADDRINUSE: the kernel has changed, look needs no restoring", err)
	}
	killedBetween := func(p *aPair) {
		before := mustView(t, p.fd, true)
		off(p)
		if err := before.restore(p.fd); err != nil {
			t.Fatal(err)
		}
	}
	if err := again(t, killedBetween); err != nil {
		t.Errorf("listen again beside a restored connection: %v", err)
	}
	killedWithin := func(p *aPair) {
		enterRepair(t, p.fd, tcpSendQueue)
		if err := leaveRepair(p.fd); err != nil {
			t.Fatal(err)
		}
	}
	if err := again(t, killedWithin); err != nil {
		t.Errorf("listen again beside a connection taken out of TCP_REPAIR: %v", err)
	}
}

// TestRepairMode is what the kernel does with a socket in the mode.
func TestRepairMode(t *testing.T) {
	needRepair(t)
	t.Run("what arrives is kept", func(t *testing.T) {
		p := newTCPPair(t)
		enterRepair(t, p.fd, tcpRecvQueue)
		write(t, p.client, 10)
		viewWhen(t, p.fd, false, func(v kernelView) bool { return v.Unread == 10 })
		if _, err := unix.Read(p.fd, make([]byte, 10)); !errors.Is(err, unix.EPERM) {
			t.Errorf("read: %v, want EPERM", err)
		}
		if !repairMode(t, p.fd) {
			t.Error("a look without sequence numbers changed the mode")
		}
		if err := leaveRepair(p.fd); err != nil {
			t.Fatal(err)
		}
		read(t, p.server, 10)
		talk(t, p)
	})
	t.Run("a look ends it", func(t *testing.T) {
		p := newTCPPair(t)
		enterRepair(t, p.fd, tcpSendQueue)
		if v := mustView(t, p.fd, true); !v.Repair || !v.ReuseAddr || repairMode(t, p.fd) {
			t.Errorf("view %+v", v)
		}
		talk(t, p)
	})
	t.Run("closed in it", func(t *testing.T) {
		p := newTCPPair(t)
		enterRepair(t, p.fd, tcpRecvQueue)
		p.server.Close()
		unix.Close(p.fd) // the clean-up closes the number once more, in vain or not: so it is taken
		p.fd, _ = unix.Eventfd(0, unix.EFD_CLOEXEC)
		p.client.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if _, err := p.client.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the peer reads %v, want nothing: no end, no reset", err)
		}
		p.client.SetReadDeadline(time.Now().Add(verifyPatience))
		write(t, p.client, 1)
		if _, err := p.client.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("the peer wrote and reads %v, want a reset", err)
		}
	})
}

// TestLookWithoutCapability: the thread alone gives it up, and is thrown away.
func TestLookWithoutCapability(t *testing.T) {
	needRepair(t)
	p, stuck := newTCPPair(t), newTCPPair(t)
	enterRepair(t, stuck.fd, tcpRecvQueue)
	var v kernelView
	var errs [4]error
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var data [2]unix.CapUserData
		if errs[0] = unix.Capget(&header, &data[0]); errs[0] != nil {
			return
		}
		data[0].Effective &^= 1 << unix.CAP_NET_ADMIN
		if errs[0] = unix.Capset(&header, &data[0]); errs[0] != nil {
			return
		}
		v, errs[1] = viewOf(p.fd, true)
		errs[2] = leaveRepair(p.fd)
		errs[3] = leaveRepair(stuck.fd)
	}()
	<-done
	if err := errors.Join(errs[:3]...); err != nil {
		t.Fatal(err)
	}
	if v.Repair || v.RcvSeq != 0 || v.SndSeq != 0 || !v.Counted || !v.ReuseAddr {
		t.Errorf("view %+v", v)
	}
	if !errors.Is(errs[3], unix.EPERM) {
		t.Errorf("leave the mode: %v, want EPERM", errs[3])
	}
	if d := mustView(t, p.fd, true).compare(v); d != nil {
		t.Errorf("differences %q from a look with the capability", d)
	}
	talk(t, p)
	if err := leaveRepair(stuck.fd); err != nil {
		t.Fatal(err)
	}
	talk(t, stuck)
}

// TestLookAtUnsent: with bytes waiting for the peer's window, acknowledgements
// that come while the socket is looked at must not make the kernel think it had
// sent them. It would send them again after its timeout: looks that read the send sequence
// number all the same were seen to cause 23 retransmissions a connection, none at all cause 1.
func TestLookAtUnsent(t *testing.T) {
	needRepair(t)
	const conns = 8
	looks, bytes, again := 0, 0, uint32(0)
	for range conns {
		p := newTCPPair(t)
		total := fill(t, p)
		before := mustView(t, p.fd, true)
		if !before.Repair || before.RcvSeq == 0 || before.SndSeq != 0 {
			t.Fatalf("view %+v with %d bytes under way", before, total)
		}
		readAll := make(chan error, 1)
		go func() {
			_, err := io.ReadFull(p.client, make([]byte, total))
			readAll <- err
		}()
		for v := before; v.Unsent != 0; looks++ {
			v = mustView(t, p.fd, true)
			if d := before.compare(v); d != nil {
				t.Fatalf("look %d: %q\n%+v\n%+v", looks, d, before, v)
			}
		}
		if err := <-readAll; err != nil {
			t.Fatal(err)
		}
		var info tcpInfo
		if err := info.read(p.fd); err != nil {
			t.Fatal(err)
		}
		again += info.info.Total_retrans
		bytes += total
		talk(t, p)
	}
	t.Logf("%d looks while %d bytes left on %d connections; %d segments sent again", looks, bytes, conns, again)
	if again > 5*conns {
		t.Errorf("%d segments sent again on %d connections", again, conns)
	}
}

// TestLooksUnderTraffic compares looks while the peer sends and reads as fast as it can.
func TestLooksUnderTraffic(t *testing.T) {
	p := newTCPPair(t)
	fill(t, p)
	before := mustView(t, p.fd, true)
	ctx, cancel := context.WithCancel(context.Background())
	joined := make(chan struct{}, 2)
	stop := context.AfterFunc(ctx, func() { p.client.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	go func() { io.Copy(io.Discard, p.client); joined <- struct{}{} }()
	go func() {
		for buf := make([]byte, 1000); ctx.Err() == nil; {
			if _, err := p.client.Write(buf); err != nil {
				break
			}
		}
		joined <- struct{}{}
	}()
	defer func() { cancel(); <-joined; <-joined }()
	unsteady, looks := 0, 0
	for v := before; looks < 20000 && (v.Unread < 1<<20 || looks < 1000); looks++ {
		v = mustView(t, p.fd, looks%2 == 0)
		if v.Unsteady {
			unsteady++
		}
		if d := before.compare(v); d != nil {
			t.Fatalf("look %d: %q\n%+v\n%+v", looks, d, before, v)
		}
	}
	t.Logf("%d of %d looks were unsteady", unsteady, looks)
}

// envLook makes the test binary look at descriptor 3 until it is killed.
const envLook = "ZDT_TEST_LOOK"

// TestLooker is no test but the process that is killed in the next ones.
func TestLooker(t *testing.T) {
	mode := os.Getenv(envLook)
	if mode == "" {
		return
	}
	const fd, began = 3, 4
	if mode == "stay" {
		enterRepair(t, fd, tcpSendQueue)
	}
	mustView(t, fd, mode == "loop")
	unix.Close(began)
	if mode == "stay" {
		select {}
	}
	for {
		if _, err := viewOf(fd, true); err != nil {
			t.Fatal(err)
		}
	}
}

// startLooker starts a process with a copy of fd and waits until it looks.
func startLooker(t *testing.T, fd int, mode string) *exec.Cmd {
	t.Helper()
	socket, err := fileOf(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := exec.Command(os.Args[0], "-test.run=^TestLooker$")
	cmd.Env = append(os.Environ(), envLook+"="+mode)
	cmd.ExtraFiles = []*os.File{socket, w}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Start()
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Fatalf("the looker writes %d bytes (%v)", n, err)
	}
	if cmd.Process.Signal(unix.Signal(0)) != nil {
		cmd.Wait()
		t.Fatalf("the looker ended: %s", out.Bytes())
	}
	return cmd
}

func kill(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.Sys().(interface{ Signaled() bool }).Signaled() == false {
		t.Fatalf("the looker: %v", err)
	}
}

// TestKilledInRepair: a process that is killed in the mode leaves it on, for sure.
func TestKilledInRepair(t *testing.T) {
	needRepair(t)
	p := newTCPPair(t)
	write(t, p.client, 10)
	before := viewWhen(t, p.fd, true, func(v kernelView) bool { return v.Unread == 10 })
	kill(t, startLooker(t, p.fd, "stay"))
	if !repairMode(t, p.fd) {
		t.Fatal("the mode was left without anybody doing it")
	}
	if err := before.restore(p.fd); err != nil || repairMode(t, p.fd) {
		t.Fatalf("restored: %v", err)
	}
	if d := before.compare(mustView(t, p.fd, true)); d != nil {
		t.Errorf("differences %q", d)
	}
	read(t, p.server, 10)
	talk(t, p)
}

// TestKilledWhileLooking kills processes at random moments of their looks while
// the peer sends and reads. The copy that is left here must be sound each time.
func TestKilledWhileLooking(t *testing.T) {
	needRepair(t)
	rounds := 200
	if testing.Short() {
		rounds = 20
	}
	r := rand.New(rand.NewPCG(8, 9))
	inMode, noReuse := 0, 0
	for range rounds {
		p := newTCPPair(t)
		up, down := make([]byte, 100+r.IntN(200<<10)), make([]byte, 100+r.IntN(200<<10))
		for i := range up {
			up[i] = byte(r.Uint32())
		}
		for i := range down {
			down[i] = byte(r.Uint32())
		}
		cut := r.IntN(len(down))
		if _, err := p.server.Write(down[:cut]); err != nil { // nobody writes during a look
			t.Fatal(err)
		}
		before := mustView(t, p.fd, true)
		cmd := startLooker(t, p.fd, "loop")
		type result struct {
			got []byte
			err error
		}
		wrote, got := make(chan error, 1), make(chan result, 1)
		go func() {
			for rest := up; ; {
				n := min(len(rest), 1+len(up)/50)
				if _, err := p.client.Write(rest[:n]); err != nil || n == len(rest) {
					wrote <- err
					return
				}
				rest = rest[n:]
			}
		}()
		go func() {
			buf := make([]byte, len(down))
			_, err := io.ReadFull(p.client, buf)
			got <- result{buf, err}
		}()
		<-time.After(time.Duration(r.IntN(3000)) * time.Microsecond) // the random moment
		kill(t, cmd)
		if repairMode(t, p.fd) {
			inMode++
		} else if on, err := unix.GetsockoptInt(p.fd, unix.SOL_SOCKET, unix.SO_REUSEADDR); err == nil && on == 0 {
			noReuse++
		}
		if err := before.restore(p.fd); err != nil || repairMode(t, p.fd) {
			t.Fatalf("still in TCP_REPAIR (%v)", err)
		}
		if d := before.compare(mustView(t, p.fd, true)); d != nil {
			t.Fatalf("differences %q", d)
		}
		if _, err := p.server.Write(down[cut:]); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, len(up))
		if _, err := io.ReadFull(p.server, buf); err != nil || !bytes.Equal(buf, up) {
			t.Fatalf("from the peer: %v, the bytes are the same: %t", err, bytes.Equal(buf, up))
		}
		if err := <-wrote; err != nil {
			t.Fatal(err)
		}
		if res := <-got; res.err != nil || !bytes.Equal(res.got, down) {
			t.Fatalf("to the peer: %v, the bytes are the same: %t", res.err, bytes.Equal(res.got, down))
		}
		talk(t, p)
		p.client.Close()
		p.server.Close()
	}
	t.Logf("%d of %d were killed in TCP_REPAIR, %d more before SO_REUSEADDR was back", inMode, rounds, noReuse)
	if inMode == 0 && !testing.Short() {
		t.Error("none was killed in TCP_REPAIR: the test shows nothing")
	}
}

func BenchmarkViewOf(b *testing.B) {
	for _, repair := range []bool{false, true} {
		b.Run(map[bool]string{false: "plain", true: "repair"}[repair], func(b *testing.B) {
			fd := newTCPPair(b).fd
			for b.Loop() {
				if v, err := viewOf(fd, repair); err != nil || v.Repair != repair {
					b.Fatal(v, err)
				}
			}
		})
	}
	b.Run("window", func(b *testing.B) { // TCP_REPAIR alone, with the signals' mask
		fd := newTCPPair(b).fd
		for b.Loop() {
			s := sequences{withSend: true}
			if err := s.read(fd); err != nil || !s.known {
				b.Fatal(err)
			}
		}
	})
	b.Run("unix", func(b *testing.B) {
		fd := newPair(b, "unix", filepath.Join(b.TempDir(), "s")).fd
		for b.Loop() {
			if _, err := viewOf(fd, false); err != nil {
				b.Fatal(err)
			}
		}
	})
}
