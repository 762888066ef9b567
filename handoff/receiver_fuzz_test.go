package handoff

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/internal/memfile"
	"github.com/zdt-dev/zdt/internal/wire"
)

func FuzzDecodeManifest(f *testing.F) {
	f.Add([]byte(`{"connections":[{"protocol":"http/1","socket":"http","pending":"R0VUIC8=","idle_left_ms":7}]}`), 1)
	f.Add([]byte(`{"connections":[{"protocol":"chat/1","session":{"seat":[1,null]},"view":{"socket":"tcp","unread":1,"unsent":0}}]}`), 1)
	f.Add([]byte(`{"connections":null}`), 0)
	f.Add([]byte(`{"connections":[{},{}]}`), 2)
	f.Fuzz(func(t *testing.T, data []byte, count int) {
		loads, err := decodeManifest(data, count)
		if err != nil {
			if loads != nil || !errors.Is(err, wire.ErrPacket) {
				t.Errorf("%v, %v", loads, err)
			}
			return
		}
		if len(loads) != count {
			t.Errorf("%d connections, want %d", len(loads), count)
		}
		again, err := json.Marshal(manifest{loads})
		if err != nil {
			t.Fatal(err)
		}
		back, err := decodeManifest(again, count)
		if err != nil {
			t.Fatalf("%s: %v", again, err)
		}
		for i := range loads {
			if loads[i].Protocol == "" {
				t.Errorf("connection %d has no protocol", i)
			}
			if back[i].Protocol != loads[i].Protocol || !bytes.Equal(back[i].Pending, loads[i].Pending) {
				t.Errorf("connection %d: %+v after %+v", i, back[i], loads[i])
			}
			loads[i].deadline() // of any number
		}
		// From a file it is the same.
		fd := memory(t, data)
		defer unix.Close(fd)
		if fromFile, err := readManifest(fd, count); err != nil || len(fromFile) != count {
			t.Errorf("from a file: %d connections, %v", len(fromFile), err)
		}
	})
}

// berth is what a fuzzed receiver runs on.
type berth struct {
	h        *Handoff
	in       *arrivals
	from, to *wire.Link
	pumped   chan struct{}
	accepted chan struct{}
}

