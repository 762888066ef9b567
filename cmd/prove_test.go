package cmd

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/release"
)

// provable is a made-up service: an HTTP server in this process, whose runtime hands over when it is told to.
type provable struct {
	f         *factory
	host      testHost
	runtime   *fakeRuntime
	out, errs *bytes.Buffer
	options   proveOptions
	during    atomic.Bool // a handoff, from the signal to the end
	signals   atomic.Int32
	ended     chan struct{} // the old process
}

// newProvable serves with h, which is told whether a handoff is under way.
func newProvable(t *testing.T, h func(w http.ResponseWriter, r *http.Request, during bool)) *provable {
	t.Helper()
	p := &provable{ended: make(chan struct{})}
	p.f, p.out, p.errs = testFactory(t, false)
	p.host = newHost(t, p.f)
	p.host.running("web")
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h(w, r, p.during.Load()) }))
	t.Cleanup(s.Close)
	p.runtime = &fakeRuntime{status: idle("web")}
	p.runtime.status.Sockets = []control.Socket{{Name: "http", Network: "tcp", Address: s.Listener.Addr().String(), InUse: true}}
	p.options = proveOptions{
		Service: "web", Path: "/", Clients: 4, Think: 2 * time.Millisecond, Duration: 100 * time.Millisecond, Handoffs: 1, Timeout: time.Minute,
		ended: func(ctx context.Context, _ pidfd) error {
			select {
			case <-p.ended:
				p.during.Store(false)
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		},
	}
	return p
}

// run is zdt prove; react is the runtime's answer to SIGUSR2, and nil says that there must be none.
func (p *provable) run(t *testing.T, ctx context.Context, react func()) (doc proveDoc, code ExitCode) {
	t.Helper()
	p.runtime.serve(t, p.host.paths.Control("web"))
	onHandoffSignal(t, func() {
		p.signals.Add(1)
		p.during.Store(true)
		if react != nil {
			react()
		}
	})
	p.f.globals.output = outputJSON
	err := runProve(ctx, p.f, p.options)
	if n := p.signals.Load(); react == nil && n > 0 {
		t.Error("a signal was sent")
	}
	if p.out.Len() > 0 {
		if err := json.Unmarshal(p.out.Bytes(), &doc); err != nil {
			t.Fatalf("%v\n%s", err, p.out)
		}
		if doc.ExitCode != codeOf(err) || doc.Schema != "zdt.prove/1" || doc.EndedAt.IsZero() {
			t.Errorf("ended with %d: %+v", codeOf(err), doc)
		}
	} else {
		p.f.globals.output = outputText
		p.f.tell(err)
	}
	return doc, codeOf(err)
}

// The steps of a runtime.
func (p *provable) fork() {
	p.runtime.become(func(s *control.Status) {
		s.Handoff = &control.Handoff{TxID: s.Armed.TxID, Exe: "/srv/web", Candidate: 4242, StartedAt: day}
		s.Armed, s.Phase, s.Attempts = nil, control.Forked, s.Attempts+1
	})
}

func (p *provable) end(o control.Outcome, phase control.Phase) {
	p.runtime.become(func(s *control.Status) {
		o.TxID, o.Candidate = s.Handoff.TxID, s.Handoff.Candidate
		s.Last, s.Handoff, s.Phase = &o, nil, phase
	})
}

func (p *provable) commit() {
	p.fork()
	p.end(control.Outcome{Committed: true, ReadyAfter: 14 * time.Millisecond}, control.Draining)
}

// exit is the end of the old process after some time.
func (p *provable) exit() {
	time.Sleep(30 * time.Millisecond)
	p.runtime.become(func(s *control.Status) { s.Phase, s.Connections = control.Exited, control.Counts{Moved: 3, Closed: 1} })
	close(p.ended)
}

func fine(w http.ResponseWriter, r *http.Request, during bool) { fmt.Fprintln(w, "hello") }

