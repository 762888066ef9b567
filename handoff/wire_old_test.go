package handoff

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/netfd"
	"github.com/zdt-dev/zdt/internal/wire"
)

// Generations of other versions of this package: one side is played from a
// transcript, the other is the real thing.

//go:embed testdata/wire
var transcripts embed.FS

// line is one packet of a transcript.
type line struct{ from, packet string }

func (l line) kind() wire.Type {
	var m struct{ Type wire.Type }
	json.Unmarshal([]byte(l.packet), &m)
	return m.Type
}

func transcript(name string) (lines []line, err error) {
	text, err := transcripts.ReadFile("testdata/wire/" + name + ".txt")
	if err != nil {
		return nil, err
	}
	for s := range strings.Lines(string(text)) {
		if s = strings.TrimSpace(s); s == "" || s[0] == '#' {
			continue
		}
		from, packet, _ := strings.Cut(s, " ")
		lines = append(lines, line{from, packet})
	}
	return lines, nil
}

// player plays one side of a transcript on a wire.
type player struct {
	role string
	link *wire.Link
	pid  int                            // of the receiver, for the hello
	move func(*wire.Link, wire.Message) // gets the batches; nil: there must be none
	cue  func(line) (stop bool)         // before the player's own lines
	on   func(wire.Message) (stop bool) // what comes that is not in the transcript
	skip func(kind wire.Type) bool      // need not come, or not so often
}

var pidField = regexp.MustCompile(`"pid":\d+`)

// play sends what the role has said and expects what the other one did, by type.
func (p *player) play(lines []line) error {
	for _, l := range lines {
		if l.from == p.role {
			if p.cue != nil && p.cue(l) {
				return nil
			}
			packet := pidField.ReplaceAllString(l.packet, fmt.Sprintf(`"pid":%d`, p.pid))
			if _, err := p.link.Conn.Write([]byte(packet)); err != nil {
				return fmt.Errorf("say %s: %w", packet, err)
			}
			continue
		}
		for {
			if p.skip != nil && p.skip(l.kind()) {
				break
			}
			p.link.Conn.SetReadDeadline(time.Now().Add(patience))
			m, err := p.link.Receive()
			switch {
			case errors.Is(err, wire.ErrPacket):
				continue
			case err != nil:
				return fmt.Errorf("wait for %s: %w", l.packet, err)
			case m.Type == wire.Move:
				if p.move == nil {
					m.CloseFiles()
					return fmt.Errorf("a batch of %d connections in place of %s", m.Count, l.packet)
				}
				p.move(p.link, m)
				continue
			case m.Type != l.kind():
				if p.skip != nil && p.skip(m.Type) {
					continue
				}
				if p.on != nil && p.on(m) {
					return nil
				}
				return fmt.Errorf("got %+v in place of %s", m, l.packet)
			}
			if m.Type == wire.Hello && l.kind() == wire.Hello {
				var want wire.Message
				json.Unmarshal([]byte(l.packet), &want)
				if want.Version != 0 && m.Version != want.Version {
					return fmt.Errorf("hello of version %d, want %d", m.Version, want.Version)
				}
			}
			break
		}
	}
	return nil
}

// often are messages that come as often as it takes.
func often(kind wire.Type) bool {
	return kind == wire.Progress || kind == wire.Takes || kind == wire.Bye
}

// otherCandidateMain is a candidate of another version: it serves on what it
// inherited, and says what the transcript has.
func otherCandidateMain() error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	version := strings.TrimPrefix(filepath.Base(exe), "candidate-v")
	script := map[wire.Type][]line{}
	for decision, name := range map[wire.Type]string{wire.Commit: "commit", wire.Abort: "abort"} {
		if script[decision], err = transcript(version + "-candidate-" + name); err != nil {
			return err
		}
	}
	ln, err := net.FileListener(os.NewFile(3, "http"))
	if err != nil {
		return err
	}
	fd := atoi(os.Getenv(envPredecessor))
	l, err := wire.NewLink(fd)
	if err != nil {
		return err
	}
	p := &player{role: "candidate", link: l, skip: func(k wire.Type) bool { return k == wire.Progress || k == wire.Takes }}
	p.move = func(l *wire.Link, m wire.Message) { // a version 3 that has changed its mind
		m.CloseFiles()
		var refused []string
		for i := range m.Count {
			refused = append(refused, fmt.Sprintf(`{"index":%d,"reason":"not today","mood":{"bad":true}}`, i))
		}
		fmt.Fprintf(l.Conn, `{"type":"moved","batch":%d,"refused":[%s],"note":"sorry"}`, m.Batch, strings.Join(refused, ","))
	}
	var leaving atomic.Bool
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if leaving.Load() {
			w.Header().Set("Connection", "close")
		}
		fmt.Fprintf(w, "2 %d", os.Getpid())
	})}
	p.cue = func(l line) bool {
		if l.kind() == wire.Ready {
			go srv.Serve(ln)
		}
		return false
	}
	decided := wire.Commit
	p.on = func(m wire.Message) bool { decided = m.Type; return m.Type == wire.Abort }
	if err := p.play(script[wire.Commit]); err != nil {
		return err
	}
	if decided == wire.Abort {
		leaving.Store(true)
		ln.Close()
		for _, line := range script[wire.Abort] {
			if line.from == "candidate" && line.kind() == wire.Stop {
				fmt.Fprint(l.Conn, line.packet)
			}
		}
		time.Sleep(300 * time.Millisecond) // its last clients
		return nil
	}
	p.play([]line{{"incumbent", `{"type":"never"}`}}) // until the predecessor is gone
	select {}                                         // the service: whoever runs the test ends it
}

