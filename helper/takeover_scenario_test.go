//go:build linux

package helper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/handoff"
	"github.com/zdt-dev/zdt/handoff/control"
)

// Takeovers between helpers, each a process with a systemd and a directory of its own, as a container has.

// meet starts the first helper of a service.
func meet(t *testing.T, c stageConfig, more ...func(*exec.Cmd)) *stage {
	t.Helper()
	t.Parallel()
	dir, err := os.MkdirTemp("", "zdt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	c.Takeover = filepath.Join(dir, "takeover")
	s := raise(t, c, more...)
	st := s.await("up", func(st control.Status) bool { return st.Phase == control.Idle })
	s.addr = st.Sockets[0].Address
	return s
}

// beside starts another helper of the same service, and does not wait.
func (s *stage) beside(c stageConfig, more ...func(*exec.Cmd)) *stage {
	s.t.Helper()
	c.Takeover = s.Takeover
	n := raise(s.t, c, more...)
	n.addr = s.addr
	return n
}

// holdTakeover arms s to hold the next takeover, starts another helper and waits until it is held.
func (s *stage) holdTakeover(c stageConfig, more ...func(*exec.Cmd)) *stage {
	s.t.Helper()
	s.arm(control.Arm{Hold: true, HoldFor: patience})
	n := s.beside(c, more...)
	s.await("held", func(st control.Status) bool { return st.Phase == control.Held })
	return n
}

// failed waits until the helper has ended with status 1, and returns what it said.
func (s *stage) failed() string {
	s.t.Helper()
	s.awaitExit("exited 1")
	text, err := os.ReadFile(s.path("stderr"))
	if err != nil {
		s.t.Fatal(err)
	}
	return string(text)
}

// crash ends the helper, and its program, as a container ends with its first process.
func (s *stage) crash() {
	s.t.Helper()
	s.signal(s.pid(), unix.SIGKILL)
	<-s.ended
	for _, pid := range s.processes() {
		unix.Kill(pid, unix.SIGKILL)
	}
	eventually(s.t, "nothing is left", func() bool { return len(s.processes()) == 0 })
	left, _ := filepath.Glob(s.path("*.sock"))
	for _, path := range left {
		os.Remove(path)
	}
}

// awaitObedient waits until a program does what it is told.
func (s *stage) awaitObedient(app int) {
	s.t.Helper()
	eventually(s.t, fmt.Sprintf("process %d obeys", app), func() bool {
		_, err := os.Stat(s.path(fmt.Sprintf("app-%d.sock", app)))
		return err == nil
	})
}

// saidReady reports whether the helper has said READY to its systemd.
func (s *stage) saidReady() bool {
	return slices.ContainsFunc(s.said(), func(w string) bool { return strings.HasPrefix(w, "READY=1") })
}

// nextTakeoverWorks is what every failure ends with.
func (s *stage) nextTakeoverWorks() *stage {
	s.t.Helper()
	generation := s.await("idle", func(st control.Status) bool { return st.Phase == control.Idle && st.Predecessor == nil }).Generation + 1
	n := s.beside(stageConfig{})
	n.awaitGeneration(generation)
	s.awaitExit("exited 0")
	n.answers()
	return n
}

// answers checks that the program of s answers.
func (s *stage) answers() {
	s.t.Helper()
	st := s.await("there", func(control.Status) bool { return true })
	if pid, err := s.get("/"); err != nil || pid != st.App {
		s.t.Errorf("%d answers, %v; want %d", pid, err, st.App)
	}
}

// Everything crosses over, and goes on to cross: to a helper that asks, to the next group under it, to a newer
// helper in its place, and to one that asks that.
func TestTakeover(t *testing.T) {
	a := meet(t, stageConfig{Listen: []Listen{{"other", "tcp", "127.0.0.1:0"}}})
	first := a.await("up", func(control.Status) bool { return true })
	answered := a.hang(first.App)

	b := a.beside(stageConfig{Listen: []Listen{{"more", "tcp", "127.0.0.1:0"}}})
	second := b.await("the service", func(st control.Status) bool { return st.Phase == control.Idle && st.Generation == 2 })
	if second.PID != b.pid() || second.Predecessor == nil || second.Predecessor.Generation != 1 {
		t.Errorf("%+v, predecessor %+v", second, second.Predecessor)
	}
	var sockets []string
	for i, s := range second.Sockets {
		sockets = append(sockets, s.Name+" "+s.Origin)
		if i < 2 && s.Address != first.Sockets[i].Address {
			t.Errorf("socket %+v, was %+v", s, first.Sockets[i])
		}
	}
	if want := []string{"http predecessor", "other predecessor", "more bound"}; !slices.Equal(sockets, want) {
		t.Errorf("sockets %q, want %q", sockets, want)
	}
	if st := a.await("draining", func(st control.Status) bool { return st.Phase == control.Draining }); !st.Last.Committed || st.App != first.App {
		t.Errorf("%+v, last %+v", st, st.Last)
	}
	a.tell(first.App, "release")
	if err := <-answered; err != nil {
		t.Errorf("the request across the takeover: %v", err)
	}
	a.awaitExit("exited 0")
	b.awaitGeneration(2)
	b.answers()
	for _, s := range []*stage{a, b} {
		if !s.saidReady() {
			t.Errorf("systemd heard %q", s.said())
		}
	}
	for kind, want := range map[string][]string{"fork": {"fork 1"}, "listen": {"listen 2 http:other"}, "drain": {"drain 1"}, "exit": {"exit 1 exited 0"}} {
		fields := map[string][]string{"listen": {"LISTEN_FDNAMES"}, "exit": {"EXIT_CODE", "EXIT_STATUS"}}[kind]
		if got := a.events(kind, fields...); !slices.Equal(got, want) {
			t.Errorf("events %q, want %q", got, want)
		}
	}
	before := b.descriptors()

	b.signal(b.pid(), unix.SIGUSR2)
	b.awaitGeneration(3)
	path, err := os.Stat(a.Takeover)
	if err != nil {
		t.Fatal(err)
	}
	b.signal(b.pid(), unix.SIGHUP)
	if st := b.await("renewed", func(st control.Status) bool { return st.Helper.Renewals == 1 }); st.Sockets[1].Origin != "predecessor" || st.Sockets[2].Origin != "bound" {
		t.Errorf("%+v", st.Sockets)
	}
	if now, err := os.Stat(a.Takeover); err != nil || !os.SameFile(path, now) {
		t.Errorf("the takeover socket is another one, %v", err)
	}
	eventually(t, "the descriptors are those of before", func() bool { return b.descriptors() <= before })

	c := b.nextTakeoverWorks()
	c.signal(c.pid(), unix.SIGTERM)
	c.awaitExit("exited 0")
	for _, path := range []string{a.Takeover, c.path("control.sock")} {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s after the end of the service: %v", path, err)
		}
	}
	a.beside(stageConfig{}).awaitGeneration(1)
}

