package handoff

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/internal/memfile"
	"github.com/zdt-dev/zdt/internal/wire"
)

// What a receiver does with batches that lie, and with descriptors that are
// not what they are said to be.

// harbour is a generation that takes connections of the protocol "line/1" and
// HTTP of the socket "web", and the wire by which they come.
type harbour struct {
	t    *testing.T
	h    *Handoff
	from *wire.Link // the sender's end
	to   *wire.Link
	came chan net.Conn
}

func newHarbour(t *testing.T) *harbour {
	t.Helper()
	r := &harbour{t: t, h: bareHandoff(t, Options{DrainTimeout: patience}), came: make(chan net.Conn, maxBatch)}
	r.h.taking.Store(true)
	r.h.OnConn("line/1", func(c net.Conn, _ json.RawMessage) { r.came <- c })
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	in := newArrivals(ln)
	r.h.httpServers["web"] = []*arrivals{in}
	accepted := make(chan struct{})
	go func() {
		defer close(accepted)
		for {
			c, err := in.Accept()
			if err != nil {
				return
			}
			r.came <- c
		}
	}()
	r.from, r.to = pair(t)
	r.to.Taker = r.h.receive
	none, stop := make(chan wire.Message), make(chan struct{})
	pumped := make(chan struct{})
	go func() { defer close(pumped); r.to.Pump(none, stop) }()
	t.Cleanup(func() {
		r.to.Close()
		close(stop)
		<-pumped
		r.from.Close()
		in.Close()
		<-accepted
		ln.Close()
		r.h.Close()
	})
	return r
}

// answer is the receiver's next answer.
func (r *harbour) answer() wire.Message {
	r.t.Helper()
	r.from.Conn.SetReadDeadline(time.Now().Add(patience))
	m, err := r.from.Receive()
	if err != nil {
		r.t.Fatal(err)
	}
	if m.Type != wire.Moved {
		r.t.Fatalf("got %+v", m)
	}
	return m
}

// visitor is a connection at the sender: its client, and a descriptor of its server side.
type visitor struct {
	client *net.TCPConn
	server *net.TCPConn
	fd     int
}

func newVisitor(t *testing.T) *visitor {
	t.Helper()
	v := &visitor{}
	v.client, v.server = tcpPair(t)
	var err error
	if v.fd, err = borrowFD(v.server); err != nil {
		t.Fatal(err)
	}
	return v
}

// speaks lets the client say something, and serves checks that c hears it and
// can answer.
func (v *visitor) speaks(what string) { fmt.Fprintf(v.client, "to %s\n", what) }

func (v *visitor) serves(c net.Conn, what string) error {
	c.SetDeadline(time.Now().Add(patience))
	buf := make([]byte, 100)
	n, err := c.Read(buf)
	if err != nil || string(buf[:n]) != "to "+what+"\n" {
		return fmt.Errorf("%s read %q, %w", what, buf[:n], err)
	}
	if _, err := io.WriteString(c, "from "+what); err != nil {
		return err
	}
	v.client.SetDeadline(time.Now().Add(patience))
	if n, err = v.client.Read(buf); err != nil || string(buf[:n]) != "from "+what {
		return fmt.Errorf("client of %s read %q, %w", what, buf[:n], err)
	}
	return nil
}

func openFDs() int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return -1
	}
	return len(entries)
}

