//go:build linux

package helper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/handoff/control"
)

// The next group serves, the old one finishes its request and ends, and systemd is not bothered.
func TestHandoff(t *testing.T) {
	s := begin(t, stageConfig{})
	first := s.await("up", func(control.Status) bool { return true })
	answered := s.hang(first.App)
	s.signal(s.pid(), unix.SIGUSR2)
	st := s.await("committed", func(st control.Status) bool { return st.Generation == 2 && st.Phase == control.Idle })
	if st.PID != s.pid() || st.App == first.App || st.Last == nil || !st.Last.Committed || st.Last.Candidate != st.App {
		t.Errorf("%+v, last %+v", st, st.Last)
	}
	if st.Predecessor == nil || *st.Predecessor != (control.Peer{PID: first.App, Generation: 1}) {
		t.Errorf("predecessor %+v", st.Predecessor)
	}
	s.awaitNote(first.App, "terminated")
	// While it drains there is no other handoff, and whoever asks for one learns that.
	s.signal(s.pid(), unix.SIGUSR2)
	s.await("refused", func(st control.Status) bool {
		return st.Refused == 1 && strings.Contains(st.LastRefusal, "drains") && st.Generation == 2
	})
	if pid, err := s.get("/"); pid != st.App || err != nil {
		t.Errorf("%d answers, %v; want %d", pid, err, st.App)
	}
	s.tell(first.App, "release")
	if err := <-answered; err != nil {
		t.Errorf("the request across the handoff: %v", err)
	}
	s.awaitGeneration(2)
	for kind, want := range map[string][]string{
		"fork":   {fmt.Sprintf("fork 1 %d", s.pid())},
		"listen": {"listen 2 http"},
		"drain":  {"drain 1 1"},
		"exit":   {"exit 1 exited 0 0"},
	} {
		fields := map[string][]string{
			"listen": {"LISTEN_FDNAMES"}, "drain": {"ZDT_CONNS_ACTIVE"}, "exit": {"EXIT_CODE", "EXIT_STATUS", "ZDT_CONNS_CUT"},
		}[kind]
		if kind == "fork" {
			want = []string{"fork 1"}
		}
		if got := s.events(kind, fields...); !slices.Equal(got, want) {
			t.Errorf("events %q, want %q", got, want)
		}
	}
	s.awaitSaid("STATUS=generation 2: serving")
	said := s.said()
	for _, word := range said {
		if strings.Contains(word, "MAINPID") || strings.Contains(word, "STOPPING") {
			t.Errorf("systemd heard %q", word)
		}
	}
	if !slices.Contains(said, "READY=1 STATUS=generation 1: serving") {
		t.Errorf("systemd heard %q", said)
	}
}

// A held candidate is decided by whoever armed it and by nobody else.
func TestHold(t *testing.T) {
	s := begin(t, stageConfig{})
	st := s.hold(s.release("two", "web"))
	if st.Handoff == nil || st.Handoff.TxID != "tx" || !st.Handoff.Hold || st.Handoff.ReadyAt.IsZero() || st.Handoff.Deadline.IsZero() || st.Generation != 1 {
		t.Errorf("%+v, handoff %+v", st, st.Handoff)
	}
	var refused *control.Error
	if _, err := s.commit("another"); !errors.As(err, &refused) || refused.Code != control.CodeTxID {
		t.Errorf("commit of another: %v", err)
	}
	if _, err := s.abort("another"); !errors.As(err, &refused) || refused.Code != control.CodeTxID {
		t.Errorf("abort of another: %v", err)
	}
	s.signal(s.pid(), unix.SIGUSR2)
	s.await("refused", func(st control.Status) bool {
		return st.Refused == 1 && strings.Contains(st.LastRefusal, "in progress") && st.Phase == control.Held
	})
	after, err := s.commit("tx")
	if err != nil || after.App != st.Handoff.Candidate || after.Generation != 2 || after.Exe != s.path("releases", "web.two", "app") {
		t.Errorf("%v, %+v", err, after)
	}
	if _, err := s.commit("tx"); !errors.As(err, &refused) || refused.Code != control.CodeNotHeld {
		t.Errorf("commit once more: %v", err)
	}
	s.awaitGeneration(2)
}