// Old and new helper with one control socket: it is answered by whoever is the service, at every moment.
func TestTakeoverSharesControlSocket(t *testing.T) {
	a := meet(t, stageConfig{})
	same := stageConfig{Control: a.path("control.sock")}
	n := a.holdTakeover(same)
	if st := a.await("held", func(control.Status) bool { return true }); st.PID != a.pid() || st.Phase != control.Held {
		t.Errorf("before the commit: %+v", st)
	}
	if _, err := a.abort("tx"); err != nil {
		t.Fatal(err)
	}
	n.failed()
	a.awaitUndone("requested")
	n = a.beside(same)
	if st := a.awaitGeneration(2); st.PID != n.pid() {
		t.Errorf("after the commit: %+v", st)
	}
	a.awaitExit("exited 0")
	n.signal(n.pid(), unix.SIGTERM)
	n.awaitExit("exited 0")
	if _, err := os.Lstat(same.Control); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the control socket after the end of the service: %v", err)
	}
}

// What is decided about a takeover that is held.
func TestTakeoverHeld(t *testing.T) {
	a := meet(t, stageConfig{Pause: unix.SIGWINCH, Resume: unix.SIGHUP})
	first := a.await("up", func(control.Status) bool { return true })
	n := a.holdTakeover(stageConfig{})
	a.awaitNote(first.App, "window changed")
	st := a.await("held", func(control.Status) bool { return true })
	if st.Handoff == nil || st.Handoff.ReadyAt.IsZero() || st.Handoff.Deadline.IsZero() || !strings.HasSuffix(st.Handoff.Exe, "/app") || st.Generation != 1 {
		t.Errorf("%+v, handoff %+v", st, st.Handoff)
	}
	if st := n.await("a candidate", func(st control.Status) bool { return st.Phase == control.Candidate }); st.Generation != 2 || st.Predecessor == nil || n.saidReady() {
		t.Errorf("%+v; systemd heard %q", st, n.said())
	}
	n.signal(n.pid(), unix.SIGUSR2)
	n.await("refused", func(st control.Status) bool {
		return st.Refused == 1 && strings.Contains(st.LastRefusal, "not committed yet")
	})
	if _, err := a.commit("other"); err == nil {
		t.Error("somebody else has committed it")
	}
	if _, err := a.abort("tx"); err != nil {
		t.Fatal(err)
	}
	a.awaitUndone("requested")
	a.awaitNote(first.App, "hangup")
	if text := n.failed(); !strings.Contains(text, "the takeover was undone (requested)") || n.saidReady() {
		t.Errorf("it said %s; systemd heard %q", text, n.said())
	}
	a.answers()

	n = a.holdTakeover(stageConfig{})
	if _, err := a.commit("tx"); err != nil {
		t.Fatal(err)
	}
	a.awaitExit("exited 0")
	n.awaitGeneration(2)
	eventually(t, "systemd hears READY", n.saidReady)
	n.nextTakeoverWorks()
}

