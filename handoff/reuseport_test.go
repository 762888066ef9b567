package handoff

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/netfd"
)

// inheritFrom gives h what a successor of from inherits.
func inheritFrom(t *testing.T, h, from *Handoff) {
	t.Helper()
	from.sockets.pass(func(names []string, fds []int) error {
		for i, fd := range fds {
			adoptFD(t, h, names[i], fd)
		}
		return nil
	})
}

// adoptFD puts a duplicate of fd among what h has inherited.
func adoptFD(t *testing.T, h *Handoff, name string, fd int) {
	t.Helper()
	network, address, err := netfd.Info(fd)
	if err != nil {
		t.Fatal(err)
	}
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	h.sockets.mu.Lock()
	defer h.sockets.mu.Unlock()
	h.sockets.all = append(h.sockets.all, &socket{name: name, network: network, address: address, origin: fromPredecessor, fd: dup})
}

// listening returns how many of h's sockets listen, and how many have SO_REUSEPORT.
func listening(h *Handoff) (listen, reuse int) {
	h.sockets.mu.Lock()
	defer h.sockets.mu.Unlock()
	for _, s := range h.sockets.all {
		if on, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err == nil && on != 0 {
			listen++
		}
		if reusesPort(s.fd) {
			reuse++
		}
	}
	return listen, reuse
}

// serveGroup answers on all of a group; the returned function waits for the end.
func serveGroup(t *testing.T, group []*Listener) (wait func()) {
	t.Helper()
	ended := make(chan error, len(group))
	for _, l := range group {
		go func() { ended <- answer(l, 1<<30) }()
	}
	return func() {
		t.Helper()
		for range group {
			select {
			case err := <-ended:
				if !errors.Is(err, net.ErrClosed) {
					t.Error(err)
				}
			case <-time.After(patience):
				t.Error("an Accept does not end with its generation")
			}
		}
	}
}

func ask(t *testing.T, address string, n int) {
	t.Helper()
	var clients []net.Conn
	for range n {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		clients = append(clients, c)
	}
	answered(t, clients)
}

func TestReusePortGroup(t *testing.T) {
	before := fdTargets()
	h := bareHandoff(t, Options{DrainTimeout: time.Second})
	group, err := h.ListenReusePort("http", "tcp", "127.0.0.1:0", 3)
	if err != nil {
		t.Fatal(err)
	}
	address := group[0].Addr().String()
	if listen, reuse := listening(h); len(group) != 3 || listen != 3 || reuse != 3 {
		t.Fatalf("%d listeners, %d listen, %d have SO_REUSEPORT", len(group), listen, reuse)
	}
	for _, l := range group {
		if l.Addr().String() != address || l.Name() != "http" {
			t.Errorf("%s on %s, want http on %s", l.Name(), l.Addr(), address)
		}
	}
	st := statusOf(h)
	value, known := readMigrateReq()
	if known != (st.MigrateReq != nil) || known && *st.MigrateReq != value {
		t.Errorf("status: tcp_migrate_req %v, want %d (known %v)", st.MigrateReq, value, known)
	}
	for _, s := range st.Sockets {
		if want := (control.Socket{Name: "http", Network: "tcp", Address: address, Origin: boundHere, InUse: true, ReusePort: true}); s != want {
			t.Errorf("status: %+v, want %+v", s, want)
		}
	}
	h.Ready()
	wait := serveGroup(t, group)
	ask(t, address, 64)

	// A member that closes alone may lose what waits in it; the last one is no member.
	log := logTo(h)
	for i, l := range group {
		l.Close()
		want := min(i+1, len(group)-1)
		if value == 1 {
			want = 0
		}
		if got := strings.Count(log.String(), "SO_REUSEPORT group closes"); got != want {
			t.Errorf("%d warnings after %d members closed, want %d\n%s", got, i+1, want, log)
		}
	}
	if text := log.String(); known && value == 0 && !strings.Contains(text, "sysctl net.ipv4.tcp_migrate_req=1") {
		t.Errorf("the warning does not say what to do: %s", text)
	}
	wait()
	if st := statusOf(h); st.MigrateReq != nil || len(st.Sockets) != 0 {
		t.Errorf("status after all are closed: %v, %+v", st.MigrateReq, st.Sockets)
	}
	h.Close()
	eventually(t, "no descriptor is left", func() bool { return len(fdTargets()) <= len(before) })
}