// Whatever undoes a handoff, the old group has not noticed, or accepts again if it was paused, and the next handoff works.
func TestUndone(t *testing.T) {
	held := func(s *stage) int { return s.hold(s.release("two", "web")).Handoff.Candidate }
	for name, c := range map[string]struct {
		stageConfig
		undo   func(*stage)
		reason string
		exit   control.Exit
		resume bool // it was READY
	}{
		"abort":   {undo: func(s *stage) { held(s); s.abort("tx") }, reason: "requested", exit: control.Exit{Code: "exited", Status: "0"}, resume: true},
		"SIGUSR1": {undo: func(s *stage) { held(s); s.signal(s.pid(), unix.SIGUSR1) }, reason: "signal", exit: control.Exit{Code: "exited", Status: "0"}, resume: true},
		"nobody decides": {
			stageConfig: stageConfig{HoldTimeout: 200 * time.Millisecond},
			undo: func(s *stage) {
				s.arm(control.Arm{Exe: s.release("two", "web"), Hold: true})
				s.signal(s.pid(), unix.SIGUSR2)
			},
			reason: "hold-timeout", exit: control.Exit{Code: "exited", Status: "0"}, resume: true,
		},
		"killed while held": {undo: func(s *stage) { s.signal(held(s), unix.SIGKILL) }, reason: "crashed", exit: control.Exit{Code: "killed", Status: "KILL"}, resume: true},
		"ends while held":   {undo: func(s *stage) { s.tell(held(s), "exit 0") }, reason: "exited", exit: control.Exit{Code: "exited", Status: "0"}, resume: true},
		"crash": {
			undo: func(s *stage) {
				s.arm(control.Arm{Exe: s.release("two", "crash")})
				s.signal(s.pid(), unix.SIGUSR2)
			},
			reason: "crashed", exit: control.Exit{Code: "exited", Status: "7"},
		},
		"never ready": {
			undo: func(s *stage) {
				s.arm(control.Arm{Exe: s.release("two", "mute"), ReadyTimeout: 200 * time.Millisecond})
				s.signal(s.pid(), unix.SIGUSR2)
			},
			reason: "ready-timeout", exit: control.Exit{Code: "exited", Status: "0"},
		},
		"no such file": {
			undo: func(s *stage) {
				s.arm(control.Arm{Exe: s.path("releases", "nothing", "app")})
				s.signal(s.pid(), unix.SIGUSR2)
			},
			reason: "start-failed",
		},
		"its watchdog": {
			undo: func(s *stage) { s.tell(held(s), "say WATCHDOG=trigger") }, reason: "health",
			exit: control.Exit{Code: "exited", Status: "0"}, resume: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			c.Pause, c.Resume = unix.SIGWINCH, unix.SIGHUP
			s := begin(t, c.stageConfig)
			app := s.await("up", func(control.Status) bool { return true }).App
			c.undo(s)
			st := s.awaitUndone(c.reason)
			var exit control.Exit
			if st.Last.Exit != nil {
				exit = *st.Last.Exit
			}
			if exit != c.exit || st.Generation != 1 || st.App != app || st.TookOver || st.Last.Detail == "" {
				t.Errorf("%+v; last %+v, exit %v", st, st.Last, exit)
			}
			if c.resume {
				s.awaitNote(app, "window changed")
				s.awaitNote(app, "hangup")
			} else if s.noted(app, "window changed") {
				t.Error("it was paused for a candidate that never was READY")
			}
			if pid, err := s.get("/"); pid != app || err != nil {
				t.Errorf("%d answers, %v", pid, err)
			}
			if got := s.events("abort", "ZDT_REASON"); !slices.Equal(got, []string{"abort 1 " + c.reason}) {
				t.Errorf("events %q", got)
			}
			s.signal(s.pid(), unix.SIGUSR2)
			s.awaitGeneration(2)
		})
	}
}

