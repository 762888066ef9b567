package sockview

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
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
	fd, err := dup(c.(syscall.Conn))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// dup duplicates the descriptor under c; the caller owns the result.
func dup(c syscall.Conn) (fd int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	if cerr := raw.Control(func(n uintptr) { fd, err = unix.FcntlInt(n, unix.F_DUPFD_CLOEXEC, 3) }); cerr != nil {
		return -1, cerr
	}
	return fd, err
}

func mustView(t testing.TB, fd int, repair bool) View {
	t.Helper()
	v, err := Look(fd, repair)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// viewWhen looks until the look is as wanted.
func viewWhen(t testing.TB, fd int, repair bool, want func(View) bool) View {
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
	for full := 0; ; {
		p.server.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
		m, err := p.server.Write(make([]byte, 64<<10))
		n += m
		if errors.Is(err, os.ErrDeadlineExceeded) {
			if full++; m > 0 || full < 2 { // or this process came late
				continue
			}
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
	unread := func(n int64) func(View) bool { return func(v View) bool { return v.Unread == n } }
	state := func(s ...tcpState) func(View) bool {
		return func(v View) bool { return slices.Contains(s, v.State) }
	}
	nothing := func(testing.TB, *aPair) {}
	always := func(View) bool { return true }
	type act = func(testing.TB, *aPair)
	for _, tt := range []struct {
		name         string
		before, peer act
		ready, done  func(View) bool
	}{
		{"nothing", nothing, nothing, always, always},
		{"sends", nothing, func(t testing.TB, p *aPair) { write(t, p.client, 10) }, always, unread(10)},
		{"sends more", func(t testing.TB, p *aPair) { write(t, p.client, 10) }, func(t testing.TB, p *aPair) { write(t, p.client, 5) }, unread(10), unread(15)},
		{"sends after some was read", func(t testing.TB, p *aPair) { write(t, p.client, 10); read(t, p.server, 4) },
			func(t testing.TB, p *aPair) { write(t, p.client, 5) }, unread(6), unread(11)},
		{"reads and acknowledges", func(t testing.TB, p *aPair) { fill(t, p) }, func(t testing.TB, p *aPair) { read(t, p.client, 1<<20) },
			func(v View) bool { return v.Unsent > 1<<20 }, always},
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
		}, always, state(tcpClose)},
		{"ends after we did", func(t testing.TB, p *aPair) { closeWrite(t, p.server) },
			func(t testing.TB, p *aPair) { write(t, p.client, 4); p.client.Close() }, state(tcpFinWait2), state(tcpClose, tcpTimeWait)},
		{"sends urgent data", func(t testing.TB, p *aPair) { write(t, p.client, 3) }, func(t testing.TB, p *aPair) {
			fd := dupOf(t, p.client)
			if err := unix.Sendto(fd, []byte("abc!"), unix.MSG_OOB, nil); err != nil {
				t.Fatal(err)
			}
			viewWhen(t, p.fd, false, func(v View) bool { return v.Urgent })
			write(t, p.client, 8)
		}, unread(3), func(v View) bool { return v.BytesReceived == 15 }},
	} {
		for _, repair := range []bool{false, true} {
			for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
				name := strings.ReplaceAll(tt.name, " ", "-") + map[bool]string{true: "/repair/", false: "/plain/"}[repair] + address
				t.Run(name, func(t *testing.T) {
					if ln, err := net.Listen("tcp", address); err != nil {
						t.Skip(err) // no IPv6
					} else {
						ln.Close()
					}
					p := newPair(t, "tcp", address)
					tt.before(t, p)
					before := viewWhen(t, p.fd, repair, tt.ready)
					tt.peer(t, p)
					after := viewWhen(t, p.fd, repair, tt.done)
					if d := before.Compare(throughJSON(t, after)); d != nil {
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

func throughJSON(t testing.TB, v View) (back View) {
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
	if d := before.Compare(after); d != nil || after.Unread != 13 || after.Unsent != 0 {
		t.Errorf("differences %q, view %+v", d, after)
	}
	p.client.Close()
	if d := before.Compare(mustView(t, p.fd, true)); d != nil {
		t.Errorf("differences %q after the peer closed", d)
	}
	read(t, p.server, 1)
	if d := before.Compare(mustView(t, p.fd, true)); d != nil {
		t.Errorf("differences %q: one of the bytes sent since was read, which a unix socket does not tell", d)
	}
	read(t, p.server, 3)
	if d := before.Compare(mustView(t, p.fd, true)); !slices.Equal(d, []string{"1 unread bytes vanished: 10 before, 9 after"}) {
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
	before := viewWhen(t, p.fd, true, func(v View) bool { return v.Unread == 10 })
	write(t, p.client, 5)
	after := viewWhen(t, p.fd, true, func(v View) bool { return v.Unread == 15 })
	if d := before.Compare(after); d != nil || before.Socket != "mptcp" || before.Repair {
		t.Errorf("differences %q, view %+v", d, before)
	}
	if err := leaveRepair(p.fd); err != nil {
		t.Error(err)
	}
	p.client.Close()
	if d := before.Compare(mustView(t, p.fd, true)); d != nil {
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
			before := viewWhen(t, p.fd, true, func(v View) bool { return v.Unread == 10 })
			tt.wrong(t, p)
			if d := before.Compare(mustView(t, p.fd, true)); !strings.Contains(strings.Join(d, "\n"), tt.want) {
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
		fd, err := dup(c)
		if err != nil {
			t.Fatal(err)
		}
		if v, err := Look(fd, true); err == nil {
			t.Errorf("%s: %+v", name, v)
		}
		if err := leaveRepair(fd); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		unix.Close(fd)
	}
}
