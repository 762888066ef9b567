//go:build linux

package helper

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/handoff/control"
)

// The service is what its program is: the helper ends as the program does.
func TestProgramEndsAlone(t *testing.T) {
	for name, c := range map[string]struct {
		stageConfig
		end  func(s *stage, app int)
		want string
	}{
		"exit":          {end: func(s *stage, app int) { s.tell(app, "exit 7") }, want: "exited 7"},
		"good exit":     {end: func(s *stage, app int) { s.tell(app, "exit 0") }, want: "exited 0"},
		"signal":        {end: func(s *stage, app int) { s.signal(app, unix.SIGKILL) }, want: "killed KILL"},
		"with children": {end: func(s *stage, app int) { s.tell(app, "fork"); s.tell(app, "exit 7") }, want: "exited 7"},
		"candidate held": {end: func(s *stage, app int) {
			candidate := s.hold(s.release("two", "web")).Handoff.Candidate
			s.tell(app, "exit 7")
			s.awaitNote(candidate, "terminated")
		}, want: "exited 7"},
		"candidate forked": {end: func(s *stage, app int) {
			s.arm(control.Arm{Exe: s.release("two", "mute")})
			s.signal(s.pid(), unix.SIGUSR2)
			s.await("forked", func(st control.Status) bool { return st.Phase == control.Forked })
			s.tell(app, "exit 7")
		}, want: "exited 7"},
		"candidate undone": {end: func(s *stage, app int) { // and busy, but nobody serves until it has ended
			s.hold(s.release("two", "stubborn"))
			s.abort("tx")
			s.tell(app, "exit 7")
		}, want: "exited 7"},
	} {
		t.Run(name, func(t *testing.T) {
			s := begin(t, c.stageConfig)
			c.end(s, s.await("up", func(control.Status) bool { return true }).App)
			s.awaitExit(c.want)
			if s.hasSaid("STOPPING=1 STATUS=generation 1: stopping") {
				t.Error("systemd was told of a stop that nobody wanted")
			}
		})
	}
}

// A program that does not come up is a service that does not.
func TestProgramDoesNotStart(t *testing.T) {
	for name, c := range map[string]struct {
		stageConfig
		want string
	}{
		"crash":        {stageConfig{Program: "crash"}, "exited 7"},
		"never ready":  {stageConfig{Program: "mute", ReadyTimeout: 100 * time.Millisecond}, "exited 1"},
		"stubborn too": {stageConfig{Script: "trap '' TERM; while :; do sleep 0.05; done", ReadyTimeout: 100 * time.Millisecond}, "exited 1"},
		"missing":      {stageConfig{Script: "exec /nonexistent/program"}, "exited 127"},
	} {
		t.Run(name, func(t *testing.T) {
			s := enter(t, c.stageConfig)
			s.awaitExit(c.want)
			for _, word := range s.said() {
				if strings.Contains(word, "READY") {
					t.Errorf("systemd heard %q", word)
				}
			}
		})
	}
	t.Run("no such file", func(t *testing.T) {
		s := enter(t, stageConfig{}, func(cmd *exec.Cmd) {
			os.Remove(filepath.Join(filepath.Dir(cmd.Stderr.(*os.File).Name()), "current"))
		})
		s.awaitExit("exited 1")
		if b, _ := os.ReadFile(s.path("stderr")); !strings.Contains(string(b), "current/app: no such file") {
			t.Errorf("it says %s", b)
		}
	})
}