// What a candidate wants for later does not stay open when there is no later, and it
// cannot put the decision about it off.
func TestUndoneCandidateLeavesNothing(t *testing.T) {
	s := begin(t, stageConfig{HoldTimeout: 400 * time.Millisecond})
	before := s.descriptors()
	s.arm(control.Arm{Exe: s.release("two", "web"), Hold: true})
	s.signal(s.pid(), unix.SIGUSR2)
	candidate := s.await("held", func(st control.Status) bool { return st.Phase == control.Held }).Handoff.Candidate
	s.tell(candidate, "store x")
	s.tell(candidate, "say EXTEND_TIMEOUT_USEC=60000000")
	eventually(t, "the helper has it", func() bool { return s.descriptors() > before })
	s.awaitUndone("hold-timeout")
	eventually(t, "the helper has closed it", func() bool { return s.descriptors() <= before })
	if words := strings.Join(s.said(), "\n"); strings.Contains(words, "FDSTORE") || strings.Contains(words, "EXTEND") {
		t.Errorf("systemd heard %q", words)
	}
}

// What the candidate said for the time when it serves is said when it does.
func TestWordsWait(t *testing.T) {
	s := begin(t, stageConfig{})
	candidate := s.hold(s.release("two", "web")).Handoff.Candidate
	s.tell(candidate, "store x")
	s.tell(candidate, "say STATUS=warm")
	if s.hasSaid("FDSTORE=1 FDNAME=x +1") {
		t.Error("it was said early")
	}
	if _, err := s.commit("tx"); err != nil {
		t.Fatal(err)
	}
	s.awaitSaid("FDSTORE=1 FDNAME=x +1")
	s.awaitSaid("STATUS=generation 2: serving: warm")
}

// EXTEND_TIMEOUT_USEC= puts off the end of the wait for READY.
func TestExtendedStart(t *testing.T) {
	s := begin(t, stageConfig{ReadyTimeout: 2 * time.Second})
	s.arm(control.Arm{Exe: s.release("two", "mute")})
	s.signal(s.pid(), unix.SIGUSR2)
	st := s.await("forked", func(st control.Status) bool { return st.Phase == control.Forked && st.Handoff.Candidate != 0 })
	candidate, deadline := st.Handoff.Candidate, st.Handoff.Deadline
	eventually(t, "it listens to orders", func() bool { _, err := os.Stat(s.path(fmt.Sprintf("app-%d.sock", candidate))); return err == nil })
	s.tell(candidate, "say EXTEND_TIMEOUT_USEC=600000000")
	s.await("extended", func(st control.Status) bool {
		return st.Handoff != nil && st.Handoff.Deadline.Sub(deadline) > 5*time.Minute
	})
	s.tell(candidate, "say READY=1")
	s.awaitGeneration(2)
}

// What is still open at the deadline is cut, and counted.
func TestDrainDeadline(t *testing.T) {
	s := begin(t, stageConfig{Program: "stubborn", DrainTimeout: 300 * time.Millisecond})
	app := s.await("up", func(control.Status) bool { return true }).App
	answered := s.hang(app)
	s.arm(control.Arm{Exe: s.release("two", "web")})
	s.signal(s.pid(), unix.SIGUSR2)
	if err := <-answered; err == nil {
		t.Error("the request was answered")
	}
	s.awaitGeneration(2)
	if got := s.events("exit", "EXIT_CODE", "EXIT_STATUS", "ZDT_CONNS_CUT"); !slices.Equal(got, []string{"exit 1 killed KILL 1"}) {
		t.Errorf("events %q", got)
	}
}

// A group is gone when all of it is. What its first process leaves behind goes with it.
func TestChildrenLeftBehind(t *testing.T) {
	s := begin(t, stageConfig{})
	app := s.await("up", func(control.Status) bool { return true }).App
	child := s.tell(app, "fork")
	s.signal(s.pid(), unix.SIGUSR2)
	st := s.awaitGeneration(2)
	if left := s.processes(); !slices.Equal(left, []int{st.App}) {
		t.Errorf("processes %v are left; the child was %s, the program is %d", left, child, st.App)
	}
}

