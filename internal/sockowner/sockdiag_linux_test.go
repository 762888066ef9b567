package sockowner

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// /proc says the same as sock_diag.
func TestPeer(t *testing.T) {
	for _, tt := range []struct{ listen, dial string }{{"127.0.0.1", "127.0.0.1"}, {"::1", "::1"}, {"::", "127.0.0.1"}, {"::", "::1"}} {
		t.Run(tt.listen+" "+tt.dial, func(t *testing.T) {
			socket, bound := listen(t, tt.listen)
			_, port, _ := net.SplitHostPort(bound)
			conn, err := net.Dial("tcp", net.JoinHostPort(tt.dial, port))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			here, there := unmap(conn.LocalAddr().(*net.TCPAddr).AddrPort()), unmap(conn.RemoteAddr().(*net.TCPAddr).AddrPort())
			both := func(what string, inode uint64) {
				want := peer{inode: inode}
				t.Helper()
				byDiag, diagErr := diagTCP(there, here)
				byProc, procErr := procTCP(there, here)
				if diagErr != nil || procErr != nil || byDiag != want || byProc != want {
					t.Errorf("%s: %v, %v and %v, %v; want %v", what, byDiag, diagErr, byProc, procErr, want)
				}
			}
			both("not accepted", 0)
			accepted, _, err := unix.Accept4(socket, unix.SOCK_CLOEXEC)
			if err != nil {
				t.Fatal(err)
			}
			var st unix.Stat_t
			if err := unix.Fstat(accepted, &st); err != nil {
				t.Fatal(err)
			}
			both("accepted", st.Ino)
			if got, err := peerOf(conn); got != (peer{inode: st.Ino}) || err != nil {
				t.Errorf("peer: %v, %v; want %d", got, err, st.Ino)
			}
			if gone(conn) {
				t.Error("gone")
			}
			unix.Close(accepted)
			eventually(t, "it is gone", func() bool { return gone(conn) })
			if _, err := diagTCP(netip.AddrPortFrom(there.Addr(), 1), here); !errors.Is(err, unix.ENOENT) {
				t.Errorf("no such connection: %v", err)
			}
			if _, err := diagTCP(there, netip.AddrPortFrom(here.Addr(), 1)); !errors.Is(err, errNoSocket) {
				t.Errorf("no such connection, but somebody listens: %v", err)
			}
			if _, err := procTCP(there, netip.AddrPortFrom(here.Addr(), 1)); !errors.Is(err, errNoSocket) {
				t.Errorf("no such connection: %v", err)
			}
		})
	}
}

// A connection that is deferred looks so in both, until something is sent.
func TestPeerDeferred(t *testing.T) {
	_, bound := listen(t, "127.0.0.1", func(fd int) error {
		return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 10)
	})
	conn, err := net.Dial("tcp", bound)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	here, there := conn.LocalAddr().(*net.TCPAddr).AddrPort(), conn.RemoteAddr().(*net.TCPAddr).AddrPort()
	byDiag, diagErr := diagTCP(there, here)
	byProc, procErr := procTCP(there, here)
	if want := (peer{deferred: true}); byDiag != want || byProc != want || diagErr != nil || procErr != nil {
		t.Errorf("%v, %v and %v, %v; want %v", byDiag, diagErr, byProc, procErr, want)
	}
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is complete", func() bool {
		got, err := peerOf(conn)
		return got == peer{} && err == nil
	})
}

