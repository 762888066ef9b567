package upgrade

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
)

// proxy stands between zdt and the runtime and misbehaves on demand: it sees
// every request and every answer.
type proxy struct {
	t    *testing.T
	dir  string
	ln   net.Listener
	wg   sync.WaitGroup
	mu   sync.Mutex
	open map[net.Conn]struct{}

	// request returns false to hang up in place of passing the request on;
	// answer returns false to hang up in place of the answer. Both may block.
	request func(control.Request) bool
	answer  func(op string, r *control.Response) bool
}

func newProxy(w *world) *proxy {
	p := &proxy{t: w.t, dir: w.dir, open: map[net.Conn]struct{}{},
		request: func(control.Request) bool { return true }, answer: func(string, *control.Response) bool { return true }}
	var err error
	if p.ln, err = net.Listen("unix", filepath.Join(w.dir, "proxy")); err != nil {
		w.t.Fatal(err)
	}
	p.wg.Add(1)
	go func() {
		defer p.wg.Done()
		for {
			c, err := p.ln.Accept()
			if err != nil {
				return
			}
			p.wg.Add(1)
			go p.serve(c)
		}
	}()
	w.t.Cleanup(func() {
		p.ln.Close()
		p.hangUp()
		p.wg.Wait()
	})
	w.host.Control = func(ctx context.Context) (*control.Client, error) {
		return control.Dial(ctx, filepath.Join(w.dir, "proxy"))
	}
	return p
}

func (p *proxy) hangUp() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.open {
		c.Close()
	}
}

func (p *proxy) keep(c net.Conn) (done func()) {
	p.mu.Lock()
	p.open[c] = struct{}{}
	p.mu.Unlock()
	return func() {
		p.mu.Lock()
		delete(p.open, c)
		p.mu.Unlock()
		c.Close()
	}
}

func (p *proxy) serve(c net.Conn) {
	defer p.wg.Done()
	defer p.keep(c)()
	up, err := net.Dial("unix", filepath.Join(p.dir, "control.sock"))
	if err != nil {
		return
	}
	defer p.keep(up)()
	from, to := bufio.NewReader(c), bufio.NewReader(up)
	for {
		line, err := control.ReadLine(from)
		if err != nil {
			return
		}
		var req control.Request
		if json.Unmarshal(line, &req) != nil || !p.request(req) {
			return
		}
		up.Write(append(line, '\n'))
		if req.Op == control.OpWatch {
			p.wg.Add(1)
			go func() { // the client's end
				defer p.wg.Done()
				c.Read(make([]byte, 1))
				up.Close()
			}()
		}
		for first := true; first || req.Op == control.OpWatch; first = false {
			line, err := control.ReadLine(to)
			if err != nil {
				return
			}
			var resp control.Response
			if json.Unmarshal(line, &resp) != nil || !p.answer(req.Op, &resp) {
				return
			}
			out, _ := json.Marshal(resp)
			c.Write(append(out, '\n'))
		}
	}
}

func TestRuntimeMisbehaves(t *testing.T) {
	for _, tt := range []struct {
		name    string
		script  func(w *world, p *proxy)
		outcome Outcome
		phase   Phase
		reason  string
		text    string // in the cause or the warnings
	}{
		{"arm is refused", func(w *world, p *proxy) {
			p.answer = func(op string, r *control.Response) bool {
				if op == control.OpArm {
					r.Code, r.Error = control.CodeBusy, "armed for another transaction"
				}
				return true
			}
		}, Refused, Trigger, "", "armed for another transaction"},
		{"arm is not answered", func(w *world, p *proxy) {
			p.request = func(r control.Request) bool { return r.Op != control.OpArm }
		}, Refused, Trigger, "", "prepare the handoff"},
		{"the answer to arm is lost", func(w *world, p *proxy) {
			p.answer = func(op string, _ *control.Response) bool { return op != control.OpArm }
		}, Refused, Trigger, "", "prepare the handoff"},
		{"watch ends at once", func(w *world, p *proxy) {
			p.request = func(r control.Request) bool { return r.Op != control.OpWatch }
		}, Refused, Trigger, "", "watch the runtime"},
		{"watch ends in the middle", func(w *world, p *proxy) {
			p.answer = func(op string, r *control.Response) bool {
				return op != control.OpWatch || r.Status.Phase != control.Held
			}
		}, RolledBack, Listen, reasonControlLost, "the control connection to the running process"},
		{"the hold expires", func(w *world, p *proxy) {
			w.at(Bake, func() {
				// As if 15 s had passed: the runtime's account is the same.
				w.command(func(c *control.Client) { c.Abort(w.t.Context(), "", "x") })
			})
			p.answer = func(op string, r *control.Response) bool {
				if l := r.Status.Last; l != nil && l.Reason == "requested" {
					l.Reason, l.Detail = "hold-timeout", "nobody committed the candidate in time"
				}
				return true
			}
		}, RolledBack, Bake, "hold-timeout", "nobody committed the candidate in time"},
		{"the commit is not passed on", func(w *world, p *proxy) {
			p.request = func(r control.Request) bool { return r.Op != control.OpCommit }
		}, RolledBack, Commit, reasonControlLost, "no answer to the commit"},
		{"the answer to the commit is lost", func(w *world, p *proxy) {
			p.answer = func(op string, _ *control.Response) bool { return op != control.OpCommit }
		}, Upgraded, "", "", "serves as the main process all the same"},
		{"all connections break in the drain", func(w *world, p *proxy) {
			w.at(Drain, p.hangUp)
		}, Upgraded, "", "", ""},
		{"somebody else commits", func(w *world, p *proxy) {
			w.at(Bake, func() { w.command(func(c *control.Client) { c.Commit(w.t.Context(), "") }) })
		}, Upgraded, "", "", "serves as the main process all the same"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			p := newProxy(w)
			tt.script(w, p)
			e := w.engine(program(t, "good", "v2"))
			e.slack = time.Second
			rep := e.Run(t.Context())
			w.want(rep, tt.outcome, tt.phase, tt.reason)
			wantText(t, "cause and warnings", rep.Cause+strings.Join(rep.Warnings, "\n"), tt.text)
			if tt.outcome == Upgraded {
				w.wantServing("v2")
			} else {
				w.wantOld()
			}
			w.wantNextWorks()
		})
	}
}