// SIGTERM in each phase ends everything in order, with the program's own status.
func TestStopInEachPhase(t *testing.T) {
	up := func(s *stage) int { return s.await("up", func(control.Status) bool { return true }).App }
	for name, c := range map[string]struct {
		stageConfig
		lead func(s *stage) (finish func())
		want string
	}{
		"starting": {stageConfig: stageConfig{Program: "mute"}, lead: func(s *stage) func() {
			app := s.await("starting", func(st control.Status) bool { return st.Phase == control.Starting }).App
			eventually(s.t, "it handles signals", func() bool { _, err := os.Stat(s.path(fmt.Sprintf("app-%d.sock", app))); return err == nil })
			return nil
		}},
		"idle": {lead: func(s *stage) func() {
			s.await("idle", func(st control.Status) bool { return st.Phase == control.Idle })
			answered := s.hang(up(s))
			return func() {
				s.tell(up(s), "release")
				if err := <-answered; err != nil {
					s.t.Errorf("the request across the stop: %v", err)
				}
			}
		}},
		"forked": {lead: func(s *stage) func() {
			s.arm(control.Arm{Exe: s.release("two", "mute")})
			s.signal(s.pid(), unix.SIGUSR2)
			s.await("forked", func(st control.Status) bool { return st.Phase == control.Forked })
			return nil
		}},
		"held": {stageConfig: stageConfig{Pause: unix.SIGWINCH, Resume: unix.SIGHUP}, lead: func(s *stage) func() {
			s.hold(s.release("two", "web"))
			return nil
		}},
		"aborting": {lead: func(s *stage) func() {
			candidate := s.hold(s.release("two", "web")).Handoff.Candidate
			var answered <-chan error
			for answered == nil { // one of the two gets it
				pid, _ := s.get("/")
				if pid == candidate {
					answered = make(chan error)
				}
			}
			s.abort("tx")
			return nil
		}},
		"draining": {lead: func(s *stage) func() {
			old := up(s)
			answered := s.hang(old)
			s.signal(s.pid(), unix.SIGUSR2)
			s.await("draining", func(st control.Status) bool { return st.Generation == 2 && st.Predecessor != nil })
			return func() {
				s.awaitSaid("STOPPING=1 STATUS=generation 2: stopping; generation 1 drains")
				s.tell(old, "release")
				if err := <-answered; err != nil {
					s.t.Errorf("the request across both: %v", err)
				}
			}
		}},
		"making room": {stageConfig: stageConfig{Restart: true}, lead: func(s *stage) func() {
			old := up(s)
			answered := s.hang(old)
			s.signal(s.pid(), unix.SIGUSR2)
			s.awaitNote(old, "terminated")
			return func() {
				s.tell(old, "release")
				if err := <-answered; err != nil {
					s.t.Errorf("the request across both: %v", err)
				}
			}
		}},
		"room made": {stageConfig: stageConfig{Restart: true}, lead: func(s *stage) func() {
			s.arm(control.Arm{Exe: s.release("two", "mute")})
			s.signal(s.pid(), unix.SIGUSR2)
			s.await("forked", func(st control.Status) bool {
				return st.Phase == control.Forked && st.Handoff.Candidate != 0 && st.App == 0
			})
			return nil
		}},
		"program killed": {stageConfig: stageConfig{Program: "stubborn", DrainTimeout: 100 * time.Millisecond}, lead: func(s *stage) func() {
			return nil
		}, want: "killed KILL"},
	} {
		t.Run(name, func(t *testing.T) {
			var s *stage
			if name == "starting" {
				s = enter(t, c.stageConfig)
			} else {
				s = begin(t, c.stageConfig)
			}
			finish := c.lead(s)
			s.signal(s.pid(), unix.SIGTERM)
			if finish != nil {
				s.await("stopping", func(st control.Status) bool { return st.Phase == control.Stopping })
				finish()
			}
			if c.want == "" {
				c.want = "exited 0"
			}
			s.awaitExit(c.want)
			if said := s.said(); !slices.ContainsFunc(said, func(w string) bool { return strings.HasPrefix(w, "STOPPING=1 ") }) {
				t.Errorf("systemd heard %q", said)
			}
		})
	}
}

// SIGQUIT ends everything at once, and counts what it cuts.
func TestQuit(t *testing.T) {
	s := begin(t, stageConfig{})
	app := s.await("up", func(control.Status) bool { return true }).App
	answered := s.hang(app)
	s.hold(s.release("two", "stubborn"))
	s.signal(s.pid(), unix.SIGQUIT)
	if err := <-answered; err == nil {
		t.Error("the request was answered")
	}
	s.awaitExit("exited 0")
	if got := s.events("exit", "ZDT_CONNS_CUT"); !slices.Contains(got, "exit 1 1") {
		t.Errorf("events %q", got)
	}
}

// What a program saves in systemd as it ends gets there.
func TestLastWords(t *testing.T) {
	s := begin(t, stageConfig{LastWords: "FDSTORE=1 FDNAME=state"})
	s.signal(s.pid(), unix.SIGTERM)
	s.awaitExit("exited 0")
	heard := func(w string) bool { return w == "FDSTORE=1 FDNAME=state +1" }
	eventually(t, "systemd hears all of it", func() bool {
		return len(slices.DeleteFunc(s.said(), func(w string) bool { return !heard(w) })) == lastWords
	})
}

// Signals that are the program's own business go to it.
func TestForwardedSignals(t *testing.T) {
	s := begin(t, stageConfig{})
	app := s.await("up", func(control.Status) bool { return true }).App
	s.signal(s.pid(), unix.SIGWINCH)
	s.awaitNote(app, "window changed")
}