// The shell of a start script ends at once and tells nobody. The program proper is told then, and has
// the whole time for its requests.
func TestStartScript(t *testing.T) {
	s := enter(t, stageConfig{Ready: "alive:10ms", Script: `
		(trap 'echo 0 told >>"$0"; sleep 2.2; echo 0 done >>"$0"; exit' TERM
		 echo 0 up >>"$0"; while :; do sleep 0.02; done) & wait`})
	s.awaitNote(0, "up")
	s.await("up", func(st control.Status) bool { return st.Phase == control.Idle })
	s.signal(s.pid(), unix.SIGUSR2)
	s.awaitNote(0, "told")
	s.awaitGeneration(2)
	if !s.noted(0, "done") {
		t.Error("it was killed before it was done")
	}
}

// The new program dies while the old one drains, which cannot be called back: its program is started again.
func TestNewProgramDies(t *testing.T) {
	s := begin(t, stageConfig{})
	app := s.await("up", func(control.Status) bool { return true }).App
	answered := s.hang(app)
	s.arm(control.Arm{Exe: s.release("two", "web")})
	s.signal(s.pid(), unix.SIGUSR2)
	bad := s.await("committed", func(st control.Status) bool { return st.Generation == 2 && st.Phase == control.Idle }).App
	s.awaitNote(app, "terminated")
	s.tell(bad, "exit 3")
	st := s.await("taken over", func(st control.Status) bool { return st.Generation == 3 && st.Phase == control.Idle })
	if !st.TookOver || st.App == app || st.App == bad || st.Last.Committed || st.Last.Reason != "crashed" || st.Last.Candidate != bad || st.Last.Gap <= 0 ||
		st.Last.Exit == nil || *st.Last.Exit != (control.Exit{Code: "exited", Status: "3"}) {
		t.Errorf("%+v, last %+v", st, st.Last)
	}
	if st.Exe != s.path("releases", "web.one", "app") {
		t.Errorf("it runs %s", st.Exe)
	}
	if pid, err := s.get("/"); pid != st.App || err != nil {
		t.Errorf("%d answers, %v", pid, err)
	}
	s.tell(app, "release")
	if err := <-answered; err != nil {
		t.Errorf("the request across all of it: %v", err)
	}
	s.awaitGeneration(3)
	s.signal(s.pid(), unix.SIGUSR2) // and the next one works
	if st := s.awaitGeneration(4); st.TookOver || !st.Last.Committed {
		t.Errorf("%+v, last %+v", st, st.Last)
	}
}

// If that does not come up either there is no third try: the service has failed.
func TestNewProgramDiesAndOldOneDoesNotComeBack(t *testing.T) {
	s := begin(t, stageConfig{Program: "again"})
	s.arm(control.Arm{Exe: s.release("two", "web")})
	s.signal(s.pid(), unix.SIGUSR2)
	bad := s.await("committed", func(st control.Status) bool { return st.Generation == 2 && st.Phase == control.Idle })
	if bad.Predecessor == nil {
		t.Fatalf("%+v", bad)
	}
	s.tell(bad.App, "exit 3")
	s.awaitExit("exited 9")
}

// The environment and the command that come with an arming are those of the new
// generation. What cannot be read changes nothing.
func TestFreshEnvironment(t *testing.T) {
	s := begin(t, stageConfig{})
	s.arm(control.Arm{Command: []string{"wrong"}, Environ: []string{"COLOUR=red"}})
	s.signal(s.pid(), unix.SIGUSR2)
	st := s.awaitUndone("start-failed")
	if !strings.Contains(st.Last.Detail, "unknown flag") || s.tell(st.App, "environ COLOUR") != "" {
		t.Errorf("last %+v", st.Last)
	}
	s.arm(control.Arm{Command: []string{s.release("two", "web")}, Environ: []string{"COLOUR=blue", "ZDT_GENERATION=99", "ZDT_CONTROL_SOCKET=/x", "ZDT_APP_PID=1"}})
	if st, _ := s.status(); st.Armed == nil || st.Armed.Environ != nil {
		t.Errorf("armed %+v: the environment is nobody's business", st.Armed)
	}
	for n := 2; n < 4; n++ { // it is kept
		s.signal(s.pid(), unix.SIGUSR2)
		app := s.awaitGeneration(n).App
		for name, want := range map[string]string{"COLOUR": "blue", "ZDT_GENERATION": fmt.Sprint(n), "ZDT_CONTROL_SOCKET": "-", "ZDT_APP_PID": fmt.Sprint(app), "ZDT_TEST_STAGE": s.tell(app, "environ ZDT_TEST_STAGE")} {
			if got := s.tell(app, "environ "+name); got != want {
				t.Errorf("%s=%q, want %q", name, got, want)
			}
		}
	}
}