// The successor gets all there are, and adds what it lacks when it is the service.
func TestReusePortSuccessor(t *testing.T) {
	for _, tt := range []struct {
		had, wants, has int
		plain           bool // the predecessor used Listen
	}{
		{had: 3, wants: 3, has: 3},
		{had: 3, wants: 1, has: 3},
		{had: 2, wants: 5, has: 5},
		{had: 1, wants: 4, has: 4, plain: true}, // MPTCP, where the kernel has it
	} {
		t.Run(fmt.Sprintf("%+v", tt), func(t *testing.T) {
			before := fdTargets()
			old := bareHandoff(t, Options{DrainTimeout: time.Second})
			var first *Listener
			if tt.plain {
				l, err := old.Listen("http", "tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				first = l
			} else {
				group, err := old.ListenReusePort("http", "tcp", "127.0.0.1:0", tt.had)
				if err != nil {
					t.Fatal(err)
				}
				first = group[0]
			}
			address := first.Addr().String()
			h := bareHandoff(t, Options{DrainTimeout: time.Second})
			h.do(func(m *machine) { m.service = false })
			inheritFrom(t, h, old)
			group, err := h.ListenReusePort("http", "tcp", ":1", tt.wants) // inherited ones keep their address
			if err != nil {
				t.Fatal(err)
			}
			listen, _ := listening(h)
			if len(group) != tt.has || listen != tt.had {
				t.Errorf("%d listeners, of which %d listen before the commit; want %d and %d", len(group), listen, tt.has, tt.had)
			}
			h.do(func(m *machine) { m.phase = control.Candidate; h.gate.Open() })
			wait := serveGroup(t, group)
			ask(t, address, 32)
			// To a successor goes only what listens.
			if n := passed(h); n != tt.had {
				t.Errorf("%d sockets are passed on before the commit, want %d", n, tt.had)
			}
			h.do(func(m *machine) { m.service = true; m.listenAdded() })
			if listen, reuse := listening(h); listen != tt.has || reuse != tt.has && !(tt.plain && tt.has == 1) || passed(h) != tt.has {
				t.Errorf("%d of %d listen after the commit, %d have SO_REUSEPORT, %d are passed on", listen, tt.has, reuse, passed(h))
			}
			old.Close()
			ask(t, address, 64)
			if listen, _ := listening(h); listen != tt.has {
				t.Errorf("%d listen without the predecessor", listen)
			}
			h.Close()
			wait()
			for _, l := range group {
				l.Close()
			}
			first.Close()
			eventually(t, "no descriptor is left but of the predecessor's listeners", func() bool { return len(fdTargets()) <= len(before)+tt.had-1 })
		})
	}
}

func passed(h *Handoff) (n int) {
	h.sockets.pass(func(names []string, fds []int) error { n = len(fds); return nil })
	return n
}

// A candidate that is undone has never listened with what it added, and its
// Accepts end.
func TestReusePortUndone(t *testing.T) {
	old := bareHandoff(t, Options{DrainTimeout: time.Second})
	defer old.Close()
	if _, err := old.ListenReusePort("http", "tcp", "127.0.0.1:0", 1); err != nil {
		t.Fatal(err)
	}
	h := bareHandoff(t, Options{DrainTimeout: time.Second})
	h.do(func(m *machine) { m.service = false })
	inheritFrom(t, h, old)
	group, err := h.ListenReusePort("http", "tcp", "127.0.0.1:0", 3)
	if err != nil {
		t.Fatal(err)
	}
	h.Ready()
	h.do(func(m *machine) { m.service = false })
	wait := serveGroup(t, group)
	group[1].Close()
	if listen, _ := listening(h); listen != 1 {
		t.Errorf("%d listen", listen)
	}
	h.Close()
	wait()
}

// Sockets of another address under the name are not of the group.
func TestReusePortClaims(t *testing.T) {
	all := func() *sockets {
		var r sockets
		for _, a := range []string{"127.0.0.1:80", "127.0.0.1:81", "127.0.0.1:80", "127.0.0.1:81", "127.0.0.1:81"} {
			r.all = append(r.all, &socket{name: "http", network: "tcp", address: a, origin: fromSystemd, fd: -1})
		}
		r.all = append(r.all, &socket{name: "http", network: "unix", address: "/x", origin: fromSystemd, fd: -1},
			&socket{name: "other", network: "tcp", address: "127.0.0.1:80", origin: fromSystemd, fd: -1})
		return &r
	}
	for _, tt := range []struct {
		name, address string
		want          []int
	}{
		{"http", "127.0.0.1:81", []int{1, 3, 4}},
		{"http", "127.0.0.1:80", []int{0, 2}},
		{"http", "127.0.0.1:9", []int{0, 2}},
		{"other", "127.0.0.1:80", []int{6}},
		{"none", "127.0.0.1:80", nil},
	} {
		r := all()
		group, err := r.claimGroup(tt.name, "tcp", tt.address)
		var got []int
		for _, s := range group {
			got = append(got, slices.Index(r.all, s))
			if !s.inUse {
				t.Errorf("%s %s: %+v is not in use", tt.name, tt.address, s)
			}
		}
		slices.Sort(got)
		if err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("%s %s: %v, %v; want %v", tt.name, tt.address, got, err, tt.want)
		}
		if _, err := r.claimGroup("http", "unixpacket", "/x"); err == nil {
			t.Error("another kind is claimed")
		}
	}
}

