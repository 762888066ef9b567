package inherited

import (
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/zdt-dev/zdt/internal/netfd"
)

// serving is a process's share of the socket: it tells on met whom it got.
type serving struct {
	*Socket
	met  chan string
	done sync.WaitGroup
}

func serve(t *testing.T, s *Socket, err error) *serving {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	v := &serving{Socket: s, met: make(chan string, 8)}
	v.done.Go(func() {
		s.Serve(func(conn *net.UnixConn) {
			defer conn.Close()
			b := make([]byte, 1)
			conn.Read(b)
			v.met <- string(b)
		})
	})
	return v
}

// A socket goes from generation to generation; who connects while nobody accepts waits.
func TestSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	client := func(word string) {
		t.Helper()
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		conn.Write([]byte(word))
	}
	want := func(v *serving, word string) {
		t.Helper()
		if got := <-v.met; got != word {
			t.Errorf("%q came, want %q", got, word)
		}
	}

	ln, err := netfd.ListenPrivate("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s, err := Bound(ln)
	first := serve(t, s, err)
	client("1")
	if len(first.met) > 0 {
		t.Error("it accepts before Open")
	}
	first.Open()
	want(first, "1")
	first.Pause()
	first.Leave()
	first.done.Wait()
	client("2")

	s, err = Adopt(first.FD())
	second := serve(t, s, err)
	second.Own()
	want(second, "2")
	second.Close(path)
	second.done.Wait()
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the path is left: %v", err)
	}
	if conn, err := net.Dial("unix", path); err == nil {
		conn.Close()
		t.Error("somebody accepts")
	}
}

func TestNone(t *testing.T) {
	var s *Socket
	s.Open()
	s.Own()
	s.Pause()
	s.Serve(nil)
	if s.FD() != -1 {
		t.Error("no socket has a descriptor")
	}
	s.Leave()
	s.Close("")
}

func TestAdoptOther(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	fd, err := netfd.Dup(ln.(*net.TCPListener))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Adopt(fd); err == nil {
		t.Error("a TCP socket is taken")
	}
	if _, _, err := netfd.Info(fd); err == nil {
		t.Error("what is not taken is left open")
	}
}
