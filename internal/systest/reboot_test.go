package systest

import (
	"strings"
	"testing"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/guest"
	"github.com/zdt-dev/zdt/upgrade"
)

// Whenever the host goes down: after the boot the release that was known to be good serves, nothing is open any more
// without anybody having done anything, who waited learns what became of it, and the next upgrade works.
func TestReboot(t *testing.T) {
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := newService(t, g, options{})
		if out := s.run("sh", "-c", "systemctl is-enabled zdt-reconcile.service; systemd-analyze verify /etc/systemd/system/zdt-reconcile.service 2>&1"); out != "enabled" {
			t.Errorf("the unit that settles: %s", out)
		}
		n := 1
		for _, phase := range []control.Phase{control.Held, control.Draining} {
			var txid string
			switch phase {
			case control.Held:
				txid, _ = s.detach(s.put(good(n+1)), "--bake", "1h")
				s.await("the bake", func() bool { r := s.runtime(); return r != nil && r.Phase == control.Held })
			case control.Draining:
				s.hangingRequest()
				main := s.mainPID()
				txid, _ = s.detach(s.put(good(n + 1)))
				s.drainingSuccessor(main)
			}
			s.g = guest.PowerCycle(t, s.g)
			if st := s.status(); st.Txn != nil || st.State != "serving" {
				t.Errorf("after a reboot while %s:\n%s", phase, st.text)
			}
			s.mustRun(n)
			if out := s.run("systemctl", "show", "--value", "--property=Result,ExecMainStatus", "zdt-reconcile.service"); out != "success\n0" && out != "0\nsuccess" {
				t.Errorf("the unit that settles: %s\n%s", out, s.run("systemctl", "status", "--no-pager", "zdt-reconcile.service"))
			}
			s.must(13, "zdt", "wait", "hello", txid)
			if text := s.run("zdt", "history", "hello"); !strings.Contains(text, "interrupted") {
				t.Errorf("history:\n%s", text)
			}
			n += 2
			s.mustUpgrade(good(n))
			s.mustRun(n)
		}

		// A shutdown in order leaves nothing to settle: the upgrade is undone while its service is there.
		txid, _ := s.detach(s.put(good(n+1)), "--bake", "1h")
		s.g = guest.Reboot(t, s.g)
		s.mustRun(n)
		if r := s.waitFor(143, txid); r.Outcome != upgrade.Interrupted {
			t.Errorf("report: %+v", r)
		}

		// With nothing open it is not even started.
		s.g = guest.PowerCycle(t, s.g)
		s.mustRun(n)
		if got := s.run("systemctl", "show", "--value", "--property=ConditionResult", "zdt-reconcile.service"); got != "no" {
			t.Errorf("ConditionResult=%s", got)
		}
		// A service that nobody starts at boot is settled all the same.
		_, unit := s.detach(s.put(good(n+1)), "--bake", "1h")
		s.run("systemctl", "kill", "--signal=KILL", unit)
		s.run("systemctl", "disable", "hello.service", "hello.socket")
		s.g = guest.PowerCycle(t, s.g)
		if st := s.status(); st.Txn != nil || st.Unit.Active != "inactive" {
			t.Errorf("a service that is down:\n%s", st.text)
		}
		s.run("systemctl", "start", "hello.service")
		s.mustRun(n)
	})
}