// Today's incumbent hands over to a candidate of another version. What that
// does not take is closed politely, and an abort works.
func TestOtherCandidates(t *testing.T) {
	for _, version := range []string{"1", "3"} {
		t.Run("version "+version+" committed", func(t *testing.T) {
			t.Parallel()
			s := stand(t, serviceConfig{IdleGrace: 400 * time.Millisecond, DrainTimeout: patience})
			first := s.mustStatus()
			var kept []*httpConn
			for range 5 {
				kept = append(kept, s.idleConnection())
			}
			s.armAndSignal(first.PID, control.Arm{TxID: "tx", Exe: "candidate-v" + version, Hold: true, HoldFor: patience})
			held := s.await("held", func(st control.Status) bool { return st.Phase == control.Held })
			candidate := held.Handoff.Candidate
			if got := s.get("/"); got != fmt.Sprintf("2 %d", candidate) {
				t.Errorf("while it is held: %q", got)
			}
			if _, err := s.ask(func(ctx context.Context, c *control.Client) (control.Status, error) { return c.Commit(ctx, "tx") }); err != nil {
				t.Fatal(err)
			}
			if version == "3" { // it said that it would take them
				eventually(t, "they were refused", func() bool { return strings.Contains(readFile(s.stderr.Name()), "refused") })
			}
			for i, c := range kept[:3] {
				if body, closing, err := c.get("/"); err != nil || !closing || body != fmt.Sprintf("1 %d", first.PID) {
					t.Errorf("connection %d: %q, closing %v, %v", i, body, closing, err)
				}
			}
			for i, c := range kept[3:] {
				if err := c.closed(); err != nil {
					t.Errorf("idle connection %d: %v", i, err)
				}
			}
			if got := s.get("/"); got != fmt.Sprintf("2 %d", candidate) {
				t.Errorf("after the commit: %q", got)
			}
			s.awaitExit(first.PID, "exited 0")
			if line := s.exitEvent(first.PID); !strings.Contains(line, "ZDT_CONNS_MOVED=0 ZDT_CONNS_DRAINED=5 ZDT_CONNS_CUT=0") {
				t.Error(line)
			}
		})
		t.Run("version "+version+" aborted", func(t *testing.T) {
			t.Parallel()
			s := stand(t, serviceConfig{IdleGrace: 400 * time.Millisecond, DrainTimeout: patience})
			first := s.mustStatus()
			kept := s.idleConnection()
			s.armAndSignal(first.PID, control.Arm{TxID: "tx", Exe: "candidate-v" + version, Hold: true, HoldFor: patience})
			held := s.await("held", func(st control.Status) bool { return st.Phase == control.Held })
			young := s.dial("tcp", s.addr)
			young.gets(t, 2, false)
			if _, err := s.ask(func(ctx context.Context, c *control.Client) (control.Status, error) {
				return c.Abort(ctx, "tx", "test")
			}); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the incumbent accepts alone", func() bool { return s.get("/") == fmt.Sprintf("1 %d", first.PID) })
			if body, _, err := young.get("/"); err != nil || !strings.HasPrefix(body, "2 ") {
				t.Errorf("at the candidate after the abort: %q, %v", body, err)
			}
			kept.gets(t, 1, false)
			s.awaitFailure("requested")
			if st := s.mustStatus(); st.PID != first.PID || st.Last.Candidate != held.Handoff.Candidate {
				t.Errorf("%+v", st)
			}
			s.nextWorks()
		})
	}
}

// gets asks and expects a generation, and its word on the connection.
func (h *httpConn) gets(t *testing.T, generation int, closes bool) {
	t.Helper()
	body, closing, err := h.get("/")
	if err != nil || closing != closes || !strings.HasPrefix(body, fmt.Sprintf("%d ", generation)) {
		t.Errorf("%q, closing %v, %v; want generation %d, closing %v", body, closing, err, generation, closes)
	}
}

