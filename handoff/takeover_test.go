package handoff

import (
	"encoding/json"
	"errors"
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
)

func TestTrusted(t *testing.T) {
	for _, tt := range []struct {
		uid  uint32
		euid int
		want string // "": trusted
	}{
		{0, 0, ""},
		{0, 1000, ""},
		{1000, 1000, ""},
		{1000, 0, "it runs as uid 1000, and only root and uid 0 are"},
		{1001, 1000, "it runs as uid 1001, and only root and uid 1000 are"},
		{65534, 0, "its user has no number here"},
		{65534, 1000, "its user has no number here"},
		{65534, 65534, "or as nobody"}, // which of the two cannot be told
	} {
		err := trusted(tt.uid, tt.euid)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("trusted(%d, %d) = %v, want %q", tt.uid, tt.euid, err, tt.want)
		}
	}
}

func TestRefusedBecause(t *testing.T) {
	for _, tt := range []struct{ code, want string }{
		{control.CodeBusy, "refused (busy): why; start this one again when that is over"},
		{control.CodeNotReady, "refused (not-ready): why; start this one again when that is over"},
		{codeVersion, "refused (version): why; go by way of a release that speaks a version of both"},
		{control.CodeDenied, "refused (denied): why"},
		{"of the future", "refused (of the future): why"},
	} {
		if got := refusedBecause(message{Code: tt.code, Reason: "why"}).Error(); !strings.HasSuffix(got, tt.want) {
			t.Errorf("%s: %q, want …%q", tt.code, got, tt.want)
		}
	}
}

// linkPair is a link between two ends in this process.
func linkPair(t *testing.T) (a, b *link) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i, l := range []**link{&a, &b} {
		if *l, err = newLink(fds[i]); err != nil {
			t.Fatal(err)
		}
		t.Cleanup((*l).close)
	}
	return a, b
}

