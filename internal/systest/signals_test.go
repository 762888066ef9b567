package systest

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/guest"
	"github.com/zdt-dev/zdt/journal"
	"github.com/zdt-dev/zdt/upgrade"
)

// storm sends SIGUSR2 to a process of the guest, all at once as far as a shell can.
func (s *service) storm(pid, signals int) {
	s.t.Helper()
	s.run("sh", "-c", fmt.Sprintf("i=0; while [ $i -lt %d ]; do kill -USR2 %d & i=$((i+1)); done; wait", signals, pid))
}

// refusals counts the refused handoffs that the journal tells of, from one process.
func (s *service) refusals(pid int) int {
	return strings.Count(s.journalOf("-o", "export", fmt.Sprintf("_PID=%d", pid), journal.FieldReason+"="+string(journal.ReasonRefused)), "MESSAGE=")
}

// A storm of SIGUSR2 starts one handoff; the rest is refused, counted and told, and no client notices.
func TestSignalStorm(t *testing.T) {
	t.Parallel()
	const signals = 50
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := newService(t, g, options{})
		s.mustUpgrade(good(2))
		before := s.footprint()
		l := s.lightLoad()
		for generation := 3; generation < 6; generation++ {
			old := s.mainPID()
			finish := s.hangingRequest() // the old one lives until the whole storm is over
			conn, statuses := s.control(control.Request{Op: control.OpWatch})
			s.storm(old, signals)
			s.drainingSuccessor(old)
			// The kernel keeps one pending signal of a kind: all of the storm may have been one on a busy machine. This one is late.
			s.run("kill", "-USR2", pid(old))
			s.await("the late signal is refused", func() bool { return s.refusals(old) > 0 })
			finish(version(2))
			var last control.Status // the old one's own count, up to its last word
			for last.Phase != control.Exited {
				var resp control.Response
				conn.SetReadDeadline(time.Now().Add(patience))
				if err := statuses.Decode(&resp); err != nil {
					t.Fatalf("watch the old generation: %v", err)
				}
				last = *resp.Status
			}
			st := s.settled()
			if last.Attempts != 1 || st.Runtime.Generation != generation || st.Runtime.Attempts != 0 {
				t.Errorf("%d handoffs were started, generation %d serves; want 1 and %d", last.Attempts, st.Runtime.Generation, generation)
			}
			if last.Refused < 1 || last.Refused > signals {
				t.Errorf("%d handoffs were refused, want 1 to %d", last.Refused, signals)
			}
			s.await("the journal tells of each refusal", func() bool { return s.refusals(old) == int(last.Refused) })
		}
		s.mustUpgrade(good(3))
		mustLoseNothing(t, l.Stop())
		s.mustRun(3)
		s.mustLeaveNothing(before)
	})
}

// A storm of SIGUSR2 in the middle of an upgrade disturbs neither the upgrade nor a client.
func TestSignalStormDuringUpgrade(t *testing.T) {
	t.Parallel()
	eachPhase(t, func(t *testing.T, s *service, phase control.Phase, n int) {
		k := s.keepIn(phase, n)
		generation := s.status().Runtime.Generation
		s.storm(k.incumbent, 50)
		if phase != control.Draining {
			s.storm(k.candidate, 50)
		}
		k.letGo()
		r := k.wait()
		r.mustBe(upgrade.Upgraded, 0)
		if phase != control.Draining {
			generation++
		}
		if got := s.settled().Runtime.Generation; got != generation {
			t.Errorf("generation %d serves, want %d", got, generation)
		}
		if s.refusals(k.incumbent) == 0 {
			t.Error("the journal tells of no refusal")
		}
	})
}

// SIGUSR1 undoes a handoff that is not committed, and does nothing to one that is.
func TestAbortSignal(t *testing.T) {
	t.Parallel()
	eachPhase(t, func(t *testing.T, s *service, phase control.Phase, n int) {
		k := s.keepIn(phase, n)
		s.run("kill", "-USR1", pid(k.incumbent))
		if phase == control.Draining {
			k.letGo()
			k.wait().mustBe(upgrade.Upgraded, 0)
			return
		}
		r := k.wait()
		r.mustBe(upgrade.RolledBack, 11)
		if r.Reason != string(journal.ReasonSignal) {
			t.Errorf("reason %q, want %q", r.Reason, journal.ReasonSignal)
		}
		s.mustRun(n - 1)
	})
}
