package takeover

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/internal/netfd"
	"github.com/zdt-dev/zdt/internal/wire"
)

// linkPair is a link between two ends in this process.
func linkPair(t *testing.T) (a, b *wire.Link) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i, l := range []**wire.Link{&a, &b} {
		if *l, err = wire.NewLink(fds[i]); err != nil {
			t.Fatal(err)
		}
		t.Cleanup((*l).Close)
	}
	return a, b
}

// descriptors counts what this process has open.
func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// A service has more sockets than fit into a packet, by their number and by their names.
func TestGiveManySockets(t *testing.T) {
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	fd, err := netfd.Dup(udp.(*net.UDPConn))
	if err != nil {
		t.Fatal(err)
	}
	defer netfd.Close(fd)
	for _, tt := range []struct {
		n     int
		names string // format
		least int    // packets
	}{
		{1, "s%d", 1},
		{maxSockets - 1, "s%d", 1}, // and the takeover socket
		{maxSockets, "s%d", 2},
		{700, "s%d", 3},
		{600, strings.Repeat("<", 250) + "%d", 19}, // six bytes each, in JSON
	} {
		t.Run(fmt.Sprintf("%d called %.3s", tt.n, tt.names), func(t *testing.T) {
			from, to := linkPair(t)
			before := descriptors(t)
			given := NoGift()
			given.Takeover = fd
			for i := range tt.n {
				given.Names, given.FDs = append(given.Names, fmt.Sprintf(tt.names, i)), append(given.FDs, fd)
			}
			sent := make(chan error, 1)
			go func() {
				sent <- given.Send(from, "", wire.Message{Type: wire.Hello, Generation: 2, Version: wire.Version})
			}()
			g, packets := NoGift(), 0
			for {
				m, err := to.Receive()
				if err != nil {
					t.Fatal(err)
				}
				if m.Type == wire.Hello {
					break
				}
				packets++
				if err := g.add(m); err != nil {
					t.Fatal(err)
				}
			}
			if err := <-sent; err != nil {
				t.Fatal(err)
			}
			if err := g.complete(); err != nil || len(g.FDs) != tt.n || packets < tt.least || g.Control >= 0 {
				t.Errorf("%v: %d sockets in %d packets", err, len(g.FDs), packets)
			}
			for i, name := range g.Names {
				if want := fmt.Sprintf(tt.names, i); name != want || !SameSocket(g.FDs[i], fd) {
					t.Fatalf("socket %d is called %q, want %q", i, name, want)
				}
			}
			g.Close()
			if after := descriptors(t); after != before {
				t.Errorf("%d descriptors before, %d after", before, after)
			}
		})
	}
}

// Whatever arrives as sockets, each descriptor has one owner afterwards, or none.
func FuzzGift(f *testing.F) {
	f.Add([]byte(`{"total":3,"sockets":[{"name":"http"},{"role":"takeover"},{"role":"control","dev":1,"ino":2}]}`), uint8(3))
	f.Add([]byte(`{"total":3,"sockets":[{"name":"http"},{"name":"no:name"},{"name":"http"}]}`), uint8(3))
	f.Add([]byte(`{"total":2,"sockets":[{"role":"takeover"},{"role":"takeover"}]}`), uint8(2))
	f.Add([]byte(`{"total":1,"sockets":[{"name":"a"},{"name":"b"}]}`), uint8(2))
	f.Add([]byte(`{"total":2,"sockets":[{"name":"a"},{"name":"b"}]}`), uint8(1))
	f.Add([]byte(`{}`), uint8(1))
	f.Fuzz(func(t *testing.T, packet []byte, n uint8) {
		var m wire.Message
		if json.Unmarshal(packet, &m) != nil {
			return
		}
		g := NoGift()
		for range 2 { // the second one makes the total wrong, if the first was right
			var given []int
			for range n % 8 {
				fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
				if err != nil {
					t.Fatal(err)
				}
				given = append(given, fd)
			}
			m.Files = given
			err := g.add(m)
			held := map[int]bool{}
			for _, fd := range append([]int{g.Control, g.Takeover}, g.FDs...) {
				if fd >= 0 && held[fd] {
					t.Errorf("descriptor %d is held twice", fd)
				}
				held[fd] = true
			}
			for _, fd := range given {
				_, gone := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
				if open := gone == nil; open != held[fd] {
					t.Errorf("%v: descriptor %d is open: %v, held: %v", err, fd, open, held[fd])
				}
			}
			if err != nil {
				break
			}
		}
		if g.complete() == nil && (g.Takeover < 0 || len(g.Names) != len(g.FDs)) {
			t.Errorf("complete: %+v", g)
		}
		g.Close()
	})
}
