package cmd

import (
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
)

// onHandoffSignal runs react for the first SIGUSR2 that reaches this process,
// which plays the service's main process.
func onHandoffSignal(t *testing.T, react func()) {
	t.Helper()
	signals, stop, ended := make(chan os.Signal, 4), make(chan struct{}), make(chan struct{})
	signal.Notify(signals, syscall.SIGUSR2)
	go func() {
		defer close(ended)
		select {
		case <-signals:
			react()
		case <-stop:
		}
	}()
	t.Cleanup(func() { signal.Stop(signals); close(stop); <-ended })
}

func TestHandoff(t *testing.T) {
	txid := func(s *control.Status) string {
		if s.Armed == nil {
			return ""
		}
		return s.Armed.TxID
	}
	fork := func(s *control.Status) {
		s.Handoff = &control.Handoff{TxID: txid(s), Exe: "/srv/web", Candidate: 4242, StartedAt: day, Hold: s.Armed.Hold}
		s.Armed, s.Phase, s.Attempts = nil, control.Forked, s.Attempts+1
	}
	end := func(o control.Outcome, p control.Phase) func(s *control.Status) {
		return func(s *control.Status) {
			o.TxID, o.Candidate = s.Handoff.TxID, s.Handoff.Candidate
			s.Last, s.Handoff, s.Phase = &o, nil, p
		}
	}
	for _, tt := range []struct {
		name   string
		before func(r *fakeRuntime)
		react  func(r *fakeRuntime) // to SIGUSR2; nil: it must not come
		reload bool
		code   ExitCode
		out    string // contained in stdout, or stderr of a failure
	}{
		{name: "committed", react: func(r *fakeRuntime) {
			r.become(fork)
			r.become(end(control.Outcome{Committed: true, ReadyAfter: 14 * time.Millisecond}, control.Draining))
		}, code: ExitOK, out: "→ 4242 · generation 4 · ready after 14 ms · drains: 30 idle, 7 active\n"},
		{name: "drained", react: func(r *fakeRuntime) {
			r.become(fork)
			r.become(end(control.Outcome{Committed: true, ReadyAfter: 14 * time.Millisecond}, control.Draining))
			r.become(func(s *control.Status) {
				s.Phase, s.Connections = control.Exited, control.Counts{Moved: 312, Drained: 4, Closed: 2}
			})
		}, code: ExitOK, out: "→ 4242 · generation 4 · ready after 14 ms · 312 connections moved, 4 drained, 2 closed politely, 0 cut\n"},
		{name: "cut", react: func(r *fakeRuntime) {
			r.become(fork)
			r.become(end(control.Outcome{Committed: true}, control.Draining))
			r.become(func(s *control.Status) { s.Phase, s.Connections = control.Exited, control.Counts{Cut: 1} })
		}, code: ExitOK, out: "warning: 1 connection cut"},
		{name: "gone in the drain", react: func(r *fakeRuntime) {
			r.become(fork)
			r.become(end(control.Outcome{Committed: true}, control.Draining))
			r.hangUp()
		}, code: ExitOK, out: "ready after 0 ms\n"},
		{name: "taken back", react: func(r *fakeRuntime) {
			r.become(fork)
			r.become(end(control.Outcome{Committed: true}, control.Draining))
			r.become(func(s *control.Status) {
				l := *s.Last
				l.Committed, l.Reason, l.Detail, l.Lost = false, "crashed", "the new main process ended (killed, SEGV)", 3
				s.Phase, s.Last, s.TookOver = control.Idle, &l, true
			})
		}, code: ExitRolledBack, out: "handoff undone (crashed): the new main process ended (killed, SEGV)"},
		{name: "undone", react: func(r *fakeRuntime) {
			r.become(fork)
			r.become(end(control.Outcome{Reason: "crashed", Detail: "the candidate ended (exited, 1)"}, control.Idle))
		}, code: ExitRolledBack, out: "handoff undone (crashed): the candidate ended (exited, 1)"},
		{name: "stopped", react: func(r *fakeRuntime) {
			r.become(fork)
			r.become(end(control.Outcome{Reason: "stopping"}, control.Stopping))
		}, code: ExitNotRestored, out: "handoff undone (stopping)"},
		{name: "busy", before: func(r *fakeRuntime) {
			r.refuse = &control.Response{Code: control.CodeBusy, Error: "a handoff is in progress"}
		}, code: ExitBusy, out: "handoff refused: a handoff is in progress"},
		{name: "not ready", before: func(r *fakeRuntime) {
			r.refuse = &control.Response{Code: control.CodeNotReady, Error: "the service stops"}
		}, code: ExitRefused, out: "handoff refused: the service stops"},
		{name: "refused late", react: func(r *fakeRuntime) {
			r.become(func(s *control.Status) { s.Refused, s.LastRefusal = 1, "the predecessor still drains" })
		}, code: ExitBusy, out: "the predecessor still drains"},
		{name: "deaf", react: func(r *fakeRuntime) {
			r.become(func(s *control.Status) { s.Armed = nil }) // the arming expired
		}, code: ExitRefused, out: "did not react to SIGUSR2"},
		{name: "gone, the successor answers", react: func(r *fakeRuntime) {
			r.mu.Lock()
			r.status.PID, r.status.Generation, r.status.Armed = 4242, 4, nil
			r.mu.Unlock()
			r.hangUp()
		}, code: ExitOK, out: "generation 4"},
		{name: "gone", react: func(r *fakeRuntime) {
			r.mu.Lock()
			r.status.PID, r.status.Generation = 5555, 1 // systemd started it anew
			r.mu.Unlock()
			r.hangUp()
		}, code: ExitNotRestored, out: "went away during the handoff"},
		{name: "other pid", before: func(r *fakeRuntime) { r.status.PID = 4242 }, code: ExitRefused, out: "pid 4242 answers at the control socket"},
		{name: "held for an upgrade", reload: true, before: func(r *fakeRuntime) {
			r.status.Armed = &control.Arm{TxID: "upgrade's", Hold: true}
		}, react: func(r *fakeRuntime) {
			r.become(fork)
			r.become(func(s *control.Status) { s.Phase, s.Handoff.ReadyAt = control.Held, day.Add(time.Millisecond) })
		}, code: ExitOK, out: "ready and on probation"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f, out, errs := testFactory(t, false)
			h := newHost(t, f)
			h.running("web")
			r := &fakeRuntime{status: idle("web")}
			if tt.before != nil {
				tt.before(r)
			}
			r.serve(t, h.paths.Control("web"))
			react := tt.react
			if react == nil {
				react = func(*fakeRuntime) { t.Error("a signal was sent") }
			}
			onHandoffSignal(t, func() { react(r) })
			args := []string{"handoff", "--user", "web"}
			if tt.reload {
				env := f.getenv
				f.getenv = func(name string) string {
					switch name {
					case "MAINPID":
						return itoa(os.Getpid())
					case "RUNTIME_DIRECTORY":
						return strings.TrimSuffix(h.paths.Control("web"), "/control.sock") + ":/run/other"
					}
					return env(name)
				}
				args = []string{"handoff"}
			}
			if code := execute(t.Context(), f, args); code != tt.code {
				t.Errorf("exit %d, want %d", code, tt.code)
			}
			if !strings.Contains(out.String()+errs.String(), tt.out) {
				t.Errorf("%q is missing in\n%s%s", tt.out, out, errs)
			}
			if tt.code != ExitOK && (out.Len() > 0 || !strings.Contains(errs.String(), "\nhint: ")) {
				t.Errorf("a failure without a hint, or with data: %q %q", out, errs)
			}
			if arms := slices.Contains(r.asked, control.OpArm); tt.reload && arms {
				t.Error("armed over the upgrade's arming")
			}
		})
	}
}

// Nothing is signalled that has no runtime: SIGUSR2 kills such a program.
func TestHandoffWithoutRuntime(t *testing.T) {
	f, _, errs := testFactory(t, false)
	h := newHost(t, f)
	h.running("web")
	onHandoffSignal(t, func() { t.Error("a signal was sent") })
	if code := execute(t.Context(), f, []string{"handoff", "--user", "web"}); code != ExitRefused {
		t.Errorf("exit %d: %s", code, errs)
	}
	if !strings.Contains(errs.String(), "has no zdt runtime") {
		t.Error(errs)
	}
}

func TestHandoffTimeout(t *testing.T) {
	f, _, errs := testFactory(t, false)
	h := newHost(t, f)
	h.running("web")
	(&fakeRuntime{status: idle("web")}).serve(t, h.paths.Control("web"))
	onHandoffSignal(t, func() {})
	if code := execute(t.Context(), f, []string{"handoff", "--user", "web", "--timeout", "50ms"}); code != ExitDeadline {
		t.Errorf("exit %d: %s", code, errs)
	}
}