func TestProve(t *testing.T) {
	var agent atomic.Value
	p := newProvable(t, func(w http.ResponseWriter, r *http.Request, during bool) {
		if r.Method != http.MethodGet || r.URL.String() != "/healthz?full=1" {
			t.Errorf("%s %s", r.Method, r.URL)
		}
		agent.Store(r.UserAgent())
		fine(w, r, during)
	})
	p.options.Path = "/healthz?full=1"
	d, code := p.run(t, t.Context(), func() { p.commit(); p.exit() })
	if code != ExitOK || d.Outcome != proveProved || !d.Changed || d.TxID == "" || len(d.Handoffs) != 1 || d.Cause != "" {
		t.Fatalf("exit %d: %+v\n%s", code, d, p.errs)
	}
	if d.Failed+d.Refused+d.Reconnected+len(d.Warnings)+len(d.Failures) > 0 || d.Requests == 0 || d.During.Requests == 0 || d.Requests != d.During.Requests+d.Rest.Requests {
		t.Errorf("%+v", d)
	}
	if h := d.Handoffs[0]; h.Candidate != 4242 || h.Outcome != "committed" || !h.Finished || h.Took < 30*time.Millisecond || h.Connections == nil || h.Connections.Moved != 3 || h.TxID != d.TxID {
		t.Errorf("%+v", h)
	}
	if d.Clients != 4 || d.Fresh != 1 || d.Statuses[200] != d.Requests || d.Latency.P50 <= 0 || agent.Load() != "zdt-prove" {
		t.Errorf("%+v, asked by %v", d, agent.Load())
	}
	sum := 0
	for _, n := range d.Timeline.Answers {
		sum += n
	}
	if sum != d.Requests || len(d.Timeline.Answers) > timelineSlots {
		t.Errorf("timeline %+v", d.Timeline)
	}
}