// memory returns a descriptor of data, which is the caller's.
func memory(t *testing.T, data []byte) int {
	t.Helper()
	fd, err := memfile.Write("zdt-manifest", data)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

func manifestOf(n int) []byte {
	m := manifest{}
	for range n {
		m.Connections = append(m.Connections, cargo{Protocol: "line/1"})
	}
	data, _ := json.Marshal(m)
	return data
}

// everyIndex checks that exactly want are refused, each once.
func everyIndex(refused []wire.Refusal, want []int) error {
	var got []int
	for _, r := range refused {
		got = append(got, r.Index)
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		return fmt.Errorf("refused %v, want %v", got, want)
	}
	return nil
}

func upTo(n int) (all []int) {
	for i := range n {
		all = append(all, i)
	}
	return all
}

// Whatever comes, connections that rest and others: what is not taken is refused by its index, what is taken is
// served here, nothing stays open, and the sender can go on with the rest.
func TestReceiverFaults(t *testing.T) {
	for _, protocol := range []string{`"line/1"`, `"http/1","socket":"web"`} {
		receiverFaults(t, protocol)
	}
}

func receiverFaults(t *testing.T, protocol string) {
	const n = 3
	manifestOf := func(n int) []byte {
		return bytes.ReplaceAll(manifestOf(n), []byte(`"line/1"`), []byte(protocol))
	}
	type batch struct {
		count    int
		manifest int   // the first descriptor, closed by the test; -1: none comes
		fds      []int // the others, likewise but for visitors'
	}
	plain := func(t *testing.T, v []*visitor) batch {
		return batch{count: n, manifest: memory(t, manifestOf(n)), fds: []int{v[0].fd, v[1].fd, v[2].fd}}
	}
	said := func(text string) func(*testing.T, []*visitor) batch {
		return func(t *testing.T, v []*visitor) batch {
			b := plain(t, v)
			unix.Close(b.manifest)
			b.manifest = memory(t, []byte(strings.ReplaceAll(text, `"line/1"`, protocol)))
			return b
		}
	}
	counted := func(count int) func(*testing.T, []*visitor) batch {
		return func(t *testing.T, v []*visitor) batch {
			b := plain(t, v)
			b.count = count
			return b
		}
	}
	// first makes the manifest something else.
	first := func(open func(t *testing.T) int) func(*testing.T, []*visitor) batch {
		return func(t *testing.T, v []*visitor) batch {
			b := plain(t, v)
			unix.Close(b.manifest)
			b.manifest = open(t)
			return b
		}
	}
	// second makes the second connection something else.
	second := func(open func(t *testing.T) int) func(*testing.T, []*visitor) batch {
		return func(t *testing.T, v []*visitor) batch {
			b := plain(t, v)
			fd := open(t)
			t.Cleanup(func() { unix.Close(fd) })
			b.fds[1] = fd
			return b
		}
	}
	must := func(t *testing.T, fd int, err error) int {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	path := func(path string, flags int) func(*testing.T) int {
		return func(t *testing.T) int {
			fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
			return must(t, fd, err)
		}
	}
	socket := func(domain, typ int, prepare ...func(fd int) error) func(*testing.T) int {
		return func(t *testing.T) int {
			fd, err := unix.Socket(domain, typ|unix.SOCK_CLOEXEC, 0)
			must(t, fd, err)
			for _, f := range prepare {
				if err := f(fd); err != nil {
					t.Fatal(err)
				}
			}
			return fd
		}
	}
	listen := func(fd int) error { return unix.Listen(fd, 1) }
	pipe := func(t *testing.T) int {
		var p [2]int
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(p[1]) })
		return p[0]
	}
	sparse := func(size int64) func(*testing.T) int {
		return func(t *testing.T) int {
			fd := memory(t, nil)
			return must(t, fd, unix.Ftruncate(fd, size))
		}
	}
	all := upTo(n)
	for _, tt := range []struct {
		name    string
		batch   func(t *testing.T, v []*visitor) batch
		refused []int
		broken  bool // nothing can be said of its connections one by one
	}{
		{"as it should be", plain, nil, false},
		{"empty manifest", said(""), all, false},
		{"no JSON", said("what a newer peer says"), all, false},
		{"cut off", said(string(manifestOf(n)[:20])), all, false},
		{"another type", said(`{"connections":"three"}`), all, false},
		{"one too few", said(string(manifestOf(n - 1))), all, false},
		{"one too many", said(string(manifestOf(n + 1))), all, false},
		{"no connections", said(`{}`), all, false},
		{"a protocol without a name", said(`{"connections":[{"protocol":"line/1"},{},{"protocol":"line/1"}]}`), all, false},
		{"what nobody speaks", said(`{"connections":[{"protocol":"line/1"},{"protocol":"line/2"},{"protocol":"line/1"}]}`), []int{1}, false},
		{"HTTP of another socket", said(`{"connections":[{"protocol":"http/1","socket":"other"},{"protocol":"line/1"},{"protocol":"http/1"}]}`), []int{0, 2}, false},
		{"more than this version says", said(`{"connections":[{"protocol":"line/1","new":{"a":[1]}},{"protocol":"line/1"},{"protocol":"line/1"}],"also":7}`), nil, false},
		{"manifest is a directory", first(path("/", unix.O_RDONLY)), all, false},
		{"manifest is endless", first(path("/dev/zero", unix.O_RDONLY)), all, false},
		{"manifest is a pipe", first(pipe), all, false},
		{"manifest is a socket", first(socket(unix.AF_INET, unix.SOCK_STREAM)), all, false},
		{"manifest is a path", first(path("/proc/self/exe", unix.O_PATH)), all, false},
		{"manifest is too large", first(sparse(maxManifest + 1)), all, false},
		{"manifest is very large", first(sparse(1 << 50)), all, false},
		{"manifest is full of zeros", first(sparse(maxManifest)), all, false},
		{"manifest of another kind of file", first(path("/proc/self/maps", unix.O_RDONLY)), all, false},
		{"manifest cannot be read", first(func(t *testing.T) int {
			f, err := os.OpenFile(t.TempDir()+"/m", os.O_CREATE|os.O_WRONLY, 0o600)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			f.Write(manifestOf(n))
			fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
			return must(t, fd, err)
		}), all, false},
		{"a file", second(path("/proc/self/exe", unix.O_RDONLY)), []int{1}, false},
		{"a path", second(path("/", unix.O_PATH)), []int{1}, false},
		{"a pipe", second(pipe), []int{1}, false},
		{"an eventfd", second(func(t *testing.T) int { fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC); return must(t, fd, err) }), []int{1}, false},
		{"a listening TCP socket", second(socket(unix.AF_INET, unix.SOCK_STREAM, listen)), []int{1}, false},
		{"a listening unix socket", second(socket(unix.AF_UNIX, unix.SOCK_STREAM, func(fd int) error {
			return unix.Bind(fd, &unix.SockaddrUnix{Name: "@" + t.Name() + fmt.Sprint(os.Getpid())})
		}, listen)), []int{1}, false},
		{"a datagram socket", second(socket(unix.AF_INET, unix.SOCK_DGRAM)), []int{1}, false},
		{"a unix datagram socket", second(socket(unix.AF_UNIX, unix.SOCK_DGRAM)), []int{1}, false},
		{"a unix seqpacket socket", second(socket(unix.AF_UNIX, unix.SOCK_SEQPACKET)), []int{1}, false},
		{"a netlink socket", second(socket(unix.AF_NETLINK, unix.SOCK_RAW)), []int{1}, false},
		{"count 0", counted(0), nil, true},
		{"a negative count", counted(-1), nil, true},
		{"a count beyond the kernel's", counted(maxBatch + 1), nil, true},
		{"a huge count", counted(1 << 40), nil, true},
		{"more announced than came", counted(n + 2), upTo(n + 2), false},
		{"fewer announced than came", counted(n - 1), upTo(n - 1), false},
		{"one descriptor short", func(t *testing.T, v []*visitor) batch { b := plain(t, v); b.fds = b.fds[:n-1]; return b }, []int{2}, false},
		{"the manifest alone", func(t *testing.T, v []*visitor) batch { b := plain(t, v); b.fds = nil; return b }, all, false},
		{"no descriptor", func(t *testing.T, v []*visitor) batch { return batch{count: n, manifest: -1} }, all, false},
		{"a descriptor too many", func(t *testing.T, v []*visitor) batch { b := plain(t, v); b.fds = append(b.fds, v[0].fd); return b }, nil, false},
		{"as many as can come", func(t *testing.T, v []*visitor) batch {
			b := batch{count: maxBatch, manifest: memory(t, manifestOf(maxBatch)), fds: []int{v[0].fd, v[1].fd, v[2].fd}}
			for len(b.fds) < maxBatch { // the same ones again
				b.fds = append(b.fds, v[0].fd)
			}
			return b
		}, nil, false},
	} {
		t.Run(strings.Trim(protocol[:7], `"`)+" "+tt.name, func(t *testing.T) {
			r := newHarbour(t)
			var visitors []*visitor
			for range n {
				visitors = append(visitors, newVisitor(t))
			}
			b := tt.batch(t, visitors)
			before := openFDs()
			if b.manifest >= 0 {
				before--
			}
			fds := b.fds
			if b.manifest >= 0 {
				fds = append([]int{b.manifest}, b.fds...)
			}
			if err := r.from.SendFiles(wire.Message{Type: wire.Move, Batch: 9, Count: b.count}, fds...); err != nil {
				t.Fatal(err)
			}
			if b.manifest >= 0 {
				unix.Close(b.manifest)
			}
			answer := r.answer()
			if answer.Batch != 9 {
				t.Errorf("an answer to batch %d", answer.Batch)
			}
			if err := everyIndex(answer.Refused, tt.refused); err != nil {
				t.Error(err)
			}
			taken := b.count - len(tt.refused)
			if tt.broken {
				taken = 0
			}
			if answer.Count != taken {
				t.Errorf("took %d, want %d", answer.Count, taken)
			}
			for i, v := range visitors {
				if taken > 0 && !slices.Contains(tt.refused, i) {
					v.speaks("receiver")
				}
			}
			for range taken {
				c := <-r.came
				if taken > n { // each of them is the same
					defer c.Close()
					continue
				}
				at := slices.IndexFunc(visitors, func(v *visitor) bool { return v.client.LocalAddr().String() == c.RemoteAddr().String() })
				if at < 0 || slices.Contains(tt.refused, at) {
					t.Errorf("connection %d was taken", at)
					continue
				}
				if err := visitors[at].serves(c, "receiver"); err != nil {
					t.Error(err)
				}
				c.Close()
			}
			if taken > n {
				return
			}
			for i, v := range visitors {
				v.speaks("sender")
				if err := v.serves(v.server, "sender"); err != nil {
					t.Errorf("connection %d at the sender: %v", i, err)
				}
			}
			eventually(t, "nothing more is open than before", func() bool { return openFDs() <= before })
			// And the next batch is taken.
			ok := plain(t, visitors)
			defer unix.Close(ok.manifest)
			if err := r.from.SendFiles(wire.Message{Type: wire.Move, Batch: 10, Count: n}, append([]int{ok.manifest}, ok.fds...)...); err != nil {
				t.Fatal(err)
			}
			if answer := r.answer(); answer.Count != n {
				t.Errorf("the batch after it: %+v", answer)
			}
			for _, v := range visitors {
				v.speaks("receiver")
			}
			for range n {
				(<-r.came).Close()
			}
		})
	}
}