// oldIncumbent is a service of another version with a real candidate: the
// transcript's side of the wire, and an HTTP server on the socket both share.
type oldIncumbent struct {
	*stage
	ln       *pausable
	srv      *http.Server
	leaving  atomic.Bool
	served   sync.WaitGroup
	link     *wire.Link
	controls int
	pid      int // of the candidate
}

// pausable is a listener that stops accepting for a while.
type pausable struct {
	*net.TCPListener
	mu     sync.Mutex
	open   chan struct{} // closed: accept
	within sync.Mutex    // held by an accept
}

// set returns when an accept that has looked at the deadline before is over: it may
// still have accepted.
func (p *pausable) set(open bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !open {
		p.open = make(chan struct{})
		p.SetDeadline(time.Unix(1, 0))
		p.within.Lock()
		p.within.Unlock()
		return
	}
	p.SetDeadline(time.Time{})
	select {
	case <-p.open:
	default:
		close(p.open)
	}
}

func (p *pausable) Close() error {
	defer p.set(true)
	return p.TCPListener.Close()
}

func (p *pausable) Accept() (net.Conn, error) {
	for {
		p.mu.Lock()
		open := p.open
		p.mu.Unlock()
		<-open
		p.within.Lock()
		c, err := p.TCPListener.Accept()
		p.within.Unlock()
		if !os.IsTimeout(err) {
			return c, err
		}
	}
}

func newOldIncumbent(t *testing.T) *oldIncumbent {
	o := &oldIncumbent{stage: newStage(t, quick(serviceConfig{IdleGrace: 400 * time.Millisecond, DrainTimeout: patience}))}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o.ln = &pausable{TCPListener: ln.(*net.TCPListener), open: make(chan struct{})}
	o.ln.set(true)
	o.addr = ln.Addr().String()
	o.srv = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if o.leaving.Load() {
			w.Header().Set("Connection", "close")
		}
		fmt.Fprintf(w, "1 %d", os.Getpid())
	})}
	o.served.Go(func() { o.srv.Serve(o.ln) })
	// The control socket it has, and hands on.
	if o.controls, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(o.controls, &unix.SockaddrUnix{Name: o.controlPath()}); err != nil {
		t.Fatal(err)
	}
	unix.Listen(o.controls, 16)
	t.Cleanup(func() {
		o.srv.Close()
		o.served.Wait()
		unix.Close(o.controls)
		if o.link != nil {
			o.link.Close()
		}
	})
	return o
}

// fork starts today's candidate as an incumbent does.
func (o *oldIncumbent) fork() {
	o.t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		o.t.Fatal(err)
	}
	defer unix.Close(pair[1])
	cfg, err := json.Marshal(o.cfg)
	if err != nil {
		o.t.Fatal(err)
	}
	socket, err := netfd.Dup(o.ln.TCPListener)
	if err != nil {
		o.t.Fatal(err)
	}
	defer unix.Close(socket)
	path := o.play("service-next")
	env := successorEnviron(append(os.Environ(), envRole+"="+o.dir, envConfig+"="+string(cfg), "NOTIFY_SOCKET="+o.systemd.path,
		"RUNTIME_DIRECTORY="+o.dir, "ZDT_SERVICE=web", "GORACE=halt_on_error=1 exitcode=66 atexit_sleep_ms=0"), []string{"http"})
	o.pid, err = syscall.ForkExec(path, []string{path}, &syscall.ProcAttr{
		Dir: o.dir, Env: env,
		Files: []uintptr{0, o.stderr.Fd(), o.stderr.Fd(), uintptr(socket), uintptr(pair[1]), uintptr(o.controls)},
	})
	if err != nil {
		o.t.Fatal(err)
	}
	o.systemd.setMain(o.pid) // as after the commit: this incumbent has no part in what is told to systemd
	if o.link, err = wire.NewLink(pair[0]); err != nil {
		o.t.Fatal(err)
	}
}

