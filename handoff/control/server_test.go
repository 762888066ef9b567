package control

import (
	"bufio"
	"context"
	"errors"
	"io"
	"iter"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// fakeRuntime is a runtime with a lock in place of a deciding goroutine.
type fakeRuntime struct {
	mu       sync.Mutex
	status   Status
	watchers Watchers
	over     bool
	asked    []Request
}

func (f *fakeRuntime) runtime() Runtime {
	return Runtime{
		Answer: func(req Request) Response {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.asked = append(f.asked, req)
			st := f.status
			if req.Op != OpStatus {
				return Response{Code: CodeBusy, Error: "a handoff is in progress", Status: &st}
			}
			return Response{Status: &st}
		},
		Watch: func(updates chan Status) (stop func(), ok bool) {
			f.mu.Lock()
			defer f.mu.Unlock()
			if f.over {
				return nil, false
			}
			if f.watchers == nil {
				f.watchers = make(Watchers)
			}
			f.watchers[updates] = struct{}{}
			updates <- f.status
			return func() {
				f.mu.Lock()
				defer f.mu.Unlock()
				delete(f.watchers, updates)
			}, true
		},
	}
}

func (f *fakeRuntime) set(p Phase) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.status.Phase, f.over = p, p == Exited
	f.watchers.Publish(f.status)
}

func (f *fakeRuntime) watching() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.watchers)
}

// await waits for a condition.
func await(t *testing.T, what string, met func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !met(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// serverPath is where a control socket can be.
func serverPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "zdt") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "control.sock")
}