// A generation that ends takes nothing, and says so.
func TestReceiverThatEnds(t *testing.T) {
	r := newHarbour(t)
	r.h.taking.Store(false)
	v := newVisitor(t)
	before := openFDs()
	m := memory(t, manifestOf(1))
	if err := r.from.SendFiles(wire.Message{Type: wire.Move, Batch: 1, Count: 1}, m, v.fd); err != nil {
		t.Fatal(err)
	}
	unix.Close(m)
	if answer := r.answer(); answer.Count != 0 || everyIndex(answer.Refused, []int{0}) != nil {
		t.Errorf("%+v", answer)
	}
	v.speaks("sender")
	if err := v.serves(v.server, "sender"); err != nil {
		t.Error(err)
	}
	eventually(t, "nothing more is open than before", func() bool { return openFDs() <= before })
}

// The answer to a batch fits into a packet, whatever there is to say.
func TestRefusalsFit(t *testing.T) {
	for _, name := range []string{strings.Repeat("p", 1000), strings.Repeat("\x00\x01", 500), strings.Repeat("\"\\<é", 300), strings.Repeat("x", 50_000)} {
		r := newHarbour(t)
		v := newVisitor(t)
		m := manifest{}
		fds := []int{0}
		for range maxBatch {
			m.Connections = append(m.Connections, cargo{Protocol: name})
			fds = append(fds, v.fd)
		}
		data, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		fds[0] = memory(t, data)
		defer unix.Close(fds[0])
		if err := r.from.SendFiles(wire.Message{Type: wire.Move, Batch: 1, Count: maxBatch}, fds...); err != nil {
			t.Fatal(err)
		}
		if answer := r.answer(); answer.Count != 0 || everyIndex(answer.Refused, upTo(maxBatch)) != nil || answer.Refused[0].Reason == "" {
			t.Errorf("%+v", answer)
		}
	}
}

