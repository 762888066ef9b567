package helper

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/handoff/control"
)

// A newer helper takes the place of the one that runs: the process, the program and its requests stay, what it says
// is heard, and a handoff works as ever.
func TestRenew(t *testing.T) {
	s := begin(t, stageConfig{})
	first := s.await("up", func(control.Status) bool { return true })
	answered := s.hang(first.App)
	before := s.descriptors()
	for n := 1; n <= 10; n++ {
		s.signal(s.pid(), unix.SIGHUP)
		s.tell(first.App, fmt.Sprintf("say STATUS=word-%d", n)) // in the middle of it, perhaps
		st := s.await("renewed", func(st control.Status) bool { return st.Helper.Renewals == n })
		if st.PID != s.pid() || st.App != first.App || st.Generation != 1 || st.Phase != control.Idle || st.Helper.Failures != 0 {
			t.Fatalf("%+v", st)
		}
		s.awaitSaid(fmt.Sprintf("STATUS=generation 1: serving: word-%d", n))
	}
	eventually(t, "the descriptors are those of before", func() bool { return s.descriptors() == before })
	s.tell(first.App, "release")
	if err := <-answered; err != nil {
		t.Errorf("the request across the renewals: %v", err)
	}
	s.signal(s.pid(), unix.SIGUSR2)
	if st := s.awaitGeneration(2); st.App == first.App || !st.Last.Committed {
		t.Errorf("%+v", st)
	}
	s.signal(s.pid(), unix.SIGTERM)
	s.awaitExit("exited 0")
}

// SIGHUP within a handoff waits for its end.
func TestRenewWaitsForAHandoff(t *testing.T) {
	s := begin(t, stageConfig{})
	st := s.hold("")
	s.signal(s.pid(), unix.SIGHUP)
	if st := s.await("still held", func(control.Status) bool { return true }); st.Phase != control.Held || st.Helper.Renewals != 0 {
		t.Errorf("%+v", st)
	}
	if _, err := s.commit(st.Handoff.TxID); err != nil {
		t.Fatal(err)
	}
	if st := s.await("renewed", func(st control.Status) bool { return st.Helper.Renewals == 1 }); st.Generation != 2 || st.Predecessor != nil {
		t.Errorf("%+v", st)
	}
}

// A zdt on disk that is none, or goes away at the last moment, changes nothing.
func TestNotRenewed(t *testing.T) {
	for _, tt := range []struct{ name, script, says string }{
		{"is broken", "#!/bin/sh\nexit 3\n", "cannot go on with the state of this one (it ended: exited 3)"},
		{"is no program", "no program\n", "exec format error"},
		{"is gone", "", "find the zdt on disk"},
		{"vanishes after the question", "#!/bin/sh\nrm -f \"$0\"\n", "no such file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			zdt := filepath.Join(dir, "zdt")
			self, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(self, zdt); err != nil {
				t.Fatal(err)
			}
			s := begin(t, stageConfig{}, func(c *exec.Cmd) { c.Args[0] = zdt })
			first := s.await("up", func(control.Status) bool { return true })
			os.Remove(zdt)
			if tt.script != "" {
				if err := os.WriteFile(zdt, []byte(tt.script), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			s.signal(s.pid(), unix.SIGHUP)
			st := s.await("refused", func(st control.Status) bool { return st.Helper.Failures == 1 })
			if st.App != first.App || st.Helper.Renewals != 0 || !strings.Contains(st.Helper.Error, tt.says) {
				t.Errorf("%+v: %s", st, st.Helper.Error)
			}
			s.tell(first.App, "say STATUS=as-ever")
			s.awaitSaid("STATUS=generation 1: serving: as-ever")
			s.signal(s.pid(), unix.SIGUSR2)
			s.awaitGeneration(2)
			s.signal(s.pid(), unix.SIGTERM)
			s.awaitExit("exited 0")
		})
	}
}

// The next helper sees the end of a program that an earlier one has started.
func TestRenewedSeesTheEnd(t *testing.T) {
	s := begin(t, stageConfig{})
	app := s.await("up", func(control.Status) bool { return true }).App
	s.signal(s.pid(), unix.SIGHUP)
	s.await("renewed", func(st control.Status) bool { return st.Helper.Renewals == 1 })
	s.signal(app, unix.SIGKILL)
	s.awaitExit("killed KILL")
}

// Whatever is in the descriptor that should have the state: an error, and no panic.
func FuzzState(f *testing.F) {
	s := state{Format: stateFormat, Number: 3, App: App{Command: []string{"x"}}, Control: -1,
		Serving: servingState{App: App{Command: []string{"x"}}, Exe: "x", Pinned: []string{"x"}, Leader: 7, PIDFD: 5, Mailbox: 6}}
	good, err := json.Marshal(s)
	if err != nil {
		f.Fatal(err)
	}
	var back state
	if err := back.decode(good); err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"format":2}`))
	f.Add([]byte(`{"format":1,"number":1,"serving":{"leader":2,"exe":"x","app":{"Command":["x"],"Readiness":"maybe"}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var s state
		if err := s.decode(data); err == nil && (s.Serving.Leader <= 1 || len(s.Serving.Pinned) == 0) {
			t.Errorf("taken: %+v", s)
		}
	})
}