// A service has more sockets than fit into a packet, by their number and by their names.
func TestGiveManySockets(t *testing.T) {
	for _, tt := range []struct {
		n     int
		names string // format
		least int    // packets
	}{
		{1, "s%d", 1},
		{maxBatch - 1, "s%d", 1}, // and the takeover socket
		{maxBatch, "s%d", 2},
		{700, "s%d", 3},
		{600, strings.Repeat("<", 250) + "%d", 19}, // six bytes each, in JSON
	} {
		t.Run(fmt.Sprintf("%d called %.3s", tt.n, tt.names), func(t *testing.T) {
			before := len(fdTargets())
			udp, err := net.ListenPacket("udp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			h := &Handoff{control: noControl(t)}
			defer func() {
				h.sockets.close()
				udp.Close()
				if after := len(fdTargets()); after > before+2 { // the links
					t.Errorf("%d descriptors before, %d after", before, after)
				}
			}()
			for i := range tt.n {
				if _, err := h.sockets.bound(fmt.Sprintf(tt.names, i), udp.(*net.UDPConn), "udp", "x"); err != nil {
					t.Fatal(err)
				}
			}
			fd, err := netfd.Dup(udp.(*net.UDPConn))
			if err != nil {
				t.Fatal(err)
			}
			defer netfd.Close(fd)
			h.takeover = &takeoverServer{raw: fd}
			from, to := linkPair(t)
			sent := make(chan error, 1)
			go func() { sent <- h.give(from, message{Type: msgHello, Generation: 2, Version: wireVersion}) }()
			g, packets := emptyGift(), 0
			defer func() { g.close() }()
			for {
				m, err := to.receive()
				if err != nil {
					t.Fatal(err)
				}
				if m.Type == msgHello {
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
			if err := g.complete(); err != nil || len(g.fds) != tt.n || packets < tt.least || g.control >= 0 {
				t.Errorf("%v: %d sockets in %d packets", err, len(g.fds), packets)
			}
			for i, name := range g.names {
				if want := fmt.Sprintf(tt.names, i); name != want || !sameSocket(g.fds[i], fd) {
					t.Fatalf("socket %d is called %q, want %q", i, name, want)
				}
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
		var m message
		if json.Unmarshal(packet, &m) != nil {
			return
		}
		g := emptyGift()
		for range 2 { // the second one makes the total wrong, if the first was right
			var given []int
			for range n % 8 {
				fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
				if err != nil {
					t.Fatal(err)
				}
				given = append(given, fd)
			}
			m.files = given
			err := g.add(m)
			held := map[int]bool{}
			for _, fd := range append([]int{g.control, g.takeover}, g.fds...) {
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
		if g.complete() == nil && (g.takeover < 0 || len(g.names) != len(g.fds)) {
			t.Errorf("complete: %+v", g)
		}
		g.close()
	})
}

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

func dialTakeover(t *testing.T, path string) *link {
	t.Helper()
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	l := &link{conn: conn}
	t.Cleanup(l.close)
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
		{"a version of the future", `{"type":"takeover","version":99,"min_version":98}`, codeVersion},
		{"no version", `{"type":"takeover"}`, codeVersion},
	} {
		l := dialTakeover(t, path)
		if _, err := l.conn.Write([]byte(tt.packet)); err != nil {
			t.Fatal(err)
		}
		m, err := l.receive()
		if err != nil || m.Type != msgRefused || m.Code != tt.code || m.Reason == "" {
			t.Errorf("%s: %+v, %v; want code %s", tt.name, m, err, tt.code)
		}
		if _, err := l.receive(); err == nil {
			t.Errorf("%s: the link goes on", tt.name)
		}
		l.close()
	}
	// One that sends descriptors has them closed.
	l := dialTakeover(t, path)
	if err := l.sendFiles(message{Type: msgMove, Batch: 1, Count: 1}, 0, 1, 2); err != nil {
		t.Fatal(err)
	}
	if m, err := l.receive(); err != nil || m.Type != msgRefused {
		t.Errorf("%+v, %v", m, err)
	}
	l.close()
	dialTakeover(t, path).close() // one that only looks whether somebody is there
	if st := statusOf(h); st.Phase != control.Idle || st.Attempts != 0 {
		t.Errorf("afterwards: %+v", st)
	}
	eventually(t, "no descriptor is left over", func() bool { return len(fdTargets()) <= before })

	// One that asks and then breaks off.
	l = dialTakeover(t, path)
	if err := l.send(message{Type: msgTakeover, Version: wireVersion, MinVersion: wireMinVersion, Exe: "/srv/x"}); err != nil {
		t.Fatal(err)
	}
	m, err := l.receive()
	if err != nil || m.Type != msgSockets || len(m.files) != 2 || m.Total != 2 {
		t.Fatalf("%+v, %v", m, err)
	}
	m.closeFiles()
	l.close()
	eventually(t, "it serves alone", func() bool {
		st := statusOf(h)
		return st.Phase == control.Idle && st.Last != nil && st.Last.Exe == "/srv/x"
	})
	eventually(t, "no descriptor is left over", func() bool { return len(fdTargets()) <= before })
}

// A process that asks believes no nonsense, and keeps nothing of it.
func TestStrangersListen(t *testing.T) {
	sockets := func(names ...string) (m message) {
		m = message{Type: msgSockets, Total: len(names)}
		for _, n := range names {
			item := handed{Name: n}
			if n == roleTakeover || n == roleControl {
				item = handed{Role: n}
			}
			m.Sockets = append(m.Sockets, item)
		}
		return m
	}
	hello := message{Type: msgHello, Version: wireVersion, MinVersion: wireMinVersion, Generation: 2}
	for _, tt := range []struct {
		name    string
		packets []message
		drop    int // descriptors that are not sent
		want    string
	}{
		{name: "nothing", want: errEnded.Error()},
		{name: "hello alone", packets: []message{hello}, want: "no takeover socket among 0 sockets"},
		{name: "no takeover socket", packets: []message{sockets("http"), hello}, want: "no takeover socket among 1 sockets"},
		{name: "too few", packets: []message{{Type: msgSockets, Total: 9, Sockets: sockets(roleTakeover).Sockets}, hello}, want: "hello after 1 of 9 sockets"},
		{name: "cut off", packets: []message{sockets("http", "https", roleTakeover)}, drop: 1, want: "2 of 3 sockets came through: out of descriptors"},
		{name: "a bad name", packets: []message{sockets("a:b", roleTakeover)}, want: `a socket called "a:b"`},
		{name: "of another version", packets: []message{sockets(roleTakeover), {Type: msgHello, Version: 99, MinVersion: 98, Generation: 2}}, want: "speaks versions 98 to 99"},
		{name: "no generation", packets: []message{sockets(roleTakeover), {Type: msgHello, Version: 2}}, want: "without a generation"},
		{name: "breaks off", packets: []message{sockets("http", roleTakeover)}, want: errEnded.Error()},
		{name: "words of the future", packets: []message{{Type: "more"}, {Type: msgRefused, Code: "tired", Reason: "not now"}}, want: "refused (tired): not now"},
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
					l := &link{conn: conn}
					if m, err := l.receive(); err != nil || m.Type != msgTakeover {
						served <- fmt.Errorf("%+v, %w", m, err)
						return
					}
					for _, m := range tt.packets {
						fds := make([]int, max(0, len(m.Sockets)-tt.drop)) // standard input, again and again
						l.sendFiles(m, fds...)
					}
					l.close()
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

// The lock is what keeps two processes from both finding nobody; one who
// holds it for ever must not be able to keep the service down for ever.
func TestLockDirectory(t *testing.T) {
	dir := t.TempDir()
	unlock, err := lockDirectory(dir)
	if err != nil {
		t.Fatal(err)
	}
	second := make(chan error, 1)
	go func() {
		unlock, err := lockDirectory(dir)
		if err == nil {
			unlock()
		}
		second <- err
	}()
	select {
	case err := <-second:
		t.Fatalf("two hold the lock: %v", err)
	case <-time.After(30 * time.Millisecond):
	}
	unlock()
	if err := <-second; err != nil {
		t.Error(err)
	}
	if _, err := lockDirectory(filepath.Join(dir, "missing")); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "share it") {
		t.Errorf("%v", err)
	}
}
