//go:build linux

package helper

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/handoff/control"
)

// A handoff replaces the workers one after the other. There are never fewer that serve, and nobody notices.
func TestRoll(t *testing.T) {
	for _, reusePort := range []bool{false, true} {
		t.Run(fmt.Sprint(reusePort), func(t *testing.T) {
			s := crewOf(t, 4, stageConfig{ReusePort: reusePort})
			before := s.awaitCrew(1)
			b := s.burden()
			exe := s.release("two", "web")
			st := s.hold(exe)
			if !slices.Equal(pids(st), pids(before)) || st.Workers.Ready != 4 || st.App != before.App || st.Predecessor != nil {
				t.Errorf("held: %+v, workers %+v", st, st.Workers)
			}
			if n := len(s.processes()); n != 5 {
				t.Errorf("held: %d processes", n)
			}
			hanging := pids(st)[2]
			var answered <-chan error
			if !reusePort {
				hanging, answered = s.hangSomewhere(pids(st))
			}
			after, err := s.commit("tx")
			if err != nil || after.App != st.Handoff.Candidate || after.Generation != 2 || !after.Last.Committed || after.Phase != control.Idle || after.Predecessor == nil {
				t.Errorf("%v; %+v, last %+v", err, after, after.Last)
			}
			s.await("rolled", func(st control.Status) bool { return st.Workers.Left == 0 })
			if answered != nil {
				st := s.await("draining", func(st control.Status) bool { return st.Predecessor != nil && len(s.processes()) == 5 })
				if st.Predecessor.PID != hanging || st.Predecessor.Generation != 1 {
					t.Errorf("predecessor %+v, and not %d", st.Predecessor, hanging)
				}
				s.tell(hanging, "release")
				if err := <-answered; err != nil {
					t.Errorf("the request across the handoff: %v", err)
				}
			}
			last := s.awaitCrew(2)
			for i, w := range last.Workers.List {
				if w.Generation != 2 || w.PID == pids(before)[i] || s.tell(w.PID, "environ ZDT_WORKER") != fmt.Sprint(i+1) {
					t.Errorf("worker %+v", w)
				}
			}
			if last.Exe != exe || last.TookOver {
				t.Errorf("%+v", last)
			}
			b.end(t)
			if n := s.fewest(); n < 4 {
				t.Errorf("%d workers served at one moment", n)
			}
			if n := len(s.events("listen")); n != 4 {
				t.Errorf("%d workers listen: %q", n, s.events("listen"))
			}
			for kind, n := range map[string]int{"fork": 1, "drain": 4, "exit": 4} {
				if got := len(s.events(kind)); got != n {
					t.Errorf("%d times %s, want %d", got, kind, n)
				}
			}
		})
	}
}

// hangSomewhere makes a request that one of the workers does not answer until it is told to.
func (s *stage) hangSomewhere(workers []int) (pid int, answered <-chan error) {
	s.t.Helper()
	c := make(chan error, 1)
	go func() {
		_, err := s.get("/hang")
		c <- err
	}()
	released := 0
	eventually(s.t, "somebody hangs", func() bool {
		for _, pid = range workers {
			if s.noted(pid, "hangs") {
				return true
			}
		}
		for _, pid = range s.processes() {
			// The candidate has it, and not only had one before: what hangs elsewhere by now must not be waited for.
			if !slices.Contains(workers, pid) && s.notes(pid, "hangs") > released {
				released++
				s.tell(pid, "release")
				<-c
				go func() {
					_, err := s.get("/hang")
					c <- err
				}()
			}
		}
		return false
	})
	return pid, c
}

// Until the commit the workers do not notice that somebody thinks better of it.
func TestRollUndone(t *testing.T) {
	for name, c := range map[string]struct {
		program string
		reason  string
	}{"abort": {"web", "requested"}, "first worker crashes": {"crash", "crashed"}, "first worker is never ready": {"mute", "ready-timeout"}} {
		t.Run(name, func(t *testing.T) {
			s := crewOf(t, 4, stageConfig{})
			before := s.awaitCrew(1)
			b := s.burden()
			if name == "abort" {
				s.hold(s.release("two", c.program))
				s.abort("tx")
			} else {
				s.arm(control.Arm{Exe: s.release("two", c.program), ReadyTimeout: time.Second})
				s.signal(s.pid(), unix.SIGUSR2)
			}
			s.awaitUndone(c.reason)
			st := s.awaitCrew(1)
			if !slices.Equal(pids(st), pids(before)) || st.TookOver {
				t.Errorf("%+v, workers %+v", st, st.Workers)
			}
			b.end(t)
			if n := s.fewest(); n < 4 {
				t.Errorf("%d workers served at one moment", n)
			}
			s.signal(s.pid(), unix.SIGUSR2)
			s.awaitCrew(2)
		})
	}
}

