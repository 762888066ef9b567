package fdstore

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/internal/netfd"
	"github.com/zdt-dev/zdt/internal/sdnotify"
)

func TestParseWish(t *testing.T) {
	for text, want := range map[string]Wish{
		"http=tcp:0.0.0.0:80": {"http", "tcp", "0.0.0.0:80"},
		"dns=udp:[::1]:53":    {"dns", "udp", "[::1]:53"},
	} {
		if got, err := ParseWish(text); err != nil || got != want || got.String() != text {
			t.Errorf("%s: got %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "http", "http=", "http=tcp", "http=tcp:", "=tcp:1.2.3.4:80", "a:b=tcp:1.2.3.4:80", "a b=tcp:1.2.3.4:80", "web=unix:/run/web.sock"} {
		if w, err := ParseWish(text); err == nil {
			t.Errorf("%q is a wish: %+v", text, w)
		}
	}
}

// A process's listening sockets are found by their addresses among its others, and are the very same sockets.
func TestTake(t *testing.T) {
	ln := listen(t, false)
	packets, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer packets.Close()
	client, err := net.Dial("tcp", ln.Addr().String()) // a connection from and one to the same port are not what is wanted
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	accepted, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()

	before := open(t)
	wishes := []Wish{{"dns", "udp", packets.LocalAddr().String()}, {"http", "tcp", ln.Addr().String()}}
	taken, err := Take([]int{os.Getpid()}, always, wishes)
	if err != nil || len(taken) != 2 || taken[0].Name != "dns" || taken[1].Name != "http" {
		t.Fatalf("got %+v, %v", taken, err)
	}
	if network, address, err := netfd.Info(taken[1].FD); err != nil || network != "tcp" || address != ln.Addr().String() {
		t.Errorf("the socket is %s %s, %v", network, address, err)
	}
	if flags, err := unix.FcntlInt(uintptr(taken[1].FD), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("the socket would be inherited: %x, %v", flags, err)
	}
	Close(taken)
	if after := open(t); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

func TestTakeNot(t *testing.T) {
	ln := listen(t, true)
	address := ln.Addr().String()
	there := Wish{"http", "tcp", address}
	for _, tt := range []struct {
		name   string
		pids   []int
		still  func(int) bool
		wishes []Wish
		want   string
	}{
		{"nobody listens", []int{os.Getpid()}, always, []Wish{there, {"dns", "udp", address}}, "no process of the service listens on udp"},
		{"not of the service", []int{os.Getpid()}, func(int) bool { return false }, []Wish{there}, "no process of the service"},
		{"nobody", nil, always, []Wish{there}, "no process of the service"},
		{"gone", []int{1 << 30}, always, []Wish{there}, ""},
	} {
		before := open(t)
		taken, err := Take(tt.pids, tt.still, tt.wishes)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %+v, %v", tt.name, taken, err)
		}
		if after := open(t); after != before {
			t.Errorf("%s: %d descriptors before, %d after", tt.name, before, after)
		}
	}

	second, err := reuse().Listen(context.Background(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	before := open(t)
	if taken, err := Take([]int{os.Getpid()}, always, []Wish{there}); err == nil || !strings.Contains(err.Error(), "several sockets") {
		t.Errorf("of two sockets with one address: got %+v, %v", taken, err)
	}
	if after := open(t); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

func TestPutNowhere(t *testing.T) {
	if err := Put(sdnotify.Notifier{}, nil); err == nil {
		t.Error("sockets are put nowhere without an error")
	}
}

func always(int) bool { return true }

func listen(t *testing.T, shared bool) net.Listener {
	t.Helper()
	config := &net.ListenConfig{}
	if shared {
		config = reuse()
	}
	ln, err := config.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

func reuse() *net.ListenConfig {
	return &net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		if cerr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) }); cerr != nil {
			return fmt.Errorf("control: %w", cerr)
		}
		return err
	}}
}

// open counts the descriptors of this process.
func open(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// What is read of a command line is written the same way.
func FuzzParseWish(f *testing.F) {
	for _, seed := range []string{"http=tcp:0.0.0.0:80", "dns=udp:[::1]:53", "=:", "a=b:c"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		w, err := ParseWish(text)
		if err != nil {
			return
		}
		if again, err := ParseWish(w.String()); err != nil || again != w {
			t.Errorf("%q: %+v, and again %+v, %v", text, w, again, err)
		}
	})
}

// All addresses of IPv4 and all of IPv6 of one port are two sockets, and no group.
func TestTakeBothFamilies(t *testing.T) {
	four, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer four.Close()
	_, port, _ := net.SplitHostPort(four.Addr().String())
	six, err := net.Listen("tcp6", "[::]:"+port)
	if err != nil {
		t.Skip(err)
	}
	defer six.Close()
	taken, err := Take([]int{os.Getpid()}, always, []Wish{{"a", "tcp", "0.0.0.0:" + port}, {"b", "tcp", "[::]:" + port}})
	if err != nil {
		t.Fatal(err)
	}
	defer Close(taken)
	for i, want := range []string{"0.0.0.0:", "[::]:"} {
		if _, address, err := netfd.Info(taken[i].FD); err != nil || address != want+port {
			t.Errorf("socket %d is %s, %v", i, address, err)
		}
	}
}