func openBerth(t *testing.T) *berth {
	b := &berth{h: bareHandoff(t, Options{}), pumped: make(chan struct{}), accepted: make(chan struct{})}
	b.h.taking.Store(true)
	b.h.OnConn("line/1", func(c net.Conn, _ json.RawMessage) { c.Close() })
	b.in = newArrivals(noListener{})
	b.h.mu.Lock()
	b.h.httpServers["web"] = []*arrivals{b.in}
	b.h.mu.Unlock()
	go func() {
		defer close(b.accepted)
		for {
			c, err := b.in.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	b.from, b.to = pair(t)
	b.to.Taker = b.h.receive
	heard := make(chan wire.Message)
	go func() {
		for range heard {
		}
	}()
	go func() { defer close(b.pumped); b.to.Pump(heard, nil) }()
	return b
}

// noListener is where fuzzed connections come from.
type noListener struct{}

func (noListener) Accept() (net.Conn, error) { return nil, net.ErrClosed }
func (noListener) Close() error              { return nil }
func (noListener) Addr() net.Addr            { return &net.TCPAddr{} }

func (b *berth) close() {
	b.from.Close()
	<-b.pumped
	b.to.Close()
	b.in.Close()
	<-b.accepted
	b.h.Close()
}

// What a peer can put on the wire, packet after packet with descriptors of any
// kind: the receiver answers every batch that it can read, once, for each of
// its connections; it leaves nothing open and keeps what it took.
func FuzzReceive(f *testing.F) {
	f.Add([]byte(`{"type":"move","batch":1,"count":1}`), []byte(`{"connections":[{"protocol":"line/1"}]}`), []byte{0, 0})
	f.Add([]byte(`{"type":"move","batch":2,"count":2}`), []byte(`{"connections":[{"protocol":"http/1","socket":"web"},{"protocol":"http/1","socket":"web","pending":"R0U="}]}`), []byte{0, 0, 1})
	f.Add([]byte(`{"type":"move","batch":3,"count":3}`), []byte(`{"connections":[{"protocol":"line/1"},{"protocol":"no"},{"protocol":"http/1","socket":"web","idle_left_ms":1}]}`), []byte{0, 2, 3, 4, 5, 6, 7})
	f.Add([]byte(`{"type":"move","batch":4,"count":253}`), []byte(`{}`), []byte{8})
	f.Add([]byte(`{"type":"ready"}`), []byte(``), []byte{0, 1, 2})
	f.Add([]byte(`no JSON`), []byte(``), []byte{1})
	f.Fuzz(func(t *testing.T, packet, records, kinds []byte) {
		goroutines, files := runtime.NumGoroutine(), openFDs()
		var mine []int // descriptors of the sender, and what it kept of connections
		defer func() {
			for _, fd := range mine {
				unix.Close(fd)
			}
		}()
		fdOf := func(fd int, err error) int {
			if err != nil {
				t.Fatal(err)
			}
			mine = append(mine, fd)
			return fd
		}
		type kept struct{ client, server int }
		var connections []kept
		var fds []int
		for i, kind := range kinds[:min(len(kinds), maxBatch+1)] {
			switch {
			case i == 0 && kind%4 < 3:
				fds = append(fds, fdOf(memfile.Write("zdt-manifest", records)))
			case kind%8 < 3:
				typ := []int{unix.SOCK_STREAM, unix.SOCK_STREAM, unix.SOCK_SEQPACKET}[kind%8]
				p, err := unix.Socketpair(unix.AF_UNIX, typ|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
				fdOf(p[0], err)
				fds = append(fds, fdOf(p[1], err))
				connections = append(connections, kept{p[0], p[1]})
			case kind%8 == 3:
				fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
				if kind&16 != 0 {
					unix.Listen(fd, 1)
				}
				fds = append(fds, fdOf(fd, err))
			case kind%8 == 4:
				fds = append(fds, fdOf(unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)))
			case kind%8 == 5:
				fds = append(fds, fdOf(unix.Eventfd(0, unix.EFD_CLOEXEC)))
			case kind%8 == 6 && len(fds) > 0:
				fds = append(fds, fds[int(kind/8)%len(fds)]) // the same one again
			default:
				fds = append(fds, fdOf(unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)))
			}
		}
		b := openBerth(t)
		defer b.h.Close()
		if len(packet) == 0 || len(packet) > wire.MaxPacket {
			packet = []byte("{}")
		}
		var rights []byte
		if len(fds) > 0 {
			rights = unix.UnixRights(fds...)
		}
		b.from.Conn.SetWriteDeadline(time.Now().Add(patience))
		if _, _, err := b.from.Conn.WriteMsgUnix(packet, rights, nil); err != nil {
			t.Fatal(err)
		}
		var m wire.Message
		if json.Unmarshal(packet, &m) != nil || m.Type == "" {
			m = wire.Message{}
		}
		answered := m.Type == wire.Move
		// One that is right tells that everything before it was dealt with.
		last := fdOf(memfile.Write("zdt-manifest", manifestOf(1)))
		p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		fdOf(p[0], err)
		if err := b.from.SendFiles(wire.Message{Type: wire.Move, Batch: 1 << 40, Count: 1}, last, fdOf(p[1], err)); err != nil {
			t.Fatal(err)
		}
		var answers []wire.Message
		for {
			b.from.Conn.SetReadDeadline(time.Now().Add(patience))
			a, err := b.from.Receive()
			if err != nil || a.Type != wire.Moved {
				t.Fatalf("%+v, %v", a, err)
			}
			answers = append(answers, a)
			if a.Batch == 1<<40 && (m.Batch != 1<<40 || len(answers) == 2) {
				break
			}
		}
		a := answers[0]
		switch {
		case !answered && len(answers) != 1, answered && len(answers) != 2:
			t.Fatalf("%d answers: %+v", len(answers), answers)
		case !answered:
		case m.Count < 1 || m.Count > maxBatch:
			if a.Count != 0 || a.Batch != m.Batch {
				t.Errorf("%+v", a)
			}
		case a.Batch != m.Batch || a.Count+len(a.Refused) != m.Count:
			t.Errorf("%+v after %+v", a, m)
		default:
			refused := make([]bool, m.Count)
			for _, r := range a.Refused {
				if r.Index < 0 || r.Index >= m.Count || refused[r.Index] {
					t.Fatalf("%+v", a)
				}
				refused[r.Index] = true
			}
		}
		// The sender's copies are whole, whatever was taken: nobody has read them
		// but the programs that they were given to, nobody has shut them down.
		for i, c := range connections {
			if _, err := unix.Write(c.server, []byte("x")); err != nil {
				t.Errorf("connection %d: %v", i, err)
				continue
			}
			if n, err := unix.Read(c.client, make([]byte, 8)); n != 1 || err != nil {
				t.Errorf("connection %d: %d, %v", i, n, err)
			}
		}
		b.close()
		for _, fd := range mine {
			unix.Close(fd)
		}
		mine = nil
		for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > goroutines || openFDs() > files; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%d goroutines and %d descriptors after %d and %d", runtime.NumGoroutine(), openFDs(), goroutines, files)
			}
		}
	})
}

// A stay of nodes and moves between them leaves nothing behind.
func TestMovesLeaveNothing(t *testing.T) {
	goroutines, files := runtime.NumGoroutine(), fdTargets()
	for seed := range uint64(3) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { moveAtRandom(t, seed, 25) })
	}
	var now []string
	eventually(t, "as much is open as before", func() bool { now = fdTargets(); return len(now) <= len(files) })
	eventually(t, "as many goroutines run as before", func() bool { return runtime.NumGoroutine() <= goroutines })
	for _, what := range now {
		if !slices.Contains(files, what) {
			t.Errorf("%s is open", what)
		}
	}
}
