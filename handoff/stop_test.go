package handoff

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/handoff/control"
)

// Whoever asks for an abort while the service stops, with the candidate still ending, gets no service back from the dead.
func TestAbortWhileStopping(t *testing.T) {
	for _, how := range []string{"over the control socket", "by signal"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			s := newStage(t, quick(serviceConfig{DrainTimeout: patience, IdleGrace: patience}))
			s.startReady()
			st := s.hold("t1")
			// A request that the candidate works on keeps it alive until the abort was asked for.
			c := s.connectTo(st.Handoff.Candidate)
			defer c.Close()
			if _, err := c.Write([]byte("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n")); err != nil {
				t.Fatal(err)
			}
			s.signal(st.PID, syscall.SIGTERM)
			s.await("stopping", func(st control.Status) bool { return st.Phase == control.Stopping })
			if how == "by signal" {
				s.signal(st.PID, syscall.SIGUSR1)
			} else if _, err := s.ask(func(ctx context.Context, c *control.Client) (control.Status, error) {
				return c.Abort(ctx, "t1", "")
			}); err != nil {
				t.Error(err)
			}
			if st := s.mustStatus(); st.Phase != control.Stopping {
				t.Errorf("phase %s after the abort, want %s", st.Phase, control.Stopping)
			}
			c.Close()
			s.awaitExit(st.PID, "exited 0")
			s.awaitEmpty()
		})
	}
}

// In the end there is no process left, and each that was not killed has ended
// well, whatever the moment at which the service is stopped and whoever is told.
func TestStopInEveryPhase(t *testing.T) {
	busy := serviceConfig{DrainTimeout: patience, IdleGrace: patience} // ends only because it is told to stop
	for _, tt := range []struct {
		phase string
		cfg   serviceConfig
		reach func(s *stage) (incumbent, candidate int)
	}{
		{"starting", serviceConfig{Unready: true}, func(s *stage) (int, int) {
			s.start()
			return s.await("starting", func(st control.Status) bool { return st.Phase == control.Starting }).PID, 0
		}},
		{"idle", serviceConfig{}, func(s *stage) (int, int) { return s.startReady().PID, 0 }},
		{"forked", serviceConfig{}, func(s *stage) (int, int) {
			pid := s.startReady().PID
			s.armAndSignal(pid, control.Arm{TxID: "t1", Exe: "hang"})
			return pid, s.await("forked", func(st control.Status) bool { return st.Phase == control.Forked }).Handoff.Candidate
		}},
		{"held", serviceConfig{}, func(s *stage) (int, int) {
			s.startReady()
			st := s.hold("t1")
			return st.PID, st.Handoff.Candidate
		}},
		{"aborting", busy, func(s *stage) (int, int) {
			s.startReady()
			st := s.hold("t1")
			c := s.connectTo(st.Handoff.Candidate)
			s.t.Cleanup(func() { c.Close() })
			s.signal(st.PID, syscall.SIGUSR1)
			s.await("aborting", func(st control.Status) bool { return st.Phase == control.Aborting })
			return st.PID, st.Handoff.Candidate
		}},
		{"draining", busy, func(s *stage) (int, int) {
			first := s.startReady()
			c := s.idleConnection()
			s.t.Cleanup(func() { c.Close() })
			s.await("connected", func(st control.Status) bool { return st.Connections.Idle == 1 })
			s.flip("service-next")
			s.signal(first.PID, syscall.SIGUSR2)
			second := s.await("generation 2", func(st control.Status) bool { return st.Generation == 2 && st.Phase == control.Idle })
			return first.PID, second.PID
		}},
	} {
		for _, whom := range []string{"main", "everybody"} {
			t.Run(tt.phase+", "+whom+" is told", func(t *testing.T) {
				t.Parallel()
				s := newStage(t, quick(tt.cfg))
				incumbent, candidate := tt.reach(s)
				began := time.Now()
				if whom == "main" {
					s.signal(s.systemd.mainPID(), syscall.SIGTERM)
				} else { // as KillMode=control-group
					for _, pid := range s.processes() {
						unix.Kill(pid, syscall.SIGTERM)
					}
				}
				s.awaitExit(incumbent, "exited 0")
				s.awaitEmpty()
				if took := time.Since(began); took > patience/2 {
					t.Errorf("took %v", took)
				}
				if candidate != 0 && tt.phase != "forked" {
					s.checkExit(candidate, "exited 0")
				}
				if _, err := os.Lstat(s.controlPath()); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("control socket after the end of the service: %v", err)
				}
			})
		}
	}
}

// checkExit checks how a generation ended, if the test is the one to be told:
// it is not when the incumbent has reaped its candidate.
func (s *stage) checkExit(pid int, want string) {
	s.t.Helper()
	s.reap(pid)
	s.mu.Lock()
	defer s.mu.Unlock()
	if got := s.exits[pid]; got != "" && got != want {
		s.t.Errorf("process %d: %s, want %s", pid, got, want)
	}
}

func TestQuitInEveryPhase(t *testing.T) {
	for _, phase := range []string{"idle", "busy", "forked", "held", "draining"} {
		t.Run(phase, func(t *testing.T) {
			t.Parallel()
			s := stand(t, serviceConfig{DrainTimeout: patience, IdleGrace: patience})
			first := s.mustStatus().PID
			main := first
			switch phase {
			case "busy":
				c := s.idleConnection()
				defer c.Close()
				fmt.Fprintf(c, "GET /slow?for=1m HTTP/1.1\r\nHost: x\r\n\r\n")
				s.await("busy", func(st control.Status) bool { return st.Connections.Active == 1 })
			case "forked":
				s.armAndSignal(first, control.Arm{TxID: "t1", Exe: "deaf-to-term"})
				s.await("forked", func(st control.Status) bool { return st.Phase == control.Forked })
			case "held":
				s.hold("t1")
			case "draining":
				c := s.idleConnection()
				defer c.Close()
				s.await("connected", func(st control.Status) bool { return st.Connections.Idle == 1 })
				s.flip("service-next")
				s.signal(first, syscall.SIGUSR2)
				main = s.await("generation 2", func(st control.Status) bool { return st.Generation == 2 && st.Phase == control.Idle }).PID
			}
			began := time.Now()
			s.signal(main, syscall.SIGQUIT)
			s.awaitExit(first, "exited 0")
			s.awaitEmpty()
			s.checkExit(main, "exited 0")
			if took := time.Since(began); took > patience/2 {
				t.Errorf("took %v", took)
			}
		})
	}
}
