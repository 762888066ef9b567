package handoff

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/netfd"
	"github.com/zdt-dev/zdt/internal/wire"
)

// takeoverService is a first generation in this process.
func takeoverService(t *testing.T) (h *Handoff, path string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "zdt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path = filepath.Join(dir, "takeover")
	h, err = Open(Options{Takeover: path, ControlSocket: "-", Service: "t", Logger: quiet(), ReadyTimeout: patience})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	ln, err := h.Listen("http", "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	if err := h.Ready(); err != nil {
		t.Fatal(err)
	}
	return h, path
}

func dialTakeover(t *testing.T, path string) *wire.Link {
	t.Helper()
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	l := &wire.Link{Conn: conn}
	t.Cleanup(l.Close)
	conn.SetDeadline(time.Now().Add(patience))
	return l
}

// What does not ask as it should gets nothing, and disturbs nobody.
func TestStrangersAtTheTakeoverSocket(t *testing.T) {
	h, path := takeoverService(t)
	before := len(fdTargets())
	for _, tt := range []struct {
		name, packet string
		code         string // of the answer; "": the end of the stream
	}{
		{"no JSON", "hello", control.CodeBadRequest},
		{"a message of the private wire", `{"type":"ready"}`, control.CodeBadRequest},
		{"a hello", `{"type":"hello","version":2,"min_version":1}`, control.CodeBadRequest},
		{"a version of the future", `{"type":"takeover","version":99,"min_version":98}`, wire.CodeVersion},
		{"no version", `{"type":"takeover"}`, wire.CodeVersion},
	} {
		l := dialTakeover(t, path)
		if _, err := l.Conn.Write([]byte(tt.packet)); err != nil {
			t.Fatal(err)
		}
		m, err := l.Receive()
		if err != nil || m.Type != wire.Refused || m.Code != tt.code || m.Reason == "" {
			t.Errorf("%s: %+v, %v; want code %s", tt.name, m, err, tt.code)
		}
		if _, err := l.Receive(); err == nil {
			t.Errorf("%s: the link goes on", tt.name)
		}
		l.Close()
	}
	// One that sends descriptors has them closed.
	l := dialTakeover(t, path)
	if err := l.SendFiles(wire.Message{Type: wire.Move, Batch: 1, Count: 1}, 0, 1, 2); err != nil {
		t.Fatal(err)
	}
	if m, err := l.Receive(); err != nil || m.Type != wire.Refused {
		t.Errorf("%+v, %v", m, err)
	}
	l.Close()
	dialTakeover(t, path).Close() // one that only looks whether somebody is there
	if st := statusOf(h); st.Phase != control.Idle || st.Attempts != 0 {
		t.Errorf("afterwards: %+v", st)
	}
	eventually(t, "no descriptor is left over", func() bool { return len(fdTargets()) <= before })

	// One that asks and then breaks off.
	l = dialTakeover(t, path)
	if err := l.Send(wire.Message{Type: wire.Takeover, Version: wire.Version, MinVersion: wire.MinVersion, Exe: "/srv/x"}); err != nil {
		t.Fatal(err)
	}
	m, err := l.Receive()
	if err != nil || m.Type != wire.Sockets || len(m.Files) != 2 || m.Total != 2 {
		t.Fatalf("%+v, %v", m, err)
	}
	m.CloseFiles()
	l.Close()
	eventually(t, "it serves alone", func() bool {
		st := statusOf(h)
		return st.Phase == control.Idle && st.Last != nil && st.Last.Exe == "/srv/x"
	})
	eventually(t, "no descriptor is left over", func() bool { return len(fdTargets()) <= before })
}

