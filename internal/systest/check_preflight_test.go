package systest

import (
	"strings"
	"testing"

	"github.com/zdt-dev/zdt/internal/guest"
	"github.com/zdt-dev/zdt/upgrade"
)

// A blocker refuses an upgrade, of one service and of all instances of a template, attached and detached, unless somebody takes
// the risk, which is noted; but not one to what serves already, which has nothing to do. The upgrade that is bound to fail fails then.
func TestAcceptRisk(t *testing.T) {
	t.Parallel()
	g := guest.Boot(t, guest.Trixie)
	f := newFleet(t, g)
	f.writeUnit("/etc/systemd/system/hello@.service.d/sandbox.conf", "[Service]\nNoExecPaths=/var/lib/zdt\nExecPaths=/var/lib/zdt/%p@%i/current\n")
	f.run("systemctl", "daemon-reload")
	f.run("systemctl", "restart", "hello@1", "hello@2", "hello@3")
	f.mustAnswer(1, 1, 1)
	one, two := f.put(good(1)), f.put(good(2))

	f.roll("upgrade", "hello@", "--binary", one).mustBe("unchanged", 0, "unchanged", "unchanged", "unchanged")
	f.roll("upgrade", "hello@", "--binary", two).mustBe("refused", 10, "failed", "failed", "failed")
	f.must(64, "zdt", "upgrade", "hello@", "--binary", two, "--accept-risk", "ZDT999")
	f.roll("upgrade", "hello@", "--binary", two, "--accept-risk", "ZDT022").mustBe("refused", 10, "failed", "failed", "failed")
	f.mustAnswer(1, 1, 1)
	r := f.roll("upgrade", "hello@", "--binary", two, "--accept-risk", "zdt023", "--no-rehearse")
	if report := r.Instances[0].Report; r.Outcome != "stopped" || report == nil || report.Phase == upgrade.Preflight || strings.Join(report.AcceptedRisks, " ") != "ZDT023" {
		t.Errorf("accepted: %s", r.exec)
	}

	s := f.all[1]
	s.must(10, "zdt", "upgrade", s.name, "--binary", two, "--detach")
	s.must(0, "zdt", "upgrade", s.name, "--binary", two, "--detach", "--accept-risk", "ZDT023", "--no-rehearse")
	if r := s.waitFor(11); r.Outcome != upgrade.RolledBack || strings.Join(r.AcceptedRisks, " ") != "ZDT023" {
		t.Errorf("detached: %+v", r)
	}
	if r := s.upgradeFile(one); r.exec.Code != 0 || r.Outcome != upgrade.Unchanged || len(r.Findings) != 1 || len(r.AcceptedRisks) != 0 {
		t.Errorf("to what serves: %s", r.exec)
	}

	// The unit may take it once and for all.
	s.upgradeFile(two).mustBe(upgrade.Refused, 10)
	f.writeUnit("/etc/systemd/system/hello@.service.d/risk.conf", "[X-Zdt]\nAcceptRisk=ZDT023\n")
	f.run("systemctl", "daemon-reload")
	s.upgradeFile(two).mustBe(upgrade.RolledBack, 11)
	if found := s.check(0); len(found) != 1 || !found[0].Accepted {
		t.Errorf("accepted by the unit: %+v", found)
	}
	f.mustAnswer(1, 1, 1)
}
