package helper

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// /proc says the same as sock_diag.
func TestPeerInode(t *testing.T) {
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
			both := func(what string, want uint64) {
				t.Helper()
				byDiag, diagErr := diagTCP(there, here)
				byProc, procErr := procTCP(there, here)
				if diagErr != nil || procErr != nil || byDiag != want || byProc != want {
					t.Errorf("%s: %d, %v and %d, %v; want %d", what, byDiag, diagErr, byProc, procErr, want)
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
			if inode, err := peerInode(conn); inode != st.Ino || err != nil {
				t.Errorf("peer: %d, %v; want %d", inode, err, st.Ino)
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

func TestPeerInodeUnix(t *testing.T) {
	path := t.TempDir() + "/s"
	socket, _ := listen(t, path)
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if inode, err := peerInode(conn); inode != 0 || err != nil {
		t.Errorf("not accepted: %d, %v", inode, err)
	}
	accepted, _, err := unix.Accept4(socket, unix.SOCK_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(accepted, &st); err != nil {
		t.Fatal(err)
	}
	if inode, err := peerInode(conn); inode != st.Ino || err != nil {
		t.Errorf("%d, %v; want %d", inode, err, st.Ino)
	}
	unix.Close(accepted)
	eventually(t, "it is gone", func() bool { return gone(conn) })
}

func TestParseProcTCP(t *testing.T) {
	local, remote := netip.MustParseAddrPort("127.0.0.1:8080"), netip.MustParseAddrPort("127.0.0.2:49153")
	const other = "   0: 0100007F:1F90 0200007F:C002 01 00000000:00000000 00:00000000 00000000     0        0 4710 1\n"
	for _, tt := range []struct {
		table string
		inode uint64
		found bool
	}{
		{"", 0, false},
		{other, 0, false},
		{"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n" + other +
			"   1: 0100007F:1F90 0200007F:C001 01 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 20 4 0 10 -1\n", 4711, true},
		{"1: 0000000000000000FFFF00000100007F:1F90 0000000000000000FFFF00000200007F:C001 01 0:0 0:0 0 0 0 9", 9, true},
		{"1: 0000000000000000FFFF00000100007F:1F90 0000000000000000FFFF00000200007F:C001 01 0:0 0:0 0 0 0", 0, false},
		{"1: 0200007F:C001 0100007F:1F90 01 0:0 0:0 0 0 0 9\n", 0, false},
		{"1: 0100007X:1F90 0200007F:C001 01 0:0 0:0 0 0 0 9\n", 0, false},
		{"1: 0100007F 0200007F:C001 01 0:0 0:0 0 0 0 9\n", 0, false},
		{"1: 0100007F:11F90 0200007F:C001 01 0:0 0:0 0 0 0 9\n", 0, false},
	} {
		if inode, found := parseProcTCP([]byte(tt.table), local, remote); inode != tt.inode || found != tt.found {
			t.Errorf("%q: %d, %v; want %d, %v", tt.table, inode, found, tt.inode, tt.found)
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