// Whatever becomes of the one that asks, the one that serves serves on.
func TestGuestFails(t *testing.T) {
	starting := func(a *stage, c stageConfig) *stage {
		n := a.beside(c)
		n.awaitObedient(n.await("starting", func(st control.Status) bool { return st.Phase == control.Starting }).App)
		a.await("asked", func(st control.Status) bool { return st.Phase == control.Forked })
		return n
	}
	var many []Listen
	for i := range 30 {
		many = append(many, Listen{fmt.Sprint("s", i), "tcp", "127.0.0.1:0"})
	}
	for _, tt := range []struct {
		name           string
		cfg            stageConfig
		do             func(t *testing.T, a *stage)
		reason, detail string
	}{
		{name: "helper killed before READY", reason: "crashed", detail: "let go of the link", do: func(t *testing.T, a *stage) {
			n := starting(a, stageConfig{Program: "mute"})
			n.crash()
		}},
		{name: "helper killed while held", reason: "crashed", detail: "let go of the link", do: func(t *testing.T, a *stage) {
			n := a.holdTakeover(stageConfig{})
			n.crash()
		}},
		{name: "program crashes", reason: "exited", detail: "the program ended (exited 7)", do: func(t *testing.T, a *stage) {
			a.beside(stageConfig{Program: "crash"}).awaitExit("exited 7")
		}},
		{name: "program ends with status 0", reason: "exited", detail: "the program ended (exited 0)", do: func(t *testing.T, a *stage) {
			a.beside(stageConfig{Script: "exit 0"}).failed()
		}},
		{name: "program is not there", reason: "exited", detail: "no such file", do: func(t *testing.T, a *stage) {
			a.beside(stageConfig{Command: "/no/such/program"}).failed()
		}},
		{name: "program crashes while held", reason: "crashed", detail: "let go of the link", do: func(t *testing.T, a *stage) {
			n := a.holdTakeover(stageConfig{})
			n.tell(n.await("there", func(control.Status) bool { return true }).App, "exit 0")
			n.failed()
		}},
		{name: "never ready, by its own clock", reason: "exited", detail: "not ready in time", do: func(t *testing.T, a *stage) {
			a.beside(stageConfig{Program: "mute", ReadyTimeout: 200 * time.Millisecond}).failed()
		}},
		{name: "never ready, by the other's clock", cfg: stageConfig{ReadyTimeout: 600 * time.Millisecond}, reason: "ready-timeout", do: func(t *testing.T, a *stage) {
			if text := a.beside(stageConfig{Program: "mute"}).failed(); !strings.Contains(text, "undone (ready-timeout)") {
				t.Errorf("it said %s", text)
			}
		}},
		{name: "never ready, but the program here answers", reason: "exited", detail: "not ready in time", do: func(t *testing.T, a *stage) {
			a.beside(stageConfig{Script: "exec sleep 1000", Ready: "tcp:" + a.addr, ReadyTimeout: 500 * time.Millisecond}).failed()
		}},
		{name: "nobody decides", reason: "hold-timeout", do: func(t *testing.T, a *stage) {
			a.arm(control.Arm{Hold: true, HoldFor: 100 * time.Millisecond})
			a.beside(stageConfig{}).failed()
		}},
		{name: "told to stop while it starts", reason: "exited", detail: "told to stop", do: func(t *testing.T, a *stage) {
			n := starting(a, stageConfig{Program: "mute"})
			n.signal(n.pid(), unix.SIGTERM)
			n.awaitExit("exited 0")
		}},
		{name: "told to stop while held", reason: "exited", detail: "told to stop", do: func(t *testing.T, a *stage) {
			n := a.holdTakeover(stageConfig{})
			n.signal(n.pid(), unix.SIGTERM)
			n.awaitExit("exited 0")
		}},
		{name: "hangs before READY", cfg: stageConfig{ReadyTimeout: time.Second}, reason: "ready-timeout", do: func(t *testing.T, a *stage) {
			n := starting(a, stageConfig{Program: "mute"})
			n.signal(n.pid(), unix.SIGSTOP)
			a.awaitUndone("ready-timeout")
			n.signal(n.pid(), unix.SIGCONT) // it must not believe the other one to be dead
			n.failed()
		}},
		{name: "hangs while held", cfg: stageConfig{DrainTimeout: 100 * time.Millisecond}, reason: "requested", do: func(t *testing.T, a *stage) {
			n := a.holdTakeover(stageConfig{})
			n.signal(n.pid(), unix.SIGSTOP)
			if _, err := a.abort("tx"); err != nil {
				t.Fatal(err)
			}
			a.awaitUndone("requested")
			n.signal(n.pid(), unix.SIGCONT)
			n.failed()
		}},
		{name: "short of descriptors", cfg: stageConfig{Listen: many}, reason: "exited", detail: "sockets came through: out of descriptors", do: func(t *testing.T, a *stage) {
			n := a.beside(stageConfig{}, func(cmd *exec.Cmd) {
				self, err := os.Executable()
				if err != nil {
					t.Fatal(err)
				}
				cmd.Args = append([]string{"sh", "-c", `ulimit -n 30; exec "$@"`, "sh", self}, cmd.Args[1:]...)
				cmd.Path = "/bin/sh"
			})
			n.failed()
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := meet(t, tt.cfg)
			first := a.await("up", func(control.Status) bool { return true })
			before := a.descriptors()
			tt.do(t, a)
			st := a.awaitUndone(tt.reason)
			if st.PID != a.pid() || st.App != first.App || st.Generation != 1 || !strings.Contains(st.Last.Detail, tt.detail) {
				t.Errorf("%+v, last %+v", st, st.Last)
			}
			a.answers()
			eventually(t, "the descriptors are those of before", func() bool { return a.descriptors() <= before })
			if tt.cfg.ReadyTimeout == 0 && tt.cfg.DrainTimeout == 0 {
				a.nextTakeoverWorks()
			}
		})
	}
}