func listenOrFail(t *testing.T, path string, f *fakeRuntime) *Server {
	t.Helper()
	s, err := Listen(path, f.runtime())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestServerAnswers(t *testing.T) {
	path, f := serverPath(t), &fakeRuntime{status: Status{PID: 7, Phase: Idle}}
	s := listenOrFail(t, path, f)
	s.Own()
	if st, err := os.Lstat(path); err != nil || st.Mode() != os.ModeSocket|0o600 {
		t.Errorf("%v, %v", st, err)
	}
	c := dialOrFail(t, path)
	for range 3 {
		if st, err := c.Status(t.Context()); err != nil || st.PID != 7 {
			t.Errorf("%+v, %v", st, err)
		}
	}
	var refused *Error
	if _, err := c.Arm(t.Context(), Arm{TxID: "t"}); !errors.As(err, &refused) || refused.Code != CodeBusy {
		t.Errorf("arm: %v", err)
	}
	if n := len(f.asked); n != 4 || f.asked[3].Arm == nil || f.asked[3].Arm.TxID != "t" {
		t.Errorf("asked %+v", f.asked)
	}
	if other, err := Listen(path, f.runtime()); err == nil || !strings.Contains(err.Error(), "running twice") {
		t.Errorf("a second server: %v, %v", other, err)
	}
	s.Close(true)
	if _, err := c.Status(t.Context()); err == nil {
		t.Error("answered after Close")
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file: %v", err)
	}
}

// What is no JSON is answered once, and a line that is too long not at all. Both
// are the end of the connection, and of nothing else.
func TestServerOfNonsense(t *testing.T) {
	path, f := serverPath(t), &fakeRuntime{}
	s := listenOrFail(t, path, f)
	defer s.Close(true)
	s.Open()
	for send, want := range map[string]string{
		"hello\n":                             CodeBadRequest,
		"\n":                                  CodeBadRequest,
		"[]\n":                                CodeBadRequest,
		strings.Repeat("x", maxLine+1) + "\n": "",
	} {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		go io.WriteString(conn, send)
		got, err := io.ReadAll(conn)
		if err != nil && !errors.Is(err, syscall.ECONNRESET) || !strings.Contains(string(got), want) || want == "" && len(got) > 0 {
			t.Errorf("%.10q is answered %q, %v", send, got, err)
		}
		conn.Close()
	}
	if _, err := dialOrFail(t, path).Status(t.Context()); err != nil {
		t.Error(err)
	}
}

// hungUp waits until the server has closed the connection.
func hungUp(t *testing.T, conn net.Conn) {
	t.Helper()
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	if n, err := conn.Read(make([]byte, 1)); n > 0 || !errors.Is(err, io.EOF) {
		t.Errorf("read %d bytes, %v", n, err)
	}
}

// Who says nothing is hung up on, and so is who does not finish a request. Who watches
// stays, and who has a handoff to decide about.
func TestServerBoundsIdleness(t *testing.T) {
	for _, test := range []struct {
		name   string
		send   string
		status Status
	}{
		{"nothing", "", Status{Phase: Idle}},
		{"nothing more", "{\"op\":\"status\"}\n", Status{Phase: Idle}},
		{"half a request", "{\"op\":", Status{Phase: Held, Handoff: &Handoff{TxID: "t"}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			path, f := serverPath(t), &fakeRuntime{status: test.status}
			s := listenOrFail(t, path, f)
			defer s.Close(true)
			s.idle, s.request = 20*time.Millisecond, 20*time.Millisecond
			s.Open()
			conn, err := net.Dial("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := io.WriteString(conn, test.send); err != nil {
				t.Fatal(err)
			}
			if strings.HasSuffix(test.send, "\n") {
				if _, err := ReadLine(bufio.NewReader(conn)); err != nil {
					t.Fatal(err)
				}
			}
			hungUp(t, conn)
		})
	}
	t.Run("a handoff is held", func(t *testing.T) {
		path, f := serverPath(t), &fakeRuntime{status: Status{Phase: Held, Handoff: &Handoff{TxID: "t"}}}
		s := listenOrFail(t, path, f)
		s.idle = 5 * time.Millisecond
		s.Open()
		watcher, c := dialOrFail(t, path), dialOrFail(t, path)
		next, stop := iter.Pull2(watcher.Watch(t.Context()))
		defer stop()
		if _, err, ok := next(); err != nil || !ok {
			t.Fatal(err)
		}
		// Of the server's own asking, each time the silence was too long.
		await(t, "a silence of several bounds", func() bool { f.mu.Lock(); defer f.mu.Unlock(); return len(f.asked) > 10 })
		if st, err := c.Status(t.Context()); err != nil || st.Phase != Held {
			t.Errorf("%+v, %v", st, err)
		}
		f.set(Exited)
		if st, err, _ := next(); err != nil || st.Phase != Exited {
			t.Errorf("watched %+v, %v", st, err)
		}
		s.Close(true)
	})
}

// There is an end to the number of clients, who is too many is told so, and there is room again when one has gone.
func TestServerBoundsClients(t *testing.T) {
	path, f := serverPath(t), &fakeRuntime{status: Status{Phase: Idle}}
	s := listenOrFail(t, path, f)
	defer s.Close(true)
	s.Open()
	var all []*Client
	for range maxClients {
		c := dialOrFail(t, path)
		if _, err := c.Status(t.Context()); err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	var refused *Error
	if _, err := dialOrFail(t, path).Status(t.Context()); !errors.As(err, &refused) || refused.Code != CodeBusy {
		t.Errorf("one too many: %v", err)
	}
	// The other kind of client has room of its own.
	if other := os.Geteuid() != 0; !s.admit(other) {
		t.Errorf("no room for root=%t", other)
	}
	all[0].Close()
	await(t, "room for another", func() bool {
		c := dialOrFail(t, path)
		defer c.Close()
		_, err := c.Status(t.Context())
		return err == nil
	})
}

func TestServerWatch(t *testing.T) {
	path, f := serverPath(t), &fakeRuntime{status: Status{Phase: Idle}}
	s := listenOrFail(t, path, f)
	s.Open()
	phases := make(chan Phase)
	ended := make(chan error, 1)
	c := dialOrFail(t, path)
	go func() {
		var last error
		for st, err := range c.Watch(t.Context()) {
			if last = err; err == nil {
				phases <- st.Phase
			}
		}
		ended <- last
	}()
	for _, p := range []Phase{Idle, Forked, Held} {
		if p != Idle {
			f.set(p)
		}
		if got := <-phases; got != p {
			t.Errorf("watched %s, want %s", got, p)
		}
	}
	// One that goes is forgotten.
	ctx, cancel := context.WithCancel(t.Context())
	left := dialOrFail(t, path)
	for range left.Watch(ctx) {
		break
	}
	cancel()
	left.Close()
	await(t, "who left is no watcher", func() bool { return f.watching() == 1 })
	f.set(Exited)
	closed := make(chan struct{})
	go func() { defer close(closed); s.Close(true) }()
	if got := <-phases; got != Exited {
		t.Errorf("last phase %s", got)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	<-closed
	if n := f.watching(); n != 0 {
		t.Errorf("%d watchers after the end", n)
	}
}

// A client that says half a line, and one that reads nothing, do not keep a
// runtime from ending.
func TestServerClose(t *testing.T) {
	path, f := serverPath(t), &fakeRuntime{status: Status{Phase: Idle, Exe: strings.Repeat("x", 1<<10)}}
	s := listenOrFail(t, path, f)
	s.Open()
	for _, line := range []string{`{"op":`, `{"op":"watch"}` + "\n"} {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		io.WriteString(conn, line)
	}
	await(t, "somebody watches", func() bool { return f.watching() == 1 })
	await(t, "the watcher that does not read is gone", func() bool { f.set(Idle); return f.watching() == 0 })
	f.set(Exited)
	s.Close(false)
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the file: %v", err)
	}
	if c, err := Dial(t.Context(), path); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("somebody listens: %v, %v", c, err)
	}
	// What a dead one has left is no obstacle.
	listenOrFail(t, path, f).Close(true)
}

// A client that connects while one generation pauses is answered by the next one.
func TestServerAdopt(t *testing.T) {
	path := serverPath(t)
	first := listenOrFail(t, path, &fakeRuntime{status: Status{Generation: 1}})
	first.Open()
	if st, err := dialOrFail(t, path).Status(t.Context()); err != nil || st.Generation != 1 {
		t.Errorf("generation %d, %v", st.Generation, err)
	}
	first.Pause()
	waits := dialOrFail(t, path)
	fd, err := syscall.Dup(first.FD())
	if err != nil {
		t.Fatal(err)
	}
	second, err := Adopt(fd, path, (&fakeRuntime{status: Status{Generation: 2}}).runtime())
	if err != nil {
		t.Fatal(err)
	}
	first.Close(false)
	second.Own()
	if st, err := waits.Status(t.Context()); err != nil || st.Generation != 2 {
		t.Errorf("generation %d, %v", st.Generation, err)
	}
	waits.Close()
	second.Close(true)
}

func TestAdoptErrors(t *testing.T) {
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	tcp, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	socket, err := tcp.File()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	for _, f := range []*os.File{file, socket} {
		fd, err := syscall.Dup(int(f.Fd()))
		if err != nil {
			t.Fatal(err)
		}
		if s, err := Adopt(fd, "", Runtime{}); err == nil {
			s.Close(false)
			t.Errorf("%s as a control socket", f.Name())
		}
		var st syscall.Stat_t
		if err := syscall.Fstat(fd, &st); !errors.Is(err, syscall.EBADF) {
			t.Errorf("%s: the descriptor is still open: %v", f.Name(), err)
		}
	}
}

func TestServerWithoutSocket(t *testing.T) {
	s := listenOrFail(t, "", &fakeRuntime{})
	if s.FD() != -1 {
		t.Errorf("descriptor %d", s.FD())
	}
	s.Own()
	s.Pause()
	s.Close(true)
}