func TestPeerUnix(t *testing.T) {
	path := t.TempDir() + "/s"
	socket, _ := listen(t, path)
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got, err := peerOf(conn); got != (peer{}) || err != nil {
		t.Errorf("not accepted: %v, %v", got, err)
	}
	accepted, _, err := unix.Accept4(socket, unix.SOCK_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(accepted, &st); err != nil {
		t.Fatal(err)
	}
	if got, err := peerOf(conn); got != (peer{inode: st.Ino}) || err != nil {
		t.Errorf("%v, %v; want %d", got, err, st.Ino)
	}
	unix.Close(accepted)
	eventually(t, "it is gone", func() bool { return gone(conn) })
}

func TestParseProcTCP(t *testing.T) {
	local, remote := netip.MustParseAddrPort("127.0.0.1:8080"), netip.MustParseAddrPort("127.0.0.2:49153")
	const other = "   0: 0100007F:1F90 0200007F:C002 01 00000000:00000000 00:00000000 00000000     0        0 4710 1\n"
	for _, tt := range []struct {
		table string
		want  peer
		found bool
	}{
		{"", peer{}, false},
		{other, peer{}, false},
		{"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n" + other +
			"   1: 0100007F:1F90 0200007F:C001 01 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 20 4 0 10 -1\n", peer{inode: 4711}, true},
		{"1: 0000000000000000FFFF00000100007F:1F90 0000000000000000FFFF00000200007F:C001 01 0:0 0:0 0 0 0 9", peer{inode: 9}, true},
		{"1: 0000000000000000FFFF00000100007F:1F90 0000000000000000FFFF00000200007F:C001 01 0:0 0:0 0 0 0", peer{}, false},
		{"1: 0200007F:C001 0100007F:1F90 01 0:0 0:0 0 0 0 9\n", peer{}, false},
		{"1: 0100007X:1F90 0200007F:C001 01 0:0 0:0 0 0 0 9\n", peer{}, false},
		{"1: 0100007F 0200007F:C001 01 0:0 0:0 0 0 0 9\n", peer{}, false},
		{"1: 0100007F:11F90 0200007F:C001 01 0:0 0:0 0 0 0 9\n", peer{}, false},
	} {
		if got, found := parseProcTCP([]byte(tt.table), local, remote); got != tt.want || found != tt.found {
			t.Errorf("%q: %v, %v; want %v, %v", tt.table, got, found, tt.want, tt.found)
		}
	}
}

func FuzzParseDiag(f *testing.F) {
	f.Add([]byte{20, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff})
	f.Add([]byte{17, 0, 0, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		if body, err := parseDiag(b); err == nil && len(body) > len(b) {
			t.Error("more than there is")
		}
	})
}

func FuzzParseProcTCP(f *testing.F) {
	f.Add([]byte("  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   0: 0100007F:1F90 0200007F:C001 01 00000000:00000000 00:00000000 00000000     0        0 4711 1\n"))
	f.Add([]byte("0: 0000000000000000FFFF00000100007F:1F90 0000000000000000FFFF00000200007F:C001 01 0 0 0 0 0 0 9\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		local, remote := netip.MustParseAddrPort("127.0.0.1:8080"), netip.MustParseAddrPort("127.0.0.2:49153")
		parseProcTCP(b, local, remote)
	})
}

// Who listens is found at its address and, for the wildcard, at all; IPv4 arrives at a socket of IPv6, too.
func TestListens(t *testing.T) {
	for _, tt := range []struct{ listen, ask string }{
		{"127.0.0.1:0", "127.0.0.1"}, {"0.0.0.0:0", "127.0.0.1"}, {"[::1]:0", "::1"}, {"[::]:0", "127.0.0.1"}, {"[::]:0", "::1"},
	} {
		ln, err := net.Listen("tcp", tt.listen)
		if err != nil {
			t.Logf("%s: %v", tt.listen, err) // no IPv6
			continue
		}
		at := netip.AddrPortFrom(netip.MustParseAddr(tt.ask), uint16(ln.Addr().(*net.TCPAddr).Port))
		if yes, err := Listens(at); !yes || err != nil {
			t.Errorf("%s on %s: %t, %v", tt.ask, tt.listen, yes, err)
		}
		ln.Close()
		if yes, err := Listens(at); yes || err != nil {
			t.Errorf("%s after %s is closed: %t, %v", tt.ask, tt.listen, yes, err)
		}
	}
}
