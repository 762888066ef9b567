package systest

import (
	"fmt"
	"strings"
	"testing"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/guest"
	"github.com/zdt-dev/zdt/journal"
	"github.com/zdt-dev/zdt/upgrade"
)

// systemctl reload in the middle of an upgrade fails, says why, and disturbs nothing.
func TestReloadDuringUpgrade(t *testing.T) {
	t.Parallel()
	eachPhase(t, func(t *testing.T, s *service, phase control.Phase, n int) {
		k := s.keepIn(phase, n)
		if r, err := s.g.Run(t.Context(), "systemctl", "reload", s.unit); err != nil || r.Code == 0 {
			t.Errorf("a second handoff was started: %v %s", err, r)
		}
		k.letGo()
		k.wait().mustBe(upgrade.Upgraded, 0)
		if log := s.reloadSaid(); !strings.Contains(log, "handoff refused") {
			t.Errorf("the journal does not say why the reload failed:\n%s", log)
		}
	})
}

// daemon-reload and daemon-reexec in the middle of an upgrade make no difference: systemd knows the new main process
// afterwards as it knew the old one, and restarts it when it dies.
func TestDaemonReloadDuringUpgrade(t *testing.T) {
	t.Parallel()
	daemonDuringUpgrade(t, "daemon-reload")
}
func TestDaemonReexecDuringUpgrade(t *testing.T) {
	t.Parallel()
	daemonDuringUpgrade(t, "daemon-reexec")
}

func daemonDuringUpgrade(t *testing.T, command string) {
	eachPhase(t, func(t *testing.T, s *service, phase control.Phase, n int) {
		k := s.keepIn(phase, n)
		s.run("systemctl", command)
		k.letGo()
		r := k.wait()
		r.mustBe(upgrade.Upgraded, 0)
		if len(r.Warnings) > 0 {
			t.Errorf("warnings: %q", r.Warnings)
		}
		if access := s.show("NotifyAccess"); access != "main" {
			t.Errorf("NotifyAccess=%s stayed behind", access)
		}
	})
}

// systemctl restart in the middle of an upgrade undoes it: what was asked for twice comes to an end, the old release
// serves, requests under way are answered, and zdt says what happened.
func TestRestartDuringUpgrade(t *testing.T) {
	t.Parallel()
	eachPhaseWith(t, mustFailNothing, func(t *testing.T, s *service, phase control.Phase, n int) {
		k := s.keepIn(phase, n)
		restarted := s.spawn("systemctl", "restart", s.unit)
		if phase == control.Draining {
			s.await("systemd stops the service", func() bool { return s.show("ActiveState") == "deactivating" })
			k.letGo()
		}
		if r, err := restarted.Wait(); err != nil || r.Code != 0 {
			t.Errorf("%v %s", err, r)
		}
		r := k.wait()
		r.mustBe(upgrade.RolledBack, 11)
		if want := fmt.Sprintf("systemd started the old release again as pid %d", s.mainPID()); r.Action != want {
			t.Errorf("action %q, want %q", r.Action, want)
		}
		if phase != control.Draining && r.Reason != string(journal.ReasonStopping) {
			t.Errorf("reason %q, want %q", r.Reason, journal.ReasonStopping)
		}
		s.mustRun(n - 1)
		s.mustUpgrade(good(n)) // and one more, for the footprint
	})
}