// A new program that fails behind the commit is replaced by the earlier one where it had taken its place. The
// workers that were not yet replaced stay.
func TestRollBack(t *testing.T) {
	for name, c := range map[string]struct {
		program string
		undo    func(s *stage)
		reason  string
		kept    []int // slots
	}{
		"third worker crashes":        {program: "third", reason: "crashed", kept: []int{2, 3}},
		"third worker is never ready": {program: "later", reason: "ready-timeout", kept: []int{2, 3}},
		"second one dies meanwhile": {program: "later", reason: "crashed", kept: []int{2, 3}, undo: func(s *stage) {
			st := s.await("rolling", func(st control.Status) bool { return st.Workers.Left == 2 })
			s.tell(pids(st)[1], "exit 3")
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s := crewOf(t, 4, stageConfig{})
			before := s.awaitCrew(1)
			timeout := time.Second
			var b *burden
			if c.undo != nil {
				timeout = patience
			} else { // one that ends by itself has clients that notice
				b = s.burden()
			}
			s.arm(control.Arm{Exe: s.release("two", c.program), ReadyTimeout: timeout})
			s.signal(s.pid(), unix.SIGUSR2)
			if c.undo != nil {
				c.undo(s)
			}
			st := s.awaitUndone(c.reason)
			if !st.TookOver || st.Last.TxID != "tx" || st.Last.Exit == nil && c.program == "third" {
				t.Errorf("%+v, last %+v", st, st.Last)
			}
			st = s.awaitCrew(3)
			for i, pid := range pids(st) {
				if slices.Contains(c.kept, i) != (pid == pids(before)[i]) {
					t.Errorf("worker %d was %d and is %d", i+1, pids(before)[i], pid)
				}
			}
			if st.Exe != s.path("releases", "web.one", "app") {
				t.Errorf("it runs %s", st.Exe)
			}
			want := 4
			if b != nil {
				b.end(t)
			} else {
				want = 3
			}
			if n := s.fewest(); n < want {
				t.Errorf("%d workers served at one moment", n)
			}
			if got := s.events("abort", "ZDT_REASON"); !slices.Equal(got, []string{"abort 2 " + c.reason}) {
				t.Errorf("events %q", got)
			}
			s.signal(s.pid(), unix.SIGUSR2)
			if st := s.awaitCrew(4); st.TookOver || !st.Last.Committed {
				t.Errorf("%+v, last %+v", st, st.Last)
			}
		})
	}
}

// The earlier program can come up in a roll back and yet not live. It is not started again without end.
func TestRollBackToAProgramThatEnds(t *testing.T) {
	s := crewOf(t, 4, stageConfig{Program: "fades"})
	s.awaitCrew(1)
	s.arm(control.Arm{Exe: s.release("two", "third")})
	s.signal(s.pid(), unix.SIGUSR2)
	s.awaitExit("exited 9")
	if n := len(s.events("listen")); n > 3+2*lossLimit {
		t.Errorf("it was READY %d times", n)
	}
}

// A unit whose program cannot run twice at a time any more needs a restart of the service: several workers overlap.
func TestRollOfAProgramThatCannotOverlap(t *testing.T) {
	s := crewOf(t, 2, stageConfig{})
	before := s.awaitCrew(1)
	s.arm(control.Arm{Command: []string{"alone"}})
	s.signal(s.pid(), unix.SIGUSR2)
	st := s.awaitUndone("start-failed")
	if !slices.Equal(pids(st), pids(before)) || !strings.Contains(st.Last.Detail, "restart") {
		t.Errorf("%+v, last %+v", st, st.Last)
	}
	s.signal(s.pid(), unix.SIGUSR2)
	s.awaitCrew(2)
}

// The handoff can be undone while one worker of before still drains.
func TestRollBackWhileItDrains(t *testing.T) {
	s := crewOf(t, 2, stageConfig{})
	before := pids(s.awaitCrew(1))
	old, answered := s.hangSomewhere(before)
	s.arm(control.Arm{Exe: s.release("two", "web")})
	s.signal(s.pid(), unix.SIGUSR2)
	st := s.await("rolled", func(st control.Status) bool {
		return st.Generation == 2 && st.Workers.Left == 0 && st.Workers.Ready == 2
	})
	if st.Predecessor == nil || st.Predecessor.PID != old {
		t.Errorf("predecessor %+v", st.Predecessor)
	}
	s.tell(pids(st)[1], "exit 3")
	back := s.await("rolled back", func(st control.Status) bool {
		return st.Generation == 3 && st.Phase == control.Idle && st.Workers.Ready == 2
	})
	if !back.TookOver || back.Last.Reason != "crashed" || back.Exe != s.path("releases", "web.one", "app") || !strings.Contains(back.Last.Detail, "exited 3") {
		t.Errorf("%+v, last %+v", back, back.Last)
	}
	s.tell(old, "release")
	if err := <-answered; err != nil {
		t.Errorf("the request across all of it: %v", err)
	}
	s.awaitCrew(3)
}