// So does what a generation says it takes, in the greeting of every candidate.
func TestTakesFit(t *testing.T) {
	h := bareHandoff(t, Options{})
	defer h.Close()
	for i := range 2000 {
		h.OnConn(fmt.Sprintf("%s/%d", strings.Repeat("p", 200), i), func(net.Conn, json.RawMessage) {})
	}
	a, b := pair(t)
	if err := a.Send(wire.Message{Type: wire.Hello, Version: 2, Generation: 2, TxID: strings.Repeat("t", 100), Takes: h.takes()}); err != nil {
		t.Fatal(err)
	}
	m, err := b.Receive()
	if err != nil || len(m.Takes) < 50 {
		t.Errorf("%d takes, %v", len(m.Takes), err)
	}
}

// A manifest that changes while it is read is read as one of its states or
// refused.
func TestManifestThatChanges(t *testing.T) {
	fd := memory(t, manifestOf(2))
	defer unix.Close(fd)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			text := manifestOf(2)
			switch i % 4 {
			case 0:
				unix.Ftruncate(fd, int64(i%len(text)))
			case 1:
				unix.Pwrite(fd, bytes.Repeat([]byte("]"), i%100), int64(i%50))
			case 2:
				unix.Ftruncate(fd, maxManifest*int64(i%3))
			case 3:
				unix.Ftruncate(fd, 0)
				unix.Pwrite(fd, text, 0)
			}
		}
	}()
	for range 2000 {
		if loads, err := readManifest(fd, 2); err == nil && len(loads) != 2 || err != nil && !errors.Is(err, wire.ErrPacket) {
			t.Fatalf("%v, %v", loads, err)
		}
	}
	close(stop)
	<-stopped
}