func TestProveVerdicts(t *testing.T) {
	hangUp := func(w http.ResponseWriter) {
		conn, _, _ := http.NewResponseController(w).Hijack()
		conn.(*net.TCPConn).SetLinger(0)
		conn.Close()
	}
	for _, tt := range []struct {
		name    string
		handle  func(w http.ResponseWriter, r *http.Request, during bool)
		setup   func(p *provable)
		react   func(p *provable) // nil: nothing may be signalled
		outcome string            // "": no document
		code    ExitCode
		cause   string // in it, or in what is told
		warning string
	}{
		{name: "requests are lost", handle: func(w http.ResponseWriter, r *http.Request, during bool) {
			if during {
				hangUp(w)
			}
		}, react: func(p *provable) { p.commit(); p.exit() }, outcome: proveNoticed, code: ExitUnexpected, cause: "lost during the handoff"},
		{name: "connections are closed politely", handle: func(w http.ResponseWriter, r *http.Request, during bool) {
			if during {
				w.Header().Set("Connection", "close")
			}
		}, react: func(p *provable) { p.commit(); p.exit() }, outcome: proveProved, code: ExitOK},
		{name: "errors with the handoff", handle: func(w http.ResponseWriter, r *http.Request, during bool) {
			if during {
				w.WriteHeader(503)
			}
		}, react: func(p *provable) { p.commit(); p.exit() }, outcome: proveNoticed, code: ExitUnexpected, cause: "status of 500 or more during the handoff"},
		{name: "errors all the time", handle: func(w http.ResponseWriter, r *http.Request, during bool) { w.WriteHeader(500) },
			react: func(p *provable) { p.commit(); p.exit() }, outcome: proveProved, code: ExitOK, warning: "every answer had an error status"},
		{name: "not found, and not followed", handle: func(w http.ResponseWriter, r *http.Request, during bool) {
			if r.URL.Path != "/" {
				t.Errorf("%s was asked for", r.URL)
			}
			http.Redirect(w, r, "/elsewhere", http.StatusFound)
		}, react: func(p *provable) { p.commit(); p.exit() }, outcome: proveProved, code: ExitOK},
		{name: "undone", react: func(p *provable) {
			p.fork()
			p.end(control.Outcome{Reason: "crashed", Detail: "the candidate ended (exited, 1)"}, control.Idle)
		}, outcome: proveUndone, code: ExitRolledBack, cause: "handoff undone (crashed)"},
		{name: "undone, and noticed", handle: func(w http.ResponseWriter, r *http.Request, during bool) {
			if during {
				hangUp(w)
			}
		}, react: func(p *provable) {
			p.fork()
			time.Sleep(30 * time.Millisecond)
			p.end(control.Outcome{Reason: "crashed"}, control.Idle)
		}, outcome: proveUndone, code: ExitRolledBack, cause: "lost"},
		{name: "the new process dies later", react: func(p *provable) {
			p.commit()
			p.runtime.become(func(s *control.Status) { s.Phase, s.TookOver = control.Idle, true })
		}, outcome: proveUndone, code: ExitRolledBack, cause: "took its connections back"},
		{name: "the old process stays", setup: func(p *provable) { p.options.Timeout = 20 * time.Millisecond },
			react: func(p *provable) { p.commit() }, outcome: proveUnfinished, code: ExitDeadline, cause: "still has connections"},
		{name: "the main process goes away", react: func(p *provable) {
			p.runtime.mu.Lock()
			p.runtime.status.PID, p.runtime.status.Generation = 5555, 1
			p.runtime.mu.Unlock()
			p.runtime.hangUp()
		}, outcome: proveUnknown, code: ExitNotRestored, cause: "went away"},
		{name: "failures before", handle: func() func(w http.ResponseWriter, r *http.Request, during bool) {
			var n atomic.Int64
			return func(w http.ResponseWriter, r *http.Request, during bool) {
				if n.Add(1)%5 == 0 {
					hangUp(w)
				}
			}
		}(), outcome: proveRefused, code: ExitRefused, cause: "requests fail without a handoff"},
		{name: "no answer at all", handle: func(w http.ResponseWriter, r *http.Request, during bool) { hangUp(w) }, code: ExitRefused, cause: "GET http://127.0.0.1"},
		{name: "nobody there", setup: func(p *provable) { p.options.URL = "http://127.0.0.1:1" }, code: ExitRefused, cause: "connection refused"},
		{name: "a handoff already", setup: func(p *provable) { p.runtime.status.Phase = control.Held }, code: ExitBusy, cause: "a handoff of web is in progress"},
		{name: "an old process still", setup: func(p *provable) { p.runtime.status.Predecessor = &control.Peer{PID: 7} }, code: ExitBusy, cause: "in progress"},
		{name: "another's address", setup: func(p *provable) { p.runtime.status.Sockets[0].Address = "192.0.2.1:80" }, code: ExitRefused, cause: "no address of this host"},
		{name: "no socket", setup: func(p *provable) { p.runtime.status.Sockets = nil }, code: ExitRefused, cause: "no stream socket"},
		{name: "no runtime", setup: func(p *provable) { p.runtime.status.PID = 4242 }, code: ExitRefused, cause: "pid 4242 answers"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			handle := tt.handle
			if handle == nil {
				handle = fine
			}
			p := newProvable(t, handle)
			if tt.setup != nil {
				tt.setup(p)
			}
			var react func()
			if tt.react != nil {
				react = func() { tt.react(p) }
			}
			d, code := p.run(t, t.Context(), react)
			if code != tt.code || d.Outcome != tt.outcome {
				t.Errorf("exit %d, outcome %q; want %d, %q", code, d.Outcome, tt.code, tt.outcome)
			}
			if told := p.errs.String(); tt.cause != "" && (!strings.Contains(told, tt.cause) || !strings.Contains(told, "\nhint: ")) {
				t.Errorf("%q or the hint is missing in\n%s", tt.cause, told)
			}
			if d.Outcome != "" && tt.code != ExitOK && !strings.Contains(d.Cause, tt.cause) {
				t.Errorf("%q is missing in %q", tt.cause, d.Cause)
			}
			if tt.warning != strings.Join(d.Warnings, "") && !strings.Contains(strings.Join(d.Warnings, "\n"), tt.warning) {
				t.Errorf("warnings %q, want %q", d.Warnings, tt.warning)
			}
			if tt.name == "connections are closed politely" && (d.During.PoliteCloses == 0 || d.During.Reconnected == 0) {
				t.Errorf("%+v", d.During)
			}
		})
	}
}