// The new one is the service and dies while the old one still drains: the old program is started again, and taken over
// from again.
func TestGuestDiesInTheDrain(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(n *stage, app int)
	}{
		{"the helper", func(n *stage, app int) { n.crash() }},
		{"its program", func(n *stage, app int) { n.tell(app, "exit 3") }},
		{"its program, well", func(n *stage, app int) { n.tell(app, "exit 0") }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := meet(t, stageConfig{})
			first := a.await("up", func(control.Status) bool { return true })
			answered := a.hang(first.App)
			n := a.beside(stageConfig{})
			second := n.await("the service", func(st control.Status) bool { return st.Phase == control.Idle })
			a.awaitNote(first.App, "terminated")
			tt.do(n, second.App)
			<-n.ended
			st := a.await("taken back", func(st control.Status) bool { return st.Phase == control.Idle })
			if st.PID != a.pid() || !st.TookOver || st.Generation != 3 || st.App == first.App || st.Last.Committed || st.Last.Reason != "crashed" {
				t.Errorf("%+v, last %+v", st, st.Last)
			}
			a.answers()
			a.tell(first.App, "release")
			if err := <-answered; err != nil {
				t.Errorf("the request at the old program: %v", err)
			}
			a.nextTakeoverWorks()
		})
	}
}

