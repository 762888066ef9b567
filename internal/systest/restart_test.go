package systest

import (
	"testing"

	"github.com/zdt-dev/zdt/internal/guest"
	"github.com/zdt-dev/zdt/internal/load"
	"github.com/zdt-dev/zdt/upgrade"
)

// A service that is down is started with the new release; one that does not come up with it is down as before.
func TestUpgradeOfWhatIsDown(t *testing.T) {
	t.Parallel()
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := newService(t, g, options{})
		s.run("systemctl", "stop", s.unit)
		s.upgrade(good(2)).mustBe(upgrade.Upgraded, 0)
		s.mustRun(2)

		s.run("systemctl", "stop", s.unit)
		r := s.upgrade(bad(3, crash))
		r.mustBe(upgrade.NotRestored, 12)
		if len(r.CandidateLog) == 0 {
			t.Errorf("the last words of the program are missing:\n%s", r.exec)
		}
		if st := s.status(); st.State != "stopped" && st.State != "failed" || st.Txn != nil || st.Current.ID != r.From.ID {
			t.Errorf("after the failed start:\n%s", st.text)
		}
		s.upgrade(good(4)).mustBe(upgrade.Upgraded, 0)
		s.mustRun(4)
		s.mustUpgrade(good(5))
	})
}

// Who stops a service while a release that was started by a restart is on trial finds it down, and not started again: also when
// the program obeys at once, which looks like a crash. One that dies by itself is exchanged for the old one.
func TestStoppedInARestart(t *testing.T) {
	t.Parallel()
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := newService(t, g, options{})
		s.mustUpgrade(good(2))
		baking := func(v int) *running {
			u := s.startUpgrade(s.put(good(v)), "--strategy", "restart", "--bake", "1h")
			s.await("the new release is on trial", func() bool { st := s.status(); return st.Txn != nil && st.Txn.Phase == "bake" })
			return u
		}
		for v := 3; v < 6; v++ {
			u := baking(v)
			s.run("systemctl", "stop", s.unit, "hello.socket")
			r := u.wait()
			r.mustBe(upgrade.NotRestored, 12)
			if r.Reason != "stopping" || s.show("ActiveState") != "inactive" || s.status().Current.ID != r.From.ID {
				t.Fatalf("a service that was stopped is %s:\n%s", s.show("ActiveState"), r.exec)
			}
			s.run("systemctl", "reset-failed", "hello.socket", s.unit) // for systemd counts starts
			s.run("systemctl", "start", "hello.socket", s.unit)
			s.mustRun(2)
		}
		u := baking(6)
		s.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", s.unit)
		r := u.wait()
		r.mustBe(upgrade.RolledBack, 11)
		if r.Reason != "crashed" {
			t.Errorf("the reason is %q", r.Reason)
		}
		s.mustRun(2)
	})
}

// Where systemd has the socket, a restart refuses nobody: clients wait, and how long is told. A release that does not come up
// is exchanged for the old one again.
func TestRestartStrategy(t *testing.T) {
	t.Parallel()
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := newService(t, g, options{})
		s.mustUpgrade(good(2))
		l := s.lightLoad()
		if err := l.Until(t.Context(), func(r load.Report) bool { return r.Requests > 100 }); err != nil {
			t.Fatal(err)
		}
		r := s.upgrade(good(3), "--strategy", "restart")
		r.mustBe(upgrade.Upgraded, 0)
		if r.Gap <= 0 {
			t.Errorf("no gap was measured:\n%s", r.exec)
		}
		t.Logf("nobody served for %s", r.Gap)
		s.mustRun(3)
		r = s.upgrade(bad(4, crash), "--strategy", "restart")
		r.mustBe(upgrade.RolledBack, 11)
		t.Logf("nobody served for %s", r.Gap)
		s.mustRun(3)
		s.mustUpgrade(good(5))
		rep := l.Stop()
		t.Log(rep)
		if rep.Refused > 0 || rep.Failed > 0 {
			t.Errorf("clients noticed: %s", rep)
		}
	})
}