// Ctrl-C ends the clients at once, and what they saw is told all the same.
func TestProveInterrupted(t *testing.T) {
	entered, never := make(chan struct{}, 1), make(chan struct{})
	var n atomic.Int64
	p := newProvable(t, func(w http.ResponseWriter, r *http.Request, during bool) {
		if n.Add(1) > 20 {
			select {
			case entered <- struct{}{}:
			default:
			}
			<-never
		}
	})
	defer close(never)
	p.options.Duration = time.Hour
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		<-entered
		cancel(signalled{syscall.SIGINT})
	}()
	began := time.Now()
	d, code := p.run(t, ctx, nil)
	if code != ExitInt || d.Outcome != proveInterrupted || d.Failed > 0 || d.Requests == 0 || d.Changed {
		t.Errorf("exit %d: %+v\n%s", code, d, p.errs)
	}
	if time.Since(began) > requestTimeout/2 {
		t.Error("it waited for the service")
	}
}

func TestProveLockedAndDrifted(t *testing.T) {
	p := newProvable(t, fine)
	l, err := release.Acquire(t.Context(), p.host.paths.Lock("web"), release.Holder{Who: release.Identify()}, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, code := p.run(t, t.Context(), nil); code != ExitBusy || !strings.Contains(p.errs.String(), "locked by pid") {
		t.Errorf("exit %d: %s", code, p.errs)
	}
	if err := l.Release(); err != nil {
		t.Fatal(err)
	}
	p = newProvable(t, fine)
	current := p.host.deploy(t, "web")
	p.runtime.status.Exe = filepath.Join(p.host.paths.StateDir("web"), "releases", "20260101T000000Z-0123456789ab", "web")
	if _, code := p.run(t, t.Context(), nil); code != ExitRefused || !strings.Contains(p.errs.String(), "would start release "+current.ID) {
		t.Errorf("exit %d: %s", code, p.errs)
	}
}

func TestProveFlags(t *testing.T) {
	good := proveOptions{Path: "/", Clients: 16, Think: 20 * time.Millisecond, Duration: time.Second, Handoffs: 1, Timeout: time.Minute}
	if err := good.check(false); err != nil {
		t.Error(err)
	}
	for _, tt := range []struct {
		name   string
		change func(o *proveOptions)
	}{
		{"no client", func(o *proveOptions) { o.Clients = 0 }},
		{"too many clients", func(o *proveOptions) { o.Clients = 1001 }},
		{"no pause", func(o *proveOptions) { o.Think = 0 }},
		{"no time", func(o *proveOptions) { o.Duration = 0 }},
		{"no handoff", func(o *proveOptions) { o.Handoffs = 0 }},
		{"relative path", func(o *proveOptions) { o.Path = "healthz" }},
		{"host as path", func(o *proveOptions) { o.Path = "//example.com/" }},
		{"header in the path", func(o *proveOptions) { o.Path = "/ HTTP/1.1\r\nX: y" }},
		{"space in the path", func(o *proveOptions) { o.Path = "/a?b=c d" }},
		{"space in the URL", func(o *proveOptions) { o.URL = "http://example.com/a?b=c d" }},
		{"TLS", func(o *proveOptions) { o.URL = "https://example.com/" }},
		{"no scheme", func(o *proveOptions) { o.URL = "example.com" }},
		{"no host", func(o *proveOptions) { o.URL = "http:///path" }},
		{"a user", func(o *proveOptions) { o.URL = "http://me:secret@example.com/" }},
		{"a header", func(o *proveOptions) { o.URL = "http://example.com/\r\nX: y" }},
		{"relative socket", func(o *proveOptions) { o.URL = "unix:web.sock" }},
	} {
		o := good
		tt.change(&o)
		if err := o.check(false); codeOf(err) != ExitUsage {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	o := good
	o.URL = "http://example.com/x"
	if err := o.check(true); codeOf(err) != ExitUsage {
		t.Error("two paths are taken")
	}
}