// A receiver that ends while the sender does not listen gives up: what it could
// not acknowledge is the sender's, and not served here.
func TestReceiverGivesUp(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for a time-out")
	}
	r := newHarbour(t)
	v := newVisitor(t)
	before := openFDs()
	for { // nobody reads these
		if err := r.to.SendWithin(wire.BatchTimeout, wire.Message{Type: wire.Progress, Reason: strings.Repeat("x", 10_000)}); err != nil {
			break
		}
	}
	for { // and there is no room for a short one either
		if err := r.to.SendWithin(wire.BatchTimeout, wire.Message{Type: wire.Moved}); err != nil {
			break
		}
	}
	m := memory(t, manifestOf(1))
	defer unix.Close(m)
	if err := r.from.SendFiles(wire.Message{Type: wire.Move, Batch: 1, Count: 1}, m, v.fd); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the batch has come", func() bool { open, _, _ := r.h.tracker.snapshot(); return len(open) == 1 })
	r.to.Close() // returns when the batch is settled
	select {
	case <-r.came:
		t.Error("a connection is served here that the sender was not told of")
	default:
	}
	if open, _, _ := r.h.tracker.snapshot(); len(open) != 0 {
		t.Errorf("%d are open", len(open))
	}
	v.speaks("sender")
	if err := v.serves(v.server, "sender"); err != nil {
		t.Error(err)
	}
	eventually(t, "nothing more is open than before", func() bool { return openFDs() <= before })
}

// A drain that begins while a batch is being built waits for its connections.
func TestDrainWaitsForABatch(t *testing.T) {
	r := newHarbour(t)
	v := newVisitor(t)
	m := memory(t, manifestOf(1))
	defer unix.Close(m)
	r.h.mu.Lock() // holds the receiver up in the middle
	if err := r.from.SendFiles(wire.Message{Type: wire.Move, Batch: 1, Count: 1}, m, v.fd); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the batch is read", func() bool { return unreadBytes(r.to.Conn) == 0 })
	time.Sleep(20 * time.Millisecond) // and looked at
	r.h.taking.Store(false)
	d := startDrain(t.Context(), r.h.tracker, r.h.opt, 0, nil, func(context.Context) {})
	select {
	case <-d.done:
		t.Error("the drain is over before the batch was taken")
	case <-time.After(3 * drainTick):
	}
	r.h.mu.Unlock()
	if answer := r.answer(); answer.Count != 1 {
		t.Errorf("%+v", answer)
	}
	c := <-r.came
	v.speaks("receiver")
	if err := v.serves(c, "receiver"); err != nil {
		t.Error(err)
	}
	select {
	case <-d.done:
		t.Error("the drain is over before the connection")
	default:
	}
	c.Close()
	<-d.done
}

// A manifest cannot be executed, as hosts may demand (vm.memfd_noexec=2, Linux
// 6.3).
func TestManifestIsNotExecutable(t *testing.T) {
	const sealExec = 0x20 // F_SEAL_EXEC
	probe, err := unix.MemfdCreate("probe", unix.MFD_CLOEXEC|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) {
		t.Skip("the kernel is older than 6.3")
	}
	unix.Close(probe)
	fd := memory(t, []byte("{}"))
	defer unix.Close(fd)
	if seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0); err != nil || seals&sealExec == 0 {
		t.Errorf("seals %#x, %v", seals, err)
	}
}
