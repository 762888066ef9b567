//go:build linux

package helper

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/handoff/control"
)

// A program that cannot run twice at a time ends first. Clients wait, nobody is refused.
func TestRestart(t *testing.T) {
	s := begin(t, stageConfig{Restart: true})
	app := s.await("up", func(control.Status) bool { return true }).App
	answered := s.hang(app)
	s.signal(s.pid(), unix.SIGUSR2)
	s.awaitNote(app, "terminated")
	st, err := s.status()
	if err != nil || st.Phase != control.Forked || st.Handoff.Candidate != 0 || st.App != app || st.Handoff.Deadline.IsZero() {
		t.Errorf("%v, %+v, handoff %+v", err, st, st.Handoff)
	}
	waiting := make(chan int)
	go func() {
		pid, err := s.get("/") // the old one has stopped accepting
		if err != nil {
			t.Error(err)
		}
		waiting <- pid
	}()
	s.tell(app, "release")
	if err := <-answered; err != nil {
		t.Errorf("the request across the restart: %v", err)
	}
	pid := <-waiting
	st = s.awaitGeneration(2)
	if pid != st.App || st.App == app || !st.Last.Committed || st.Last.Gap <= 0 || !strings.Contains(st.Last.Detail, "cannot run twice") {
		t.Errorf("%d answered; %+v, last %+v", pid, st, st.Last)
	}
	if st.PID != s.pid() {
		t.Error("the helper has changed")
	}
}

// The release that served is started again when the new one does not come up, or when
// somebody thinks better of it. It is that very release, wherever current leads by now.
func TestRestartUndone(t *testing.T) {
	for name, c := range map[string]struct {
		undo   func(s *stage, app int)
		reason string
	}{
		"crash": {func(s *stage, _ int) {
			s.arm(control.Arm{Exe: s.release("two", "crash")})
			s.signal(s.pid(), unix.SIGUSR2)
		}, "crashed"},
		"no such file": {func(s *stage, _ int) {
			s.arm(control.Arm{Exe: s.path("releases", "nothing", "app")})
			s.signal(s.pid(), unix.SIGUSR2)
		}, "start-failed"},
		"abort while it makes room": {func(s *stage, app int) {
			s.hang(app)
			s.signal(s.pid(), unix.SIGUSR2)
			s.awaitNote(app, "terminated")
			s.signal(s.pid(), unix.SIGUSR1)
			s.await("aborting", func(st control.Status) bool { return st.Phase == control.Aborting })
			s.signal(s.pid(), unix.SIGUSR2)
			s.await("refused", func(st control.Status) bool { return st.Refused == 1 && st.Phase == control.Aborting })
			s.tell(app, "release")
		}, "signal"},
		"abort of a held one": {func(s *stage, _ int) {
			s.hold(s.release("two", "web"))
			s.abort("tx")
		}, "requested"},
		"current leads elsewhere": {func(s *stage, _ int) {
			s.flip(s.release("two", "crash"))
			s.signal(s.pid(), unix.SIGUSR2)
		}, "crashed"},
	} {
		t.Run(name, func(t *testing.T) {
			s := begin(t, stageConfig{Restart: true})
			app := s.await("up", func(control.Status) bool { return true }).App
			c.undo(s, app)
			st := s.awaitUndone(c.reason)
			if !st.TookOver || st.Generation != 2 || st.App == app || st.Last.Gap <= 0 {
				t.Errorf("%+v, last %+v", st, st.Last)
			}
			if pid, err := s.get("/"); pid != st.App || err != nil {
				t.Errorf("%d answers, %v", pid, err)
			}
		})
	}
}

// systemd's watchdog hears the program that serves, and the helper where there is none that could speak.
func TestWatchdog(t *testing.T) {
	watched := func(cmd *exec.Cmd) { cmd.Env = append(cmd.Env, "WATCHDOG_USEC=100000") }
	s := begin(t, stageConfig{Restart: true}, watched)
	app := s.await("up", func(control.Status) bool { return true }).App
	if got, want := s.tell(app, "environ WATCHDOG_USEC")+s.tell(app, "environ WATCHDOG_PID"), fmt.Sprint("100000", app); got != want {
		t.Errorf("the program has %s, want %s", got, want)
	}
	if s.beats() != 0 {
		t.Error("the helper speaks for a program that is there")
	}
	s.tell(app, "say WATCHDOG=1")
	eventually(t, "systemd hears the program", func() bool { return s.beats() == 1 })
	s.arm(control.Arm{Exe: s.release("two", "mute")})
	s.signal(s.pid(), unix.SIGUSR2)
	began := time.Now()
	eventually(t, "systemd hears the helper", func() bool { return s.beats() >= 6 })
	if took := time.Since(began); took < 200*time.Millisecond {
		t.Errorf("five beats in %v", took)
	}
	candidate := s.await("forked", func(st control.Status) bool { return st.Phase == control.Forked && st.Handoff.Candidate != 0 }).Handoff.Candidate
	s.tell(candidate, "say READY=1")
	s.awaitGeneration(2)
	heard := s.beats()
	s.tell(candidate, "say WATCHDOG=1 STATUS=last")
	s.awaitSaid("STATUS=generation 2: serving: last")
	eventually(t, "systemd hears the program", func() bool { return s.beats() > heard })
}

// The new program has a whole interval after the commit: what it said of its life before did not count.
func TestWatchdogAtCommit(t *testing.T) {
	s := begin(t, stageConfig{}, func(cmd *exec.Cmd) { cmd.Env = append(cmd.Env, "WATCHDOG_USEC=60000000") })
	s.arm(control.Arm{Exe: s.release("two", "mute"), Hold: true})
	s.signal(s.pid(), unix.SIGUSR2)
	st := s.await("forked", func(st control.Status) bool { return st.Phase == control.Forked && st.Handoff.Candidate != 0 })
	candidate, deadline := st.Handoff.Candidate, st.Handoff.Deadline
	s.awaitObedient(candidate)
	s.tell(candidate, "say WATCHDOG=1")
	s.tell(candidate, "say EXTEND_TIMEOUT_USEC=600000000")
	s.await("extended, which was said after the heartbeat", func(st control.Status) bool {
		return st.Handoff != nil && st.Handoff.Deadline.Sub(deadline) > 5*time.Minute
	})
	s.tell(candidate, "say READY=1")
	s.await("held", func(st control.Status) bool { return st.Phase == control.Held })
	s.tell(candidate, "store x")
	if n := s.beats(); n != 0 {
		t.Errorf("%d heartbeats before the commit", n)
	}
	if _, err := s.commit("tx"); err != nil {
		t.Fatal(err)
	}
	s.awaitSaid("FDSTORE=1 FDNAME=x +1")
	if n := s.beats(); n != 1 {
		t.Errorf("%d heartbeats by the commit, want 1", n)
	}
}

// beats counts the heartbeats that systemd has heard.
func (s *stage) beats() int {
	return len(slices.DeleteFunc(s.said(), func(w string) bool { return w != "WATCHDOG=1" }))
}
