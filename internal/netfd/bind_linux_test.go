package netfd

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// bindOrFail binds and closes with the test.
func bindOrFail(t *testing.T, network, address string, reusePort bool) int {
	t.Helper()
	fd, err := Bind(t.Context(), network, address, reusePort)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { Close(fd) })
	return fd
}

func socketDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "zdt") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func TestBind(t *testing.T) {
	dir := socketDir(t)
	for _, tt := range []struct{ network, address, want, prefix string }{
		{"tcp", "127.0.0.1:0", "tcp", "127.0.0.1:"},
		{"tcp4", ":0", "tcp", "0.0.0.0:"},
		{"tcp", "0.0.0.0:0", "tcp", "0.0.0.0:"},
		{"udp", "0.0.0.0:0", "udp", "0.0.0.0:"},
		{"tcp", "[::]:0", "tcp", "[::]:"},
		{"tcp", "localhost:0", "tcp", ""},
		{"udp", "127.0.0.1:0", "udp", "127.0.0.1:"},
		{"udp4", "127.0.0.1:0", "udp", "127.0.0.1:"},
		{"unix", filepath.Join(dir, "u"), "unix", dir + "/u"},
		{"unixpacket", filepath.Join(dir, "p"), "unixpacket", dir + "/p"},
		{"unixgram", filepath.Join(dir, "g"), "unixgram", dir + "/g"},
		{"unix", "@zdt-test-" + filepath.Base(dir), "unix", "@zdt-test-"},
	} {
		t.Run(tt.network+" "+tt.address, func(t *testing.T) {
			fd := bindOrFail(t, tt.network, tt.address, false)
			network, address, err := Info(fd)
			if err != nil || network != tt.want || !strings.HasPrefix(address, tt.prefix) {
				t.Errorf("%s %s, %v", network, address, err)
			}
			if tt.address[0] == '/' {
				if st, err := os.Lstat(tt.address); err != nil || st.Mode().Type() != os.ModeSocket {
					t.Errorf("file: %v", err)
				}
			}
			flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
			if err != nil || flags&unix.O_NONBLOCK != 0 {
				t.Errorf("flags %#x, %v: a program that does not know better waits in accept", flags, err)
			}
			if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
				t.Errorf("descriptor flags %#x, %v", flags, err)
			}
			if strings.HasPrefix(network, "tcp") {
				if proto, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL); err != nil || proto != unix.IPPROTO_TCP {
					t.Errorf("protocol %d, %v", proto, err)
				}
			}
			if err := SetNonblock(fd); err != nil {
				t.Error(err)
			}
			if flags, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); flags&unix.O_NONBLOCK == 0 {
				t.Error("still blocks")
			}
		})
	}
}

// A client that comes is in the queue of the descriptor.
func TestBindAccepts(t *testing.T) {
	fd := bindOrFail(t, "tcp", "127.0.0.1:0", false)
	_, address, err := Info(fd)
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ln, err := From(fd, net.FileListener)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	got, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	if got.RemoteAddr().String() != c.LocalAddr().String() {
		t.Errorf("accepted %v, want %v", got.RemoteAddr(), c.LocalAddr())
	}
}

func TestBindReusePort(t *testing.T) {
	_, address, err := Info(bindOrFail(t, "tcp", "127.0.0.1:0", true))
	if err != nil {
		t.Fatal(err)
	}
	bindOrFail(t, "tcp", address, true)
	if fd, err := Bind(t.Context(), "tcp", address, false); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("descriptor %d, %v", fd, err)
	}
}

func TestBindUnixFiles(t *testing.T) {
	path := filepath.Join(socketDir(t), "s")
	first, err := Bind(t.Context(), "unix", path, false)
	if err != nil {
		t.Fatal(err)
	}
	if fd, err := Bind(t.Context(), "unix", path, false); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("while somebody listens: descriptor %d, %v", fd, err)
	}
	Close(first)
	bindOrFail(t, "unix", path, false) // the file of the first was still there
}

func TestBindErrors(t *testing.T) {
	for _, tt := range []struct {
		network, address string
		reusePort        bool
		err              string
	}{
		{"carrier-pigeon", ":0", false, "carrier-pigeon"},
		{"ip", "127.0.0.1", false, "ip"},
		{"tcp", "127.0.0.1", false, "port"},
		{"unix", "/nowhere/at/all", false, "no such file"},
		{"unix", "/nowhere/at/all", true, "share"},
	} {
		if fd, err := Bind(t.Context(), tt.network, tt.address, tt.reusePort); err == nil || !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s %s: descriptor %d, %v", tt.network, tt.address, fd, err)
		}
	}
}

func TestInfoOfNoListener(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for fd, want := range map[int]string{pair[0]: "does not listen", int(file.Fd()): "not a socket", 1 << 20: "not a socket"} {
		if network, address, err := Info(fd); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s %s, %v: want %q", network, address, err, want)
		}
	}
}

func TestListenPrivate(t *testing.T) {
	dir := socketDir(t)
	path := filepath.Join(dir, "c")
	for range 2 { // the second replaces the first
		ln, err := ListenPrivate("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		ListenAgain(ln)
		ln.Close()
		ListenAgain(ln) // does nothing
		if st, err := os.Lstat(path); err != nil || st.Mode() != os.ModeSocket|0o600 {
			t.Errorf("%v, %v", st, err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if ln, err := ListenPrivate("unix", filepath.Join(dir, "file")); err == nil {
		ln.Close()
		t.Error("replaced a file")
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 2 {
		t.Errorf("left behind: %v", entries)
	}
}