// All workers are told to finish, and all are started again if it was in vain.
func TestTakeoverOfWorkers(t *testing.T) {
	a := meet(t, stageConfig{Workers: 3}, func(cmd *exec.Cmd) { cmd.Env = append(cmd.Env, "WATCHDOG_USEC=100000") })
	apps := func(st control.Status) (pids []int) {
		for _, w := range st.Workers.List {
			pids = append(pids, w.PID)
		}
		return pids
	}
	first := apps(a.await("up", func(control.Status) bool { return true }))
	hangs := make(chan error, 1)
	go func() {
		_, err := a.get("/hang")
		hangs <- err
	}()
	var busy int
	eventually(t, "one of them hangs", func() bool {
		for _, pid := range first {
			if a.noted(pid, "hangs") {
				busy = pid
			}
		}
		return busy != 0
	})
	n := a.beside(stageConfig{Workers: 2})
	if st := n.await("the service", func(st control.Status) bool { return st.Phase == control.Idle }); st.Workers.Ready != 2 || st.Generation != 2 {
		t.Errorf("%+v", st.Workers)
	}
	for _, pid := range first {
		a.awaitNote(pid, "terminated")
	}
	// They say nothing any more that counts, and systemd must not take that for a hang.
	was := a.beats()
	eventually(t, "the helper beats for them", func() bool { return a.beats() > was+2 })
	n.crash()
	st := a.await("taken back", func(st control.Status) bool { return st.Phase == control.Idle })
	if st.Workers.Ready != 3 || st.Generation != 3 || !st.TookOver {
		t.Errorf("%+v, %+v", st, st.Workers)
	}
	a.tell(busy, "release")
	if err := <-hangs; err != nil {
		t.Errorf("the request at the old program: %v", err)
	}
	st = a.await("alone", func(st control.Status) bool { return st.Predecessor == nil })
	for _, pid := range apps(st) {
		for _, old := range first {
			if pid == old {
				t.Errorf("worker %d is the one of before", pid)
			}
		}
	}
	n = a.beside(stageConfig{Workers: 2})
	n.awaitGeneration(4)
	a.awaitExit("exited 0")
	if pid, err := n.get("/"); err != nil || pid == 0 {
		t.Errorf("%d answers, %v", pid, err)
	}
}

// Once the sockets have crossed, the service lives, whatever becomes of the process that had them.
func TestHostDies(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(t *testing.T, a *stage) *stage
	}{
		{"before READY", func(t *testing.T, a *stage) *stage {
			n := a.beside(stageConfig{Program: "mute"})
			st := n.await("starting", func(st control.Status) bool { return st.Phase == control.Starting && st.Predecessor != nil })
			a.await("asked", func(st control.Status) bool { return st.Phase == control.Forked })
			a.crash()
			n.await("alone", func(st control.Status) bool { return st.Predecessor == nil })
			if n.saidReady() {
				t.Error("said READY before it was")
			}
			n.awaitObedient(st.App)
			n.tell(st.App, "say READY=1")
			return n
		}},
		{"while held", func(t *testing.T, a *stage) *stage {
			n := a.holdTakeover(stageConfig{})
			a.crash()
			return n
		}},
		{"its program, while held", func(t *testing.T, a *stage) *stage {
			n := a.holdTakeover(stageConfig{})
			a.tell(a.await("there", func(control.Status) bool { return true }).App, "exit 5")
			a.awaitExit("exited 5")
			return n
		}},
		{"in its drain", func(t *testing.T, a *stage) *stage {
			a.hang(a.await("up", func(control.Status) bool { return true }).App) // its connection breaks
			n := a.beside(stageConfig{})
			n.await("the service", func(st control.Status) bool { return st.Phase == control.Idle })
			a.crash()
			return n
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := meet(t, stageConfig{})
			n := tt.do(t, a)
			n.awaitGeneration(2)
			eventually(t, "systemd hears READY", n.saidReady)
			n.answers()
			n.nextTakeoverWorks()
		})
	}
}

