//go:build linux

package helper

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/handoff/control"
)

// crewOf starts a service with n workers and waits until all serve.
func crewOf(t *testing.T, n int, c stageConfig, more ...func(*exec.Cmd)) *stage {
	t.Helper()
	c.Workers = n
	return begin(t, c, more...)
}

// awaitCrew waits until all workers serve, of generation n, and no other group is there.
func (s *stage) awaitCrew(n int) control.Status {
	s.t.Helper()
	return s.await(fmt.Sprintf("generation %d, all workers", n), func(st control.Status) bool {
		return st.Generation == n && st.Phase == control.Idle && st.Predecessor == nil && st.Workers.Ready == s.Workers && st.Workers.Left == 0
	})
}

// pids are the workers'.
func pids(st control.Status) []int {
	var pids []int
	for _, w := range st.Workers.List {
		pids = append(pids, w.PID)
	}
	return pids
}

// fewest is how few workers served at any moment since all did. What they note is in the order in which it
// happened: each notes that it serves before it says READY, and that it was told to stop before it does.
func (s *stage) fewest() int {
	b, _ := os.ReadFile(s.path("log"))
	serving, fewest, up := map[string]bool{}, s.Workers, false
	for line := range strings.Lines(string(b)) {
		pid, what, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch what {
		case "serves":
			serving[pid] = true
		case "terminated", "ends":
			delete(serving, pid)
		}
		up = up || len(serving) == s.Workers
		if up {
			fewest = min(fewest, len(serving))
		}
	}
	return fewest
}

// burden are clients that never try again.
type burden struct {
	stop   chan struct{}
	wg     sync.WaitGroup
	mu     sync.Mutex
	asked  int
	failed []error
}

func (s *stage) burden() *burden {
	b := &burden{stop: make(chan struct{})}
	for range 4 {
		b.wg.Go(func() {
			for {
				select {
				case <-b.stop:
					return
				case <-time.After(time.Millisecond): // other tests run too
				}
				_, err := s.get("/")
				b.mu.Lock()
				b.asked++
				if err != nil {
					b.failed = append(b.failed, err)
				}
				b.mu.Unlock()
			}
		})
	}
	return b
}

// end stops the clients. None may have noticed anything.
func (b *burden) end(t *testing.T) {
	t.Helper()
	close(b.stop)
	b.wg.Wait()
	if len(b.failed) > 0 || b.asked == 0 {
		t.Errorf("%d of %d requests failed: %v", len(b.failed), b.asked, errors.Join(b.failed...))
	}
}

// Each worker has a slot and knows it. systemd hears READY when all are.
func TestWorkers(t *testing.T) {
	s := crewOf(t, 3, stageConfig{})
	st := s.awaitCrew(1)
	for i, w := range st.Workers.List {
		if w.Index != i+1 || w.Generation != 1 || !w.Ready || s.tell(w.PID, "environ ZDT_WORKER") != fmt.Sprint(i+1) || s.tell(w.PID, "environ ZDT_GENERATION") != "1" {
			t.Errorf("worker %+v", w)
		}
	}
	if st.App != st.Workers.List[0].PID || st.Workers.Want != 3 || len(st.Workers.List) != 3 || st.Workers.Restarts != 0 {
		t.Errorf("%+v, workers %+v", st, st.Workers)
	}
	s.awaitSaid("READY=1 STATUS=generation 1: serving, 3 workers")
	answers := map[int]bool{}
	eventually(t, "each of them has answered", func() bool {
		pid, err := s.get("/")
		if err != nil {
			t.Fatal(err)
		}
		answers[pid] = true
		return len(answers) == 3
	})
	s.signal(s.pid(), unix.SIGWINCH)
	for _, pid := range pids(st) {
		s.awaitNote(pid, "window changed")
	}
	s.signal(s.pid(), unix.SIGTERM)
	s.awaitExit("exited 0")
}

// A service is up when all workers are, and does not come up when one does not.
func TestWorkersDoNotStart(t *testing.T) {
	for name, want := range map[string]string{"third": "exited 7", "later": "exited 1"} {
		t.Run(name, func(t *testing.T) {
			s := enter(t, stageConfig{Program: name, Workers: 4, ReadyTimeout: time.Second})
			s.awaitExit(want)
			for _, word := range s.said() {
				if strings.Contains(word, "READY=1") {
					t.Errorf("systemd heard %q", word)
				}
			}
		})
	}
}

// A worker that ends alone is started again in its slot, and the others have not noticed.
func TestWorkerEndsAlone(t *testing.T) {
	s := crewOf(t, 3, stageConfig{})
	before := pids(s.awaitCrew(1))
	s.tell(before[0], "fork") // what it leaves behind goes before
	for n, i := range []int{1, 0, 2} {
		was := pids(s.awaitCrew(1))
		s.tell(was[i], "exit 0")
		st := s.await("mended", func(st control.Status) bool { return st.Workers.Restarts == n+1 && st.Workers.Ready == 3 })
		now := pids(st)
		if was[i] == now[i] || s.tell(now[i], "environ ZDT_WORKER") != fmt.Sprint(i+1) || st.Generation != 1 || st.App != now[0] {
			t.Errorf("was %v, is %v; %+v", was, now, st)
		}
		now[i] = was[i]
		if !slices.Equal(was, now) {
			t.Errorf("others have changed too: %v, %v", was, now)
		}
	}
	if left := s.processes(); len(left) != 3 {
		t.Errorf("processes %v", left)
	}
	s.awaitSaid("STATUS=generation 1: serving, 3 workers, 2 ready")
	s.signal(s.pid(), unix.SIGUSR2)
	s.awaitCrew(2)
	s.signal(s.pid(), unix.SIGTERM)
	s.awaitExit("exited 0")
}