// systemctl stop in the middle of an upgrade stops the service, both generations of it, and zdt does not call that
// healthy; a later start starts the release of before, and the next upgrade works.
func TestStopDuringUpgrade(t *testing.T) {
	t.Parallel()
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := newService(t, g, options{})
		s.mustUpgrade(good(2))
		before := s.footprint()
		n := 2
		for _, phase := range phases() {
			t.Run(string(phase), func(t *testing.T) {
				s.t = t
				n++
				k := s.keepIn(phase, n)
				stopped := s.spawn("systemctl", "stop", s.unit)
				if phase == control.Draining {
					s.await("systemd stops the service", func() bool { return s.show("ActiveState") == "deactivating" })
					k.letGo()
				}
				if r, err := stopped.Wait(); err != nil || r.Code != 0 {
					t.Errorf("%v %s", err, r)
				}
				r := k.wait()
				r.mustBe(upgrade.NotRestored, 12)
				if !strings.Contains(r.Cause, "stop") || r.Hint == "" {
					t.Errorf("cause %q, hint %q: want one that speaks of the stop, and a hint", r.Cause, r.Hint)
				}
				if s.processes() != 0 || s.show("ActiveState") != "inactive" || s.show("Result") != "success" {
					t.Errorf("%d processes are left, the unit is %s (%s)", s.processes(), s.show("ActiveState"), s.show("Result"))
				}
				s.must(3, "zdt", "status", s.name)
				s.run("systemctl", "start", s.unit)
				s.mustRun(n - 1)
				s.mustUpgrade(good(n))
				s.mustRun(n)
				s.mustLeaveNothing(before)
			})
			s.t = t
		}
	})
}

// systemctl reload tells the truth: it succeeds when the handoff was committed or is held, and fails when it was undone.
func TestReloadTellsTheTruth(t *testing.T) {
	t.Parallel()
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := newService(t, g, options{})
		s.mustUpgrade(good(2))
		before := s.footprint()
		l := s.lightLoad()

		t.Run("committed", func(t *testing.T) {
			s.t = t
			old := s.mainPID()
			s.must(0, "systemctl", "reload", s.unit)
			if s.mainPID() == old {
				t.Error("the old process serves on")
			}
			s.mustRun(2)
		})
		t.Run("held", func(t *testing.T) {
			s.t = t
			old := s.mainPID()
			s.tell(control.Request{Op: control.OpArm, Arm: &control.Arm{TxID: "20260101T000000Z-held", Hold: true}})
			s.must(0, "systemctl", "reload", s.unit)
			if st := s.status(); st.Runtime == nil || st.Runtime.Phase != control.Held {
				t.Errorf("not held:\n%s", st.text)
			}
			s.tell(control.Request{Op: control.OpAbort, TxID: "20260101T000000Z-held"})
			s.settled()
			if s.mainPID() != old {
				t.Error("the old process does not serve on")
			}
		})
		t.Run("undone", func(t *testing.T) {
			s.t = t
			// A release that was refused is still in the store; somebody makes it the current one by hand.
			r := s.upgrade(bad(3, crash))
			r.mustBe(upgrade.RolledBack, 11)
			old := s.mainPID()
			s.run("ln", "-sfn", "releases/"+r.To.ID, "/var/lib/zdt/hello/current")
			failed, err := g.Run(t.Context(), "systemctl", "reload", s.unit)
			if err != nil || failed.Code == 0 {
				t.Errorf("the reload succeeded: %v %s", err, failed)
			}
			s.run("ln", "-sfn", "releases/"+r.From.ID, "/var/lib/zdt/hello/current")
			if s.mainPID() != old || s.show("ActiveState") != "active" || s.show("Result") != "success" {
				t.Errorf("main process %d, want %d; the unit is %s (%s)", s.mainPID(), old, s.show("ActiveState"), s.show("Result"))
			}
			if log := s.reloadSaid(); !strings.Contains(log, "handoff undone (crashed)") {
				t.Errorf("the journal does not say why the reload failed:\n%s", log)
			}
			s.mustRun(2)
		})

		s.t = t
		s.mustUpgrade(good(4))
		mustLoseNothing(t, l.Stop())
		s.mustRun(4)
		s.mustLeaveNothing(before)
	})
}

// spawn starts a command of the guest that a scenario goes on beside.
func (s *service) spawn(args ...string) *guest.Process {
	s.t.Helper()
	p, err := s.g.Spawn(s.t.Context(), guest.Command{Args: args})
	if err != nil {
		s.t.Fatal(err)
	}
	return p
}