// The one that serves is told to end during a takeover: so does the service, and the one that asks does not take that for
// a death.
func TestHostStops(t *testing.T) {
	t.Run("does not end in time", func(t *testing.T) {
		a := meet(t, stageConfig{Program: "stubborn", DrainTimeout: 300 * time.Millisecond})
		n := a.beside(stageConfig{})
		a.awaitExit("exited 0") // though its program was killed
		n.awaitGeneration(2)
	})
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGQUIT} {
		t.Run("held "+sig.String(), func(t *testing.T) {
			a := meet(t, stageConfig{})
			n := a.holdTakeover(stageConfig{})
			a.signal(a.pid(), sig)
			a.awaitExit("exited 0")
			n.failed()
			if n.saidReady() {
				t.Error("it served on")
			}
		})
		t.Run("draining, and the new one dies "+sig.String(), func(t *testing.T) {
			a := meet(t, stageConfig{})
			first := a.await("up", func(control.Status) bool { return true })
			a.hang(first.App)
			n := a.beside(stageConfig{})
			n.await("the service", func(st control.Status) bool { return st.Phase == control.Idle })
			a.signal(a.pid(), unix.SIGTERM)
			a.await("stopping", func(st control.Status) bool { return st.Phase == control.Stopping })
			n.crash()
			a.signal(a.pid(), sig)
			if sig == unix.SIGTERM {
				a.tell(first.App, "release")
			}
			a.awaitExit("exited 0")
			if sig == unix.SIGTERM {
				if _, err := os.Lstat(a.Takeover); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("%s after the end of the service: %v", a.Takeover, err)
				}
			}
		})
		t.Run("draining "+sig.String(), func(t *testing.T) {
			a := meet(t, stageConfig{DrainTimeout: time.Second})
			first := a.await("up", func(control.Status) bool { return true })
			a.hang(first.App)
			n := a.beside(stageConfig{})
			n.await("the service", func(st control.Status) bool { return st.Phase == control.Idle })
			a.signal(a.pid(), sig)
			a.awaitExit("exited 0")
			n.awaitGeneration(2)
			n.nextTakeoverWorks()
		})
		t.Run("drained, and the service "+sig.String(), func(t *testing.T) {
			a := meet(t, stageConfig{})
			first := a.await("up", func(control.Status) bool { return true })
			answered := a.hang(first.App)
			n := a.beside(stageConfig{})
			n.await("the service", func(st control.Status) bool { return st.Phase == control.Idle })
			a.awaitNote(first.App, "terminated")
			n.signal(n.pid(), sig)
			if sig == unix.SIGTERM {
				n.await("waiting for the other one", func(st control.Status) bool { return st.Phase == control.Stopping && st.App == 0 })
				a.tell(first.App, "release")
				if err := <-answered; err != nil {
					t.Errorf("the request at the old program: %v", err)
				}
			}
			n.awaitExit("exited 0")
			a.awaitExit("exited 0")
		})
	}
}

func TestTakeoverRefused(t *testing.T) {
	a := meet(t, stageConfig{})
	refused := func(want string) {
		t.Helper()
		if text := a.beside(stageConfig{}).failed(); !strings.Contains(text, want) || !strings.Contains(text, a.Takeover) {
			t.Errorf("it said %s\nwant %q", text, want)
		}
	}
	before := a.descriptors()
	n := a.holdTakeover(stageConfig{})
	refused("(busy): a handoff is in progress; start this one again when that is over")
	if st, err := a.abort("tx"); err != nil || st.Refused != 1 || st.LastRefusal != "a handoff is in progress" {
		t.Errorf("%+v, %v", st, err)
	}
	n.failed()
	a.awaitUndone("requested")
	a.hold("")
	refused("(busy): a handoff is in progress")
	if _, err := a.abort("tx"); err != nil {
		t.Fatal(err)
	}
	a.await("idle", func(st control.Status) bool { return st.Phase == control.Idle })
	a.arm(control.Arm{Exe: a.release("two", "web")})
	refused("a handoff that was prepared is about to begin")
	if _, err := a.ask(func(ctx context.Context, c *control.Client) (control.Status, error) { return c.Disarm(ctx, "tx") }); err != nil {
		t.Fatal(err)
	}
	elsewhere := raise(t, stageConfig{Takeover: a.path("no", "socket")})
	if text := elsewhere.failed(); !strings.Contains(text, "have to share it") {
		t.Errorf("it said %s", text)
	}
	eventually(t, "the descriptors are those of before", func() bool { return a.descriptors() <= before })
	a.nextTakeoverWorks()
}