// A process that asks believes no nonsense, and keeps nothing of it.
func TestStrangersListen(t *testing.T) {
	sockets := func(names ...string) (m wire.Message) {
		m = wire.Message{Type: wire.Sockets, Total: len(names)}
		for _, n := range names {
			item := wire.Handed{Name: n}
			if n == wire.RoleTakeover || n == wire.RoleControl {
				item = wire.Handed{Role: n}
			}
			m.Sockets = append(m.Sockets, item)
		}
		return m
	}
	hello := wire.Message{Type: wire.Hello, Version: wire.Version, MinVersion: wire.MinVersion, Generation: 2}
	for _, tt := range []struct {
		name    string
		packets []wire.Message
		drop    int // descriptors that are not sent
		want    string
	}{
		{name: "nothing", want: "the process that listened ended while it was asked"},
		{name: "hello alone", packets: []wire.Message{hello}, want: "no takeover socket among 0 sockets"},
		{name: "no takeover socket", packets: []wire.Message{sockets("http"), hello}, want: "no takeover socket among 1 sockets"},
		{name: "too few", packets: []wire.Message{{Type: wire.Sockets, Total: 9, Sockets: sockets(wire.RoleTakeover).Sockets}, hello}, want: "hello after 1 of 9 sockets"},
		{name: "cut off", packets: []wire.Message{sockets("http", "https", wire.RoleTakeover)}, drop: 1, want: "2 of 3 sockets came through: out of descriptors"},
		{name: "a bad name", packets: []wire.Message{sockets("a:b", wire.RoleTakeover)}, want: `a socket called "a:b"`},
		{name: "of another version", packets: []wire.Message{sockets(wire.RoleTakeover), {Type: wire.Hello, Version: 99, MinVersion: 98, Generation: 2}}, want: "speaks versions 98 to 99"},
		{name: "no generation", packets: []wire.Message{sockets(wire.RoleTakeover), {Type: wire.Hello, Version: 2}}, want: "without a generation"},
		{name: "breaks off", packets: []wire.Message{sockets("http", wire.RoleTakeover)}, want: "the process that listened ended while it was asked"},
		{name: "words of the future", packets: []wire.Message{{Type: "more"}, {Type: wire.Refused, Code: "tired", Reason: "not now"}}, want: "refused (tired): not now"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "zdt")
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(dir)
			path := filepath.Join(dir, "s")
			ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			before := len(fdTargets())
			served := make(chan error, 1)
			go func() {
				for {
					conn, err := ln.AcceptUnix()
					if err != nil {
						served <- nil
						return
					}
					l := &wire.Link{Conn: conn}
					if m, err := l.Receive(); err != nil || m.Type != wire.Takeover {
						served <- fmt.Errorf("%+v, %w", m, err)
						return
					}
					for _, m := range tt.packets {
						fds := make([]int, max(0, len(m.Sockets)-tt.drop)) // standard input, again and again
						l.SendFiles(m, fds...)
					}
					l.Close()
				}
			}()
			h, err := Open(Options{Takeover: path, ControlSocket: "-", Service: "t", Logger: quiet()})
			if err == nil {
				h.Close()
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("%v, want %q", err, tt.want)
			}
			eventually(t, "no descriptor is left over", func() bool { return len(fdTargets()) <= before })
			ln.Close()
			if err := <-served; err != nil {
				t.Error(err)
			}
		})
	}
}

// A service that ends while it is asked makes the one that asks the first generation.
func TestJoinAfterTheEnd(t *testing.T) {
	dir, err := os.MkdirTemp("", "zdt")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "takeover")
	ending, err := netfd.ListenPrivate("unixpacket", path) // it does not accept any more: who asks waits in the queue
	if err != nil {
		t.Fatal(err)
	}
	defer ending.Close()
	opened := make(chan error, 1)
	go func() {
		next, err := Open(Options{Takeover: path, ControlSocket: "-", Service: "t", Logger: quiet()})
		if err == nil {
			if next.Generation() != 1 {
				err = fmt.Errorf("generation %d", next.Generation())
			}
			next.Close()
		}
		opened <- err
	}()
	eventually(t, "somebody asks", func() bool {
		text, err := os.ReadFile("/proc/net/unix")
		return err == nil && strings.Count(string(text), dir) > 1
	})
	os.Remove(path)
	ending.Close()
	if err := <-opened; err != nil {
		t.Error(err)
	}
}

func TestTakeoverOption(t *testing.T) {
	for _, tt := range []struct{ option, environ, want, err string }{
		{"", "", "", ""},
		{"/run/a", "", "/run/a", ""},
		{"/run/a", "/run/b", "/run/b", ""},
		{"/run/a", "-", "", ""},
		{"-", "", "", ""},
		{"", "/run/b", "/run/b", ""},
		{"a", "", "", `takeover socket "a": want an absolute path`},
		{"", "b", "", `takeover socket "b": want an absolute path`},
	} {
		o, err := Options{Takeover: tt.option}.withDefaults(func(name string) string {
			if name == "ZDT_TAKEOVER" {
				return tt.environ
			}
			return ""
		})
		if got := fmt.Sprint(err); err == nil && (tt.err != "" || o.Takeover != tt.want) || err != nil && got != tt.err {
			t.Errorf("%+v: %q, %v", tt, o.Takeover, err)
		}
	}
}

// What systemd has passed and what was taken over may be the same socket.
func TestAdoptSameSocket(t *testing.T) {
	var r sockets
	defer r.close()
	a, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	dup := func(ln net.Listener) int {
		fd, err := netfd.Dup(ln.(*net.TCPListener))
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	for _, ln := range []net.Listener{a, b, b} { // a unit may well pass one twice
		if err := r.take("http", dup(ln), fromSystemd); err != nil {
			t.Fatal(err)
		}
	}
	before := len(fdTargets())
	if err := r.adopt([]string{"web"}, []int{dup(a)}); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range r.list() {
		got = append(got, s.Name+" "+s.Address+" "+s.Origin)
	}
	want := []string{"web " + a.Addr().String() + " predecessor", "http " + b.Addr().String() + " systemd", "http " + b.Addr().String() + " systemd"}
	if fmt.Sprint(got) != fmt.Sprint(want) || len(fdTargets()) != before {
		t.Errorf("%q, want %q", got, want)
	}
	if err := r.adopt([]string{"no socket"}, []int{func() int { fd, _ := unix.Eventfd(0, unix.EFD_CLOEXEC); return fd }()}); err == nil || len(fdTargets()) != before {
		t.Errorf("%v, %d descriptors, %d before", err, len(fdTargets()), before)
	}
}