// Today's candidate under an incumbent of another version.
func TestOtherIncumbents(t *testing.T) {
	for _, version := range []string{"1", "3"} {
		t.Run("version "+version+" commits", func(t *testing.T) {
			t.Parallel()
			o := newOldIncumbent(t)
			kept, idle := o.dial("tcp", o.addr), o.dial("tcp", o.addr)
			kept.gets(t, 1, false)
			idle.gets(t, 1, false)
			o.fork()
			lines, err := transcript(version + "-incumbent-commit")
			if err != nil {
				t.Fatal(err)
			}
			p := &player{role: "incumbent", link: o.link, pid: o.pid, skip: often}
			p.cue = func(l line) bool {
				switch l.kind() {
				case wire.Commit: // its candidate was READY
					o.ln.set(false)
					if got := o.get("/"); got != fmt.Sprintf("2 %d", o.pid) {
						t.Errorf("while it is held: %q", got)
					}
					kept.gets(t, 1, false)
				case wire.Bye:
					o.leaving.Store(true)
					kept.gets(t, 1, true)
					idle.gets(t, 1, true)
				}
				return false
			}
			if err := p.play(lines); err != nil {
				t.Fatal(err)
			}
			o.srv.Close()
			o.link.Close()
			st := o.awaitGeneration(2)
			if st.PID != o.pid || st.Moves != nil {
				t.Errorf("%+v", st)
			}
			o.nextWorks() // by today's own wire, with the connections
		})
		t.Run("version "+version+" aborts", func(t *testing.T) {
			t.Parallel()
			o := newOldIncumbent(t)
			kept := o.dial("tcp", o.addr)
			kept.gets(t, 1, false)
			o.fork()
			lines, err := transcript(version + "-incumbent-abort")
			if err != nil {
				t.Fatal(err)
			}
			young, resting := o.dial("tcp", o.addr), o.dial("tcp", o.addr)
			p := &player{role: "incumbent", link: o.link, pid: o.pid, skip: often}
			p.cue = func(l line) bool {
				if l.kind() == wire.Abort {
					o.ln.set(false)
					young.gets(t, 1, false) // it was accepted before
					young, resting = o.dial("tcp", o.addr), o.dial("tcp", o.addr)
					young.gets(t, 2, false)
					resting.gets(t, 2, false)
				}
				return false
			}
			if err := p.play(lines); err != nil {
				t.Fatal(err)
			}
			o.ln.set(true)
			if version != "1" { // takes connections back, says so in its own way, and serves them
				o.served.Go(o.takeBack)
			}
			eventually(t, "the incumbent accepts alone", func() bool { return o.get("/") == fmt.Sprintf("1 %d", os.Getpid()) })
			moves := version != "1"
			if version == "1" { // it takes nothing back
				eventually(t, "the candidate drains", func() bool { return strings.Contains(o.readDiary(), fmt.Sprintf("%d drain", o.pid)) })
				young.gets(t, 2, true)
				if err := resting.closed(); err != nil {
					t.Errorf("idle connection: %v", err)
				}
			} else {
				o.awaitExit(o.pid, "exited 0")
				young.gets(t, 1, false)
				resting.gets(t, 1, false)
			}
			kept.gets(t, 1, false)
			o.awaitExit(o.pid, "exited 0")
			line := o.exitEvent(o.pid)
			if !strings.Contains(line, "ZDT_CONNS_CUT=0 ") || strings.Contains(line, "ZDT_CONNS_MOVED=0 ") == moves || strings.Contains(line, "ZDT_CONNS_DRAINED=0 ") != moves {
				t.Error(line)
			}
		})
	}
}

// takeBack takes connections from the candidate as version 3 would, until that ends.
func (o *oldIncumbent) takeBack() {
	in := make(chan net.Conn)
	defer close(in)
	o.served.Go(func() { o.srv.Serve(&fewConns{o.ln.Addr(), in}) })
	o.link.Conn.SetReadDeadline(time.Now().Add(patience))
	for {
		m, err := o.link.Receive()
		if err != nil {
			return
		}
		if m.Type != wire.Move {
			m.CloseFiles()
			continue
		}
		loads, err := readManifest(m.Files[0], m.Count)
		if err != nil || len(m.Files) != m.Count+1 {
			o.t.Errorf("%d descriptors, %v", len(m.Files), err)
		}
		var conns []net.Conn
		for i, load := range loads {
			c, err := netfd.From(m.Files[i+1], net.FileConn)
			if err != nil || load.Protocol != protocolHTTP1 || load.Socket != "http" {
				o.t.Errorf("%+v, %v", load, err)
				continue
			}
			conns = append(conns, c)
		}
		m.CloseFiles()
		fmt.Fprintf(o.link.Conn, `{"type":"moved","batch":%d,"count":%d,"thanks":["a","lot"]}`, m.Batch, m.Count)
		for _, c := range conns {
			in <- c
		}
	}
}

// fewConns is a listener of connections that are there already.
type fewConns struct {
	addr net.Addr
	in   chan net.Conn
}

func (f *fewConns) Accept() (net.Conn, error) {
	if c, ok := <-f.in; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}

func (f *fewConns) Close() error   { return nil }
func (f *fewConns) Addr() net.Addr { return f.addr }