// Workers that keep ending are the end of the service, with the status of the last.
func TestWorkersKeepEnding(t *testing.T) {
	s := crewOf(t, 2, stageConfig{})
	for n := range lossLimit {
		st := s.await("mended", func(st control.Status) bool { return st.Workers.Restarts == n && st.Workers.Ready == 2 })
		s.tell(st.Workers.List[1].PID, "exit 7")
	}
	s.awaitExit("exited 7")
	for _, word := range s.said() {
		if strings.Contains(word, "STOPPING") {
			t.Error("systemd was told of a stop that nobody wanted")
		}
	}
}

// A worker that is started again and does not come up is tried again, while the others serve; or it is the end.
func TestWorkerDoesNotComeBack(t *testing.T) {
	for _, recovers := range []bool{true, false} {
		t.Run(fmt.Sprint(recovers), func(t *testing.T) {
			s := crewOf(t, 2, stageConfig{Program: "moody", ReadyTimeout: 2 * time.Second})
			before := pids(s.awaitCrew(1))
			mood := s.path("mood")
			if err := os.WriteFile(mood, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			s.tell(before[1], "exit 7")
			if !recovers {
				s.awaitExit("exited 1")
				return
			}
			s.await("tried twice", func(st control.Status) bool { return st.Workers.Restarts == 2 && st.Workers.Ready == 1 })
			os.Remove(mood)
			if st := s.awaitCrew(1); st.Workers.List[0].PID != before[0] || st.Workers.Restarts > 4 {
				t.Errorf("workers %+v", st.Workers)
			}
		})
	}
}

// The last one that serves is the service.
func TestLastWorkerEnds(t *testing.T) {
	s := crewOf(t, 2, stageConfig{})
	all := pids(s.awaitCrew(1))
	s.signal(s.helper.Process.Pid, unix.SIGSTOP) // both at once
	s.tell(all[0], "exit 3")
	s.tell(all[1], "exit 3")
	eventually(t, "both have ended", func() bool { return len(s.processes()) == 0 })
	s.signal(s.helper.Process.Pid, unix.SIGCONT)
	s.awaitExit("exited 3")
}

// systemd gets a heartbeat when all workers have given one.
func TestWatchdogOfWorkers(t *testing.T) {
	s := crewOf(t, 2, stageConfig{}, func(cmd *exec.Cmd) { cmd.Env = append(cmd.Env, "WATCHDOG_USEC=60000000") })
	all := pids(s.awaitCrew(1))
	beat := func(i int) {
		t.Helper()
		s.tell(all[i], "say WATCHDOG=1")
		s.tell(all[i], fmt.Sprintf("store %d", all[i])) // what comes after it is there
		n := len(s.said())
		eventually(t, "systemd has heard it", func() bool {
			return len(s.said()) >= n && slices.Contains(s.said(), fmt.Sprintf("FDSTORE=1 FDNAME=%d +1", all[i]))
		})
	}
	beat(0) // the first one only makes the second wait
	was := s.beats()
	for range 3 {
		s.tell(all[0], "say WATCHDOG=1")
	}
	beat(0)
	if n := s.beats(); n != was {
		t.Errorf("%d heartbeats of one worker alone, %d before", n, was)
	}
	beat(1)
	eventually(t, "both have beaten", func() bool { return s.beats() == was+1 })
	// One that asks to be ended is, and no other.
	s.tell(all[1], "say WATCHDOG=trigger")
	st := s.await("mended", func(st control.Status) bool { return st.Workers.Restarts == 1 && st.Workers.Ready == 2 })
	if now := pids(st); now[0] != all[0] || now[1] == all[1] {
		t.Errorf("%v, before %v", now, all)
	}
	if words := strings.Join(s.said(), "\n"); strings.Contains(words, "trigger") {
		t.Errorf("systemd heard %q", words)
	}
}

// A newer helper in the place of this one keeps all workers.
func TestRenewWithWorkers(t *testing.T) {
	for _, reusePort := range []bool{false, true} {
		t.Run(fmt.Sprint(reusePort), func(t *testing.T) {
			s := crewOf(t, 3, stageConfig{ReusePort: reusePort})
			before := s.awaitCrew(1)
			s.tell(pids(before)[1], "exit 0")
			before = s.await("mended", func(st control.Status) bool { return st.Workers.Restarts == 1 && st.Workers.Ready == 3 })
			b := s.burden()
			descriptors := s.descriptors()
			for n := 1; n <= 5; n++ {
				s.signal(s.pid(), unix.SIGHUP)
				for i, pid := range pids(before) {
					s.tell(pid, fmt.Sprintf("say ERRNO=%d%d", n, i)) // in the middle of it, perhaps
				}
				st := s.await("renewed", func(st control.Status) bool { return st.Helper.Renewals == n })
				if !slices.Equal(pids(st), pids(before)) || st.Workers.Ready != 3 || st.Workers.Restarts != 1 || st.Helper.Failures != 0 {
					t.Fatalf("%+v, workers %+v", st, st.Workers)
				}
				for i := range 3 {
					s.awaitSaid(fmt.Sprintf("ERRNO=%d%d", n, i))
				}
			}
			eventually(t, "the descriptors are those of before", func() bool { return s.descriptors() <= descriptors })
			s.signal(s.pid(), unix.SIGUSR2)
			s.awaitCrew(2)
			b.end(t)
			s.tell(pids(s.awaitCrew(2))[2], "exit 0") // whose end it sees
			s.await("mended", func(st control.Status) bool { return st.Workers.Restarts == 2 && st.Workers.Ready == 3 })
			s.signal(s.pid(), unix.SIGTERM)
			s.awaitExit("exited 0")
		})
	}
}