// A runtime that stops answering costs the operator some seconds, not for ever.
func TestRuntimeHangs(t *testing.T) {
	for _, op := range []string{control.OpStatus, control.OpWatch, control.OpArm, control.OpCommit} {
		t.Run(op, func(t *testing.T) {
			w := newWorld(t)
			p := newProxy(w)
			released := make(chan struct{})
			var once, first sync.Once
			release := func() { once.Do(func() { close(released) }) }
			t.Cleanup(release)
			p.request = func(r control.Request) bool {
				if r.Op == op {
					hang := false
					first.Do(func() { hang = true })
					if hang {
						<-released
						return false
					}
				}
				return true
			}
			e := w.engine(program(t, "good", "v2"))
			e.slack = 200 * time.Millisecond
			rep := e.Run(t.Context())
			release()
			switch op {
			case control.OpCommit:
				w.want(rep, RolledBack, Commit, reasonControlLost)
				if told := strings.Join(rep.Warnings, "\n"); strings.Contains(told, "could not be aborted") {
					t.Errorf("the abort got the answer to the commit, or none: %s", told)
				}
			case control.OpStatus:
				w.want(rep, Refused, Preflight, "")
			default:
				w.want(rep, Refused, Trigger, "")
			}
			w.wantOld()
			w.wantNextWorks()
		})
	}
}

// The incumbent keeps an undone candidate until the connections are finished
// that it has accepted. That may take hours and is no reason to page anyone.
func TestUndoneCandidateStaysForItsConnections(t *testing.T) {
	w := newWorld(t)
	w.at(Bake, func() {
		w.block() // the candidate accepts it
		w.command(func(c *control.Client) { c.Abort(t.Context(), "", "not today") })
	})
	e := w.engine(program(t, "good", "v2"))
	e.slack, e.Options.Bake = 200*time.Millisecond, 10*time.Second
	rep := e.Run(t.Context())
	w.want(rep, RolledBack, Bake, "requested")
	wantText(t, "warnings", strings.Join(rep.Warnings, "\n"), "still finishes the connections")
	w.wantOld()
	if s := w.status(); s.Phase != control.Aborting {
		t.Errorf("the runtime is %s", s.Phase)
	}
}

func TestMeetRejectsStrangers(t *testing.T) {
	w := newWorld(t)
	unit, _, _ := w.systemd.state()
	e := &evidence{unit: unit, status: control.Status{Handoff: &control.Handoff{Candidate: 1}}}
	if err := e.meet(w.host); err == nil || e.candidate != nil {
		t.Errorf("process 1 is the candidate: %v", err)
	}
	w.host.InUnit = func(int, Unit) (bool, error) { return false, errors.New("cannot read") }
	if err := e.meet(w.host); err == nil || e.candidate != nil {
		t.Errorf("nobody knows where process 1 is: %v", err)
	}
	e.status.Handoff.Candidate = 1 << 22 // beyond any pid
	if err := e.meet(w.host); err != nil || !e.candidateGone() {
		t.Errorf("a candidate that is gone: %v", err)
	}
}

// What the incumbent said last arrives after the news of its death, and counts.
func TestLastWordsComeLate(t *testing.T) {
	w := newWorld(t, "ZDT_DRAIN_TIMEOUT=300ms")
	w.block()
	p := newProxy(w)
	incumbent, err := openProcess(w.systemd.mainPID())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(incumbent.close)
	p.answer = func(op string, r *control.Response) bool {
		if op == control.OpWatch && r.Status.Phase == control.Exited {
			<-incumbent.gone
			pause(t.Context(), 5*poll) // late, and well within endGrace
		}
		return true
	}
	rep := w.upgrade(program(t, "good", "v2"))
	w.want(rep, Upgraded, "", "")
	w.wantSmooth(rep)
	if rep.Connections == nil || rep.Connections.Cut != 1 || strings.Contains(strings.Join(rep.Warnings, "\n"), "last word") {
		t.Errorf("connections %+v, warnings %q", rep.Connections, rep.Warnings)
	}
}