// A worker that ends before its turn is not started again with the program that goes.
func TestWorkerEndsInARoll(t *testing.T) {
	s := crewOf(t, 4, stageConfig{})
	before := pids(s.awaitCrew(1))
	st := s.hold(s.release("two", "later"))
	s.tell(before[1], "exit 0") // while the candidate is held
	st = s.await("mended", func(st control.Status) bool { return st.Workers.Restarts == 1 && st.Workers.Ready == 4 })
	if st.Phase != control.Held || s.exeOf(pids(st)[1]) != "web.one" {
		t.Errorf("%+v, workers %+v", st, st.Workers)
	}
	s.commit("tx")
	st = s.await("rolling", func(st control.Status) bool { return st.Workers.Left == 2 })
	s.tell(before[3], "exit 0")
	var third int
	eventually(t, "the third one waits for orders", func() bool {
		for _, pid := range s.processes() {
			if _, err := os.Stat(s.path(fmt.Sprintf("app-%d.sock", pid))); err == nil && s.exeOf(pid) == "web.one" {
				continue
			} else if err == nil && !slices.Contains(pids(st), pid) {
				third = pid
			}
		}
		return third != 0
	})
	s.tell(third, "say READY=1")
	st = s.awaitCrew(2)
	if st.Workers.Restarts != 1 {
		t.Errorf("%d restarts", st.Workers.Restarts)
	}
}

// exeOf is the release that a program was started from.
func (s *stage) exeOf(pid int) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	path, _, _ := strings.Cut(string(b), "\x00")
	path, _ = strings.CutSuffix(path, "/app")
	return path[strings.LastIndexByte(path, '/')+1:]
}

// SIGTERM in each phase ends all workers in order.
func TestStopWorkersInEachPhase(t *testing.T) {
	for name, c := range map[string]struct {
		program string
		lead    func(s *stage)
		want    string
	}{
		"held": {lead: func(s *stage) { s.hold(s.release("two", "web")) }},
		"rolling": {lead: func(s *stage) {
			s.arm(control.Arm{Exe: s.release("two", "later")})
			s.signal(s.pid(), unix.SIGUSR2)
			s.await("rolling", func(st control.Status) bool { return st.Workers.Left == 2 && len(s.processes()) == 5 })
		}},
		"rolling back": {lead: func(s *stage) {
			s.hold(s.release("two", "third"))
			s.flip(s.release("three", "mute")) // the release of before is another now
			os.Remove(s.path("releases", "web.one", "app"))
			os.Symlink(s.path("releases", "mute.three", "app"), s.path("releases", "web.one", "app"))
			s.commit("tx")
			s.await("rolling back", func(st control.Status) bool { return st.Phase == control.Aborting })
		}},
		"one worker less": {lead: func(s *stage) {
			s.signal(s.pid(), unix.SIGSTOP)
			s.tell(pids(s.last)[3], "exit 7")
			s.signal(s.pid(), unix.SIGTERM)
			s.signal(s.pid(), unix.SIGCONT)
		}, want: "exited 7"},
	} {
		t.Run(name, func(t *testing.T) {
			s := crewOf(t, 4, stageConfig{Program: c.program})
			s.last = s.awaitCrew(1)
			c.lead(s)
			s.signal(s.pid(), unix.SIGTERM)
			if c.want == "" {
				c.want = "exited 0"
			}
			s.awaitExit(c.want)
			if said := s.said(); !slices.ContainsFunc(said, func(w string) bool { return strings.HasPrefix(w, "STOPPING=1 ") }) && c.want == "exited 0" {
				t.Errorf("systemd heard %q", said)
			}
		})
	}
}

// A newer helper waits until all workers are replaced.
func TestRenewWaitsForARoll(t *testing.T) {
	s := crewOf(t, 4, stageConfig{})
	s.awaitCrew(1)
	s.arm(control.Arm{Exe: s.release("two", "third")})
	s.signal(s.pid(), unix.SIGUSR2)
	s.await("committed", func(st control.Status) bool { return st.Generation >= 2 })
	s.signal(s.pid(), unix.SIGHUP)
	st := s.await("renewed", func(st control.Status) bool { return st.Helper.Renewals == 1 })
	if st.Generation != 3 || !st.TookOver || st.Workers.Ready != 4 || len(s.processes()) != 4 {
		t.Errorf("%+v, workers %+v", st, st.Workers)
	}
	s.signal(s.pid(), unix.SIGUSR2) // mixed numbers are no hindrance
	s.awaitCrew(4)
}