// A reload can make the program one that cannot run twice at a time. It does not run beside another container's then, either.
func TestTakeoverOfAProgramThatCannotOverlap(t *testing.T) {
	a := meet(t, stageConfig{})
	a.arm(control.Arm{Command: []string{"alone"}})
	a.signal(a.pid(), unix.SIGUSR2)
	a.awaitGeneration(2)
	if text := a.beside(stageConfig{}).failed(); !strings.Contains(text, "cannot run twice at a time") {
		t.Errorf("it said %s", text)
	}
	a.answers()
}

// Helpers that start at the same moment do not each become a first generation.
func TestTakeoverRace(t *testing.T) {
	first := meet(t, stageConfig{})
	first.signal(first.pid(), unix.SIGTERM)
	first.awaitExit("exited 0")
	var all []*stage
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			n := first.beside(stageConfig{})
			mu.Lock()
			defer mu.Unlock()
			all = append(all, n)
		})
	}
	wg.Wait()
	firsts := 0
	for _, n := range all {
		eventually(t, "it serves, has served, or was refused", func() bool {
			select {
			case <-n.ended:
				return true
			default:
			}
			return n.saidReady()
		})
		if slices.ContainsFunc(n.said(), func(w string) bool { return strings.HasPrefix(w, "READY=1") && strings.Contains(w, "generation 1:") }) {
			firsts++
		}
	}
	if firsts != 1 {
		t.Errorf("%d first generations", firsts)
	}
}

// libraryMain is a program that hands over by itself, in a container of its own.
func libraryMain([]string) error {
	var c stageConfig
	if err := json.Unmarshal([]byte(os.Getenv(envStage)), &c); err != nil {
		return err
	}
	h, err := handoff.Open(handoff.Options{Service: "stage", ControlSocket: c.controlPath(), Takeover: c.Takeover, DrainTimeout: c.DrainTimeout})
	if err != nil {
		return err
	}
	ln, err := h.Listen("http", "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	return h.Serve(&http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { fmt.Fprint(rw, os.Getpid()) })}, ln)
}

// A helper and a program with the library take over from each other.
func TestTakeoverWithTheLibrary(t *testing.T) {
	library := func(c *exec.Cmd) { c.Args[1] = "role:library" }
	idle := func(n int) func(control.Status) bool {
		return func(st control.Status) bool {
			return st.Generation == n && st.Phase == control.Idle && st.Predecessor == nil
		}
	}
	a := meet(t, stageConfig{})
	b := a.beside(stageConfig{}, library)
	b.await("the service", idle(2))
	a.awaitExit("exited 0")
	if pid, err := a.get("/"); pid != b.pid() || err != nil {
		t.Errorf("%d answers, %v", pid, err)
	}
	c := b.beside(stageConfig{})
	c.await("the service", idle(3))
	b.awaitExit("exited 0")
	c.answers()

	// Undone, both ways.
	d := c.holdTakeover(stageConfig{}, library)
	if _, err := c.abort("tx"); err != nil {
		t.Fatal(err)
	}
	d.awaitExit("exited 1")
	c.awaitUndone("requested")
	d = c.beside(stageConfig{}, library)
	d.await("the service", idle(4))
	c.awaitExit("exited 0")
	e := d.holdTakeover(stageConfig{})
	if _, err := d.abort("tx"); err != nil {
		t.Fatal(err)
	}
	e.failed()
	d.awaitUndone("requested")
	e = d.beside(stageConfig{Program: "crash"})
	e.awaitExit("exited 7")
	if st := d.awaitUndone("exited"); !strings.Contains(st.Last.Detail, "the program ended (exited 7)") {
		t.Errorf("%+v", st.Last)
	}
	if pid, err := a.get("/"); pid != d.pid() || err != nil {
		t.Errorf("%d answers, %v", pid, err)
	}
}