// A program with the library is a program like any other: it is the helper that hands over and tells.
func TestLibraryProgram(t *testing.T) {
	s := begin(t, stageConfig{Program: "library"})
	s.awaitNote(s.await("up", func(control.Status) bool { return true }).App, "is 1")
	s.signal(s.pid(), unix.SIGUSR2)
	app := s.awaitGeneration(2).App
	s.awaitNote(app, "is 2")
	if pid, err := s.get("/"); pid != app || err != nil {
		t.Errorf("%d answers, %v", pid, err)
	}
	s.signal(s.pid(), unix.SIGTERM)
	s.awaitExit("exited 0")
	if words := strings.Join(s.said(), "\n"); strings.Contains(words, "MAINPID") || strings.Contains(words, ": generation 2") {
		t.Errorf("systemd heard %q", words)
	}
	if b, _ := os.ReadFile(s.path("stderr")); strings.Count(string(b), `"event":"drain"`) != 2 || strings.Contains(string(b), "event=") {
		t.Errorf("the program tells too:\n%s", b)
	}
}

// A client that watches sees it all, to the last status.
func TestWatch(t *testing.T) {
	s := begin(t, stageConfig{})
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := control.Dial(ctx, s.path("control.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var phases []string
	watching, over := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		for st, err := range c.Watch(ctx) {
			if err != nil {
				t.Error(err)
				return
			}
			if phases == nil {
				close(watching)
			}
			if text := fmt.Sprintf("%d %s", st.Generation, st.Phase); len(phases) == 0 || phases[len(phases)-1] != text {
				phases = append(phases, text)
			}
		}
	}()
	<-watching
	s.hold(s.release("two", "web"))
	s.abort("tx")
	s.awaitUndone("requested")
	s.hold(s.release("three", "web"))
	s.commit("tx")
	s.awaitGeneration(2)
	s.signal(s.pid(), unix.SIGTERM)
	s.awaitExit("exited 0")
	<-over
	want := []string{"1 idle", "1 forked", "1 held", "1 aborting", "1 idle", "1 forked", "1 held", "2 idle", "2 stopping", "2 exited"}
	if !slices.Equal(phases, want) {
		t.Errorf("saw %q, want %q", phases, want)
	}
}

// After many handoffs, good and bad ones, the helper has what it had.
func TestManyHandoffsLeaveNothing(t *testing.T) {
	s := begin(t, stageConfig{})
	crash := s.release("crash", "crash")
	s.signal(s.pid(), unix.SIGUSR2) // what is opened once is open now
	s.awaitGeneration(2)
	before := s.descriptors()
	for n := 3; n <= 50; n++ {
		if n%10 == 0 {
			s.arm(control.Arm{Exe: crash})
			s.signal(s.pid(), unix.SIGUSR2)
			s.awaitUndone("crashed")
		}
		s.signal(s.pid(), unix.SIGUSR2)
		s.awaitGeneration(n)
	}
	st, err := s.status()
	if err != nil {
		t.Fatal(err)
	}
	if left := s.processes(); !slices.Equal(left, []int{st.App}) {
		t.Errorf("processes %v, want %d alone", left, st.App)
	}
	for _, p := range processes() {
		if p.parent == s.pid() && p.ended() {
			t.Errorf("zombie %d", p.pid)
		}
	}
	eventually(t, fmt.Sprintf("the helper has its %d descriptors again", before), func() bool { return s.descriptors() <= before })
}

// descriptors counts those of the helper.
func (s *stage) descriptors() int {
	entries, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.pid()))
	return len(entries)
}