// Who binds an address that he should have inherited, or that is somebody
// else's, is told so, and nothing stays open.
func TestReusePortRefuses(t *testing.T) {
	h := bareHandoff(t, Options{DrainTimeout: time.Second})
	defer h.Close()
	own, err := h.ListenReusePort("own", "tcp", "127.0.0.1:0", 2)
	if err != nil {
		t.Fatal(err)
	}
	reusing, err := listenFirst(t.Context(), "tcp", "127.0.0.1:0") // as another process of the user
	if err != nil {
		t.Fatal(err)
	}
	defer reusing.Close()
	everywhere, err := listenFirst(t.Context(), "tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer everywhere.Close()
	_, port, _ := net.SplitHostPort(everywhere.Addr().String())
	plain := listenTCP(t)
	defer plain.Close()
	spare, err := listenFirst(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer spare.Close()
	raw, _ := spare.SyscallConn()
	raw.Control(func(fd uintptr) { adoptFD(t, h, "spare", int(fd)) })
	before := len(fdTargets())
	const foreign, inherited, used = "another socket listens there", `inherited socket "spare" (%s), which nothing here has asked for`, `socket "own", which this process uses already`
	for _, tt := range []struct {
		name, network, address string
		n                      int
		want                   string
		inUse                  bool
	}{
		{"reusing", "tcp", reusing.Addr().String(), 2, foreign, true},
		{"everywhere", "tcp", ":" + port, 2, foreign, true},
		{"one address of everywhere", "tcp", "127.0.0.1:" + port, 2, foreign, true},
		{"everywhere by IPv4", "tcp4", ":" + port, 2, foreign, true},
		{"everywhere by IPv6", "tcp6", ":" + port, 2, foreign, true},
		{"plain", "tcp4", plain.Addr().String(), 1, foreign, true},
		{"renamed", "tcp", spare.Addr().String(), 2, fmt.Sprintf(inherited, spare.Addr()), true},
		{"renamed, by name", "tcp", strings.Replace(spare.Addr().String(), "127.0.0.1", "localhost", 1), 2, inherited[:24], true},
		{"twice", "tcp", own[0].Addr().String(), 2, used, true},
		{"none", "tcp", "127.0.0.1:0", 0, "0 sockets", false},
		{"datagrams", "udp", "127.0.0.1:0", 2, "want tcp", false},
		{"path", "unix", "/x", 2, "want tcp", false},
		{"a:b", "tcp", "127.0.0.1:0", 2, "socket name", false},
		{"nowhere", "tcp", "127.0.0.1:no-such-port", 2, "no-such-port", false},
	} {
		group, err := h.ListenReusePort(tt.name, tt.network, tt.address, tt.n)
		if err == nil || !strings.Contains(err.Error(), tt.want) || errors.Is(err, unix.EADDRINUSE) != tt.inUse {
			t.Errorf("%s: %d, %v; want an error with %q", tt.name, len(group), err, tt.want)
		}
		if !tt.inUse || strings.HasPrefix(tt.name, "everywhere") {
			continue
		}
		// The same refusal, but for what only SO_REUSEPORT would let in.
		l, err := h.Listen(tt.name, tt.network, tt.address)
		want := tt.want
		if want == foreign {
			want = "address already in use"
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Listen %s: %v, %v; want an error with %q", tt.name, l, err, want)
		}
	}
	// Fewer, when something of an earlier test had been ending still.
	if got := len(fdTargets()); got > before {
		t.Errorf("%d descriptors after refusals, %d before", got, before)
	}
	// And under its name it is there.
	if l, err := h.ListenReusePort("spare", "tcp", ":1", 2); err != nil || len(l) != 2 {
		t.Errorf("by its name: %d, %v", len(l), err)
	}
}

// Connections of a service that was just stopped are no obstacle.
func TestReusePortAfterTimeWait(t *testing.T) {
	ln := listenTCP(t)
	address := ln.Addr().String()
	client, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	live, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close()
	stays, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer stays.Close()
	ln.Close()
	server.Close() // first: TIME_WAIT is on the server's side
	client.SetReadDeadline(time.Now().Add(patience))
	client.Read(make([]byte, 1))
	client.Close()
	h := bareHandoff(t, Options{DrainTimeout: time.Second})
	defer h.Close()
	if group, err := h.ListenReusePort("http", "tcp", address, 2); err != nil || len(group) != 2 {
		t.Errorf("%d, %v", len(group), err)
	}
}

func TestReusePortIPv6(t *testing.T) {
	for _, network := range []string{"tcp6", "tcp", "tcp4"} {
		h := bareHandoff(t, Options{DrainTimeout: time.Second})
		host := map[string]string{"tcp6": "[::1]:0", "tcp": ":0", "tcp4": ":0"}[network]
		group, err := h.ListenReusePort("http", network, host, 3)
		if err != nil {
			t.Errorf("%s: %v", network, err)
			h.Close()
			continue
		}
		h.Ready()
		wait := serveGroup(t, group)
		address := netip.MustParseAddrPort(group[2].Addr().String())
		if address.Addr().IsUnspecified() {
			ask(t, fmt.Sprintf("127.0.0.1:%d", address.Port()), 32)
		} else {
			ask(t, address.String(), 32)
		}
		h.Close()
		wait()
	}
}

func TestSockaddr(t *testing.T) {
	for _, tt := range []struct {
		domain  int
		address string
		want    unix.Sockaddr
	}{
		{unix.AF_INET, ":80", &unix.SockaddrInet4{Port: 80}},
		{unix.AF_INET, "10.1.2.3:80", &unix.SockaddrInet4{Port: 80, Addr: [4]byte{10, 1, 2, 3}}},
		{unix.AF_INET6, ":65535", &unix.SockaddrInet6{Port: 65535}},
		{unix.AF_INET6, "[::1]:80", &unix.SockaddrInet6{Port: 80, Addr: [16]byte{15: 1}}},
		{unix.AF_INET6, "[fe80::1%7]:80", &unix.SockaddrInet6{Port: 80, ZoneId: 7, Addr: [16]byte{0: 0xfe, 1: 0x80, 15: 1}}},
		{unix.AF_INET6, "[fe80::1%lo]:80", &unix.SockaddrInet6{Port: 80, ZoneId: 1, Addr: [16]byte{0: 0xfe, 1: 0x80, 15: 1}}},
		{unix.AF_INET, "80", nil},
		{unix.AF_INET, ":http", nil},
		{unix.AF_INET, "host:80", nil},
	} {
		got, err := sockaddr(tt.domain, tt.address)
		if (err == nil) != (tt.want != nil) || err == nil && fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", tt.want) {
			t.Errorf("sockaddr(%d, %q) = %+v, %v; want %+v", tt.domain, tt.address, got, err, tt.want)
		}
	}
}

func TestLostWith(t *testing.T) {
	for _, tt := range []struct {
		value int
		known bool
		want  string
	}{
		{1, true, ""},
		{0, true, `"sysctl net.ipv4.tcp_migrate_req=1"`},
		{0, false, "Linux 5.14"},
	} {
		if got := lostWith(tt.value, tt.known); got == "" != (tt.want == "") || !strings.Contains(got, tt.want) {
			t.Errorf("lostWith(%d, %v) = %q", tt.value, tt.known, got)
		}
	}
}

// A socket of another network namespace has no sibling in this one.
func TestReusePortAcrossNamespaces(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root for a network namespace")
	}
	type result struct {
		fd  int
		err error
	}
	made := make(chan result)
	var enter func()
	enter = func() {
		// The thread is not unlocked: it ends with the goroutine and so does the
		// namespace. The main thread would not end, so it is held meanwhile.
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread()
			other := make(chan struct{})
			go func() { defer close(other); enter() }()
			<-other
			return
		}
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			made <- result{err: err}
			return
		}
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			err = errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Port: 80}), unix.Listen(fd, 1))
		}
		made <- result{fd, err}
	}
	go enter()
	r := <-made
	if r.err != nil {
		t.Skipf("no network namespace: %v", r.err)
	}
	defer unix.Close(r.fd)
	h := bareHandoff(t, Options{DrainTimeout: time.Second})
	defer h.Close()
	adoptFD(t, h, "http", r.fd)
	if group, err := h.ListenReusePort("http", "tcp", ":80", 2); err == nil || !strings.Contains(err.Error(), "network namespace") {
		t.Errorf("%d, %v", len(group), err)
	}
	if group, err := h.ListenReusePort("http", "tcp", ":80", 1); err != nil || len(group) != 1 {
		t.Errorf("as many as there are: %d, %v", len(group), err)
	}
}
